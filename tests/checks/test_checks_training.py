"""Tier 3: checks that train copies on data that can be learned, and on data or models with which nothing can."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tests.kit.healthy_models import HEALTHY
from tests.kit.limits import assert_limits
from tests.kit.planted import Causal
from tests.kit.toys import plain_lm, tiny_gpt
from utils.checks import (
    calibration,
    run_all_tests,
    run_all_tier3_tests,
    test_benchmark_comparison,
    test_compile,
    test_half_precision,
    test_search,
    test_training_beats_baseline,
    tier3_minutes,
    token_losses,
)
from utils.checks.baselines import linear
from utils.checks.copies import Budget
from utils.checks.real_data import CheckData, scored
from utils.checks.tier1 import TIER1
from utils.checks.tier2 import TIER2
from utils.checks.tier3 import TIER3
from utils.data.packing import TokenBlocks
from utils.errors import ConfigError
from utils.training.task_spec import TaskSpec


def counting(rows, length=16, vocab=32, seed=0):
    """Blocks of running text in which each token says which one follows."""
    rng = np.random.default_rng(seed)
    step = rng.permutation(vocab)
    ids = np.zeros((rows, length), dtype=np.int32)
    ids[:, 0] = rng.integers(0, vocab, rows)
    for t in range(1, length):
        ids[:, t] = step[ids[:, t - 1]]
    return TokenBlocks(ids)


def texts(rows, seed=0, vocab=32, length=12):
    """Token ids with a class that one of two tokens in them decides."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, vocab, (rows, length), generator=generator)
    labels = torch.randint(0, 2, (rows,), generator=generator)
    ids[torch.arange(rows), torch.randint(0, length, (rows,), generator=generator)] = labels + 1
    return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]


def table(rows, kind="classes", seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, 6, generator=generator)
    score = inputs[:, 0] + inputs[:, 1] - inputs[:, 4]
    return TensorDataset(inputs, score if kind == "numbers" else (score > 0).long())


def pictures(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (rows,), generator=generator)
    images = torch.randn(rows, 1, 8, 8, generator=generator)
    images[:, :, :4] += labels[:, None, None, None]
    return TensorDataset(images, labels)


class TextClassifier(nn.Module):
    """Mean of embeddings, and a layer."""

    def __init__(self, deaf=False):
        super().__init__()
        self.vocab_size, self.max_seq_len, self.deaf = 32, 16, deaf
        self.embedding, self.hidden, self.head = nn.Embedding(32, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, input_ids):
        hidden = self.embedding(input_ids).mean(1)
        return self.head(torch.relu(self.hidden(hidden * (0 if self.deaf else 1))))


class TableModel(nn.Module):
    def __init__(self, outputs, deaf=False):
        super().__init__()
        self.deaf = deaf
        self.first, self.head = nn.Linear(6, 32), nn.Linear(32, outputs)

    def forward(self, inputs):
        return self.head(torch.relu(self.first(inputs * (0 if self.deaf else 1))))


class ImageModel(nn.Module):
    def __init__(self, deaf=False):
        super().__init__()
        self.deaf = deaf
        self.first, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8 * 64, 2)

    def forward(self, pixel_values):
        return self.head(torch.relu(self.first(pixel_values * (0 if self.deaf else 1))).flatten(1))


class DeafLM(nn.Module):
    """Learns the frequencies of tokens and nothing else."""

    def __init__(self):
        super().__init__()
        self.vocab_size, self.max_seq_len = 32, 16
        self.embedding, self.head = nn.Embedding(32, 8), nn.Linear(8, 32)

    def forward(self, input_ids):
        return self.head(0 * self.embedding(input_ids))


SPECS = {
    "text": TaskSpec("text_classification", num_classes=2), "numbers": TaskSpec("regression"),
    "image": TaskSpec("image_classification", modality="vision", num_classes=2),
}  # fmt: skip
KINDS = {
    "tokens": (lambda deaf: DeafLM() if deaf else plain_lm(dropout=0.0), None, lambda n, s: counting(n), {}),
    "text": (TextClassifier, SPECS["text"], texts, {}),
    "classes of a table": (lambda deaf: TableModel(2, deaf), None, table, {}),
    "numbers of a table": (lambda deaf: TableModel(1, deaf), SPECS["numbers"], lambda n, s: table(n, "numbers", s), {}),
    "images": (ImageModel, SPECS["image"], pictures, {"image_size": 8}),
}


def pair(kind):
    make = KINDS[kind][2]
    return make(200, 1), make(100, 2)


