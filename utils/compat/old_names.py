"""Import names of other systems -> what they are here. One entry a module; everything else is derived from this table."""

from __future__ import annotations

from collections.abc import Mapping

_CALLBACKS = {
    name: f"utils.compat.adaptive_callbacks:{name}"
    for name in ("Callback", "CallbackList", "LoggingCallback", "ProfilingCallback")
}
_LOOPS = {
    name: f"utils.compat.adaptive_loops:{name}"
    for name in ("TrainingLoop", "quick_train", "train_epoch", "evaluate_model")
}
_DATASETS = {
    name: f"utils.compat.adaptive_datasets:{name}"
    for name in ("load_mnist", "load_mnist_subset", "create_synthetic_loaders")
}
_CONFIG = {"AdaptiveConfig": "utils.compat.adaptive_config:AdaptiveConfig"}
_MODEL = {"AdaptiveModel": "utils.compat.adaptive_model:AdaptiveModel"}
_TRAINER = {"Trainer": "utils.compat.adaptive_trainer:Trainer"}

#: Module -> its names -> "module:attribute" of this library. Modules above these ("src") come by themselves.
OLD_MODULES: Mapping[str, Mapping[str, str]] = {
    "src.datasets": {
        "BaseDataset": "utils.data.images.builtin:BaseDataset",
        "MNISTDataset": "utils.data.images.builtin:MNISTDataset",
        "CIFARDataset": "utils.data.images.builtin:CIFARDataset",
        "DatasetRegistry": "utils.data.images.registry:DatasetRegistry",
    },
    "src.datasets.base": {"BaseDataset": "utils.data.images.builtin:BaseDataset"},
    "src.models": {
        "BaseModel": "utils.models.images:BaseModel",
        "LeNet": "utils.models.images:LeNet",
        "MyNet": "utils.models.images:MyNet",
        "BottleneckViT": "utils.models.images:BottleneckViT",
        "FPNViT": "utils.models.images:FPNViT",
        "ModelRegistry": "utils.models.registry:ModelRegistry",
    },
    "src.models.base": {"BaseModel": "utils.models.images:BaseModel"},
    "src.training": {
        "Trainer": "utils.compat.experiment:Trainer",
        "MetricsTracker": "utils.training.metrics_tracker:MetricsTracker",
        "CheckpointManager": "utils.training.checkpoint_manager:CheckpointManager",
        "ExperimentManager": "utils.training.experiments:ExperimentManager",
    },
    "src.training.trainer": {"Trainer": "utils.compat.experiment:Trainer"},
    "src.training.metrics": {"MetricsTracker": "utils.training.metrics_tracker:MetricsTracker"},
    "src.utils": {
        "get_device": "utils.compat.environment:get_device",
        "get_optimal_workers": "utils.compat.environment:get_optimal_workers",
        "setup_logger": "utils.compat.environment:setup_logger",
    },
    "src.utils.device": {"get_device": "utils.compat.environment:get_device"},
    "src.config": {
        "Config": "utils.compat.image_config:Config",
        "load_config": "utils.compat.image_config:load_config",
        "create_config_parser": "utils.compat.image_config:create_config_parser",
        "get_default_config": "utils.compat.image_config:get_default_config",
    },
    "adaptiveneuralnetwork.training": {**_CALLBACKS, **_TRAINER, **_LOOPS, **_DATASETS},
    "adaptiveneuralnetwork.training.callbacks": _CALLBACKS,
    "adaptiveneuralnetwork.training.trainer": _TRAINER,
    "adaptiveneuralnetwork.training.loops": _LOOPS,
    "adaptiveneuralnetwork.training.datasets": _DATASETS,
    "adaptiveneuralnetwork.api": {**_CONFIG, **_MODEL},
    "adaptiveneuralnetwork.api.config": _CONFIG,
    "adaptiveneuralnetwork.api.model": _MODEL,
    "adaptiveneuralnetwork.core.nodes": {
        name: f"utils.compat.adaptive_nodes:{name}" for name in ("NodeConfig", "NodeState", "AdaptiveDynamics")
    },
    "adaptiveneuralnetwork.core.phases": {
        name: f"utils.compat.adaptive_phases:{name}" for name in ("Phase", "PhaseScheduler")
    },
}
