"""Whether a short training on real data gives a model that beats simple baselines on held-out data."""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.checks import baselines
from utils.checks.baselines import Baseline
from utils.checks.copies import Budget, Trained, seconds_per_step, train_copy
from utils.checks.maturity import is_untrained
from utils.checks.probe import Probe, check
from utils.checks.real_data import DATA_ERRORS, CheckData, NoDataError, data_for, scored
from utils.checks.result import CheckResult, Finding

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
# Loss of the last quarter of the steps as a share of that of the quarter before, below which training was not finished.
STILL_FALLING = 0.95
_TOKEN_TASKS = ("causal_lm", "masked_lm", "seq2seq")
_ONE_A_SAMPLE = ("text_classification", "image_classification", "regression")


@check(NAME)
def test_training_beats_baseline(
    found: Probe, data: Any = None, steps: int = 300, batch_size: int = 16, learning_rate: float | None = None,
    budget: Budget | None = None,
) -> CheckResult:  # fmt: skip
    """Train a copy for `steps` steps on real data and compare it on held-out data with simple baselines.

    Called as (model, config=None, *, task_spec=None, tokenizer=None, data=None, steps=300, batch_size=16, learning_rate=None).
    Fails when the copy is no better than what needs no input at all: the frequencies of tokens, the majority class, the mean.
    Warns when a linear model on the same inputs (bag of words, pixels, columns of numbers) is better by two standard errors
    of the paired difference and 5 % of the baseline's error, though the training loss no longer falls. The expected time is
    logged before the training starts. The model itself is not changed.

    Args:
        data: PreparedData, a pair (training, validation), or a dataset, of which 20 % is held out. None: the built-in
            corpus, for language models.
        learning_rate: None: 1e-3 for untrained models, 1e-4 for trained ones.
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
        parts = list(scored(trained.model, prepared))
    except DATA_ERRORS as error:
        return CheckResult(NAME, "not run", f"Nothing was trained: {error}.", remedy=str(error))
    errors, targets, classes = held_out_errors(parts, prepared)
    floor, bar = _baselines(found, prepared, targets, classes)
    measured = {
        "task": prepared.task_spec.task_type, "metric": metric_of(prepared), "error": float(errors.mean()),
        "baseline_error": floor.error, "baseline": floor.name, "steps": trained.steps, "seconds": trained.seconds,
        "expected_seconds": expected, "learning_rate": rate, "held_out_targets": len(errors), "data": prepared.source,
        **({} if bar is None else {"linear_model_error": bar.error}),
    }  # fmt: skip
    # Frequencies are smoothed by guess, and a model that learns nothing else may smooth them a little better.
    limit = floor.error * (1 - LEAST_GAIN if prepared.task_spec.task_type in _TOKEN_TASKS else 1)
    thresholds = {"error": limit}
    summary = _summary(measured, floor, bar, prepared)
    figure = _figure(trained.losses, measured, prepared)
    if trained.ended_early and not measured["error"] < limit:
        return CheckResult(
            NAME, "not run", f"{budget.reason.capitalize()} ({steps} steps were planned). {summary}", measured, thresholds,
            "Give more time (time_limit_minutes) or fewer steps.", figure,
        )  # fmt: skip
    result = CheckResult(NAME, "pass", summary, measured, thresholds, figure=figure)
    return result.with_findings(_judged(errors, limit, floor, bar, summary, _is_unfinished(trained)), {})


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
        elif task in _TOKEN_TASKS:
            found.append(F.cross_entropy(one.outputs, one.targets, reduction="none").double().cpu())
        else:
            found.append((one.outputs.argmax(1) != one.targets).double().cpu())
    if not found or not sum(map(len, found)):
        raise NoDataError("the held-out part has no targets; give data=(training, validation)")
    return torch.cat(found), torch.cat([one.targets.cpu() for one in parts]), parts[0].outputs.shape[1]


def _baselines(found: Probe, data: CheckData, targets: Tensor, classes: int) -> tuple[Baseline, Baseline | None]:
    """What needs no input, and a linear model where there is one for these inputs."""
    task = data.task_spec.task_type
    if task in _TOKEN_TASKS:
        return baselines.unigram(found.model, data, targets, classes), None
    if task == "regression":
        floor = baselines.mean(targets)
    else:
        floor = baselines.majority(targets)
    return floor, baselines.linear(found.model, data, targets, classes) if task in _ONE_A_SAMPLE else None


def _is_unfinished(trained: Trained) -> bool:
    """Whether the loss was still falling, so that more steps would have given a better model."""
    quarter = len(trained.losses) // 4
    if trained.ended_early or not quarter:
        return True
    last, before = trained.losses[-quarter:], trained.losses[-2 * quarter : -quarter]
    return sum(last) < STILL_FALLING * sum(before)


def _judged(
    errors: Tensor, limit: float, floor: Baseline, bar: Baseline | None, summary: str, unfinished: bool
) -> list[Finding]:
    if not float(errors.mean()) < limit:
        return [
            Finding(
                "baseline not beaten", "fail", f"Nothing was learned beyond the {floor.name}. {summary}",
                "Look at the gradient flow and at whether inputs reach the outputs; try another learning rate; check that "
                "labels belong to their inputs.",
            )
        ]  # fmt: skip
    if bar is None or unfinished or len(bar.errors) != len(errors):
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
    return "nats per token" if task in _TOKEN_TASKS else "share of wrong classes"


def _summary(measured: dict[str, Any], floor: Baseline, bar: Baseline | None, data: CheckData) -> str:
    linear = "" if bar is None else f", {bar.name} {_shown(bar.error, data)}"
    return (
        f"{_shown(measured['error'], data)} after {measured['steps']} steps on {data.source} ({floor.name} "
        f"{_shown(floor.error, data)}{linear}; {measured['held_out_targets']:,} held-out targets)."
    )


def _shown(error: float, data: CheckData) -> str:
    if metric_of(data) == "share of wrong classes":
        return f"{1 - error:.1%} accuracy"
    return f"{error:.3g} nats" if data.task_spec.task_type in _TOKEN_TASKS else f"squared error {error:.3g}"


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
