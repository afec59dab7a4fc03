"""Training: what is learnt (`task_spec`), how (`training_config`), the engine, and what surrounds it. Exports are lazy."""

from __future__ import annotations

from utils.lazy import lazy_exports

_EXPORTS = {
    "ExportHealthChecker": "utils.checks.export_health",
    "TaskSpec": "utils.training.task_spec",
    "TrainingConfig": "utils.training.training_config",
    "TrainingConfigBuilder": "utils.training.config_builder",
    "compare_configs": "utils.training.training_config",
    "Trainer": "utils.training.engine.trainer",
    "TrainingCoordinator": "utils.training.coordinator",
    "train_model": "utils.training.coordinator",
    "TrainingHooks": "utils.training.engine.hooks",
    "TrainingResults": "utils.training.engine.results",
    "Callback": "utils.training.engine.callbacks",
    "Task": "utils.training.engine.loss.tasks",
    "register_task": "utils.training.engine.loss.tasks",
    "infer_task_spec": "utils.training.engine.loss.tasks",
    "UniversalDataModule": "utils.data.module",
    "DatasetLoader": "utils.data.text.loader",
    "DatasetUploader": "utils.data.text.loader",
    "CheckpointManager": "utils.training.checkpoint_manager",
    "ExperimentManager": "utils.training.experiments",
    "MetricsTracker": "utils.training.metrics_tracker",
    "evaluate_generation": "utils.training.evaluation",
    "GenerationReport": "utils.training.evaluation",
    "diagnose": "utils.training.doctor",
    "DoctorCallback": "utils.training.diagnosis.watch",
    "create_export_bundle": "utils.training.export",
    "TorchScriptExporter": "utils.training.export",
    "export_model": "utils.training.export",
    "list_adapters": "utils.training.export.adapters",
    "ONNXExporter": "utils.training.export",
    "ModelCardGenerator": "utils.training.export",
    "create_repro_bundle": "utils.training.reproduction",
    "push_to_hub": "utils.training.hub",
    "find_batch_size": "utils.training.finders",
    "find_learning_rate": "utils.training.finders",
    "freeze_layers": "utils.training.freezing",
    "layer_table": "utils.training.freezing",
    "unfreeze_layers": "utils.training.freezing",
    "search_hyperparameters": "utils.training.search",
    "SearchResults": "utils.training.search",
    "JobQueue": "utils.training.job_queue",
    "JobConfig": "utils.training.job_queue",
    "ExperimentDB": "utils.training.run_table",
    "ExportRegistry": "utils.training.run_table",
    "RunTable": "utils.training.run_table",
    "GradientHealth": "utils.training.monitors",
    "LearningRateMonitor": "utils.training.monitors",
    "LoggingCallback": "utils.training.monitors",
    "ProfilingCallback": "utils.training.monitors",
}
__all__ = sorted(_EXPORTS)

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
