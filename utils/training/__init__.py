"""Training: what is learnt (`task_spec`), how (`training_config`), the engine, and what surrounds it. Exports are lazy."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "TaskSpec": "utils.training.task_spec",
    "TrainingConfig": "utils.training.training_config",
    "TrainingConfigBuilder": "utils.training.config_builder",
    "compare_configs": "utils.training.training_config",
    "Trainer": "utils.training.engine.trainer",
    "TrainingHooks": "utils.training.engine.hooks",
    "TrainingResults": "utils.training.engine.results",
    "Callback": "utils.training.engine.callbacks",
    "UniversalDataModule": "utils.data.module",
    "export_model": "utils.training.export",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
