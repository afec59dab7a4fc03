"""Tier 3: checks that train. And all tiers in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from utils.checks import learning
from utils.checks.result import CheckReport, CheckResult
from utils.checks.running import CheckProgress, chosen, joined, run_checks
from utils.checks.tier1 import run_all_tier1_tests
from utils.checks.tier2 import run_all_tier2_tests

#: By the name that their results have, in the order in which they run.
TIER3: dict[str, Callable[..., CheckResult]] = {learning.NAME: learning.test_overfit_one_batch}


def run_all_tier3_tests(
    model: Any, config: Any = None, *, task_spec: Any = None, tokenizer: Any = None, only: Sequence[str] | None = None,
    progress: Callable[[CheckProgress], None] | None = None, should_stop: Callable[[], bool] | None = None,
) -> CheckReport:  # fmt: skip
    """Run the checks that train a copy of the model; the model itself is not changed. Arguments as for the other tiers."""
    return run_checks(
        "Tier 3", chosen(TIER3, only), model, config, task_spec=task_spec, tokenizer=tokenizer, progress=progress,
        should_stop=should_stop,
    )  # fmt: skip


def run_all_tests(
    model: Any, config: Any = None, *, task_spec: Any = None, tokenizer: Any = None,
    progress: Callable[[CheckProgress], None] | None = None, should_stop: Callable[[], bool] | None = None,
) -> CheckReport:  # fmt: skip
    """Run the checks of all tiers, in order, as one report."""
    tiers = (run_all_tier1_tests, run_all_tier2_tests, run_all_tier3_tests)
    return joined(
        "All tiers", tiers, model=model, config=config, task_spec=task_spec, tokenizer=tokenizer, progress=progress,
        should_stop=should_stop,
    )  # fmt: skip
