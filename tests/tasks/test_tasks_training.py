"""Every task trained from data to results: the loss falls, and the metrics are what one would compute from the predictions."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, mean_squared_error, r2_score

from tests.kit.task_toys import (
    CLASSES,
    PAD,
    PlainEncoderDecoder,
    PlainHead,
    PlainImages,
    amount_of,
    class_of,
    classes_in,
    collate,
    id_rows,
    masked,
    reversed_ids,
    samples_of,
    seeded,
    tags_of,
    tiny_bert,
    tiny_t5,
)
from tests.kit.toys import assert_same_run, golden_config, tiny_gpt
from utils.errors import ConfigError, DataError, ModelError
from utils.training import Callback, TaskSpec, Trainer, TrainingConfig
from utils.training.engine import pending_steps
from utils.training.engine import trainer as trainer_module
from utils.training.engine.checkpointing.store import read_checkpoint
from utils.training.samples import SamplePredictions, SampleTexts, as_prompt_and_text, read_samples
from utils.ui import show_samples

TRAIN, VALIDATION = id_rows(48), id_rows(10, seed=4)


def images_of(count, seed):
    """Images of noise with one bright quarter, and which one it is."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, 1, 6, 6, generator=generator)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[:, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3] += 1
    return [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, labels, strict=True)]


def two_amounts(row):
    return torch.stack([amount_of(row), row.float().std() / 8])


def labelled(label):
    return samples_of(TRAIN, label), samples_of(VALIDATION, label)


MASKED = [masked(row) for row in TRAIN], [masked(row) for row in VALIDATION]
IMAGES = images_of(48, 5), images_of(10, 6)
#: name -> model, spec, (train, validation), metrics besides the loss
CASES = {
    "masked_lm": (lambda: tiny_bert("ForMaskedLM"), None, MASKED, {"perplexity", "accuracy"}),
    "seq2seq": (tiny_t5, None, labelled(reversed_ids), {"perplexity", "accuracy"}),
    "seq2seq, plain": (
        lambda: seeded(PlainEncoderDecoder), TaskSpec.seq2seq(pad_token_id=PAD), labelled(reversed_ids),
        {"perplexity", "accuracy"},
    ),
    "text_classification": (
        lambda: tiny_bert("ForSequenceClassification", num_labels=CLASSES), None, labelled(class_of), {"accuracy", "f1_macro"},
    ),
    "multi-label": (
        lambda: seeded(lambda: PlainHead(CLASSES)), None, labelled(classes_in), {"accuracy", "f1_micro", "f1_macro"},
    ),
    "token_classification": (
        lambda: seeded(lambda: PlainHead(CLASSES, each=True)), TaskSpec.token_classification(), labelled(tags_of),
        {"accuracy", "f1_macro"},
    ),
    "image_classification": (lambda: seeded(PlainImages), None, IMAGES, {"accuracy", "f1_macro"}),
    "regression": (
        lambda: tiny_bert("ForSequenceClassification", num_labels=1), None, labelled(amount_of), {"mse", "rmse", "mae", "r2"},
    ),
    "two amounts": (lambda: seeded(lambda: PlainHead(2)), None, labelled(two_amounts), {"mse", "rmse", "mae", "r2"}),
}  # fmt: skip


def collate_any(samples):
    return torch.utils.data.default_collate(samples) if "pixel_values" in samples[0] else collate(samples)


def config_of(**changes):
    settings = {
        "epochs": 4,
        "learning_rate": 1e-2,
        "precision": "32",
        "early_stopping_patience": None,
        "run_name": "task",
    }
    return golden_config(**{**settings, **changes})


def trained(case, *callbacks, **changes):
    make, spec, (train, validation), _ = CASES[case]
    trainer = Trainer(make(), None, config_of(**changes), spec, data_collator=collate_any, callbacks=callbacks)
    return trainer.train(train, validation, resume_from=changes.get("resume_from"))


