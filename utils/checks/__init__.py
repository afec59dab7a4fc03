"""Checks of a model, each with measured values, a verdict that can be negative, and a remedy. Exports are lazy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.lazy import lazy_exports

if TYPE_CHECKING:
    from utils.check_result import CheckReport, CheckResult, Finding, Limit
    from utils.checks.attention import test_attention_patterns
    from utils.checks.attribution import test_attribution_analysis
    from utils.checks.calibration import test_calibration
    from utils.checks.comparison import test_benchmark_comparison
    from utils.checks.compiled import test_compile
    from utils.checks.data_quality import QualityThresholds, check_data_quality
    from utils.checks.drift import check_drift
    from utils.checks.expected import expected_seconds
    from utils.checks.export_health import ExportHealthChecker, HealthReport
    from utils.checks.fine_tuning import test_training_beats_baseline
    from utils.checks.glue import evaluate_glue
    from utils.checks.gradients import test_gradient_flow
    from utils.checks.half_precision import test_amp_speedup_benchmark, test_half_precision
    from utils.checks.initialization import test_parameter_initialization
    from utils.checks.learning import test_overfit_one_batch
    from utils.checks.memory import test_memory_footprint
    from utils.checks.outputs import test_output_stability
    from utils.checks.robustness import test_robustness
    from utils.checks.running import CheckProgress
    from utils.checks.search_works import test_search
    from utils.checks.shapes import test_causality, test_shape_robustness
    from utils.checks.speed import test_inference_speed
    from utils.checks.tier1 import run_all_tier1_tests
    from utils.checks.tier2 import run_all_tier2_tests
    from utils.checks.tier3 import run_all_tests, run_all_tier3_tests, tier3_minutes
    from utils.checks.token_losses import test_token_losses

_EXPORTS = {
    "CheckReport": "utils.check_result",
    "CheckResult": "utils.check_result",
    "Finding": "utils.check_result",
    "Limit": "utils.check_result",
    "CheckProgress": "utils.checks.running",
    "expected_seconds": "utils.checks.expected",
    "QualityThresholds": "utils.checks.data_quality",
    "check_data_quality": "utils.checks.data_quality",
    "check_drift": "utils.checks.drift",
    "ExportHealthChecker": "utils.checks.export_health",
    "HealthReport": "utils.checks.export_health",
    "evaluate_glue": "utils.checks.glue",
    "run_all_tests": "utils.checks.tier3",
    "run_all_tier1_tests": "utils.checks.tier1",
    "run_all_tier2_tests": "utils.checks.tier2",
    "run_all_tier3_tests": "utils.checks.tier3",
    "test_amp_speedup_benchmark": "utils.checks.half_precision",
    "test_attention_patterns": "utils.checks.attention",
    "test_attribution_analysis": "utils.checks.attribution",
    "test_benchmark_comparison": "utils.checks.comparison",
    "test_calibration": "utils.checks.calibration",
    "test_causality": "utils.checks.shapes",
    "test_compile": "utils.checks.compiled",
    "test_gradient_flow": "utils.checks.gradients",
    "test_half_precision": "utils.checks.half_precision",
    "test_inference_speed": "utils.checks.speed",
    "test_memory_footprint": "utils.checks.memory",
    "test_output_stability": "utils.checks.outputs",
    "test_overfit_one_batch": "utils.checks.learning",
    "test_parameter_initialization": "utils.checks.initialization",
    "test_robustness": "utils.checks.robustness",
    "test_search": "utils.checks.search_works",
    "test_shape_robustness": "utils.checks.shapes",
    "test_token_losses": "utils.checks.token_losses",
    "test_training_beats_baseline": "utils.checks.fine_tuning",
    "tier3_minutes": "utils.checks.tier3",
}
__all__ = [
    "CheckProgress", "CheckReport", "CheckResult", "ExportHealthChecker", "Finding", "HealthReport", "Limit",
    "QualityThresholds", "check_data_quality",
    "check_drift", "evaluate_glue", "expected_seconds", "run_all_tests", "run_all_tier1_tests", "run_all_tier2_tests",
    "run_all_tier3_tests", "test_amp_speedup_benchmark", "test_attention_patterns", "test_attribution_analysis",
    "test_benchmark_comparison", "test_calibration", "test_causality", "test_compile", "test_gradient_flow",
    "test_half_precision", "test_inference_speed", "test_memory_footprint", "test_output_stability",
    "test_overfit_one_batch", "test_parameter_initialization", "test_robustness", "test_search", "test_shape_robustness",
    "test_token_losses", "test_training_beats_baseline", "tier3_minutes",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
