"""Tier 1: six checks that every model should pass, in about a minute for 10 M parameters on two cores.

Each check is a function of its own, with detectors behind it: `independence`, `padding`, `generation` and `lengths` for the
shapes; `slope` and `depth` for the gradients; `output_range` and `own_loss` for the outputs; `bookkeeping` for what is
registered, saved and shared; `growth` for memory. `docs/CHECKS.md` has what each one catches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from utils.check_result import CheckReport, CheckResult
from utils.checks import gradients, initialization, memory, outputs, shapes, speed
from utils.checks.running import CheckProgress, chosen, run_checks

#: By the name that their results have, in the order in which they run.
TIER1: dict[str, Callable[..., CheckResult]] = {
    shapes.NAME: shapes.test_shape_robustness,
    gradients.NAME: gradients.test_gradient_flow,
    outputs.NAME: outputs.test_output_stability,
    initialization.NAME: initialization.test_parameter_initialization,
    memory.NAME: memory.test_memory_footprint,
    speed.NAME: speed.test_inference_speed,
}


def run_all_tier1_tests(
    model: Any, config: Any = None, *, task_spec: Any = None, tokenizer: Any = None, only: Sequence[str] | None = None,
    progress: Callable[[CheckProgress], None] | None = None, should_stop: Callable[[], bool] | None = None,
) -> CheckReport:  # fmt: skip
    """Run the six checks. The model is left exactly as it was: mode, gradients, buffers, random state.

    Args:
        model: an nn.Module over token ids or images.
        config: sizes that the model does not state: a SetupConfig, TrainingConfig, namespace or mapping with any of
            vocab_size, max_seq_len or max_length, batch_size.
        task_spec: what it is for; None: taken from the model's class, else predicting the next token.
        tokenizer: says the size of the vocabulary where the model and config do not.
        only: names of the checks to run, such as "shapes"; None: all six.
        progress: called before each check and after the last one.
        should_stop: True from it ends the checks at the model's next call; so does the kernel's interrupt. In both cases the
            report so far is returned, and the rest of it is "not run".
    Raises:
        ConfigError: `only` has a name that is not a check's.
    Returns:
        The results in order; `.passed` is False when a check failed or could not run.
    """
    return run_checks(
        "Tier 1", chosen(TIER1, only), model, config, task_spec=task_spec, tokenizer=tokenizer, progress=progress,
        should_stop=should_stop,
    )  # fmt: skip
