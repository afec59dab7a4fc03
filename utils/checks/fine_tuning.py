"""Whether a short training on real data gives a model that beats simple baselines on held-out data."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.adapters.maturity import is_untrained
from utils.check_result import CheckResult, Finding, Limit
from utils.checks import baselines
from utils.checks.baselines import Baseline
from utils.checks.checking import check
from utils.checks.copies import Budget, Trained, seconds_per_step, train_copy
from utils.checks.learning import LOWER
from utils.checks.probe import Probe
from utils.checks.real_data import DATA_ERRORS, CheckData, NoDataError, data_for, scored
from utils.training.task_kinds import kind_of_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "fine-tuning"
log = logging.getLogger("trainbook.checks")

# Adam's usual rate for small transformers from scratch, and one for weights that are trained already (BERT's authors take
# 2e-5 to 5e-5 for some thousand steps; there are fewer here).
FRESH_RATE, TRAINED_RATE = 1e-3, 1e-4
# Standard errors by which a linear model must be better to be reported: the two are compared on the same held-out samples.
_SIGMAS = 2.0
# And the share of the baseline's error. The project's own choice, as the two below.
LEAST_LAG = 0.05
# Share of the loss of frequencies alone by which a language model must be below it.
LEAST_GAIN = 0.01
# Training loss as a share of that of a constant prediction, below which a model has learned its training data.
_MEMORISED = 0.9
# How many times `steps` are trained at most before the baseline counts as not beaten: masked language models stay at the
# frequencies of tokens for some hundred steps.
_PATIENCE = 4
_MOSTLY = 0.5

#: Limits of the measured values, and where each is from.
_LIMITS = (
    Limit("error", at_most="error",
          source="the baseline's error on the same held-out samples, less one hundredth of it for language models"),
)  # fmt: skip


@check(NAME, limits=_LIMITS)
def test_training_beats_baseline(
    found: Probe, data: Any = None, steps: int = 300, batch_size: int = 16, learning_rate: float | None = None,
    budget: Budget | None = None,
) -> CheckResult:  # fmt: skip
    """Train a copy for `steps` steps on real data and compare it on held-out data with simple baselines.

    Called as (model, config=None, *, task_spec=None, tokenizer=None, data=None, steps=300, batch_size=16, learning_rate=None).
    Fails when the copy, after four times as many steps if need be, is no better than what needs no input at all: the
    frequencies of tokens, the majority class, the mean; "not run" when its loss was still falling, or most parameters are
    frozen. Warns when a linear model on the same inputs (bag of words, pixels, columns of numbers) is better by two
    standard errors of the paired difference and 5 % of the baseline's error, though the training loss no longer falls. The
    expected time is logged before the training starts. The model itself is not changed.

    Args:
        data: PreparedData, a pair (training, validation), or a dataset, of which 20 % is held out. None: the built-in
            corpus, for language models.
        learning_rate: None: 1e-3 for untrained models, 1e-4 for trained ones, and where these learn nothing a tenth of them.
        budget: when to stop before `steps`.
    """
    rate = learning_rate or (FRESH_RATE if is_untrained(found.model) else TRAINED_RATE)
    budget = budget or Budget()
    try:
        prepared = data_for(found, data, train=True)
        _check_labels(found, prepared)
        expected = seconds_per_step(found, prepared, batch_size) * steps
        affordable = min(expected, max(0.0, budget.deadline - time.monotonic()))
        log.info("Fine-tuning check: %d steps on %s, about %.0f s.", steps, prepared.source, affordable)
        trained = train_copy(found, prepared, steps=steps, batch_size=batch_size, learning_rate=rate, budget=budget)
        known = _compared(found, prepared, trained)
        if not known.beaten and not known.memorises and not budget.over and learning_rate is None:
            lower = train_copy(
                found, prepared, steps=steps, batch_size=batch_size, learning_rate=rate / LOWER, budget=budget
            )  # fmt: skip
            if _ends_at(lower) < _ends_at(trained):
                trained, rate = lower, rate / LOWER
                known = _compared(found, prepared, trained)
        if not known.beaten and not known.memorises and not budget.over:
            more = (_PATIENCE - 1) * steps
            trained = trained.continued(
                train_copy(
                    found, prepared, steps=more, batch_size=batch_size, learning_rate=rate, budget=budget, model=trained.model
                )
            )  # fmt: skip
            known = _compared(found, prepared, trained)
        bar = _linear(found, prepared, known)
    except DATA_ERRORS as error:
        return CheckResult(NAME, "not run", f"Nothing was trained: {error}.", remedy=str(error))
    measured = {
        "task": prepared.task_spec.task_type, "metric": metric_of(prepared), "error": float(known.errors.mean()),
        "baseline_error": known.floor.error, "baseline": known.floor.name, "steps": trained.steps, "seconds": trained.seconds,
        "expected_seconds": expected, "learning_rate": rate, "held_out_targets": len(known.errors), "data": prepared.source,
        **({} if bar is None else {"linear_model_error": bar.error}),
    }  # fmt: skip
    thresholds = {"error": known.limit}
    summary = _summary(measured, known.floor, bar, prepared)
    figure = _figure(trained.losses, measured, prepared)
    unknown = _why_unknown(found, trained, known, budget)
    if unknown is not None:
        return CheckResult(NAME, "not run", f"{unknown[0]} {summary}", measured, thresholds, unknown[1], figure)
    result = CheckResult(NAME, "pass", summary, measured, thresholds, figure=figure)
    return result.with_findings(_judged(known, bar, summary, trained), {})


@dataclass(frozen=True)
class _Compared:
    """A trained copy against what needs no input.

    Attributes:
        errors: of each held-out target, in the metric of the task; targets, classes: see `held_out_errors`.
        floor: the baseline; limit: what the mean error must be below.
        memorises: whether the training loss is clearly below that of a constant prediction.
    """

    errors: Tensor
    targets: Tensor
    classes: int
    floor: Baseline
    limit: float
    memorises: bool

    @property
    def beaten(self) -> bool:
        """Whether the copy is better than the baseline."""
        return float(self.errors.mean()) < self.limit


def _compared(found: Probe, data: CheckData, trained: Trained) -> _Compared:
    errors, targets, classes = held_out_errors(list(scored(trained.model, data)), data)
    floor = _floor(found, data, targets, classes)
    tokens = kind_of_task(data.task_spec.task_type).over_tokens
    # Frequencies are smoothed by guess, and a model that learns nothing else may smooth them a little better.
    limit = floor.error * (1 - LEAST_GAIN if tokens else 1)
    constant = floor.error
    if not tokens and data.task_spec.task_type != "regression":
        shares = torch.bincount(targets, minlength=classes).double() / len(targets)
        constant = float(-(shares * shares.clamp_min(1e-12).log()).sum())
    return _Compared(errors, targets, classes, floor, limit, _ends_at(trained) < _MEMORISED * constant)


def _ends_at(trained: Trained) -> float:
    """Mean training loss of the last quarter of the steps."""
    last = trained.losses[-max(1, len(trained.losses) // 4) :]
    return sum(last) / len(last)


def _why_unknown(found: Probe, trained: Trained, known: _Compared, budget: Budget) -> tuple[str, str] | None:
    """Explain why a copy that is no better than the baseline is inconclusive, and what to do, or None."""
    if known.beaten:
        return None
    if trained.ended_early:
        return f"{budget.reason.capitalize()}.", "Give more time (time_limit_minutes) or fewer steps."
    parameters = list(found.model.parameters())
    trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    if trainable < _MOSTLY * sum(parameter.numel() for parameter in parameters):
        return (
            "Most parameters are frozen, and what is left may not suffice.", "Load pretrained "
            "weights, or unfreeze more layers.",
        )  # fmt: skip
    if not known.memorises and trained.unfinished:
        return "The training loss was still falling.", "Train with more steps, or with a higher learning rate."
    return None


def _check_labels(found: Probe, data: CheckData) -> None:
    """Raise NoDataError, before anything is trained, for targets that have no baseline here."""
    next(iter(scored(found.model, data, most_rows=1)))
    if data.train is None:
        raise NoDataError("there is nothing to train on; give data=(training, validation)")


def held_out_errors(parts: list[Any], data: CheckData) -> tuple[Tensor, Tensor, int]:
    """The error of each held-out target in the metric of the task, the targets, and the number of classes."""
    task, found = data.task_spec.task_type, []
    for one in parts:
        if task == "regression":
            found.append((one.outputs - one.targets).double().square().mean(1).cpu())
        elif kind_of_task(task).over_tokens:
            found.append(F.cross_entropy(one.outputs, one.targets, reduction="none").double().cpu())
        else:
            found.append((one.outputs.argmax(1) != one.targets).double().cpu())
    if not found or not sum(map(len, found)):
        raise NoDataError("the held-out part has no targets; give data=(training, validation)")
    return torch.cat(found), torch.cat([one.targets.cpu() for one in parts]), parts[0].outputs.shape[1]


def _floor(found: Probe, data: CheckData, targets: Tensor, classes: int) -> Baseline:
    """Baseline that uses no input."""
    if kind_of_task(data.task_spec.task_type).over_tokens:
        return baselines.unigram(found.model, data, targets, classes)
    return baselines.mean(targets) if data.task_spec.task_type == "regression" else baselines.majority(targets)


def _linear(found: Probe, data: CheckData, known: _Compared) -> Baseline | None:
    """A linear model on the same inputs, for tasks with one target a sample."""
    if not kind_of_task(data.task_spec.task_type).per_sample:
        return None
    return baselines.linear(found.model, data, known.targets, known.classes)


def _judged(known: _Compared, bar: Baseline | None, summary: str, trained: Trained) -> list[Finding]:
    errors, floor = known.errors, known.floor
    if not known.beaten:
        learned = "that carries over to held-out data" if known.memorises else f"beyond the {floor.name}"
        return [
            Finding(
                "baseline not beaten", "fail", f"Nothing was learned {learned}. {summary}",
                "Look at the gradient flow and at whether inputs reach the outputs; try another learning rate; check that "
                "labels belong to their inputs.",
            )
        ]  # fmt: skip
    if bar is None or trained.unfinished or len(bar.errors) != len(errors):
        return []
    difference = errors - bar.errors
    standard_error = float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    if not float(difference.mean()) > max(_SIGMAS * standard_error, LEAST_LAG * floor.error):
        return []
    return [
        Finding(
            "linear model better", "warn", f"A {bar.name} on the same inputs is better. {summary}",
            "Normalise inputs of different scales, try another learning rate (hyper-parameter search), start from pretrained "
            "weights, or use the linear model.",
        )
    ]  # fmt: skip


def metric_of(data: CheckData) -> str:
    task = data.task_spec.task_type
    if task == "regression":
        return "mean squared error"
    return "nats per token" if kind_of_task(task).over_tokens else "share of wrong classes"


def _summary(measured: dict[str, Any], floor: Baseline, bar: Baseline | None, data: CheckData) -> str:
    linear = "" if bar is None else f", {bar.name} {_shown(bar.error, data)}"
    return (
        f"{_shown(measured['error'], data)} after {measured['steps']} steps on {data.source} ({floor.name} "
        f"{_shown(floor.error, data)}{linear}; {measured['held_out_targets']:,} held-out targets)."
    )


def _shown(error: float, data: CheckData) -> str:
    if metric_of(data) == "share of wrong classes":
        return f"{1 - error:.1%} accuracy"
    return f"{error:.3g} nats" if kind_of_task(data.task_spec.task_type).over_tokens else f"squared error {error:.3g}"


def _figure(losses: list[float], measured: dict[str, Any], data: CheckData) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(losses) + 1), losses, color="#1f4e9c", label="training loss")
    if metric_of(data) != "share of wrong classes":
        axes.axhline(measured["baseline_error"], color="#888888", linestyle="--", label=str(measured["baseline"]))
    axes.set(xlabel="steps", ylabel="loss")
    axes.legend()
    return figure
