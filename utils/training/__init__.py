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
    "CheckpointManager": "utils.training.checkpoint_manager",
    "ExperimentManager": "utils.training.experiments",
    "MetricsTracker": "utils.training.metrics_tracker",
    "export_model": "utils.training.export",
    "find_batch_size": "utils.training.finders",
    "find_learning_rate": "utils.training.finders",
    "search_hyperparameters": "utils.training.search",
    "SearchResults": "utils.training.search",
    "GradientHealth": "utils.training.monitors",
    "LearningRateMonitor": "utils.training.monitors",
    "LoggingCallback": "utils.training.monitors",
    "ProfilingCallback": "utils.training.monitors",
}
__all__ = sorted(_EXPORTS)

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