@pytest.fixture(scope="module")
def results_of(tmp_path_factory):
    """Results of each case, trained once."""
    known = {}

    def get(case):
        if case not in known:
            folder = tmp_path_factory.mktemp("run")
            known[case] = trained(case, output_dir=str(folder), epochs=6)
        return known[case]

    return get


@torch.no_grad()
def outputs_and_labels(results, case):
    samples = CASES[case][2][1]
    batch = collate_any(samples)
    model = results.model.eval()
    names = {"input_ids": "tokens", "pixel_values": "images"} if not hasattr(model, "config") else {}
    inputs = {names.get(name, name): value for name, value in batch.items() if name != "labels"}
    outputs = model(**inputs)
    return outputs if isinstance(outputs, torch.Tensor) else outputs.logits, batch["labels"]


@pytest.mark.parametrize("case", CASES)
def test_the_loss_falls_and_the_task_has_its_metrics(case, results_of):
    results = results_of(case)
    assert results.loss_history[-1] < 0.9 * results.loss_history[0]
    wanted = {"loss"} | CASES[case][3]
    for prefix in ("train", "val"):
        found = {name.split("/")[1] for name in results.final_metrics if name.startswith(f"{prefix}/")}
        assert found - {"learning_rate", "grad_norm"} == wanted
    assert (results.final_perplexity is None) == ("perplexity" not in wanted)
    assert ("perplexity" in results.summary()["validation loss"]) == ("perplexity" in wanted)


@pytest.mark.parametrize("case", ["text_classification", "image_classification", "token_classification"])
def test_accuracy_and_f1_are_those_of_the_predictions(case, results_of):
    results = results_of(case)
    outputs, labels = outputs_and_labels(results, case)
    scored = labels.flatten() != -100
    guesses, true = outputs.argmax(-1).flatten()[scored].numpy(), labels.flatten()[scored].numpy()
    assert results.final_metrics["val/accuracy"] == pytest.approx(accuracy_score(true, guesses))
    assert results.final_metrics["val/f1_macro"] == pytest.approx(f1_score(true, guesses, average="macro"))


def test_several_classes_are_right_together_or_not_at_all(results_of):
    results = results_of("multi-label")
    outputs, labels = outputs_and_labels(results, "multi-label")
    guesses, true = (outputs > 0).numpy(), labels.bool().numpy()
    found = results.final_metrics
    assert 0 < found["val/accuracy"] == pytest.approx(accuracy_score(true, guesses))
    assert found["val/f1_micro"] == pytest.approx(f1_score(true, guesses, average="micro"))
    assert found["val/f1_macro"] == pytest.approx(f1_score(true, guesses, average="macro"))
    assert found["val/accuracy"] < found["val/f1_micro"]


@pytest.mark.parametrize("case", ["regression", "two amounts"])
def test_the_errors_of_amounts(case, results_of):
    results = results_of(case)
    outputs, labels = outputs_and_labels(results, case)
    guesses, true = outputs.reshape(len(labels), -1).numpy(), labels.reshape(len(labels), -1).numpy()
    found = results.final_metrics
    assert found["val/mse"] == found["val/loss"] == pytest.approx(mean_squared_error(true, guesses), rel=1e-5)
    assert found["val/rmse"] == pytest.approx(mean_squared_error(true, guesses) ** 0.5, rel=1e-5)
    assert found["val/mae"] == pytest.approx(mean_absolute_error(true, guesses), rel=1e-5)
    assert found["val/r2"] == pytest.approx(r2_score(true, guesses), rel=1e-4)


def test_amounts_that_are_all_the_same_have_no_r2():
    samples = [{"input_ids": row, "labels": torch.tensor(0.1)} for row in VALIDATION]
    trainer = Trainer(seeded(lambda: PlainHead(1)), None, config_of(epochs=1), data_collator=collate)
    found = trainer.train(samples, samples).final_metrics
    assert "val/r2" not in found
    assert found["val/mae"] > 0


