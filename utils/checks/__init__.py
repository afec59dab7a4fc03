"""Checks of a model, each with what was measured, a verdict that can go wrong, and a remedy. Exports are lazy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.lazy import lazy_exports

if TYPE_CHECKING:
    from utils.checks.data_quality import QualityThresholds, check_data_quality
    from utils.checks.drift import check_drift
    from utils.checks.gradients import test_gradient_flow
    from utils.checks.initialization import test_parameter_initialization
    from utils.checks.memory import test_memory_footprint
    from utils.checks.outputs import test_output_stability
    from utils.checks.result import CheckReport, CheckResult
    from utils.checks.shapes import test_causality, test_shape_robustness
    from utils.checks.speed import test_inference_speed
    from utils.checks.tier1 import run_all_tier1_tests

_EXPORTS = {
    "QualityThresholds": "utils.checks.data_quality",
    "check_data_quality": "utils.checks.data_quality",
    "check_drift": "utils.checks.drift",
    "CheckReport": "utils.checks.result",
    "CheckResult": "utils.checks.result",
    "run_all_tier1_tests": "utils.checks.tier1",
    "test_causality": "utils.checks.shapes",
    "test_gradient_flow": "utils.checks.gradients",
    "test_inference_speed": "utils.checks.speed",
    "test_memory_footprint": "utils.checks.memory",
    "test_output_stability": "utils.checks.outputs",
    "test_parameter_initialization": "utils.checks.initialization",
    "test_shape_robustness": "utils.checks.shapes",
}
__all__ = [
    "CheckReport", "CheckResult", "QualityThresholds", "check_data_quality", "check_drift", "run_all_tier1_tests",
    "test_causality", "test_gradient_flow", "test_inference_speed", "test_memory_footprint", "test_output_stability",
    "test_parameter_initialization", "test_shape_robustness",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
