"""Calibration, and loss by position and token frequency, of trained models on real samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tests.kit.limits import assert_limits
from tests.kit.toys import plain_lm, tiny_gpt
from utils.checks import run_all_tier2_tests, test_calibration, test_token_losses
from utils.checks.calibration import TEMPERATURES, measure
from utils.data.packing import TokenBlocks

# ---- calibration ----


def graded(count=3000, seed=0):
    """Logits of two classes as inputs, and labels drawn from their softmax."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 2, generator=generator) * 1.5
    labels = (torch.rand(count, generator=generator) < logits.softmax(1)[:, 1]).long()
    return TensorDataset(logits, labels)


class Scaled(nn.Module):
    """Returns its inputs times a number: calibrated at 1 on `graded`."""

    def __init__(self, scale):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(2) * scale)
            self.layer.bias.copy_(torch.tensor([3.0, 3.001]))  # beyond any initialisation: a trained model

    def forward(self, inputs):
        return self.layer(inputs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [150, 3000])
def test_a_calibrated_model_passes_at_any_sample_size(count, seed):
    result = test_calibration(Scaled(1.0), data=graded(count, seed))
    assert result.verdict == "pass", result.summary
    assert_limits(result)
    assert result.measured["calibration_error"] < result.measured["sampling_noise_limit"]


@pytest.mark.parametrize(("scale", "cause"), [(6.0, "overconfident"), (0.1, "underconfident")])
def test_a_model_that_is_not_calibrated_is_named_with_its_temperature(scale, cause):
    model = Scaled(scale)
    state = torch.get_rng_state()
    result = test_calibration(model, data=graded())
    assert [finding.cause for finding in result.findings] == [cause], result.summary
    assert result.verdict == "warn"
    assert result.measured["temperature"] == pytest.approx(scale, rel=0.3)
    assert result.measured["loss_at_temperature_nats"] < result.measured["loss_nats"]
    assert result.figure is not None
    assert torch.equal(torch.get_rng_state(), state)


def test_the_error_is_that_of_the_definition():
    confidences = torch.tensor([0.6] * 5 + [0.9] * 5)
    correct = torch.tensor([1, 1, 1, 0, 0, 1, 1, 1, 1, 0]).bool()
    known = measure(confidences, correct, torch.arange(10), 2, torch.ones(len(TEMPERATURES)))
    assert known.error == pytest.approx(0.5 * abs(0.6 - 0.6) + 0.5 * abs(0.8 - 0.9))
    independent = [math.sqrt(2 / math.pi) * math.sqrt(5 * p * (1 - p)) / 10 for p in (0.6, 0.9)]
    assert known.noise >= sum(independent) - 1e-9


def test_targets_of_one_row_are_not_taken_as_independent():
    generator = torch.Generator().manual_seed(0)
    correct = (torch.rand(50, generator=generator) < 0.7).repeat_interleave(
        40
    )  # rows that are right or wrong as a whole
    confidences, losses = torch.full((2000,), 0.7), torch.ones(len(TEMPERATURES))
    alone = measure(confidences, correct, torch.arange(2000), 1, losses)
    together = measure(confidences, correct, torch.arange(50).repeat_interleave(40), 1, losses)
    assert together.noise > 4 * alone.noise


@pytest.mark.parametrize("check", [test_calibration, test_token_losses])
def test_an_untrained_model_is_not_judged(check):
    result = check(tiny_gpt(), data=blocks(40))
    assert result.verdict == "not run"
    assert result.remedy
    assert "untrained" in result.summary or "vocabulary" in result.summary


def test_too_few_targets_say_nothing():
    result = test_calibration(Scaled(6.0), data=graded(50))
    assert (result.verdict, "too few" in result.summary) == ("not run", True)


def test_without_data_or_tokenizer_nothing_is_measured():
    report = run_all_tier2_tests(trained(context=1), only=["calibration", "loss by position and frequency"])
    assert [(result.verdict, bool(result.remedy)) for result in report.results] == [("not run", True)] * 2


# ---- loss by position and frequency ----

V, _BEFORE = 24, 16  # blocks are cut out of running text


def blocks(rows, length=32, seed=0):
    """Text in which the last two tokens decide, but for one token in ten, which one comes next; some tokens are rare."""
    rng = np.random.default_rng(seed)
    rule = np.random.default_rng(100).choice(V, size=(V, V), p=frequencies())
    ids = np.zeros((rows, length + _BEFORE), dtype=np.int32)
    ids[:, :2] = rng.choice(V, size=(rows, 2), p=frequencies())
    for t in range(2, length + _BEFORE):
        noise = rng.random(rows) < 0.1
        ids[:, t] = np.where(noise, rng.choice(V, size=rows, p=frequencies()), rule[ids[:, t - 2], ids[:, t - 1]])
    return TokenBlocks(ids[:, _BEFORE:].copy())


def frequencies():
    weights = 1.0 / np.arange(1, V + 1)
    return weights / weights.sum()