def weights_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def same_weights(model, before):
    return all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# ---- fine-tuning ----


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_learns_beats_its_baseline_and_is_not_changed(kind):
    make, spec, _, config = KINDS[kind]
    torch.manual_seed(0)
    model = make(False)
    before, state = weights_of(model), torch.get_rng_state()
    result = test_training_beats_baseline(model, config, task_spec=spec, data=pair(kind), steps=150, learning_rate=1e-2)
    assert result.verdict == "pass", result.summary
    assert result.measured["error"] < result.measured["baseline_error"]
    assert_limits(result)
    assert ("linear_model_error" in result.measured) == (kind != "tokens")
    assert same_weights(model, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_does_not_see_its_input_is_no_better_than_the_baseline(kind):
    make, spec, _, config = KINDS[kind]
    torch.manual_seed(0)
    result = test_training_beats_baseline(
        make(True), config, task_spec=spec, data=pair(kind), steps=60, learning_rate=1e-2
    )
    assert [finding.cause for finding in result.findings][:1] == ["baseline not beaten"], result.summary
    assert result.verdict == "fail"
    assert result.figure is not None


def test_a_linear_model_that_is_better_is_reported():
    class Blurred(TableModel):
        """Sees one of three columns that matter."""

        def forward(self, inputs):
            return super().forward(inputs * torch.tensor([1.0, 0, 0, 0, 0, 0]))

    torch.manual_seed(0)
    result = test_training_beats_baseline(
        Blurred(2), data=(table(400), table(400, seed=1)), steps=100, learning_rate=1e-2
    )
    assert [finding.cause for finding in result.findings] == ["linear model better"], result.summary
    assert result.verdict == "warn"


def test_shuffled_labels_cannot_be_learned():
    train, held_out = table(300).tensors, table(300, seed=1).tensors
    generator = torch.Generator().manual_seed(0)
    parts = tuple(
        TensorDataset(inputs, torch.randint(0, 2, (300,), generator=generator)) for inputs, _ in (train, held_out)
    )
    result = test_training_beats_baseline(TableModel(2), data=parts, steps=40)
    assert result.measured["error"] > 0.4


def test_one_dataset_is_split():
    result = test_training_beats_baseline(TableModel(2), data=table(300), steps=100, learning_rate=1e-2)
    assert result.verdict == "pass"
    assert result.measured["held_out_targets"] == 60


@pytest.mark.parametrize("kind", ["text", "classes of a table", "images"])
def test_without_data_there_is_nothing_to_train_on(kind):
    make, spec, _, config = KINDS[kind]
    result = test_training_beats_baseline(make(False), config, task_spec=spec)
    assert (result.verdict, "give data=" in result.remedy) == ("not run", True)


def test_a_stop_request_ends_the_training():
    asked = []
    budget = Budget(stop=lambda: asked.append(1) or len(asked) > 3)
    result = test_training_beats_baseline(DeafLM(), data=(counting(40), counting(20)), budget=budget)
    assert result.verdict == "not run"
    assert "stopped" in result.summary
    assert result.measured["steps"] < 10


@pytest.mark.parametrize("kind", ["text", "classes of a table", "numbers of a table", "images"])
def test_the_linear_baseline_is_that_of_scikit_learn(kind):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.preprocessing import StandardScaler

    make, spec, _, _ = KINDS[kind]
    train, held_out = pair(kind)
    data = CheckData(train, held_out, spec or SPECS["image"], None, "", given=True, packed=False, given_spec=spec)
    targets = torch.cat([one.targets for one in scored(make(False), data)])
    found = linear(make(False), data, targets, 2)
    if kind == "text":
        words = [[" ".join(map(str, sample["input_ids"].tolist())) for sample in part] for part in (train, held_out)]
        bags = TfidfVectorizer(token_pattern=r"\d+", ngram_range=(1, 2), binary=True).fit(words[0])
        x, z = bags.transform(words[0]), bags.transform(words[1])
        y, t = ([int(sample["labels"]) for sample in part] for part in (train, held_out))
        wrong = LogisticRegression(max_iter=1000).fit(x, y).predict(z) != t
        assert found.error == pytest.approx(
            wrong.mean(), abs=0.06
        )  # pairs that stand in one text only are left out here
        return
    x, z = (part.tensors[0].flatten(1).double().numpy() for part in (train, held_out))
    scale = StandardScaler().fit(x)
    y, t = train.tensors[1].numpy(), held_out.tensors[1].numpy()
    if kind == "numbers of a table":
        expected = (Ridge(alpha=1.0).fit(scale.transform(x), y).predict(scale.transform(z)) - t) ** 2
        assert found.error == pytest.approx(expected.mean(), rel=1e-4)
    else:
        expected = LogisticRegression(max_iter=1000).fit(scale.transform(x), y).predict(scale.transform(z)) != t
        assert found.error == pytest.approx(expected.mean(), abs=0.011)


# ---- hyper-parameter search ----


def test_a_search_finds_a_rate_that_learns():
    model = plain_lm(dropout=0.0)
    before = weights_of(model)
    result = test_search(model, data=(counting(60), counting(20)), steps=15)
    assert result.verdict == "pass", result.summary
    assert result.measured["best_params"]["learning_rate"] == 1e-2
    assert_limits(result)
    assert len(result.measured["trials"]) == 3
    assert same_weights(model, before)


def test_a_search_from_trained_weights_has_no_limit():
    trained = HEALTHY["plain transformer, trained"]()
    result = test_search(trained, data=(counting(60, vocab=60), counting(20, vocab=60)), n_trials=1, steps=2)
    assert result.verdict == "pass", result.summary
    assert result.limits == (), "the loss before training is no limit for weights that may be as good as they get"


def test_a_search_over_a_model_that_cannot_learn_fails():
    model = DeafLM()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    model.head.requires_grad_(False)
    result = test_search(model, data=(counting(60), counting(20)), steps=5)
    assert result.verdict == "fail"


def test_failing_trials_are_reported_with_their_reason():
    space = {"learning_rate": [1e-2], "batch_size": [8, 9]}

    class Picky(TableModel):
        def forward(self, inputs):
            if self.training and len(inputs) == 9:
                raise RuntimeError("nine is too many")
            return super().forward(inputs)

    result = test_search(Picky(2), data=(table(200), table(50, seed=1)), space=space, steps=10)
    assert "trials fail" in [finding.cause for finding in result.findings]
    assert "nine is too many" in result.summary


# ---- half precision ----


@pytest.mark.parametrize("name", ["GPT-2", "BERT classifier", "ViT", "regression", "GPT-2 in bf16"])
def test_half_precision_of_a_healthy_model_passes(name):
    torch.manual_seed(0)
    model = HEALTHY[name]()
    before = weights_of(model)
    result = test_half_precision(model, repetitions=1)
    assert result.verdict == "pass", result.summary
    assert_limits(result)
    assert result.measured["fp16_overflow_share"] == 0
    assert same_weights(model, before)


class Loud(TableModel):
    """An intermediate result beyond fp16's range that a later layer undoes."""

    def forward(self, inputs):
        return self.head(torch.relu(self.first(inputs * 1e6)) / 1e6)


class Cancelling(TableModel):
    """Subtracts two nearly equal results of bf16 precision."""

    def forward(self, inputs):
        hidden = self.first(inputs)
        return self.head((nn.functional.linear(hidden + 300, torch.eye(32)) - 300) * 1.0)


class Mixed(TableModel):
    """Multiplies half-precision activations by an fp32 matrix with an operator that autocast does not know."""

    def forward(self, inputs):
        hidden = self.first(inputs)
        out = torch.zeros(len(inputs), 32)
        return self.head(out.index_add(0, torch.arange(len(inputs)), hidden))


class Vanishing(TableModel):
    def forward(self, inputs):
        return super().forward(inputs) * 1e-14


@pytest.mark.parametrize(
    ("make", "cause"),
    [(Loud, "fp16 overflow"), (Cancelling, "bf16 gradient"), (Mixed, "autocast error"), (Vanishing, "fp16 underflow")],
)
def test_a_fault_of_half_precision_is_named(make, cause):
    torch.manual_seed(0)
    result = test_half_precision(make(2), repetitions=1)
    assert cause in [finding.cause for finding in result.findings], result.summary


# ---- compile ----


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_results():
    from utils.environment import detect_device
    from utils.training.engine.compute.compiling import check_compiler

    try:
        check_compiler("default", detect_device())
    except ConfigError:
        pytest.skip("no compiler")
    result = test_compile(TableModel(2), repetitions=1)
    assert result.verdict == "pass", result.summary
    assert_limits(result)
    assert result.measured["graph_breaks"] == 0


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    def refuse(mode, device):
        raise ConfigError("compile_mode needs g++")

    monkeypatch.setattr("utils.training.engine.compute.compiling.check_compiler", refuse)
    result = test_compile(TableModel(2))
    assert (result.verdict, "g++" in result.summary) == ("not run", True)


# ---- reference ----


def test_a_model_stands_beside_a_reference_of_its_size():
    model = plain_lm(dropout=0.0)
    result = test_benchmark_comparison(model, data=(counting(60), counting(20)), steps=30, repetitions=1)
    assert result.verdict == "pass", result.summary
    assert result.measured["reference"] == "GPT2LMHeadModel"
    assert_limits(result)
    assert 0.5 < result.measured["reference_parameters"] / result.measured["parameters"] < 2
    assert {"loss", "reference_loss", "training_tokens_per_s", "forward_speed_ratio"} <= set(result.measured)


def test_a_model_that_lags_far_behind_its_reference_is_reported():
    result = test_benchmark_comparison(
        DeafLM(), reference=plain_lm(dropout=0.0), data=(counting(60), counting(20)), steps=120, repetitions=1
    )
    assert [finding.cause for finding in result.findings] == ["behind the reference"], result.summary


def test_a_reference_for_another_task_is_refused():
    result = test_benchmark_comparison(plain_lm(), reference=TableModel(2), repetitions=1)
    assert result.verdict == "not run"
    assert test_benchmark_comparison(TableModel(2)).verdict == "not run"


# ---- the tier ----


def test_the_tier_states_its_time_and_reports_progress(caplog):
    seen = []
    data = (counting(40), counting(20))
    with caplog.at_level(logging.INFO, "trainbook.checks"):
        report = run_all_tier3_tests(
            plain_lm(), data=data, only=["half precision"],
            progress=lambda now: seen.append((now.name, now.done, now.total)),
        )  # fmt: skip
    assert list(report) == ["half precision"]
    assert seen == [("half precision", 0, 1), ("", 1, 1)]
    assert "about" in caplog.messages[0]
    assert 0 < tier3_minutes(plain_lm(), data=data) <= 5


def test_when_the_time_is_up_the_rest_is_not_run():
    report = run_all_tier3_tests(plain_lm(), time_limit_minutes=0)
    assert {result.verdict for result in report.results} == {"not run"}
    assert all("time limit" in result.summary for result in report.results)
    with pytest.raises(ConfigError, match="time_limit_minutes"):
        run_all_tier3_tests(plain_lm(), time_limit_minutes=-1)


def test_a_stop_ends_the_tier_between_checks():
    report = run_all_tier3_tests(plain_lm(), should_stop=lambda: True)
    assert all("Stopped" in result.summary for result in report.results)


def test_all_tiers_are_one_report_in_order():
    report = run_all_tests(Causal(), time_limit_minutes=0)
    assert list(report) == [*TIER1, *(name for name in TIER2 if name not in (calibration.NAME, token_losses.NAME)), *TIER3]


def test_glue_in_the_tier_needs_a_tokenizer(tmp_path):
    report = run_all_tier3_tests(tiny_gpt(), glue_dir=tmp_path, glue_tasks=["RTE", "CoLA"], only=["GLUE"])
    assert list(report) == ["GLUE RTE", "GLUE CoLA"]
    assert {result.verdict for result in report.results} == {"not run"}
    assert "tokenizer" in report["GLUE RTE"].summary


# ---- what a short training cannot tell ----


def test_a_loss_that_still_falls_is_no_verdict():
    model = TableModel(1)
    with torch.no_grad():
        model.head.bias.fill_(60.0)  # far from the targets, and the steps are too few to get there
    parts = (table(200, "numbers"), table(60, "numbers", seed=1))
    result = test_training_beats_baseline(model, task_spec=SPECS["numbers"], data=parts, steps=30, learning_rate=0.02)
    assert (result.verdict, "still falling" in result.summary) == ("not run", True), result.summary


def test_a_model_whose_weights_are_frozen_at_random_is_no_verdict():
    model = DeafLM()
    model.embedding.requires_grad_(False)
    model.head.weight.requires_grad_(False)
    result = test_training_beats_baseline(model, data=(counting(60), counting(20)), steps=10)
    assert (result.verdict, "frozen" in result.summary) == ("not run", True)


def test_labels_that_can_only_be_memorised_fail():
    generator = torch.Generator().manual_seed(0)
    parts = tuple(
        TensorDataset(torch.randn(rows, 6, generator=generator), (torch.rand(rows, generator=generator) < 0.3).long())
        for rows in (60, 400)
    )
    torch.manual_seed(0)
    result = test_training_beats_baseline(TableModel(2), data=parts, steps=200, learning_rate=1e-2)
    assert (result.verdict, "carries over" in result.summary) == ("fail", True), result.summary


def test_series_that_are_taken_for_images_are_refused_before_training():
    model = HEALTHY["LSTM over series"]()
    data = TensorDataset(torch.randn(40, 8, 6), torch.arange(40) % 2)
    result = test_training_beats_baseline(model, data=data, steps=2)
    assert (result.verdict, "collate_fn" in result.remedy) == ("not run", True), result.summary
