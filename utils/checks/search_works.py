"""Whether a hyper-parameter search over the model works: every trial trains, and the best one is better than no training."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch.nn import functional as F

from utils.adapters.maturity import is_untrained
from utils.check_result import CheckResult, Finding, Limit
from utils.checks.checking import check
from utils.checks.copies import Budget, Watch, seconds_per_step
from utils.checks.probe import Probe
from utils.checks.real_data import DATA_ERRORS, CheckData, data_for, scored
from utils.errors import first_line
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from utils.training.search import SearchResults

NAME = "hyper-parameter search"
log = logging.getLogger("trainbook.checks")

#: Learning rates that are tried: a decade below and above what is usual for untrained and for trained weights.
FRESH_RATES, TRAINED_RATES = (1e-4, 1e-3, 1e-2), (1e-5, 1e-4, 1e-3)

#: Limits of the measured values, and where each is from.
_LIMITS = (
    Limit("best_loss", at_most="best_loss", source="held-out loss before training"),
)  # fmt: skip


@check(NAME, limits=_LIMITS)
def test_search(
    found: Probe, data: Any = None, space: Mapping[str, Any] | None = None, n_trials: int | None = None, steps: int = 60,
    batch_size: int = 16, budget: Budget | None = None,
) -> CheckResult:  # fmt: skip
    """Search the learning rate on real data with `search_hyperparameters`, each trial a short training of a copy.

    Called as (model, config=None, *, task_spec=None, tokenizer=None, data=None, space=None, n_trials=None, steps=60,
    batch_size=16). Fails when no trial finishes, or when none gets an untrained model below its first held-out loss; warns
    when some trials fail. The model itself is not changed.

    Args:
        data: as for `test_training_beats_baseline`.
        space: as for `search_hyperparameters`; None: three learning rates. n_trials: None: all of a grid.
    """
    budget = budget or Budget()
    untrained = is_untrained(found.model)
    rates = FRESH_RATES if untrained else TRAINED_RATES
    space = {"learning_rate": list(rates)} if space is None else dict(space)
    try:
        prepared = data_for(found, data, train=True)
        before = _loss(found, prepared)
        expected = seconds_per_step(found, prepared, batch_size) * steps * (n_trials or len(rates))
        log.info("Search check: %s trials of %d steps, about %.0f s.", n_trials or len(rates), steps, expected)
        results = _search(found, prepared, space, n_trials, steps, batch_size, budget)
    except DATA_ERRORS as error:
        return CheckResult(NAME, "not run", f"Nothing was trained: {error}.", remedy=str(error))
    trials = [
        {"status": trial.status, "held_out_loss": trial.value, "params": dict(trial.params), "reason": trial.reason}
        for trial in results.trials
    ]
    finished = [trial for trial in results.trials if trial.status == "finished" and trial.value is not None]
    failed = [trial for trial in results.trials if trial.status == "failed"]
    measured = {
        "best_params": results.best_params, "best_loss": results.best_value, "loss_before": before, "trials": trials,
        "steps": steps, "expected_seconds": expected, "data": prepared.source,
    }  # fmt: skip
    thresholds = {"best_loss": before} if untrained else {}  # trained weights may be as good already as they get
    if budget.over and len(finished) < len(results.trials):
        return CheckResult(
            NAME, "not run", f"{budget.reason.capitalize()} after {len(finished)} trials.", measured, thresholds,
            "Give more time (time_limit_minutes) or fewer steps.",
        )  # fmt: skip
    if not finished:
        reason = first_line(failed[0].reason if failed else "") or "no trial was run"
        return CheckResult(
            NAME, "fail", f"None of {len(results.trials)} trials finished: {reason}", measured, thresholds,
            "Train the model once with Trainer to see the whole error.",
        )  # fmt: skip
    assert results.best_value is not None
    values = ", ".join(f"{name} {_short(value)}" for name, value in (results.best_params or {}).items())
    summary = (
        f"Best of {len(finished)} trials: {values} with a held-out loss of {results.best_value:.4g} "
        f"({before:.4g} before training; {steps} steps each on {prepared.source})."
    )
    result = CheckResult(NAME, "pass", summary, measured, thresholds, figure=_figure(results))
    return result.with_findings(_judged(results, before, failed, summary, untrained), {})


def _loss(found: Probe, data: CheckData) -> float:
    """Mean loss of all held-out targets, as the engine measures it."""
    total, count = 0.0, 0
    for one in scored(found.model, data, most_targets=200_000, most_rows=20_000):
        if data.task_spec.task_type == "regression":
            total, count = total + float((one.outputs - one.targets).square().sum()), count + one.targets.numel()
        else:
            total, count = (
                total + float(F.cross_entropy(one.outputs, one.targets, reduction="sum")),
                count + len(one.targets),
            )
    return total / count if count else math.nan


def _search(
    found: Probe,
    data: CheckData,
    space: dict[str, Any],
    n_trials: int | None,
    steps: int,
    batch_size: int,
    budget: Budget,
) -> SearchResults:
    from utils.training.search import search_hyperparameters  # heavy

    remaining = budget.deadline - time.monotonic()
    listed = all(isinstance(values, (list, tuple)) for values in space.values())
    with tempfile.TemporaryDirectory() as folder:
        config = TrainingConfig(
            epochs=100_000, max_steps=steps, batch_size=batch_size, precision="32", output_dir=folder, eval_every=steps,
            save_every_n_epochs=100_000, keep_last_n=2,
        )  # fmt: skip
        return search_hyperparameters(
            found.model, space, data.train, data.validation, strategy="grid" if listed and n_trials is None else "random",
            n_trials=n_trials or (None if listed else 3), training_config=config, task_spec=data.given_spec,
            tokenizer=data.tokenizer, timeout_s=None if math.isinf(remaining) else max(0.0, remaining),
            callbacks=[Watch(budget)],
        )  # fmt: skip


def _judged(results: SearchResults, before: float, failed: list[Any], summary: str, untrained: bool) -> list[Finding]:
    findings = []
    # A trained model may be as good already as it gets.
    if untrained and not (results.best_value is not None and results.best_value < before):
        findings.append(
            Finding(
                "no trial learns", "fail", f"No trial is better than before training. {summary}",
                "Look at the gradient flow, and whether the labels belong to their inputs; widen the space.",
            )
        )  # fmt: skip
    if failed:
        reason = first_line(failed[0].reason) or "no reason given"
        findings.append(
            Finding(
                "trials fail", "warn", f"{len(failed)} of {results.n_trials} trials failed: {reason}",
                "Narrow the space to values that train.",
            )
        )  # fmt: skip
    return findings


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _figure(results: SearchResults) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    known = [trial for trial in results.trials if trial.value is not None]
    labels = [", ".join(_short(value) for value in trial.params.values()) for trial in known]
    axes.bar(labels, [trial.value for trial in known if trial.value is not None], color="#1f4e9c")
    axes.set(xlabel=", ".join(results.space), ylabel="held-out loss")
    return figure
