"""Several checks in a row: progress, stop and interrupt, the report so far, and the model as it was."""

from __future__ import annotations

import itertools
import threading

import pytest
import torch
from torch import nn

from tests.kit.planted import Causal
from tests.kit.toys import tiny_gpt
from utils.checks import expected_seconds, run_all_tests, run_all_tier1_tests, run_all_tier2_tests, run_all_tier3_tests
from utils.checks.running import CheckProgress
from utils.checks.tier1 import TIER1

ONLY = ["shapes", "output stability", "inference speed"]


def state_of(model):
    """All that a check must leave as it was."""
    return (
        [(name, value.clone()) for name, value in model.state_dict().items()],
        [parameter.grad for parameter in model.parameters()],
        [module.training for module in model.modules()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        len(nn.modules.module._global_forward_pre_hooks),
        torch.random.get_rng_state(),
    )


def same(first, second):
    return all(
        torch.equal(*pair) if isinstance(pair[0], torch.Tensor) else same(*pair) if isinstance(pair[0], (list, tuple))
        else pair[0] == pair[1]
        for pair in zip(first, second, strict=True)
    )  # fmt: skip


def test_progress_names_each_check_in_turn_and_ends_complete():
    seen: list[CheckProgress] = []
    report = run_all_tier1_tests(Causal(), only=ONLY, progress=seen.append)
    assert [(now.name, now.done, now.total) for now in seen] == [*zip(ONLY, range(3), [3] * 3, strict=True), ("", 3, 3)]
    assert seen[0].expected_s > 0
    assert "shapes (1 of 3)" in seen[0].sentence
    assert [now.elapsed_s for now in seen] == sorted(now.elapsed_s for now in seen)
    assert seen[-1].fraction == 1.0
    assert report.seconds >= seen[-1].elapsed_s
    assert not report.stopped


def test_a_stop_between_checks_keeps_the_report_so_far():
    stop = threading.Event()
    report = run_all_tier1_tests(
        Causal(), only=ONLY, progress=lambda now: now.done == 1 and stop.set(), should_stop=stop.is_set
    )
    assert [result.verdict for result in report.results] == ["pass", "not run", "not run"]
    assert "Stopped" in report["output stability"].summary
    assert report.stopped
    assert not report.passed


class StopsAt(Causal):
    """Does something at one of its calls."""

    def __init__(self, call, do):
        super().__init__()
        object.__setattr__(self, "counting", itertools.count())
        self.at, self.do = call, do

    def forward(self, *args, **named):
        if next(self.counting) == self.at:
            self.do()
        return super().forward(*args, **named)


class Broken(Causal):
    """Cannot be called."""

    def forward(self, *args, **named):
        raise ZeroDivisionError


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize("check", TIER1)
@pytest.mark.parametrize("call", [0, 3, 11])
def test_an_interrupt_inside_a_check_returns_the_report_and_leaves_the_model_as_it_was(check, call):
    model = StopsAt(call, interrupt)
    before = state_of(model)
    report = run_all_tier1_tests(model, only=[check])
    assert same(before, state_of(model))
    if next(model.counting) > call:
        assert report[check].verdict == "not run"
        assert report.stopped


@pytest.mark.parametrize("tier", [run_all_tier1_tests, run_all_tier2_tests, run_all_tier3_tests])
def test_a_stop_inside_a_check_ends_it_at_the_next_call_of_the_model(tier):
    stop = threading.Event()
    model = StopsAt(2, lambda: stop.set())  # a function, unlike a method, is not copied with the model
    before = state_of(model)
    report = tier(model, should_stop=stop.is_set)
    assert [result.verdict for result in report.results] == ["not run"] * len(report.results)
    assert same(before, state_of(model))


def test_the_stop_of_one_thread_ends_nothing_in_another():
    stop = threading.Event()
    seen = []

    def beside(now):
        stop.set()
        thread = threading.Thread(target=lambda: seen.append(run_all_tier1_tests(Causal(), only=["inference speed"])))
        thread.start()
        thread.join()

    run_all_tier1_tests(Causal(), only=["shapes"], progress=beside, should_stop=stop.is_set)
    assert seen[0].passed


def test_all_tiers_stop_together_and_report_every_check():
    report = run_all_tests(StopsAt(5, interrupt))
    assert {"shapes", "attention patterns", "overfit one batch"} <= set(report)
    assert {result.verdict for result in report.results} == {"not run"}
    assert report.stopped


def test_a_stop_changes_nothing_where_nobody_stops():
    with_stop = run_all_tier1_tests(tiny_gpt(), only=ONLY[:2], should_stop=lambda: False)
    assert [r.verdict for r in with_stop.results] == [
        r.verdict for r in run_all_tier1_tests(tiny_gpt(), only=ONLY[:2]).results
    ]


def test_the_expected_time_is_known_before_and_leaves_the_model_alone():
    model = Causal()
    before = state_of(model)
    assert expected_seconds(["shapes"], model) < expected_seconds(TIER1, model)
    assert same(before, state_of(model))
    assert expected_seconds(TIER1, "no model") is None
    assert expected_seconds(TIER1, Broken()) is None
