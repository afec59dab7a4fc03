"""Findings about tables, images and token ids: each on every kind of data that can have it, and none on healthy data."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from utils.checks import check_data_quality
from utils.data.quality.inspection import Expectations, Sample, inspect_samples
from utils.errors import DataTypeError
from utils.training import TaskSpec, Trainer, TrainingConfig


class Rows(Dataset):
    """A dataset of somebody's own, with a generator of its own that every row draws from."""

    def __init__(self, inputs, labels) -> None:
        self.inputs, self.labels, self.generator = inputs, labels, np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int):
        self.generator.random()
        return self.inputs[index], self.labels[index]


def hugging_face(inputs, labels):
    from datasets import Dataset as HubDataset

    return HubDataset.from_dict({"pixel_values": inputs.numpy(), "labels": labels.numpy()}).with_format("torch")


CARRIERS = {
    "TensorDataset": TensorDataset,
    "DataLoader": lambda inputs, labels: DataLoader(TensorDataset(inputs, labels), batch_size=16, shuffle=True),
    "Dataset": Rows,
    "list": lambda inputs, labels: list(zip(inputs, labels, strict=True)),
    "arrays": lambda inputs, labels: (inputs.numpy(), labels.numpy()),
    "datasets.Dataset": hugging_face,
}


def table(rows: int = 200, features: int = 6, classes: int = 3, seed: int = 0):
    """Standardised features around one centre a class, and the classes in random order."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    inputs = centres[labels] + torch.randn(rows, features, generator=generator)
    return inputs, labels


def images(rows: int = 200, seed: int = 0):
    inputs, labels = table(rows, 144, 3, seed)
    return torch.sigmoid(inputs).reshape(rows, 1, 12, 12), labels


def causes(report) -> set[str]:
    return {finding.cause for result in report.results for finding in result.findings}


def of(samples, validation=None, carrier: str = "TensorDataset", **options) -> set[str]:
    make = CARRIERS[carrier]
    held_out = None if validation is None else make(*validation)
    return causes(check_data_quality(make(*samples), validation=held_out, **options))


def constant(samples):
    return samples[0], torch.full_like(samples[1], 2)


def from_one(samples):
    return samples[0], samples[1] + 1


def mostly_one_class(samples):
    labels = samples[1].clone()
    labels[torch.arange(len(labels)) % 33 != 0] = 0
    return samples[0], labels


def sorted_by_class(samples):
    order = samples[1].argsort(stable=True)
    return samples[0][order], samples[1][order]


def with_nan(samples):
    inputs = samples[0].clone()
    inputs[5] = float("nan")
    return inputs, samples[1]


def times_255(samples):
    return samples[0] * 255, samples[1]


def partly_255(samples):
    inputs = samples[0].clone()
    inputs[::3] *= 255
    return inputs, samples[1]


def eight_rows(samples):
    return samples[0][:8].repeat(25, *[1] * (samples[0].dim() - 1)), samples[1][:8].repeat(25)


def contradicting(samples):
    inputs, labels = eight_rows(samples)
    return inputs, labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]


FAULTS = {
    "constant": constant, "counted from 1": from_one, "imbalance": mostly_one_class, "sorted": sorted_by_class,
    "not finite": with_nan, "not normalised": times_255, "mixed scales": partly_255, "duplicates": eight_rows,
    "contradictions": contradicting,
}  # fmt: skip


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("kind", [table, images], ids=["table", "images"])
@pytest.mark.parametrize("cause", FAULTS)
def test_a_fault_of_one_part_is_named_on_every_carrier(cause, kind, carrier):
    assert cause in of(FAULTS[cause](kind()), carrier=carrier)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("kind", [table, images], ids=["table", "images"])
def test_healthy_tables_and_images_have_no_finding_on_any_carrier(kind, carrier):
    assert of(kind(), kind(seed=1), carrier) == set()


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("kind", [table, images], ids=["table", "images"])
def test_faults_between_the_parts_are_named_on_every_carrier(kind, carrier):
    inputs, labels = kind()
    other, other_labels = kind(seed=1)
    assert "scale" in of((inputs, labels), (other * 255, other_labels), carrier)
    assert "range" in of((inputs, labels), (other + 40, other_labels), carrier)
    assert "validation rows in training" in of((inputs, labels), (torch.cat([other, inputs[:40]]), torch.cat([other_labels, labels[:40]])), carrier)
    ordered, ordered_labels = sorted_by_class((inputs, labels))
    assert "validation classes" in of((ordered[:150], ordered_labels[:150]), (ordered[150:], ordered_labels[150:]), carrier)


def test_features_of_other_scales_constant_columns_and_the_label_among_them():
    inputs, labels = table()
    large = inputs.clone()
    large[:, 3] *= 1e5
    report = check_data_quality(TensorDataset(large, labels))
    assert causes(report) == {"feature scales"}
    assert "column 3" in report["inputs"].summary
    small = inputs.clone()
    small[:, 2] *= 1e-5
    assert of((small, labels)) == {"feature scales"}
    same = inputs.clone()
    same[:, 1] = 7.3
    assert of((same, labels)) == {"constant columns"}
    zeros = inputs.clone()
    zeros[:, :4] = 0.0
    assert of((zeros, labels)) == {"constant columns"}
    padded = torch.cat([inputs, torch.zeros(200, 2), torch.ones(200, 1)], dim=1)  # absent categories and a bias
    assert of((padded, labels)) == set()
    rare = (torch.rand(200, 40, generator=torch.Generator().manual_seed(1)) < 0.01).float() * torch.linspace(0, 1, 40).round()
    assert "constant columns" not in of((torch.cat([inputs[:, :1], rare], dim=1), labels))  # counts of words
    leaking = torch.cat([inputs, labels[:, None].float() * 2 - 1], dim=1)
    assert of((leaking, labels)) == {"label in features"}
    amounts = inputs.sum(dim=1) + 0.1 * torch.randn(200, generator=torch.Generator().manual_seed(3))
    assert of((torch.cat([inputs, amounts[:, None]], dim=1), amounts)) == {"label in features"}


def test_a_validation_column_of_another_distribution_is_named():
    inputs, labels = table()
    other, other_labels = table(seed=1)
    other[:, 4] += 2.5
    assert of((inputs, labels), (other, other_labels)) == {"distribution"}


class Net(nn.Module):
    """Features to scores, through what is given before and after."""

    def __init__(self, outputs: int, before: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [before or nn.Identity(), nn.Flatten(), nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, outputs), after or nn.Identity()]
        self.layers = nn.Sequential(*layers)

    def forward(self, features):
        return self.layers(features)


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values):
        return values * self.factor


def net(inputs, *arguments, **options) -> Net:
    model = Net(*arguments, **options)
    model(inputs[:2])
    return model


def test_labels_are_compared_with_the_scores_of_model_or_task():
    inputs, labels = table()
    assert of((inputs, labels), model=net(inputs, 3)) == set()
    assert of((inputs, labels + 1), model=net(inputs, 3)) == {"counted from 1"}
    assert of((inputs, labels * 2), model=net(inputs, 3)) == {"out of range"}
    assert of((inputs, labels + 1), task_spec=TaskSpec.image_classification(num_classes=3)) == {"counted from 1"}
    many, many_labels = table(500)
    assert of((many, many_labels), model=net(many, 5)) == {"missing classes"}


@pytest.mark.parametrize("own", [lambda: Scaled(1 / 255), lambda: nn.LayerNorm((1, 12, 12)), lambda: nn.BatchNorm2d(1)])
def test_a_model_that_normalises_its_inputs_itself_may_be_given_pixels(own):
    inputs, labels = times_255(images())
    assert of((inputs, labels), model=net(inputs, 3, before=own())) == set()
    assert of((inputs, labels), model=net(inputs, 3)) == {"not normalised"}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_regression_targets_of_another_scale_constant_ones_and_infinite_ones(carrier):
    inputs, _ = table()
    noise = torch.randn(200, generator=torch.Generator().manual_seed(3))
    amounts = inputs.mean(dim=1) + 0.1 * noise
    assert of((inputs, amounts), (inputs.flip(0) + 0.01, amounts.flip(0)), carrier) == set()
    assert of((inputs, 3e5 + 1e5 * amounts), carrier=carrier) == {"scale"}
    assert of((inputs, amounts.fill_(4.5)), carrier=carrier) == {"constant"}
    infinite = inputs.mean(dim=1)
    infinite[3] = float("inf")
    assert of((inputs, infinite), carrier=carrier) == {"not finite"}


def test_targets_are_compared_with_what_the_model_can_answer():
    inputs, _ = table()
    amounts = torch.tanh(inputs.mean(dim=1) + 0.1 * torch.randn(200, generator=torch.Generator().manual_seed(3))) - 0.5
    assert of((inputs, amounts), model=net(inputs, 1)) == set()
    for after in (nn.ReLU(), nn.Sigmoid(), nn.Softplus()):
        assert of((inputs, amounts), model=net(inputs, 1, after=after)) == {"one-sided outputs"}
    assert of((inputs, amounts.abs()), model=net(inputs, 1, after=nn.Softplus())) == set()
    assert of((inputs, amounts * 1e6), model=net(inputs, 1, after=Scaled(1e6))) == set()


def test_too_few_rows_for_the_features():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(14, 10, generator=generator)
    amounts = inputs @ torch.randn(10, generator=generator) + torch.randn(14, generator=generator)
    assert of((inputs, amounts)) == {"few rows"}
    alike = torch.randn(14, 1, generator=generator) + 0.05 * torch.randn(14, 10, generator=generator)
    assert of((alike, amounts)) == set()  # ten columns of one direction


def test_shuffled_labels_are_named_only_where_the_inputs_show_the_classes():
    generator = torch.Generator().manual_seed(0)
    signs = (torch.rand(10, 1, 12, 12, generator=generator) > 0.6).float()
    labels = torch.randint(10, (400,), generator=generator)
    pictures = (signs[labels] + 0.2 * torch.randn(400, 1, 12, 12, generator=generator)).clamp(0, 1)
    apart = labels[torch.randperm(400, generator=generator)]
    assert of((pictures, labels)) == set()
    assert of((pictures, apart)) == {"shuffled"}
    noise = torch.randn(400, 20, generator=generator)
    assert of((noise, apart)) == set()  # as a hard task looks too
    parity = (noise[:, :6] > 0).sum(dim=1) % 2
    assert of((noise, parity)) == set()


# Token ids


VOCAB, LENGTH, PAD, END = 50, 16, 0, 1


def token_rows(rows: int = 120, seed: int = 0, ends: bool = True):
    """Rows of 4 to 12 ids from 2 on, most with an end, padded with 0."""
    generator = np.random.default_rng(seed)
    ids = np.zeros((rows, LENGTH), dtype=np.int64)
    for row, length in zip(ids, generator.integers(4, 12, rows), strict=True):
        row[:length] = generator.integers(2, VOCAB, length)
        if ends:
            row[length] = END
    return torch.from_numpy(ids)


TOKEN_CARRIERS = {
    "dicts": lambda ids, labels: [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)],
    "TensorDataset": TensorDataset,
    "Dataset": Rows,
    "DataLoader": lambda ids, labels: DataLoader(TensorDataset(ids, labels), batch_size=8),
}


def of_tokens(ids, labels, carrier="TensorDataset", **options):
    return causes(check_data_quality(TOKEN_CARRIERS[carrier](ids, labels), **options))


def masked(ids, where):
    return ids.masked_fill(where, -100)


@pytest.mark.parametrize("carrier", TOKEN_CARRIERS)
def test_what_is_scored_of_token_rows(carrier):
    ids = token_rows()
    known = {"task_spec": TaskSpec.language_modeling(vocab_size=VOCAB, pad_token_id=PAD)}
    assert of_tokens(ids, masked(ids, ids == PAD), carrier, **known) == set()
    assert of_tokens(ids, ids, carrier) == {"padding scored"}
    mostly = masked(ids, ids == PAD)
    mostly[: len(ids) * 9 // 10] = -100
    assert of_tokens(ids, mostly, carrier, **known) == {"no targets"}
    assert of_tokens(ids + VOCAB, masked(ids + VOCAB, ids == PAD), carrier, **known) == {"out of vocabulary"}
    prompted = ids.clone()
    prompted[:, :4] = torch.tensor([7, 8, 9, 10])
    prompted = torch.cat([torch.full((len(ids), 3), 11), prompted], dim=1)
    assert of_tokens(prompted, masked(prompted, prompted == PAD), carrier, **known) == {"prompt scored"}
    answers = masked(prompted, prompted == PAD)
    answers[:, :7] = -100
    assert of_tokens(prompted, answers, carrier, **known) == set()


def test_an_end_that_is_never_scored_and_labels_that_truncation_removes():
    class Model(nn.Module):
        config = type("Config", (), {"eos_token_id": PAD})()

        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(VOCAB, 8), nn.Linear(8, VOCAB)

        def forward(self, input_ids):
            return self.head(self.embedding(input_ids))

    ids = token_rows(ends=False)
    assert of_tokens(ids, masked(ids, ids == PAD), model=Model()) == {"end never a target"}
    one_end = (ids == PAD) & ((ids == PAD).cumsum(dim=1) > 1)
    assert of_tokens(ids, masked(ids, one_end), model=Model()) == set()

    cut = [{"input_ids": torch.arange(2, 18), "labels": torch.full((16,), -100)} for _ in range(30)]
    whole = [{"input_ids": torch.arange(2, 12) + row % 9, "labels": masked(torch.arange(2, 12) + row % 9, torch.arange(10) < 6)} for row in range(20)]
    assert "truncated labels" in causes(check_data_quality(cut + whole))


def test_attention_masks_that_labels_do_not_follow():
    ids = token_rows()
    rows = [{"input_ids": row, "attention_mask": (row != PAD).long(), "labels": row} for row in ids]
    assert causes(check_data_quality(rows)) == {"padding scored"}
    rows = [{**row, "labels": masked(row["labels"], row["attention_mask"] == 0)} for row in rows]
    assert causes(check_data_quality(rows)) == set()


def test_token_ids_as_floats_end_a_run_before_it_starts_and_are_named_in_the_check(tmp_path):
    from tests.kit.toys import plain_lm

    ids = torch.randint(1, 32, (40, 16), generator=torch.Generator().manual_seed(0)).float()
    assert "ids as floats" in causes(check_data_quality(TensorDataset(ids), model=plain_lm()))
    assert "ids as floats" in causes(check_data_quality(TensorDataset(ids), task_spec=TaskSpec.language_modeling()))
    trainer = Trainer(plain_lm(), training_config=TrainingConfig(output_dir=str(tmp_path), epochs=1))
    with pytest.raises(DataTypeError, match="must be integers"):
        trainer.train(TensorDataset(ids))


def test_validation_from_another_vocabulary_and_validation_rows_among_training_ids():
    train = torch.randint(2, 30, (200, 16), generator=torch.Generator().manual_seed(0))
    other = torch.randint(2, 30, (60, 16), generator=torch.Generator().manual_seed(1))
    assert causes(check_data_quality(TensorDataset(train), validation=TensorDataset(other))) == set()
    assert causes(check_data_quality(train, validation=other + 30)) == {"unseen tokens"}
    assert causes(check_data_quality(list(train), validation=list(torch.cat([other, train[:30]])))) == {"validation rows in training"}
    few = train[:8].repeat(25, 1)
    assert causes(check_data_quality(few)) == {"duplicates"}
    assert causes(check_data_quality(few, validation=other)) == {"duplicates"}
    circle = torch.stack([(torch.arange(16) + start) % 30 for start in range(200)])
    assert causes(check_data_quality(circle, validation=circle[:40])) == set()  # there are no other rows


def test_packed_blocks_of_text_have_no_finding():
    from utils.data import builtin_corpus, prepare_text

    data = prepare_text(builtin_corpus()[:20], vocab_size=300, block_size=32)
    assert causes(check_data_quality(data.train, validation=data.validation, tokenizer=data.tokenizer)) == set()


# Healthy data


@pytest.mark.parametrize("name", ["digits", "iris", "wine", "breast_cancer", "diabetes"])
def test_real_data_sets_have_no_finding(name):
    import sklearn.datasets
    from sklearn.model_selection import train_test_split

    inputs, labels = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    train, held_out, labels, held_out_labels = train_test_split(inputs, labels, test_size=0.25, random_state=0)
    mean, spread = train.mean(axis=0), train.std(axis=0)
    spread[spread == 0] = 1
    parts = [((part - mean) / spread).astype(np.float32) for part in (train, held_out)]
    report = check_data_quality((parts[0], labels), validation=(parts[1], held_out_labels))
    assert causes(report) == set()
    assert report.passed
    if name == "digits":
        pictures = [TensorDataset(torch.tensor(part / 16).float().reshape(-1, 1, 8, 8), torch.tensor(target)) for part, target in ((train, labels), (held_out, held_out_labels))]
        assert causes(check_data_quality(pictures[0], validation=pictures[1])) == set()


def healthy_split(seed: int) -> tuple[Sample, Sample]:
    """One of many kinds of healthy data: sizes, classes, targets and features are drawn."""
    generator = np.random.default_rng(seed)
    rows, features = int(generator.integers(60, 400)), int(generator.integers(2, 12))
    total = rows + max(20, rows // 4)
    inputs = generator.normal(size=(total, features)) @ generator.normal(size=(features, features)) / features**0.5
    if seed % 4 == 0:  # one-hot, binary and count features beside the others
        categories = np.eye(5)[generator.integers(5, size=total)]
        inputs = np.concatenate([inputs, categories, generator.random((total, 2)) < 0.3, generator.poisson(4, (total, 2))], axis=1)
    elif seed % 4 == 1:  # nothing but categories
        inputs = (generator.random((total, features)) < 0.5).astype(float)
    score = inputs @ generator.normal(size=inputs.shape[1]) + generator.normal(size=total)
    if seed % 3 == 0:
        labels = (score - score.mean()) / score.std()
    elif seed % 3 == 1:
        labels = (score > np.quantile(score, generator.uniform(0.4, 0.7))).astype(np.int64)
    else:
        labels = np.digitize(score, np.quantile(score, np.arange(1, 10) / 10))
    labels = labels.astype(np.float32) if labels.dtype.kind == "f" else labels
    inputs = inputs.astype(np.float32)
    return Sample(rows, inputs[:rows], labels[:rows], None, {}), Sample(total - rows, inputs[rows:], labels[rows:], None, {})


def test_two_hundred_healthy_splits_have_no_finding():
    found = {}
    for seed in range(200):
        train, validation = healthy_split(seed)
        if found_here := inspect_samples(train, validation, Expectations()):
            found[seed] = [finding.summary for finding in found_here]
        twin = dataclasses.replace(validation, labels=None)
        assert not inspect_samples(dataclasses.replace(train, labels=None), twin, Expectations())
    assert found == {}


# In training


def trained(samples, validation, model, tmp_path, **options):
    settings = TrainingConfig(output_dir=str(tmp_path), epochs=1, batch_size=32, learning_rate=1e-3)
    data = [None if part is None else TensorDataset(*part) for part in (samples, validation)]
    results = Trainer(model, training_config=settings, **options).train(*data)
    return [sentence for sentence in results.notices if sentence.startswith("Data: ")]


def test_training_reports_findings_as_notices_and_nothing_for_healthy_data(tmp_path):
    inputs, labels = table(300)
    other, other_labels = table(100, seed=1)
    assert trained((inputs, labels), (other, other_labels), net(inputs, 3), tmp_path) == []
    large = torch.cat([inputs[:, :5], inputs[:, 5:] * 1e5], dim=1)
    assert "scale by orders of magnitude" in trained((large, labels), None, net(large, 3), tmp_path)[0]
    assert "another scale" in trained((inputs, labels), (other * 255, other_labels), net(inputs, 3), tmp_path)[0]
    assert "imbalanced" in trained(mostly_one_class((inputs, labels)), None, net(inputs, 3), tmp_path)[0]
    assert "are in training too" in trained((inputs, labels), (inputs[:50], labels[:50]), net(inputs, 3), tmp_path)[0]


def test_the_targets_scale_matters_only_where_differences_are_learned(tmp_path):
    inputs, _ = table(300)
    prices = 3e5 + 1e5 * inputs.mean(dim=1, keepdim=True)
    found = trained((inputs, prices), None, net(inputs, 1), tmp_path, task_spec=TaskSpec.regression())
    assert "Standardise the targets" in found[0]


def test_reading_a_sample_changes_no_random_state_of_anybody():
    inputs, labels = table()
    data = Rows(inputs, labels)
    before, own, torch_state = np.random.get_state()[1].copy(), data.generator.bit_generator.state, torch.get_rng_state()  # noqa: NPY002
    check_data_quality(data)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert data.generator.bit_generator.state == own
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_a_stream_is_not_read():
    class Stream(IterableDataset):
        def __iter__(self):
            raise AssertionError("the stream was read")

    for data in (Stream(), DataLoader(Stream())):
        report = check_data_quality(data)
        assert report["rows"].verdict == "not run"
        assert "only once" in report["rows"].summary


def test_records_and_frames_of_numbers():
    import pandas as pd

    inputs, labels = table()
    frame = pd.DataFrame(inputs.numpy(), columns=list("abcdef")).assign(label=labels.numpy())
    assert causes(check_data_quality(frame)) == set()
    assert causes(check_data_quality(frame.sort_values("label"))) == {"sorted"}
    records = [{"text": f"review number {row} of this film {row * 7}", "label": "good" if row < 60 else "bad"} for row in range(100)]
    assert "sorted" in causes(check_data_quality(records))
    assert "validation classes" in causes(check_data_quality(records[:75], validation=records[75:]))


@pytest.mark.parametrize(("given", "visible"), [("labels", True), ("shifted", False), ("none", False)])
def test_a_decoder_that_is_given_what_it_must_predict(given, visible):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(40):
        ids, labels = (torch.randint(3, 40, (8,), generator=generator) for _ in range(2))
        row = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
        inputs = {"labels": labels, "shifted": torch.cat([labels.new_zeros(1), labels[:-1]])}
        rows.append(row if given == "none" else row | {"decoder_input_ids": inputs[given]})
    loader = DataLoader(rows, batch_size=8, collate_fn=lambda some: default_collate(some))
    report = check_data_quality(loader, task_spec=TaskSpec("s", task_type="seq2seq", vocab_size=40))
    assert ("targets visible" in causes(report)) == visible


@pytest.mark.parametrize("kind", ["token ids", "numbers"])
def test_a_report_on_what_the_model_is_trained_on_speaks_of_examples(kind):
    rows = [{"input_ids": row, "labels": row} for row in token_rows(ends=False)]
    numbers = TensorDataset(torch.zeros(40, 12), torch.zeros(40, dtype=torch.long))
    report = check_data_quality(rows if kind == "token ids" else numbers)
    words = " ".join(f"{one.summary} {one.remedy}" for one in report.results)
    assert re.fullmatch(r"Data quality of \d+ examples", report.title)
    assert not re.search(r"\brows?\b", words, re.IGNORECASE)


def test_padding_is_not_counted_as_tokens():
    ids = token_rows(ends=False)
    rows = [{"input_ids": row, "attention_mask": (row != PAD).long(), "labels": masked(row, row == PAD)} for row in ids]
    lengths = (ids != PAD).sum(dim=1)
    summary = check_data_quality(rows)["tokens"].summary
    assert summary.startswith(f"Examples have {lengths.min()} to {lengths.max()} tokens with ids 2 to")
