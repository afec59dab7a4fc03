"""The engine: one loop over batches. README.md beside this file gives the reading order. Exports are lazy."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Trainer": "trainer",
    "TrainingHooks": "hooks",
    "TrainingLoop": "loop",
    "TrainingResults": "results",
    "TrainState": "state",
    "Callback": "callbacks",
    "CallbackList": "callbacks",
    "EarlyStopping": "callbacks",
    "Control": "interrupts",
    "Loss": "objective",
    "Objective": "objective",
    "UniversalDataModule": "data",
    "read_checkpoint": "checkpoint",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
