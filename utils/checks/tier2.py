"""Tier 2: what a model looks at and how steady its predictions are, in about four minutes for 10 M parameters on two cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from utils.checks import attention, attribution, robustness
from utils.checks.result import CheckReport, CheckResult
from utils.checks.tier1 import chosen

#: By the name that their results have, in the order in which they run.
TIER2: dict[str, Callable[..., CheckResult]] = {
    attention.NAME: attention.test_attention_patterns,
    attribution.NAME: attribution.test_attribution_analysis,
    robustness.NAME: robustness.test_robustness,
}


def run_all_tier2_tests(
    model: Any, config: Any = None, *, task_spec: Any = None, tokenizer: Any = None, input_text: str | None = None,
    only: Sequence[str] | None = None,
) -> CheckReport:  # fmt: skip
    """Run the checks of tier 2. The model is left exactly as it was.

    Args:
        model, config, task_spec, tokenizer, only: as for `run_all_tier1_tests`.
        input_text: what the model reads where a check looks at one input; needs the tokenizer. None: random ids.
    Returns:
        The results in order. A check that does not fit the model, or whose package is missing, is "not run" with its reason.
    """
    texts = {attention.NAME, attribution.NAME}
    return CheckReport(
        "Tier 2",
        [
            run(
                model, config, task_spec=task_spec, tokenizer=tokenizer, **({"input_text": input_text} if name in texts else {})
            )
            for name, run in chosen(TIER2, only).items()
        ],
    )