def test_the_score_of_masked_tokens_is_theirs_alone(results_of):
    results = results_of("masked_lm")
    outputs, labels = outputs_and_labels(results, "masked_lm")
    scored = labels != -100
    right = (outputs.argmax(-1) == labels)[scored].double().mean()
    assert results.final_metrics["val/accuracy"] == pytest.approx(float(right))


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, step, trainer, logs=None):
        if step == self.step:
            trainer.request_stop("requested")


@pytest.mark.parametrize("case", ["masked_lm", "text_classification"])
@pytest.mark.parametrize("step", [2, 5])
def test_a_run_that_stops_in_mid_epoch_goes_on_to_the_last_bit(case, step):
    _, spec, (train, validation), _ = CASES[case]
    head, more = ("ForMaskedLM", {}) if case == "masked_lm" else ("ForSequenceClassification", {"num_labels": CLASSES})

    def trainer(*callbacks, **changes):
        model = tiny_bert(head, dropout=0.1, **more)
        config = config_of(epochs=2, **changes)
        return Trainer(model, None, config, spec, data_collator=collate, callbacks=callbacks)

    whole = trainer(run_name="whole").train(train, validation)
    part = trainer(StopAt(step), run_name="parts").train(train, validation)
    assert part.steps == step
    assert part.state.samples_done
    rest = trainer(run_name="parts").train(train, validation, resume_from="auto")
    assert_same_run(whole, rest)
    assert rest.final_metrics == whole.final_metrics


def test_the_best_model_can_be_the_one_with_the_best_f1():
    results = trained("text_classification", epochs=2, monitor="val/f1_macro", mode="max")
    assert results.best_value == max(row["val/f1_macro"] for row in results.evaluate_rows)
    with pytest.raises(ValueError, match="mode='max'"):
        TrainingConfig(monitor="val/f1_macro")


@pytest.mark.parametrize("case", ["text_classification", "two amounts"])
def test_counts_that_are_read_late_are_the_same(case, monkeypatch):
    """As on a GPU: the host reads the numbers of several steps at once."""
    prompt = trained(case, run_name="prompt", max_grad_norm=0.0)
    original = trainer_module.assemble

    def guarded(*arguments, **named):
        parts = original(*arguments, **named)
        parts.guard = torch.zeros(3)
        return parts

    monkeypatch.setattr(trainer_module, "assemble", guarded)
    monkeypatch.setattr(pending_steps, "_READ_EVERY", 5)
    assert_same_run(prompt, trained(case, run_name="late", max_grad_norm=0.0))


# ---- what does not fit ----


def refused(model, samples, says, spec=None, error=(DataError, ModelError)):
    before = [parameter.clone() for parameter in model.parameters()]
    trainer = Trainer(model, None, config_of(epochs=1), spec, data_collator=collate_any)
    with pytest.raises(error, match=says):
        trainer.train(samples)
    assert trainer.run_dir is None  # before a run's folder was made
    assert all(torch.equal(mine, was) for mine, was in zip(model.parameters(), before, strict=True))


def classifier(outputs=CLASSES, **settings):
    return seeded(lambda: PlainHead(outputs, **settings))


def test_a_label_that_is_no_class_is_named_with_the_classes_there_are():
    samples = samples_of(TRAIN, class_of)
    for label in (7, -1):
        samples[30]["labels"] = label
        refused(
            classifier(),
            samples,
            rf"sample 30 has the label {label}, but the model scores 4 classes: labels are 0 to 3",
        )
    tags = samples_of(TRAIN, tags_of)
    tags[3]["labels"][2] = 9
    refused(classifier(each=True), tags, r"sample 3 has the label 9 at position 2", TaskSpec.token_classification())