class Table(nn.Module):
    """Log-probabilities counted from text, of the next token after `context` tokens.

    A norm whose scales differ tells that it is trained.
    """

    def __init__(self, context, late_fault=None, excluded=None):
        super().__init__()
        self.context, self.late_fault, self.excluded = context, late_fault, excluded
        self.vocab_size, self.max_seq_len = V, 32
        self.embedding, self.norm = nn.Embedding(V, V), nn.LayerNorm(V)
        with torch.no_grad():
            self.norm.weight.copy_(torch.linspace(0.5, 1.5, V))
        ids = torch.from_numpy(blocks(2000, seed=5).blocks.astype(np.int64))
        self.unigram = torch.bincount(ids.flatten(), minlength=V).float() + 1
        pairs = torch.bincount((ids[:, :-1] * V + ids[:, 1:]).flatten(), minlength=V**2).view(V, V).float()
        triples = torch.bincount((ids[:, :-2] * V**2 + ids[:, 1:-1] * V + ids[:, 2:]).flatten(), minlength=V**3)
        unigram = self.unigram / self.unigram.sum()
        pairs = (pairs + 2 * unigram) / (pairs.sum(-1, keepdim=True) + 2)
        triples = triples.view(V, V, V).float()
        triples = (triples + 2 * pairs[None]) / (triples.sum(-1, keepdim=True) + 2)
        self.register_buffer("one", pairs.log())
        self.register_buffer("two", triples.log())

    def forward(self, input_ids):
        scores = self.one[input_ids]
        if self.context == 0:
            scores = (self.unigram / self.unigram.sum()).log().expand(*input_ids.shape, V).clone()
        if self.context == 2:
            scores = torch.cat([scores[:, :1], self.two[input_ids[:, :-1], input_ids[:, 1:]]], 1)
        if self.late_fault is not None:
            scores = torch.cat(
                [scores[:, : self.late_fault], self.one.mean(0).expand_as(scores[:, self.late_fault :])], 1
            )
        if self.excluded is not None:
            scores = scores.index_fill(2, torch.tensor([self.excluded]), -30.0)
        return scores + 0 * self.norm(self.embedding(input_ids))


def trained(**options):
    return Table(**options).eval()


DATA = (blocks(400, seed=1), blocks(200, seed=2))


def test_a_model_that_uses_its_context_passes_and_its_loss_falls():
    result = test_token_losses(trained(context=2), data=DATA)
    assert result.verdict == "pass", result.summary
    assert_limits(result)
    by_position = [row["loss"] for row in result.measured["by_position"].values()]
    assert by_position[0] > by_position[-1] + 0.2
    by_frequency = list(result.measured["by_frequency"].values())
    assert all(row["loss"] < row["unigram_loss"] for row in by_frequency)
    assert result.measured["loss_nats"] < result.measured["unigram_loss_nats"] < result.measured["uniform_loss_nats"]
    assert result.figure is not None


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"context": 1}, "context unused"),
        ({"context": 2, "late_fault": 24}, "late positions worse"),
        ({"context": 2, "excluded": 0}, "tokens below chance"),
    ],
)
def test_a_fault_of_a_trained_model_is_named(options, cause):
    result = test_token_losses(trained(**options), data=DATA)
    assert [finding.cause for finding in result.findings] == [cause], result.summary


def test_a_model_that_knows_only_frequencies_is_named():
    model = trained(context=0)
    model.unigram = model.unigram.flip(0)
    result = test_token_losses(model, data=DATA)
    assert [finding.cause for finding in result.findings] == ["worse than frequency"]


def test_text_without_longer_context_does_not_accuse_a_bigram_model():
    rng = np.random.default_rng(0)
    step = rng.permutation(V)
    ids = np.zeros((300, 32), dtype=np.int32)
    ids[:, 0] = rng.integers(0, V, 300)
    for t in range(1, 32):
        ids[:, t] = np.where(rng.random(300) < 0.2, rng.integers(0, V, 300), step[ids[:, t - 1]])
    model = trained(context=1)
    model.one = torch.full((V, V), math.log(0.2 / V)).index_put(
        (torch.arange(V), torch.from_numpy(step)), torch.tensor(math.log(0.8))
    )
    result = test_token_losses(model, data=(TokenBlocks(ids[:200]), TokenBlocks(ids[200:])))
    assert result.verdict == "pass", result.summary


def test_a_model_over_other_things_is_not_run():
    result = test_token_losses(Scaled(1.0), data=graded(200))
    assert (result.verdict, bool(result.remedy)) == ("not run", True)


def test_the_built_in_corpus_does_not_judge_a_model_of_other_text():
    from utils.tokenization.adaptive import choose_tokenizer

    torch.manual_seed(0)
    model = plain_lm(400)
    with torch.no_grad():
        model.norm.weight.uniform_(0.5, 1.5)
        model.head.weight.normal_(std=3)
    tokenizer = choose_tokenizer(["The quick brown fox jumps over the lazy dog. " * 4], 400, "character").tokenizer
    report = run_all_tier2_tests(model, tokenizer=tokenizer, only=["calibration", "loss by position and frequency"])
    assert [result.verdict for result in report.results] == ["not run", "not run"], report.to_json()
    assert all("trained on other" in result.summary for result in report.results)
