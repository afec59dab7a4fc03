"""Tier 3: checks that train copies of a model, within a limit of time that is stated first. And all tiers in one call."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from utils.check_result import CheckReport, CheckResult
from utils.checks import comparison, compiled, fine_tuning, glue, half_precision, learning, search_works
from utils.checks.copies import Budget, seconds_per_step
from utils.checks.glue_data import chosen_tasks
from utils.checks.probe import CannotProbeError, probe
from utils.checks.real_data import DATA_ERRORS, data_for
from utils.checks.running import CheckProgress, chosen, joined, run_checks
from utils.checks.tier1 import run_all_tier1_tests
from utils.checks.tier2 import run_all_tier2_tests
from utils.errors import ConfigError, ModelError

log = logging.getLogger("trainbook.checks")

#: By the name that their results have, in the order in which they run.
TIER3: dict[str, Callable[..., CheckResult]] = {
    learning.NAME: learning.test_overfit_one_batch,
    fine_tuning.NAME: fine_tuning.test_training_beats_baseline,
    search_works.NAME: search_works.test_search,
    half_precision.NAME: half_precision.test_half_precision,
}
#: Checks that take longer or need something else: run when they are named, or when what they need is given.
ON_REQUEST: dict[str, Callable[..., CheckResult]] = {
    comparison.NAME: comparison.test_benchmark_comparison,
    compiled.NAME: compiled.test_compile,
}
GLUE = "GLUE"

#: Minutes for all checks of the tier together, unless another limit is given.
TIME_LIMIT_MINUTES = 5.0
# Shares of the time that is left, against each other: about the steps that each check trains.
_SHARES = {learning.NAME: 1.0, fine_tuning.NAME: 4.0, search_works.NAME: 2.0, comparison.NAME: 4.0, GLUE: 20.0}
# Steps of each check with data, for the estimate; the batch of the check that overfits one is half as large.
_STEPS = {learning.NAME: 75, fine_tuning.NAME: 300, search_works.NAME: 180, comparison.NAME: 300}
_BATCH_SIZE = 16
_WITH_DATA = (fine_tuning.NAME, search_works.NAME, comparison.NAME)


def run_all_tier3_tests(
    model: Any, config: Any = None, *, task_spec: Any = None, tokenizer: Any = None, data: Any = None, reference: Any = None,
    glue_dir: str | os.PathLike[str] | None = None, glue_tasks: Sequence[str] | None = None, only: Sequence[str] | None = None,
    time_limit_minutes: float | None = TIME_LIMIT_MINUTES, progress: Callable[[CheckProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> CheckReport:  # fmt: skip
    """Run the checks that train copies of the model; the model itself is not changed. The expected time is logged first.

    Args:
        model, config, task_spec, tokenizer, progress, should_stop: as for `run_all_tier1_tests`.
        data: what to train on: PreparedData, a pair (training, validation), or a dataset, of which 20 % is held out. None: the
            built-in corpus, for language models.
        reference: a model to compare with; adds "reference comparison".
        glue_dir: a folder with GLUE's files in the official layout; adds the tasks of GLUE, which need the tokenizer.
        glue_tasks: names of those tasks; None: all nine. Without glue_dir they are read from the Hub.
        only: names of the checks to run; "reference comparison", "compile" (about a minute on a CPU) and "GLUE" run only when
            named here or asked for by the arguments above. None: all others.
        time_limit_minutes: for all of them together; None: no limit. Checks that it ends are "not run" unless they have passed.
    Raises:
        ConfigError: `only` has a name that is not a check's, or the time limit is negative.
    """
    if time_limit_minutes is not None and not time_limit_minutes >= 0:
        raise ConfigError(f"time_limit_minutes: got {time_limit_minutes!r}; must be 0 or more, or None for no limit.")
    names = _names(only, reference is not None, glue_dir is not None or glue_tasks is not None)
    deadline = float("inf") if time_limit_minutes is None else time.monotonic() + 60 * time_limit_minutes
    expected: float | None = None
    if time_limit_minutes != 0:
        expected = tier3_minutes(
            model, config, task_spec=task_spec, tokenizer=tokenizer, data=data, only=names,
            time_limit_minutes=time_limit_minutes,
        )  # fmt: skip
        log.info("Tier 3 trains copies of the model: about %.1f min.", expected)
    checks: dict[str, Callable[..., CheckResult]] = {}
    options: dict[str, dict[str, Any]] = {}
    for position, name in enumerate(names):
        limit = functools.partial(_budget, names[position:], deadline, should_stop)
        if name == GLUE:
            tasks = [task.name for task in chosen_tasks(glue_tasks)]
            for number, task in enumerate(tasks):
                share = functools.partial(_budget, [GLUE] * (len(tasks) - number), deadline, should_stop)
                checks[f"{GLUE} {task}"] = _within(f"{GLUE} {task}", functools.partial(_glue, task, glue_dir), share)
            continue
        checks[name] = _within(name, {**TIER3, **ON_REQUEST}[name], limit)
        options[name] = {"data": data} if name in _WITH_DATA else {}
        options[name] |= {"reference": reference} if name == comparison.NAME else {}
    return run_checks(
        "Tier 3", checks, model, config, task_spec=task_spec, tokenizer=tokenizer, options=options, progress=progress,
        should_stop=should_stop, expected_s=None if expected is None else 60 * expected,
    )  # fmt: skip


def _budget(names: Sequence[str], deadline: float, should_stop: Callable[[], bool] | None) -> Budget:
    return Budget(_deadline(names, deadline), should_stop)


def _within(name: str, run: Callable[..., CheckResult], limit: Callable[[], Budget]) -> Callable[..., CheckResult]:
    """The check with the time that is left for it when it begins."""

    def limited(model: Any, config: Any = None, **arguments: Any) -> CheckResult:
        budget = limit()
        if budget.over:
            reason = f"{budget.reason.capitalize()}."
            return CheckResult(name, "not run", reason, remedy="Give more time (time_limit_minutes).")
        if name in _SHARES or name.startswith(GLUE):
            arguments["budget"] = budget
        return run(model, config, **arguments)

    return limited


def tier3_minutes(
    model: Any, config: Any = None, *, task_spec: Any = None, tokenizer: Any = None, data: Any = None,
    only: Sequence[str] | None = None, time_limit_minutes: float | None = TIME_LIMIT_MINUTES,
) -> float:  # fmt: skip
    """Estimate the minutes of `run_all_tier3_tests` with these arguments from the time of one training step, without GLUE."""
    limit = float("inf") if time_limit_minutes is None else float(time_limit_minutes)
    names = _names(only, False, False)
    try:
        found = probe(model, config, task_spec, tokenizer)
        seconds = seconds_per_step(found, data_for(found, data, train=True), _BATCH_SIZE)
    except (CannotProbeError, ModelError, *DATA_ERRORS):
        return min(limit, 1.0)  # what trains on data will not run
    except Exception as error:  # noqa: BLE001 - an error of the model, which the checks report
        log.info("The time could not be estimated: %s", error)
        return min(limit, 1.0)
    steps = sum(_STEPS.get(name, 10) for name in names)
    return min(limit, seconds * steps / 60 + (1.0 if compiled.NAME in names else 0.0))


def run_all_tests(
    model: Any, config: Any = None, *, task_spec: Any = None, tokenizer: Any = None, data: Any = None,
    input_text: str | None = None, time_limit_minutes: float | None = TIME_LIMIT_MINUTES,
    progress: Callable[[CheckProgress], None] | None = None, should_stop: Callable[[], bool] | None = None,
) -> CheckReport:  # fmt: skip
    """Run the checks of all tiers, in order, as one report. `time_limit_minutes` is that of tier 3."""
    tiers = (
        run_all_tier1_tests,
        functools.partial(run_all_tier2_tests, data=data, input_text=input_text),
        functools.partial(run_all_tier3_tests, data=data, time_limit_minutes=time_limit_minutes),
    )
    return joined(
        "All tiers", tiers, model=model, config=config, task_spec=task_spec, tokenizer=tokenizer, progress=progress,
        should_stop=should_stop,
    )  # fmt: skip


def _names(only: Sequence[str] | None, reference: bool, with_glue: bool) -> list[str]:
    """The checks to run, in order."""
    everything = {**TIER3, **ON_REQUEST, GLUE: glue.evaluate_glue}
    if only is not None:
        return list(chosen(everything, only))  # type: ignore[arg-type]
    return [*TIER3, *([comparison.NAME] if reference else []), *([GLUE] if with_glue else [])]


def _deadline(names: Sequence[str], deadline: float) -> float:
    """Until when the first of these checks may train, so that the others have their share of what is left."""
    if deadline == float("inf"):
        return deadline
    now = time.monotonic()
    share = _SHARES.get(names[0], 1.0) / sum(_SHARES.get(name, 1.0) for name in names)
    return now + max(0.0, deadline - now) * share


def _glue(
    task: str, folder: str | os.PathLike[str] | None, model: Any, config: Any = None, *, task_spec: Any = None,
    tokenizer: Any = None, budget: Budget | None = None,
) -> CheckResult:  # fmt: skip
    if tokenizer is None:
        return CheckResult(
            f"{GLUE} {task}", "not run", "GLUE is made of texts, and no tokenizer was given.", remedy="Give tokenizer=…"
        )
    return glue.evaluate_glue(model, tokenizer, task, folder, budget=budget).results[0]
