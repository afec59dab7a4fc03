"""Tier 2: what a model looks at and how steady its predictions are, in about four minutes for 10 M parameters on two cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from utils.check_result import CheckReport, CheckResult
from utils.checks import attention, attribution, calibration, robustness, token_losses
from utils.checks.running import CheckProgress, chosen, run_checks
from utils.training.samples import text_from

#: By the name that their results have, in the order in which they run.
TIER2: dict[str, Callable[..., CheckResult]] = {
    attention.NAME: attention.test_attention_patterns,
    attribution.NAME: attribution.test_attribution_analysis,
    robustness.NAME: robustness.test_robustness,
    calibration.NAME: calibration.test_calibration,
    token_losses.NAME: token_losses.test_token_losses,
}
_WITH_TEXT, _WITH_DATA = (attention.NAME, attribution.NAME), (calibration.NAME, token_losses.NAME)


def run_all_tier2_tests(
    model: Any, config: Any = None, *, task_spec: Any = None, tokenizer: Any = None, input_text: str | None = None,
    only: Sequence[str] | None = None, data: Any = None, progress: Callable[[CheckProgress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> CheckReport:  # fmt: skip
    """Run the checks of tier 2. The model is left exactly as it was.

    Args:
        model, config, task_spec, tokenizer, only, progress, should_stop: as for `run_all_tier1_tests`.
        input_text: what the model reads where a check looks at one input; needs the tokenizer. By default the beginning of the
            first validation sample of `data`, or else random ids.
        data: what calibration and loss are measured on, for trained models: PreparedData, a pair (training, validation), or a
            dataset that is all held out. None: the built-in corpus, for language models with a tokenizer. With neither
            data nor tokenizer these two checks are left out.
    Returns:
        The results in order. A check that does not fit the model, or whose package is missing, is "not run" with its reason.
    """
    if input_text is None:
        input_text = _text_of(data, tokenizer)
    options: dict[str, dict[str, Any]] = {
        **{name: {"input_text": input_text} for name in _WITH_TEXT},
        **{name: {"data": data} for name in _WITH_DATA},
    }
    checks = chosen(TIER2, only)
    if only is None and data is None and tokenizer is None:
        checks = {name: run for name, run in checks.items() if name not in _WITH_DATA}
    return run_checks(
        "Tier 2", checks, model, config, task_spec=task_spec, tokenizer=tokenizer, options=options, progress=progress,
        should_stop=should_stop,
    )  # fmt: skip


def _text_of(data: Any, tokenizer: Any) -> str | None:
    """A text that the model should know what to do with: of the data that are held out."""
    is_pair = isinstance(data, tuple) and len(data) == 2
    return text_from(data[1] if is_pair else getattr(data, "validation", None), tokenizer)
