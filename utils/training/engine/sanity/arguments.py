"""Check the types of a trainer's arguments, so that mistakes are refused at once instead of failing later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from utils.errors import ConfigError, Problem
from utils.schema import shown
from utils.training.engine.callbacks import Callback, check_handlers
from utils.training.engine.compute.user_supplied import OwnParts
from utils.training.engine.hooks import TrainingHooks
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig


def check_arguments(config: Any, training_config: Any, task_spec: Any, callbacks: Any, hooks: Any) -> None:
    """Raises `ConfigError` for arguments of another kind, and for callbacks and hooks that could not be called.

    Args:
        config: the model's own configuration: any object with attributes, or a mapping.
    """
    problems = []
    if isinstance(config, (str, bytes, int, float, list, tuple, set)):
        problems.append(
            Problem("config", f"got {shown(config)}; expected the model's configuration, an object or a mapping")
        )
    if not isinstance(training_config, TrainingConfig):
        problems.append(
            Problem("training_config", f"got {shown(training_config)}; expected a TrainingConfig or a mapping")
        )
    if task_spec is not None and not isinstance(task_spec, TaskSpec):
        example = "a TaskSpec, such as TaskSpec.classification(), or a mapping"
        problems.append(Problem("task_spec", f"got {shown(task_spec)}; expected {example}"))
    if isinstance(callbacks, (str, bytes)) or not isinstance(callbacks, Sequence):
        problems.append(Problem("callbacks", f"got {shown(callbacks)}; expected a list of Callback objects"))
    if problems:
        raise ConfigError.from_problems("Trainer's arguments", problems)
    for callback in callbacks:
        check_handlers(callback, Callback, "callbacks")
    if hooks is not None:
        check_handlers(hooks, TrainingHooks, "hooks")


def check_finetune(config: TrainingConfig, own_parts: OwnParts | None) -> None:
    """Raises `ConfigError` when adapters or frozen layers are asked for beside an optimizer of the caller's."""
    if own_parts is not None and config.finetune != "full":
        raise ConfigError(
            f"finetune: got {config.finetune!r} with an optimizer of yours, which holds its own "
            "parameters; set 'full' and freeze by requires_grad_(False)."
        )
