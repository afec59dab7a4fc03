"""precision="auto" measures what is faster for this model, leaves no trace of having measured, and a resumed run keeps the choice."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from tests.kit.toys import VOCAB_SIZE, assert_same_run, golden_config, train_set, validation_set
from utils import environment
from utils.errors import OutOfMemoryError
from utils.training import Callback, Trainer
from utils.training.engine.compute.precision_probe import (
    SHARE,
    Measured,
    affordable_pairs,
    compare_formats,
    time_pass,
)
from utils.training.engine.distributed.world import World
from utils.training.engine.hardware.precision import ResolvedPrecision
from utils.training.engine.warm_up import choose_precision


@pytest.fixture(autouse=True)
def cpu_with_bf16(monkeypatch):
    """Whatever this machine is: no GPU, and bf16 in hardware."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(environment, "has_bf16", lambda kind: True)


class Tracing(nn.Module):
    """Ids (B, T) -> logits (B, T, V); each pass draws (dropout), moves a buffer and an attribute, and both change the outputs."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding, self.head = nn.Embedding(VOCAB_SIZE, 16), nn.Linear(16, VOCAB_SIZE)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("mean", torch.zeros(16))
        self.calls = 0

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(input_ids)
        if self.training:
            self.calls += 1
            self.mean = 0.9 * self.mean + 0.1 * hidden.detach().float().mean((0, 1))
        return self.head(self.dropout(hidden - self.mean)) + 1e-3 * self.calls

    def run_state_dict(self):
        return {"calls": self.calls}

    def load_run_state_dict(self, state):
        self.calls = state["calls"]


class Timed:
    """Times that are made up: real passes in the formats that were asked for, and seconds by format."""

    def __init__(self, half: float, full: float) -> None:
        self.seconds, self.formats = {"bf16": half, "32": full}, []

    def __call__(self, parts, batch):
        time_pass(parts, batch)
        self.formats.append(parts.precision.compute)
        return self.seconds[parts.precision.compute]


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, step, trainer, logs=None):
        if step == self.step:
            trainer.request_stop("test")


LONG = {"epochs": 200, "early_stopping_patience": None}  # 600 steps of 3 micro-batches are planned; tests stop after a few


def run(timed=None, stop_at=5, resume_from=None, seed=0, **changes):
    trainer = Trainer(Tracing(seed), None, golden_config(**{**LONG, **changes}), callbacks=[StopAt(stop_at)])
    trainer.time_pass = timed or Timed(1.0, 1.0)
    return trainer.train(train_set(), validation_set(), resume_from=resume_from)


@pytest.mark.parametrize(("half", "full", "chosen"), [(1.3, 1.0, "32"), (1.0, 1.5, "bf16")])
def test_a_run_is_that_of_the_format_that_was_chosen_and_resume_keeps_it(half, full, chosen):
    timed = Timed(half, full)
    results = run(timed, run_name="measured")
    assert (results.precision, results.precision_reason) == (chosen, "measured")
    assert set(timed.formats) == {"bf16", "32"}
    (said,) = [notice for notice in results.notices if "precision" in notice]
    assert said.startswith(f"precision='auto' chose {'fp32' if chosen == '32' else 'bf16'}: ")
    assert f"{half / full:.2f}" in said
    assert_same_run(results, run(run_name="given", precision=chosen))

    # The resumed run measures nothing, whatever would come out now.
    again = Timed(full, half)
    stopped = run(Timed(half, full), stop_at=2, run_name="stopped")
    resumed = run(again, resume_from="auto", seed=9, run_name="stopped")
    assert stopped.steps == 2
    assert again.formats == []
    assert (resumed.precision, resumed.precision_reason) == (chosen, "as in the checkpoint")
    assert_same_run(results, resumed)


def stream():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(train_set().tensors[0])

    return DataLoader(Stream(), batch_size=4)


@pytest.mark.parametrize(("changes", "reason"), [
    ({"epochs": 2}, "too short"), ({"deterministic": True}, "deterministic"), ({"auto_batch_size": True}, "auto_batch_size"),
    ({"precision": "16"}, None), ({"precision": "bf16"}, None), ({"data": stream, "lr_schedule": "constant"}, "stream"),
], ids=["short", "deterministic", "batch size", "16", "bf16", "stream"])  # fmt: skip
def test_the_hardware_decides_where_nothing_can_be_measured(changes, reason):
    timed = Timed(2.0, 1.0)
    changes = {**LONG, **changes}
    data = changes.pop("data", train_set)()
    trainer = Trainer(Tracing(), None, golden_config(**changes), callbacks=[StopAt(1)])
    trainer.time_pass = timed
    results = trainer.train(data)
    assert results.precision == "bf16"
    assert timed.formats == []
    assert (results.precision_reason is None) if reason is None else (reason in results.precision_reason)
    assert not any("chose" in notice for notice in results.notices)


@pytest.mark.parametrize(("times", "pairs", "limit_s", "expected"), [
    ([(1.0, 1.04)] * 5, 5, math.inf, (False, 5)),  # not worth the rounding
    ([(1.0, 1.06)] * 5, 5, math.inf, (True, 5)),
    ([(1.0, 1.2), (1.0, 1.2), (9.0, 1.0), (1.0, 1.2), (1.0, 1.2)], 5, math.inf, (True, 5)),  # one disturbed pair
    ([(1.0, 8.0)], 5, math.inf, (True, 1)),  # clear at once
    ([(8.0, 1.0)], 5, math.inf, (False, 1)),
    ([(1.0, 1.2)] * 3, 5, 6.7, (True, 3)),  # time is spent
    ([(1.0, 1.2)] * 2, 5, 4.5, None),  # before enough was seen
], ids=str)  # fmt: skip
def test_what_decides_between_the_formats(times, pairs, limit_s, expected):
    parts = SimpleNamespace(model=nn.Linear(1, 1), precision=ResolvedPrecision("bf16"), scaler=None)
    queues = {"bf16": [0.0, *(half for half, _ in times)], "32": [0.0, *(full for _, full in times)]}
    measured = compare_formats(parts, {}, pairs, 10_000, limit_s, lambda parts, batch: queues[parts.precision.compute].pop(0))
    assert (measured if measured is None else (measured.half_is_faster, measured.pairs)) == expected
    assert parts.precision == ResolvedPrecision("bf16")
    assert queues == {"bf16": [], "32": []}  # as many passes as were needed


@pytest.mark.parametrize("num_passes", [1, 399, 400, 1000, 1600, 100_000])
@pytest.mark.parametrize("full", [0.6, 1.0, 1.9])
def test_what_the_measurement_costs(num_passes, full):
    parts = SimpleNamespace(model=nn.Linear(1, 1), precision=ResolvedPrecision("bf16"), scaler=None)
    spent = []

    def seconds(parts, batch):
        spent.append(1.0 if parts.precision.compute == "bf16" else full)
        return spent[-1]

    if pairs := affordable_pairs(num_passes):
        compare_formats(parts, {}, pairs, num_passes, math.inf, seconds)
    # Beside the pairs two passes warm up, one in each format.
    assert sum(spent[2:]) <= SHARE * num_passes * min(1.0, full) + 1e-9
    assert bool(spent) == (num_passes >= 400)


@pytest.mark.parametrize(("error", "expected"), [
    (OutOfMemoryError("a person has dealt with it"), None), (ValueError("the model's own"), None),
    (MemoryError(), Measured(math.inf, 0)),
], ids=repr)  # fmt: skip
def test_a_pass_that_fails_in_fp32_decides_nothing_unless_memory_ran_out(error, expected):
    parts = SimpleNamespace(model=nn.Linear(1, 1), precision=ResolvedPrecision("bf16"), scaler=None)

    def seconds(parts, batch):
        if parts.precision.compute == "32":
            raise error
        return 1.0

    assert compare_formats(parts, {}, 5, 1000, math.inf, seconds) == expected
    assert parts.precision.compute == "bf16"
    assert Measured(math.inf, 0).half_is_faster
    assert "does not fit in memory" in Measured(math.inf, 0).sentence("bf16")


def test_other_processes_take_what_the_main_one_measured():
    class Follower(World):
        def from_main(self, make):
            return Measured(0.8, 15)

    class Unlike(World):
        def gather(self, value):
            return [value, "32"]

    seen = {}

    class Ask(Callback):
        def on_train_begin(self, trainer, logs=None):
            seen["parts"] = trainer.parts
            trainer.request_stop("test")

    trainer = Trainer(Tracing(), None, golden_config(**LONG), callbacks=[Ask()])
    trainer.time_pass = Timed(1.0, 2.0)
    trainer.train(train_set())
    parts, timed, said = seen["parts"], Timed(1.0, 2.0), []
    parts.precision = ResolvedPrecision("bf16")
    choose_precision(dataclasses.replace(trainer_plan(trainer, parts), world=Unlike()), parts, said.append, timed)
    assert parts.precision == ResolvedPrecision("bf16", reason="by hardware: the processes' devices differ (32, bf16)")
    assert timed.formats == said == []
    plan = dataclasses.replace(trainer_plan(trainer, parts), world=Follower())
    choose_precision(plan, parts, said.append, timed)
    assert parts.precision.compute == "32"
    assert timed.formats == []
    assert "1.25" in said[0]


def trainer_plan(trainer, parts):
    from utils.training.engine.plan import RunPlan
    from utils.training.task_spec import TaskSpec

    config = trainer.training_config
    return RunPlan(config, trainer.data, TaskSpec("t"), parts.objective, World(), 3, 600, "train/loss", "min")