def test_another_number_of_classes_than_the_model_has():
    spec = TaskSpec.classification(num_classes=3)
    few = samples_of(TRAIN, lambda row: class_of(row) % 3)
    refused(classifier(), few, r"PlainHead scores 4 classes, but the task has num_classes=3", spec)
    refused(
        classifier(3), samples_of(TRAIN, classes_in), r"PlainHead scores 3 classes, but each sample has 4 labels",
        TaskSpec.classification(multi_label=True),
    )  # fmt: skip
    refused(classifier(3), samples_of(TRAIN, amount_of), r"returned \(1, 3\); the labels are \(1,\)")


def test_labels_and_outputs_of_another_shape():
    refused(
        classifier(), samples_of(TRAIN, tags_of), r"classes from 0 on; the batch has .*labels \(1, \d\) int64",
        TaskSpec.classification(),
    )  # fmt: skip
    refused(
        classifier(each=True), samples_of(TRAIN, class_of), r"logits of shape \(1, \d, 4\); text_classification needs \(B=1, C\)",
        TaskSpec.classification(num_classes=4),
    )  # fmt: skip
    refused(
        classifier(), samples_of(TRAIN, tags_of), r"logits of shape \(1, 4\); classifying tokens needs \(B=1, T=\d, C\)",
        TaskSpec.token_classification(),
    )  # fmt: skip
    refused(
        tiny_bert("ForMaskedLM"), samples_of(TRAIN, class_of), r"predicting masked tokens needs labels: \(B, T\)",
    )  # fmt: skip


def test_fractions_where_classes_are_needed():
    refused(
        classifier(), samples_of(TRAIN, amount_of), r"needs whole numbers as labels.*float32 of shape \(1,\).*regression",
        TaskSpec.classification(),
    )  # fmt: skip
    samples = samples_of(TRAIN, lambda row: classes_in(row) * 2)
    refused(classifier(), samples, "must be from 0 to 1; got 2", TaskSpec.classification(multi_label=True))


def test_an_encoder_decoder_without_a_padding_id_says_where_to_give_one():
    refused(
        seeded(PlainEncoderDecoder),
        labelled(reversed_ids)[0],
        r"without pad_token_id.*TaskSpec\.seq2seq",
        TaskSpec.seq2seq(),
    )
    model = tiny_t5()
    model.config.decoder_start_token_id = None
    refused(model, labelled(reversed_ids)[0], r"without decoder_start_token_id.*T5ForConditionalGeneration\.config")


# ---- samples ----


class Letters:
    """A tokenizer for the toys: id i is the letter i."""

    eos_token_id, pad_token_id = 2, PAD

    def encode(self, text):
        return [ord(letter) - 65 for letter in text]

    def decode(self, ids):
        return "".join(chr(65 + int(token)) for token in ids)


@pytest.mark.parametrize("case", CASES)
def test_predictions_for_the_same_samples_are_kept_at_every_validation(case, capsys):
    make, spec, (train, validation), _ = CASES[case]

    def run(name, *callbacks):
        trainer = Trainer(
            make(), None, config_of(epochs=2, run_name=name), spec, tokenizer=Letters(), data_collator=collate_any,
            callbacks=callbacks,
        )  # fmt: skip
        return trainer.train(train, validation)

    told = []
    seen = run("seen", SamplePredictions(tell=lambda *what: told.append(what)), SampleTexts(Letters(), ["ABC"]))
    rows = read_samples(seen.run_dir)
    assert [row["step"] for row in rows] == [step for step, _ in told] == [4, 8]
    assert not any(notice.startswith("No sample") for notice in seen.notices)
    first, last = (row["samples"] for row in rows)
    assert [(s["input"], s["true"]) for s in first] == [(s["input"], s["true"]) for s in last]
    assert all(s["predicted"] for s in last)
    assert all(s["score"] is None or 0 < s["score"] <= 1 for s in last)
    prompt, text = as_prompt_and_text(last[0])
    assert text.startswith(f"{prompt} → {last[0]['predicted']} (true: {last[0]['true']}")
    assert_same_run(run("unseen"), seen)  # looking changes nothing that is learned
    show_samples(seen)
    assert last[0]["predicted"] in capsys.readouterr().out


