"""TrainingConfigBuilder: a TrainingConfig put together in named groups, from a preset or from nothing."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

from utils.errors import ConfigError, Problem
from utils.schema import nearest, shown
from utils.training.training_config import TrainingConfig


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# What each method sets. A name may stand in several groups: accumulation is training, optimizer and memory at once.
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "with_training": _names(
        "epochs max_steps max_time_hours batch_size auto_batch_size learning_rate gradient_accumulation_steps "
        "label_smoothing early_stopping_patience monitor mode min_delta eval_every max_train_samples max_val_samples"
    ),
    "with_optimizer": _names(
        "optimizer learning_rate weight_decay betas eps max_grad_norm warmup_ratio warmup_steps "
        "gradient_accumulation_steps weight_averaging ema_decay averaging_ratio"
    ),
    "with_optimization": _names(
        "compile_mode gradient_accumulation_steps gradient_checkpointing fused_loss precision use_amp auto_batch_size"
    ),
    "with_fine_tuning": _names("finetune finetune_layers lora_rank lora_alpha lora_dropout lora_targets"),
    "with_scheduler": _names("use_lr_schedule lr_schedule warmup_ratio warmup_steps min_lr_ratio lr_decay_ratio"),
    "with_hardware": _names("precision use_amp compile_mode strategy devices num_nodes num_workers"),
    "with_logging": _names("use_wandb wandb_project wandb_entity run_name output_dir notes"),
    "with_checkpointing": _names(
        "checkpoint_dir save_every_n_epochs save_every_minutes keep_best_k keep_last_n on_save_error on_nonfinite "
        "on_config_change isolate_callbacks"
    ),
    "with_export": _names("export_bundle export_formats export_dir"),
    "with_reproducibility": _names("random_seed deterministic"),
}

# Values of `.setup`: what is trained and on what. They are no fields of TrainingConfig.
_SETUP_GROUPS: Mapping[str, tuple[str, ...]] = {
    "with_model": _names("model_name model_type vocab_size max_seq_len d_model num_layers num_heads d_ff dropout"),
    "with_dataset": _names(
        "dataset_name dataset_source dataset_path config_name dataset_split dataset_subset task_name eval_dataset_id "
        "tokenizer_strategy max_length val_split"
    ),
}

# Names of other systems that live somewhere else here.
_ELSEWHERE: Mapping[str, str] = {
    "resume_from_checkpoint": "is an argument of Trainer.train: resume_from=",
    "keep_best_only": "is not a setting; keep_best_k and keep_last_n say how many checkpoints stay",
}


class TrainingConfigBuilder:
    """Builds a TrainingConfig step by step. Immutable: every method returns a new builder, checked at once.

    Attributes:
        setup: values about model and data (`with_model`, `with_dataset`); TrainingConfig holds none of them.

    `TrainingConfigBuilder(**values)` starts from TrainingConfig's defaults. None is a value like any other: it unsets a
    field that can be None.
    """

    def __init__(self, /, **values: Any) -> None:
        self._config = TrainingConfig(**values)
        self._setup: dict[str, Any] = {}

    @property
    def setup(self) -> Mapping[str, Any]:
        """Values about model and data, by name; read only."""
        return MappingProxyType(self._setup)

    def build(self) -> TrainingConfig:
        """The configuration. It is valid: every step was checked."""
        return self._config

    # Where to start

    @classmethod
    def from_config(cls, config: TrainingConfig | Mapping[str, Any]) -> Self:
        """Start from a TrainingConfig, or from a mapping of its fields."""
        if isinstance(config, Mapping):
            config = TrainingConfig.from_dict(config)
        if not isinstance(config, TrainingConfig):
            raise ConfigError(f"from_config takes a TrainingConfig or a mapping of its fields; got {shown(config)}")
        return cls()._with(config)

    @classmethod
    def quick_prototype(cls) -> Self:
        """A small model and 3 epochs: does it run and learn at all?"""
        builder = cls(
            learning_rate=5e-4, batch_size=8, epochs=3, warmup_ratio=0.05, early_stopping_patience=2, precision="16",
            save_every_n_epochs=1,
        )  # fmt: skip
        return builder._sized(512, 6, 8, 2048, 128)

    @classmethod
    def baseline(cls) -> Self:
        """The size of GPT-2 small with customary values: what other runs are compared with."""
        builder = cls(
            learning_rate=5e-5, batch_size=4, epochs=10, warmup_ratio=0.1, early_stopping_patience=5,
            compile_mode="default", precision="bf16", save_every_n_epochs=5,
        )  # fmt: skip
        return builder._sized(768, 12, 12, 3072, 128)

    @classmethod
    def production(cls) -> Self:
        """Long and repeatable, with a bundle at the end."""
        builder = cls(
            learning_rate=3e-5, batch_size=8, epochs=20, warmup_ratio=0.1, early_stopping_patience=10,
            gradient_accumulation_steps=4, compile_mode="reduce-overhead", save_every_n_epochs=2, deterministic=True,
            export_bundle=True, export_formats=["onnx", "torchscript"],
        )  # fmt: skip
        return builder._sized(768, 12, 12, 3072, 256)

    @classmethod
    def distributed(cls) -> Self:
        """The size of GPT-2 medium on four devices of one machine."""
        builder = cls(
            learning_rate=1e-4, batch_size=8, epochs=15, warmup_ratio=0.1, early_stopping_patience=8,
            gradient_accumulation_steps=2, strategy="ddp", devices=4, compile_mode="default", save_every_n_epochs=3,
        )  # fmt: skip
        return builder._sized(1024, 24, 16, 4096, 256)

    @classmethod
    def low_memory(cls) -> Self:
        """Two samples at a time, eight times accumulated, on a part of the data."""
        builder = cls(
            learning_rate=5e-5, batch_size=2, epochs=10, warmup_ratio=0.1, early_stopping_patience=5,
            gradient_accumulation_steps=8, devices=1, precision="16", save_every_n_epochs=5,
            max_train_samples=10_000, max_val_samples=1_000,
        )  # fmt: skip
        return builder._sized(384, 6, 6, 1536, 128)

    @classmethod
    def fast(cls) -> Self:
        """The same as `quick_prototype`."""
        return cls.quick_prototype()

    @classmethod
    def quality(cls) -> Self:
        """The same as `production`."""
        return cls.production()

    # What to change

    def with_training(self, /, **values: Any) -> Self:
        """Set length and batches of the training: epochs, batch_size, learning_rate, early_stopping_patience, …

        `validation_split` is accepted too and becomes `setup["val_split"]`.
        """
        if "validation_split" not in values:
            return self._changed("with_training", values)
        split = values.pop("validation_split")
        return self._changed("with_training", values).with_dataset(val_split=split)

    def with_optimizer(self, /, **values: Any) -> Self:
        """Set the optimizer: optimizer, weight_decay, betas, eps, max_grad_norm, weight_averaging, …"""
        return self._changed("with_optimizer", values)

    def with_optimization(self, /, **values: Any) -> Self:
        """Speed and memory: compile_mode, gradient_accumulation_steps, gradient_checkpointing, precision, …"""
        return self._changed("with_optimization", values)

    def with_scheduler(self, /, **values: Any) -> Self:
        """The learning rate over time: use_lr_schedule, lr_schedule, warmup_ratio or warmup_steps, min_lr_ratio,
        lr_decay_ratio."""
        return self._changed("with_scheduler", values)

    def with_fine_tuning(self, /, **values: Any) -> Self:
        """Set the trained parameters: finetune, finetune_layers, lora_rank, lora_alpha, lora_dropout, lora_targets."""
        return self._changed("with_fine_tuning", values)

    def with_hardware(self, /, **values: Any) -> Self:
        """Set the hardware: precision or use_amp, compile_mode, strategy, devices, num_nodes, num_workers."""
        return self._changed("with_hardware", values)

    def with_logging(self, /, **values: Any) -> Self:
        """Set run name and tracking: run_name, output_dir, notes, use_wandb, wandb_project, wandb_entity."""
        return self._changed("with_logging", values)

    def with_checkpointing(self, /, **values: Any) -> Self:
        """Set checkpointing: checkpoint_dir, save_every_n_epochs (or `frequency`), keep_best_k, keep_last_n, …"""
        if "frequency" in values:
            values["checkpoint_frequency"] = values.pop("frequency")
        return self._changed("with_checkpointing", values)

    def with_export(self, /, **values: Any) -> Self:
        """Set the export at the end: export_bundle, export_formats, export_dir."""
        return self._changed("with_export", values)

    def with_reproducibility(self, /, **values: Any) -> Self:
        """Whether it repeats: random_seed, deterministic."""
        return self._changed("with_reproducibility", values)

    def with_model(self, /, **values: Any) -> Self:
        """Set the model, for `setup`: model_name, vocab_size, max_seq_len, d_model, num_layers, num_heads, …"""
        return self._with_setup("with_model", values)

    def with_dataset(self, /, **values: Any) -> Self:
        """Set the dataset, for `setup`: dataset_name or dataset_path, tokenizer_strategy, val_split, …"""
        return self._with_setup("with_dataset", values)

    def __repr__(self) -> str:
        differing = self._config.diff(TrainingConfig())
        values = ", ".join(f"{name}={mine!r}" for name, (mine, _) in differing.items())
        return f"{type(self).__name__}({values})" + (f" with setup {self._setup}" if self._setup else "")

    def _changed(self, method: str, values: Mapping[str, Any]) -> Self:
        aliases = TrainingConfig.aliases
        own = [*_GROUPS[method], *(alias for alias, field in aliases.items() if field in _GROUPS[method])]
        self._refuse_foreign(method, own, values)
        return self._with(self._config.replace(**values))

    def _with_setup(self, method: str, values: Mapping[str, Any]) -> Self:
        self._refuse_foreign(method, _SETUP_GROUPS[method], values)
        return self._with(self._config, values)

    def _with(self, config: TrainingConfig, setup: Mapping[str, Any] | None = None) -> Self:
        new = type(self)()
        new._config = config
        new._setup = {**self._setup, **(setup or {})}
        return new

    def _sized(self, d_model: int, num_layers: int, num_heads: int, d_ff: int, max_seq_len: int) -> Self:
        return self.with_model(
            model_type="gpt", vocab_size=50_257, max_seq_len=max_seq_len, d_model=d_model, num_layers=num_layers,
            num_heads=num_heads, d_ff=d_ff, dropout=0.1,
        )  # fmt: skip

    def _refuse_foreign(self, method: str, own: tuple[str, ...] | list[str], values: Mapping[str, Any]) -> None:
        """Raise `ConfigError` that says of every name that `method` does not set where it belongs or what was meant."""
        problems = [Problem(name, _what_it_is(name, own)) for name in values if name not in own]
        if problems:
            raise ConfigError.from_problems(f"{type(self).__name__}.{method}", problems)


def _what_it_is(name: str, own: tuple[str, ...] | list[str]) -> str:
    """Explain why `name` is not a setting of the method that sets `own`, and where it belongs."""
    if name in _ELSEWHERE:
        return _ELSEWHERE[name]
    field = TrainingConfig.aliases.get(name, name)
    for method, names in {**_GROUPS, **_SETUP_GROUPS}.items():
        if field in names:
            return f"belongs to {method}"
    everything = [
        *own,
        *TrainingConfig.model_fields,
        *TrainingConfig.aliases,
        *(n for group in _SETUP_GROUPS.values() for n in group),
    ]
    guess = nearest(name, own) or nearest(name, everything)
    return "unknown setting" + (f"; did you mean {guess}?" if guess else "")
