"""Tier 1: six checks that every model should pass, in well under a minute."""

from __future__ import annotations

from typing import Any

from utils.checks.gradients import test_gradient_flow
from utils.checks.initialization import test_parameter_initialization
from utils.checks.memory import test_memory_footprint
from utils.checks.outputs import test_output_stability
from utils.checks.result import CheckReport
from utils.checks.shapes import test_shape_robustness
from utils.checks.speed import test_inference_speed

TIER1 = (
    test_shape_robustness, test_gradient_flow, test_output_stability, test_parameter_initialization,
    test_memory_footprint, test_inference_speed,
)  # fmt: skip


def run_all_tier1_tests(model: Any, config: Any = None, *, task_spec: Any = None, tokenizer: Any = None) -> CheckReport:
    """Run the six checks. The model is left exactly as it was: mode, gradients, buffers, random state.

    Args:
        model: an nn.Module over token ids or images.
        config: sizes that the model does not state: a SetupConfig, TrainingConfig, namespace or mapping with any of
            vocab_size, max_seq_len or max_length, batch_size.
        task_spec: what it is for; None: taken from the model's class, else predicting the next token.
        tokenizer: says the size of the vocabulary where the model and config do not.
    Returns:
        The results in order; `.passed` is False when a check failed or could not run.
    """
    return CheckReport("Tier 1", [run(model, config, task_spec=task_spec, tokenizer=tokenizer) for run in TIER1])
