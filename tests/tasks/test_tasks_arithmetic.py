"""Losses and gradients of every task against a naive loop in double precision, one sample at a time and without padding."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import f1_score, r2_score

from tests.kit.task_toys import (
    CLASSES,
    PAD,
    PlainEncoderDecoder,
    PlainHead,
    amount_of,
    class_of,
    classes_in,
    id_rows,
    masked,
    padded,
    reversed_ids,
    samples_of,
    seeded,
    tags_of,
    tiny_bert,
    tiny_t5,
)
from tests.kit.toys import golden_config
from utils.training.engine.compute.assembly import assemble
from utils.training.engine.loss.tasks import (
    MaskedLM,
    MultiLabelClassification,
    Regression,
    Seq2Seq,
    TextClassification,
    TokenClassification,
)
from utils.training.engine.loss.tasks.classes import class_loss, f1_macro, f1_micro
from utils.training.engine.metrics import Sums
from utils.training.engine.step import train_step

ROWS = id_rows(10)


def logits_of(model, **inputs):
    outputs = model(**inputs) if "input_ids" in inputs else model(*inputs.values())
    return outputs if isinstance(outputs, torch.Tensor) else outputs.logits


def cross_entropy(logits, label, smoothing):
    log_probabilities = logits.log_softmax(-1)
    return -(1 - smoothing) * log_probabilities[label] - smoothing * log_probabilities.mean()


def by_position(logits, labels, smoothing):
    scored = [position for position, label in enumerate(labels.tolist()) if label != -100]
    return sum(cross_entropy(logits[at], labels[at], smoothing) for at in scored), len(scored)


def naive_tokens(model, sample, smoothing):
    return by_position(logits_of(model, input_ids=sample["input_ids"][None])[0], sample["labels"], smoothing)


def naive_seq2seq(model, sample, smoothing):
    ids, labels = sample["input_ids"][None], sample["labels"]
    shifted = torch.tensor([[PAD, *labels[:-1].tolist()]])
    inputs = {"input_ids": ids, "decoder_input_ids": shifted, "attention_mask": torch.ones_like(ids)}
    return by_position(logits_of(model, **inputs)[0], labels, smoothing)


def naive_class(model, sample, smoothing):
    return cross_entropy(called(model, sample), sample["labels"], smoothing), 1


def naive_multi_label(model, sample, smoothing):
    labels = sample["labels"].double() * (1 - smoothing) + smoothing / 2
    chances = called(model, sample).sigmoid()
    return -(labels * chances.log() + (1 - labels) * (1 - chances).log()).sum(), CLASSES


def naive_regression(model, sample, smoothing):
    labels = sample["labels"].double().reshape(-1)
    return sum((called(model, sample).reshape(-1) - labels) ** 2), len(labels)


def called(model, sample):
    name = "tokens" if isinstance(model, PlainHead) else "input_ids"
    outputs = model(**{name: sample["input_ids"][None]})
    return (outputs if isinstance(outputs, torch.Tensor) else outputs.logits)[0]


def naive_tags(model, sample, smoothing):
    return by_position(called(model, sample), sample["labels"], smoothing)


def two_amounts(row):
    return torch.stack([amount_of(row), row.float().std() / 8])


MASKED_ROWS = [masked(row) for row in ROWS]
CASES = {
    "masked lm, fused": (lambda: tiny_bert("ForMaskedLM"), MaskedLM, {"fused": "on"}, MASKED_ROWS, naive_tokens),
    "masked lm, plain": (lambda: tiny_bert("ForMaskedLM"), MaskedLM, {"fused": "off"}, MASKED_ROWS, naive_tokens),
    "t5, fused": (tiny_t5, Seq2Seq, {"fused": "on"}, samples_of(ROWS, reversed_ids), naive_seq2seq),
    "t5, plain": (tiny_t5, Seq2Seq, {"fused": "off"}, samples_of(ROWS, reversed_ids), naive_seq2seq),
    "t5, not tied": (lambda: tiny_t5(tied=False), Seq2Seq, {"fused": "on"}, samples_of(ROWS, reversed_ids), naive_seq2seq),
    "plain encoder-decoder": (
        lambda: seeded(PlainEncoderDecoder), Seq2Seq, {"fused": "on", "pad_token_id": PAD}, samples_of(ROWS, reversed_ids),
        naive_seq2seq,
    ),
    "classes": (
        lambda: tiny_bert("ForSequenceClassification", num_labels=CLASSES), TextClassification, {"num_classes": CLASSES},
        samples_of(ROWS, class_of), naive_class,
    ),
    "classes, plain module": (
        lambda: seeded(lambda: PlainHead(CLASSES)), TextClassification, {}, samples_of(ROWS, class_of), naive_class,
    ),
    "several classes": (
        lambda: tiny_bert("ForSequenceClassification", num_labels=CLASSES), MultiLabelClassification,
        {"num_classes": CLASSES}, samples_of(ROWS, classes_in), naive_multi_label,
    ),
    "tags": (
        lambda: tiny_bert("ForTokenClassification", num_labels=CLASSES), TokenClassification, {"num_classes": CLASSES},
        samples_of(ROWS, tags_of), naive_tags,
    ),
    "tags, plain module": (
        lambda: seeded(lambda: PlainHead(CLASSES, each=True)), TokenClassification, {}, samples_of(ROWS, tags_of), naive_tags,
    ),
    "an amount": (
        lambda: tiny_bert("ForSequenceClassification", num_labels=1), Regression, {}, samples_of(ROWS, amount_of),
        naive_regression,
    ),
    "an amount without a dimension": (
        lambda: seeded(lambda: PlainHead(1, squeeze=True)), Regression, {}, samples_of(ROWS, amount_of), naive_regression,
    ),
    "two amounts": (
        lambda: seeded(lambda: PlainHead(2)), Regression, {"num_outputs": 2}, samples_of(ROWS, two_amounts), naive_regression,
    ),
}  # fmt: skip


def batches_of(samples, filler=PAD):
    """Micro-batches of 4, 4 and 2 samples."""
    return [
        padded([sample["input_ids"] for sample in chunk], [sample["labels"] for sample in chunk], filler)
        for chunk in (samples[:4], samples[4:8], samples[8:])
    ]


def stepped(model, task, batches):
    parts = assemble(model, task, golden_config(precision="32", learning_rate=1e-9), total_steps=10)
    return train_step(parts, batches, max_grad_norm=0.0)


@pytest.mark.parametrize(
    ("case", "smoothing"),
    [
        (case, smoothing)
        for case in CASES
        for smoothing in (0.0, 0.2)
        if not smoothing or CASES[case][1] is not Regression
    ],
)
def test_loss_and_gradients_of_accumulated_ragged_micro_batches(case, smoothing):
    make, kind, settings, samples, naive = CASES[case]
    reference = make().double().eval()
    parts = [naive(reference, sample, smoothing) for sample in samples]
    count = sum(number for _, number in parts)
    loss = sum(part for part, _ in parts) / count
    loss.backward()

    model = make()
    smooth = {} if kind is Regression else {"label_smoothing": smoothing}
    result = stepped(model, kind(**settings, **smooth), batches_of(samples))
    assert result.num_targets == count
    assert result.numbers.loss_sum / count == pytest.approx(loss.item(), rel=1e-5)
    for (name, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        wanted = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        got = torch.zeros_like(mine) if mine.grad is None else mine.grad
        torch.testing.assert_close(
            got.double(), wanted, rtol=3e-4, atol=3e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("case", CASES)
def test_what_padding_holds_changes_nothing(case):
    make, kind, settings, samples, _ = CASES[case]
    results = []
    for filler in (PAD, 7):
        model = make()
        result = stepped(model, kind(**settings), batches_of(samples, filler))
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        results.append(([result.numbers.loss_sum, *result.numbers.counts, result.numbers.norm], gradients))
    (first, mine), (second, theirs) = results
    assert first == pytest.approx(second, rel=1e-6)
    for here, there in zip(mine, theirs, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "label"), [(TextClassification, class_of), (MultiLabelClassification, classes_in), (Regression, amount_of)]
)
def test_a_label_that_is_not_known_is_not_scored(kind, label):
    """-100, or NaN where labels are fractions: the sample might as well not be there."""
    samples = samples_of(ROWS, label)
    outputs = 1 if kind is Regression else CLASSES
    known, all_of_them = (seeded(lambda: PlainHead(outputs)) for _ in range(2))
    batch = padded([sample["input_ids"] for sample in samples], [sample["labels"] for sample in samples])
    unknown = -100 if kind is TextClassification else float("nan")
    batch["labels"][3:] = unknown
    fewer = stepped(known, kind(), [padded([s["input_ids"] for s in samples[:3]], [s["labels"] for s in samples[:3]])])
    all_rows = stepped(all_of_them, kind(), [batch])
    assert all_rows.num_targets == fewer.num_targets
    assert all_rows.numbers.loss_sum == pytest.approx(fewer.numbers.loss_sum, rel=1e-6)
    for mine, theirs in zip(known.parameters(), all_of_them.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_only_masked_positions_are_given_logits(monkeypatch):
    """The product with the output layer has as many rows as there are masked positions."""
    from utils.training.engine.loss import fused as fused_loss

    seen = []
    real = fused_loss.linear_cross_entropy

    def counted(hidden_ND, *rest):
        seen.append(len(hidden_ND))
        return real(hidden_ND, *rest)

    monkeypatch.setattr(fused_loss, "linear_cross_entropy", counted)
    result = stepped(tiny_bert("ForMaskedLM"), MaskedLM(fused="on"), batches_of(MASKED_ROWS))
    assert sum(seen) == result.num_targets == sum(int((row["labels"] != -100).sum()) for row in MASKED_ROWS)


def test_classes_that_never_occur_have_no_part_in_f1():
    true, guesses = [0, 0, 2, 2, 2], [0, 2, 2, 2, 0]
    logits_NC = torch.nn.functional.one_hot(torch.tensor(guesses), 5).float()
    loss = class_loss(logits_NC, torch.tensor(true), len(true), 0.0, by_class=True)
    sums = Sums(1.0, len(true), counts={name: values.flatten().tolist() for name, values in loss.counts.items()})
    assert f1_macro(sums) == pytest.approx(f1_score(true, guesses, average="macro"))
    assert f1_micro(sums) == pytest.approx(f1_score(true, guesses, average="micro"))


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_r2_of_amounts_far_from_zero(offset):
    """From sums alone, without a second look at the labels."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(50, generator=generator) + offset
    guesses = true + 0.5 * torch.randn(50, generator=generator)
    task = Regression(1)
    counts = task._counts((guesses - true)[:, None], true[:, None], torch.ones(50, 1, dtype=torch.bool))
    loss = float((guesses - true).double().square().sum())
    sums = Sums(loss, 50, counts={name: values.flatten().tolist() for name, values in counts.items()})
    assert task.metrics(sums)["r2"] == pytest.approx(r2_score(true.double(), guesses.double()), rel=1e-6)
