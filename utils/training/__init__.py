"""Training: what is learnt (`task_spec`), how (`training_config`), the engine, and what surrounds it. Exports are lazy."""

from __future__ import annotations

from utils.lazy import lazy_exports

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

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
