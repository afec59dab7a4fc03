"""Monitors say what happened, measure what they name, and leave the training as it would have been."""

from __future__ import annotations

import contextlib
import logging
import math

import pytest
import torch

from tests.kit.toys import (
    PlainLM,
    assert_same_run,
    golden_config,
    plain_lm,
    same_weights,
    tiny_gpt,
    train_set,
    validation_set,
)
from utils.errors import CallbackError
from utils.training import (
    Callback,
    GradientHealth,
    LearningRateMonitor,
    LoggingCallback,
    ProfilingCallback,
    Trainer,
)


def train(model, *callbacks, **changes):
    config = golden_config(epochs=2, **changes)
    return Trainer(model, None, config, callbacks=callbacks).train(train_set(), validation_set())


def test_the_run_is_the_same_with_all_of_them():
    plain = train(tiny_gpt(), run_name="plain")
    watched = train(
        tiny_gpt(), LoggingCallback(), ProfilingCallback(), LearningRateMonitor(), GradientHealth(), run_name="watched"
    )
    assert_same_run(plain, watched)


# ---- log lines ----


def test_lines_come_at_their_steps_and_name_their_numbers():
    lines = []
    results = train(plain_lm(), LoggingCallback(log_interval=2, write=lines.append))
    steps = [line for line in lines if line.startswith("Step")]
    assert [line.split(":")[0] for line in steps] == ["Step 2 of 6", "Step 4 of 6", "Step 6 of 6"]
    assert "train/learning_rate" in steps[0]
    assert f"val/loss {results.val_loss_history[0]:.4g}" in next(
        line for line in lines if line.startswith("Validation")
    )
    assert next(line for line in lines if line.startswith("Epoch")) == "Epoch 1 of 2"
    assert f"train/loss {results.final_loss:.4g}" in lines[-1]


def test_without_a_writer_the_logger_has_the_lines(caplog):
    with caplog.at_level(logging.INFO, logger="trainbook.monitors"):
        train(plain_lm(), LoggingCallback(log_interval=3))
    assert "Step 3 of 6" in caplog.text


def test_a_quiet_one_counts_and_needs_no_trainer():
    lines = []
    quiet = LoggingCallback(verbose=False, write=lines.append)
    quiet.on_epoch_begin(0, None)
    quiet.on_step_end(1, None)
    quiet.on_evaluate_end(None)
    quiet.on_epoch_end(0, None)
    assert quiet.step_count == 1
    assert not lines


def test_an_interval_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1 step; got 0"):
        LoggingCallback(log_interval=0)


# ---- times ----


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Paced(PlainLM):
    """Its forward pass takes 3 s of the clock, its backward pass 5."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def forward(self, tokens):
        self.clock.now += 3
        logits = super().forward(tokens)
        if logits.requires_grad:
            logits.register_hook(self.take_five)
        return logits

    def take_five(self, gradient):
        self.clock.now += 5


class SlowRows(torch.utils.data.Dataset):
    """Each row takes 1 s of the clock to come."""

    def __init__(self, clock):
        self.clock, self.rows = clock, train_set()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.clock.now += 1
        return self.rows[index]


def test_each_part_has_its_own_time(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("utils.training.monitors.time.perf_counter", clock)
    profile = ProfilingCallback()

    class SlowUpdate(Callback):
        """The optimizer's update takes 7 s."""

        def on_train_begin(self, trainer, logs=None):
            trainer.optimizer.register_step_post_hook(lambda *_: setattr(clock, "now", clock.now + 7))

    Trainer(Paced(clock), None, golden_config(epochs=1), callbacks=[profile, SlowUpdate()]).train(
        SlowRows(clock), validation_set()
    )
    metrics = profile.get_metrics()
    # 34 rows, 4 a micro-batch, 3 micro-batches a step: 12, 12 and 10 rows; 3, 3 and 3 micro-batches.
    assert metrics["data_wait_times"] == [12, 12, 10]
    assert metrics["forward_times"] == [3] * 9
    assert metrics["backward_times"] == [5] * 9
    assert metrics["batch_times"] == [8] * 9
    assert metrics["optimizer_times"] == [7] * 3
    # Validation has 3 batches.
    assert metrics["epoch_times"] == [34 + 9 * 8 + 3 * 7 + 3 * 3]
    assert profile.summary()["forward"] == f"3e+03 ms, {27 / 127:.0%}"


