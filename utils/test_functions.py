"""The documented names of the model checks: a face over `utils.checks`, lazy like it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import utils.checks

if TYPE_CHECKING:
    from utils.check_result import CheckReport, CheckResult
    from utils.checks.attention import test_attention_patterns
    from utils.checks.attribution import test_attribution_analysis
    from utils.checks.calibration import test_calibration
    from utils.checks.comparison import test_benchmark_comparison
    from utils.checks.compiled import test_compile
    from utils.checks.fine_tuning import test_training_beats_baseline
    from utils.checks.glue import evaluate_glue
    from utils.checks.gradients import test_gradient_flow
    from utils.checks.half_precision import test_amp_speedup_benchmark, test_half_precision
    from utils.checks.initialization import test_parameter_initialization
    from utils.checks.learning import test_overfit_one_batch
    from utils.checks.memory import test_memory_footprint
    from utils.checks.outputs import test_output_stability
    from utils.checks.robustness import test_robustness
    from utils.checks.search_works import test_search
    from utils.checks.shapes import test_shape_robustness
    from utils.checks.speed import test_inference_speed
    from utils.checks.tier1 import run_all_tier1_tests
    from utils.checks.tier2 import run_all_tier2_tests
    from utils.checks.tier3 import run_all_tests, run_all_tier3_tests
    from utils.checks.token_losses import test_token_losses

__all__ = [
    "CheckReport", "CheckResult", "evaluate_glue", "run_all_tests", "run_all_tier1_tests", "run_all_tier2_tests",
    "run_all_tier3_tests", "test_amp_speedup_benchmark", "test_attention_patterns", "test_attribution_analysis",
    "test_benchmark_comparison", "test_calibration", "test_compile", "test_gradient_flow", "test_half_precision",
    "test_inference_speed", "test_memory_footprint", "test_output_stability", "test_overfit_one_batch",
    "test_parameter_initialization", "test_robustness", "test_search", "test_shape_robustness", "test_token_losses",
    "test_training_beats_baseline",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(utils.checks, name)


def __dir__() -> list[str]:
    return sorted(__all__)
