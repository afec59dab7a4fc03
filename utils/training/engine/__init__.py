"""The engine: one loop over batches. README.md beside this file gives the reading order. Exports are lazy."""

from __future__ import annotations

from utils.lazy import lazy_exports

_EXPORTS = {
    "Trainer": "utils.training.engine.trainer",
    "TrainingHooks": "utils.training.engine.hooks",
    "TrainingLoop": "utils.training.engine.loop",
    "TrainingResults": "utils.training.engine.results",
    "TrainState": "utils.training.engine.state",
    "Callback": "utils.training.engine.callbacks",
    "CallbackList": "utils.training.engine.callbacks",
    "EarlyStopping": "utils.training.engine.callbacks",
    "Control": "utils.training.engine.interrupts",
    "Loss": "utils.training.engine.loss.objective",
    "Objective": "utils.training.engine.loss.objective",
    "Task": "utils.training.engine.loss.tasks",
    "register_task": "utils.training.engine.loss.tasks",
    "infer_task_spec": "utils.training.engine.loss.tasks",
    "UniversalDataModule": "utils.training.engine.data",
    "read_checkpoint": "utils.training.engine.checkpointing.store",
}
__all__ = sorted(_EXPORTS)

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