def test_a_sample_shows_the_text_without_padding_and_the_names_of_classes():
    model = tiny_bert("ForSequenceClassification", num_labels=CLASSES, id2label=dict(enumerate("NESW")), label2id={})
    trainer = Trainer(
        model,
        None,
        config_of(epochs=6),
        tokenizer=Letters(),
        data_collator=collate,
        callbacks=[SamplePredictions(count=10)],
    )
    results = trainer.train(samples_of(TRAIN, class_of), samples_of(VALIDATION, class_of))
    samples = read_samples(results.run_dir)[-1]["samples"]
    assert [sample["input"] for sample in samples] == [Letters().decode(row) for row in VALIDATION]
    assert [sample["true"] for sample in samples] == ["NESW"[class_of(row)] for row in VALIDATION]
    right = sum(sample["true"] == sample["predicted"] for sample in samples)
    assert right / 10 == pytest.approx(results.final_metrics["val/accuracy"])


@pytest.mark.parametrize("case", CASES)
def test_the_metrics_of_a_task_can_be_monitored_and_no_others(case, results_of):
    produced = results_of(case).final_metrics
    for prefix in ("train", "val"):
        with pytest.raises(ConfigError) as caught:
            trained(case, monitor=f"{prefix}/losss")
        message = str(caught.value)
        assert f"did you mean {prefix}/loss?" in message
        listed = message.partition("this run has ")[2].partition(";")[0].split(", ")
        assert {name for name in produced if name.startswith(prefix)} <= set(listed)
    metric = sorted(CASES[case][3])[0]
    results = trained(case, epochs=2, run_name="monitored", monitor=f"val/{metric}", mode=GROWS.get(metric, "min"))
    pick = max if metric in GROWS else min
    assert results.best_value == pick(row[f"val/{metric}"] for row in results.evaluate_rows)
    assert read_checkpoint(results.best_model_path)["state"]["epoch"] == results.best_epoch


GROWS = dict.fromkeys(("accuracy", "f1_micro", "f1_macro", "r2"), "max")


SMOOTHED = {
    "causal_lm": (lambda: tiny_gpt(), TaskSpec.language_modeling(), [{"input_ids": row} for row in VALIDATION]),
    "masked_lm": (lambda: tiny_bert("ForMaskedLM"), TaskSpec.masked_lm(pad_token_id=PAD), MASKED[1]),
    "seq2seq": (tiny_t5, TaskSpec.seq2seq(pad_token_id=PAD), samples_of(VALIDATION, reversed_ids)),
}  # fmt: skip


@pytest.mark.parametrize("fused", ["on", "off"])
@pytest.mark.parametrize("kind", SMOOTHED)
def test_perplexity_and_accuracy_do_not_depend_on_label_smoothing(kind, fused):
    make, spec, samples = SMOOTHED[kind]
    found = {}
    for smoothing in (0.0, 0.2):
        # A learning rate that moves nothing, so that both runs score the same weights.
        config = golden_config(
            epochs=1, label_smoothing=smoothing, fused_loss="off" if kind == "seq2seq" else fused, learning_rate=1e-12,
            precision="32", run_name=f"smoothing-{smoothing}",
        )  # fmt: skip
        results = Trainer(make(), None, config, spec, tokenizer=None).train(samples, samples)
        found[smoothing] = results
    plain, smoothed = (found[smoothing].history[0] for smoothing in (0.0, 0.2))
    for name in ("val/perplexity", "val/accuracy"):
        assert smoothed[name] == pytest.approx(plain[name], rel=1e-4)
    assert smoothed["val/loss"] != pytest.approx(plain["val/loss"], rel=1e-4)
    assert smoothed["train/perplexity"] != pytest.approx(math.exp(smoothed["train/loss"]), rel=1e-4)
    assert found[0.2].final_perplexity == pytest.approx(plain["val/perplexity"], rel=1e-4)
    assert f"perplexity {plain['val/perplexity']:.1f}" in found[0.2].summary()["validation loss"]