def test_metrics_are_copies_and_memory_is_not_invented():
    profile = ProfilingCallback()
    train(plain_lm(), profile)
    profile.get_metrics()["batch_times"].clear()
    metrics = profile.get_metrics()
    assert len(metrics["batch_times"]) == 18
    assert all(seconds > 0 for seconds in metrics["batch_times"])
    assert metrics["memory_allocated"] == []


@pytest.mark.parametrize("fails", [False, True])
def test_no_hook_stays_on_the_model(fails):
    model = plain_lm()

    class Failing(Callback):
        def on_step_end(self, step, trainer, logs=None):
            if fails:
                raise RuntimeError("on purpose")

    with pytest.raises(CallbackError, match="on purpose") if fails else contextlib.nullcontext():
        train(model, ProfilingCallback(), Failing())
    assert not model._forward_hooks


# ---- learning rate ----


def test_the_learning_rate_of_every_step():
    monitor = LearningRateMonitor()
    results = train(plain_lm(), monitor)
    assert monitor.steps == [1, 2, 3, 4, 5, 6]
    assert monitor.rates == [row["train/learning_rate"] for row in results.step_rows]
    assert results.step_rows() == results.step_rows  # also as a method
    assert len(set(monitor.rates)) > 3


# ---- gradients ----


def test_healthy_gradients_are_not_a_finding():
    health = GradientHealth(parameters_every=1)
    results = train(plain_lm(), health)
    assert health.healthy, health.findings
    assert health.norms == pytest.approx([row["train/grad_norm"] for row in results.step_rows()])


def test_exploding_gradients_are_said_once_and_kept_each_time():
    health = GradientHealth(explosion_threshold=1e-3)
    results = train(plain_lm(), health)
    assert [finding.kind for finding in health.findings] == ["exploding"] * 6
    assert sum("above 0.001" in notice for notice in results.notices) == 1


def test_vanishing_gradients_are_found():
    health = GradientHealth(vanishing_threshold=1e3, explosion_threshold=1e4)
    train(plain_lm(), health)
    assert health.findings[0].kind == "vanishing"


def test_a_parameter_that_nothing_reaches_is_named():
    model = plain_lm()
    model.unused = torch.nn.Linear(2, 2)
    health = GradientHealth()
    results = train(model, health)
    assert "no gradient reaches unused.weight, unused.bias." in health.findings[0].message
    assert any("unused.weight" in notice for notice in results.notices)


@pytest.mark.usefixtures("only_the_runs_own_passes")
def test_a_skipped_step_is_a_finding():
    model = plain_lm(dropout=0.0)
    calls = []

    def spoil(module, inputs, logits):
        calls.append(1)
        return logits * math.nan if len(calls) == 4 else logits

    model.register_forward_hook(spoil)
    health = GradientHealth()
    train(model, health, on_nonfinite="skip")
    assert [(finding.step, finding.kind) for finding in health.findings] == [(2, "not finite")]


def test_thresholds_that_contradict_are_refused():
    with pytest.raises(ValueError, match="vanishing_threshold < explosion_threshold"):
        GradientHealth(vanishing_threshold=1.0, explosion_threshold=0.5)


def test_frozen_parameters_are_no_finding():
    model = plain_lm()
    model.embedding.weight.requires_grad_(False)
    before = model.embedding.weight.clone()
    health = GradientHealth()
    train(model, health)
    assert health.healthy
    assert torch.equal(before, model.embedding.weight)
    assert not same_weights(model, plain_lm())
