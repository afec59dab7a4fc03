"""TrainingConfig: how a model is trained. One field, one sentence, one unit, one check.

The titles, descriptions, units and ranges below are the single source for the wizard's forms, the command line's help and
the error messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, Strict
from pydantic_core import PydanticKnownError

from utils.errors import Problem
from utils.schema import Schema, setting
from utils.storage import absolute_path
from utils.training import config_rules
from utils.training.config_rules import Precision
from utils.training.export_formats import FORMATS

AtLeastOne = Annotated[int, Strict(), Field(ge=1)]
BelowOne = Annotated[float, Strict(), Field(ge=0, lt=1)]
LRSchedule = Literal["cosine", "linear", "constant", "step", "plateau", "wsd"]
WeightAveraging = Literal["none", "ema", "last"]
FineTuningMode = Literal["full", "lora", "head", "last_layers"]
LayerName = Annotated[str, Strict(), Field(min_length=1)]

DEFAULT_WANDB_PROJECT = "transformer-training"


def _known_format(name: Any) -> Any:
    if not isinstance(name, str) or name not in FORMATS:
        raise PydanticKnownError("literal_error", {"expected": " or ".join(map(repr, FORMATS))})
    return name


ExportFormatName = Annotated[str, BeforeValidator(_known_format)]


class TrainingConfig(Schema):
    """Settings of a training: a closed, validated, immutable description that round-trips through JSON and YAML.

    Every field has a default. `TrainingConfig(**values)` raises `ConfigError` that lists every unknown name, wrong type,
    value out of range and contradiction. Durations are in epochs, optimizer steps, minutes or hours as the names say.
    """

    aliases: ClassVar[Mapping[str, str]] = {
        "n_epochs": "epochs",
        "num_epochs": "epochs",
        "max_epochs": "epochs",
        "accumulate_grad_batches": "gradient_accumulation_steps",
        "gradient_clip_val": "max_grad_norm",
        "gradient_clip_norm": "max_grad_norm",
        "checkpoint_frequency": "save_every_n_epochs",
        "checkpoint_every_n_epochs": "save_every_n_epochs",
        "save_top_k": "keep_best_k",
        "seed": "random_seed",
    }

    # How long, and with what steps
    epochs: int = setting(10, "Epochs", "Passes over the training data, in total.", ge=1, le=100_000)
    max_steps: int | None = setting(
        None, "Step limit", "Stop after this many optimizer steps. Leave empty for no limit.", unit="steps", ge=1
    )
    max_time_hours: float | None = setting(
        None, "Time limit", "Save a checkpoint and stop after this time. Leave empty for no limit.", unit="hours", gt=0
    )
    batch_size: int = setting(
        4, "Batch size", "Samples per forward pass (micro-batch).", unit="samples", ge=1, le=65_536
    )
    gradient_accumulation_steps: int = setting(
        1, "Gradient accumulation", "Micro-batches per optimizer step.", unit="micro-batches", ge=1, le=65_536
    )
    learning_rate: float = setting(5e-5, "Learning rate", "Peak learning rate, reached after warm-up.", gt=0, lt=1)
    optimizer: Literal["adamw", "adam", "sgd", "muon", "adafactor"] = setting(
        "adamw", "Optimizer", "muon uses Muon for hidden weight matrices and AdamW for all other parameters. adafactor keeps "
        "almost no state and needs a learning rate about ten times as high."
    )  # fmt: skip
    weight_decay: float = setting(
        0.01, "Weight decay", "Weight decay of matrices; biases, norms and other vectors are excluded.", ge=0, lt=1
    )
    betas: tuple[BelowOne, BelowOne] = setting(
        (0.9, 0.999),
        "Betas",
        "Adam's decay rates of the first and second moment; the first is SGD's momentum.",
        strict=False,
    )
    eps: float = setting(1e-8, "Epsilon", "Term added to Adam's denominator for numerical stability.", gt=0, lt=1)
    max_grad_norm: float = setting(
        1.0, "Gradient clipping", "Maximum global L2 norm of the gradients; 0 disables clipping.", ge=0
    )
    use_lr_schedule: bool = setting(True, "Learning-rate schedule", "Warm up, then decay. Off: constant learning rate.")
    lr_schedule: LRSchedule = setting(
        "cosine", "Schedule", "Decay after warm-up; wsd (warmup-stable-decay) decays in the last steps only."
    )
    lr_decay_ratio: float = setting(
        0.2,
        "Decay fraction",
        "Fraction of all steps over which a warmup-stable-decay schedule decays, at the end.",
        gt=0,
        le=1,
    )
    warmup_ratio: float | None = setting(
        0.1,
        "Warm-up fraction",
        "Fraction of all steps used for linear warm-up. Leave empty to use warm-up steps instead.",
        ge=0,
        le=1,
    )
    warmup_steps: int | None = setting(
        None, "Warm-up steps", "Steps of linear warm-up, instead of a fraction of all steps.", unit="steps", ge=0
    )
    min_lr_ratio: float = setting(
        0.1, "Final learning rate", "Learning rate at the end, as a fraction of the peak.", ge=0, le=1
    )
    weight_averaging: WeightAveraging = setting(
        "none",
        "Weight averaging",
        "Average the weights over steps: ema (exponential moving average) or last (mean of the last steps). "
        "Validated beside the trained weights and used when better.",
    )
    ema_decay: float = setting(
        0.999, "EMA decay", "Decay of the moving average per step; lower in the first steps.", gt=0, lt=1
    )
    averaging_ratio: float = setting(
        0.2,
        "Averaged fraction",
        "Fraction of all steps, at the end, that weight averaging 'last' averages.",
        gt=0,
        le=1,
    )
    label_smoothing: float = setting(
        0.0, "Label smoothing", "Probability mass spread uniformly over all classes.", ge=0, lt=1
    )

    # Which parameters
    finetune: FineTuningMode = setting(
        "full",
        "Fine-tuning",
        "Parameters to train: all, LoRA adapters, the head only, or the last layers with the head.",
    )
    finetune_layers: int = setting(
        2, "Last layers", "Number of last layers that are trained beside the head.", unit="layers", ge=1, le=10_000
    )
    lora_rank: int = setting(8, "LoRA rank", "Rank of the adapter matrices.", ge=1, le=4096)
    lora_alpha: float = setting(16.0, "LoRA alpha", "The adapter's update is scaled by alpha / rank.", gt=0, le=65_536)
    lora_dropout: float = setting(0.0, "LoRA dropout", "Dropout probability on the adapter's inputs.", ge=0, lt=1)
    lora_targets: Literal["auto"] | tuple[LayerName, ...] = setting(
        "auto", "LoRA targets", "Linear layers that get an adapter; auto: all linear layers of the transformer blocks."
    )

    # On what
    precision: Precision = setting(
        "auto",
        "Precision",
        "auto: bf16 if the device supports it, else fp16 on CUDA, else fp32; a run of 400 steps or more measures whether fp32 "
        "is faster. 16: bf16 or fp16, whichever the device supports.",
    )
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] | None = setting(
        None, "Compile mode", "Mode of torch.compile. Leave empty to run without compilation."
    )
    gradient_checkpointing: bool = setting(
        False, "Gradient checkpointing", "Recompute activations in the backward pass: less memory, slower steps."
    )
    fused_loss: Literal["auto", "on", "off"] = setting(
        "auto",
        "Fused loss",
        "Compute the output layer and its cross-entropy in chunks: less memory for large vocabularies.",
    )
    strategy: Literal["auto", "ddp", "fsdp"] = setting(
        "auto", "Strategy", "How several devices train together: data parallel (ddp) or sharded (fsdp)."
    )
    devices: AtLeastOne | Literal["auto"] = setting("auto", "Devices", "Number of devices; auto: one.")
    num_nodes: int = setting(1, "Nodes", "Number of machines that train together.", ge=1)
    num_workers: int = setting(
        0, "DataLoader workers", "Processes that load batches; 0: the main process.", ge=0, le=256
    )
    auto_batch_size: bool = setting(
        False, "Automatic batch size", "Find the largest micro-batch that fits into memory."
    )

    # Watched how
    eval_every: Literal["epoch"] | AtLeastOne = setting(
        "epoch", "Validation interval", "epoch, or a number of optimizer steps."
    )
    early_stopping_patience: int | None = setting(
        None,
        "Early-stopping patience",
        "Stop after this many validations without improvement. Leave empty to disable early stopping.",
        unit="validations",
        ge=1,
    )
    monitor: str = setting(
        "val/loss",
        "Monitored metric",
        "Metric that selects the best checkpoint and drives early stopping.",
        pattern=r"^(train|val)/[A-Za-z0-9_.]+(/[A-Za-z0-9_.-]+)?$",
    )
    mode: Literal["min", "max"] = setting(
        "min", "Direction", "Whether lower or higher values of the monitored metric are better."
    )
    min_delta: float = setting(
        0.0, "Minimum improvement", "Smaller changes of the monitored metric do not count as improvement.", ge=0
    )
    max_train_samples: int | None = setting(
        None, "Training sample limit", "Train on the first n samples only. Leave empty for all.", unit="samples", ge=1
    )
    max_val_samples: int | None = setting(
        None,
        "Validation sample limit",
        "Validate on the first n samples only. Leave empty for all.",
        unit="samples",
        ge=1,
    )

    # Kept where
    checkpoint_dir: str | None = setting(
        None, "Checkpoint folder", "Folder for checkpoints. Leave empty for the run's own folder.", min_length=1
    )
    save_every_n_epochs: int = setting(1, "Checkpoint interval", "Epochs between checkpoints.", unit="epochs", ge=1)
    save_every_minutes: float | None = setting(
        None,
        "Checkpoint interval (time)",
        "Minutes between checkpoints within an epoch. Leave empty to save at the end of epochs only.",
        unit="minutes",
        gt=0,
    )
    keep_best_k: int = setting(1, "Best checkpoints kept", "Number of best checkpoints to keep.", ge=1)
    keep_last_n: int | None = setting(
        2,
        "Last checkpoints kept",
        "Number of newest checkpoints to keep. Leave empty to keep all of them, the default if a checkpoint interval is given.",
        ge=2,
    )
    on_save_error: Literal["stop", "warn"] = setting("stop", "If saving fails", "Stop, or warn and continue training.")
    on_nonfinite: Literal["stop", "skip"] = setting(
        "stop", "If the loss is NaN", "Stop, or skip the step (at most 3 in a row and 1 % of all steps)."
    )
    on_config_change: Literal["error", "continue"] = setting(
        "error",
        "If settings changed",
        "When a run is resumed with other settings: refuse, or continue with the new ones.",
    )
    isolate_callbacks: bool = setting(
        False, "Isolate callbacks", "Disable a callback that raises, instead of stopping the run."
    )

    # Repeatable
    random_seed: int = setting(42, "Seed", "Seed of data order, dropout and worker processes.", ge=0, lt=2**32)
    deterministic: bool = setting(
        False, "Deterministic", "Use deterministic algorithms only (bit-identical results); slower."
    )

    # Recorded where
    use_wandb: bool | None = setting(
        None, "Weights & Biases", "Log to Weights & Biases. Leave empty to log if a project is given."
    )
    wandb_project: str | None = setting(None, "W&B project", "Project to log to.", min_length=1)
    wandb_entity: str | None = setting(None, "W&B entity", "Team or user that owns the project.", min_length=1)
    run_name: str | None = setting(None, "Run name", "Name of the run's folder. Leave empty for exp1, exp2, …")
    output_dir: str = setting("runs", "Output folder", "Folder that contains the runs.", min_length=1)
    notes: str = setting("", "Notes", "Free text, stored with the run.")

    # Taken home how
    export_bundle: bool = setting(False, "Export bundle", "Write a deployment bundle when training ends.")
    export_formats: tuple[ExportFormatName, ...] = setting(
        ("onnx", "torchscript"), "Export formats", "Model formats in the bundle.", strict=False, min_length=1
    )
    export_dir: str | None = setting(
        None, "Export folder", "Folder for exports. Leave empty for the run's own folder.", min_length=1
    )

    #: Fields that do not change what is learned: they may differ when a run is continued.
    NOT_LEARNED: ClassVar[frozenset[str]] = frozenset(
        (
            "max_time_hours", "strategy", "devices", "num_nodes", "num_workers", "checkpoint_dir", "save_every_n_epochs",
            "save_every_minutes", "keep_best_k", "keep_last_n", "on_save_error", "on_config_change", "isolate_callbacks",
            "use_wandb", "wandb_project", "wandb_entity", "run_name", "output_dir", "notes", "export_bundle",
            "export_formats", "export_dir",
        )
    )  # fmt: skip

    @classmethod
    def extra_inputs(cls) -> tuple[str, ...]:
        return ("use_amp",)

    @classmethod
    def translate(cls, values: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        return config_rules.translated(values)

    @classmethod
    def contradictions(cls, values: Mapping[str, Any], given: Mapping[str, Any]) -> list[Problem]:
        return config_rules.contradictions(values)

    @classmethod
    def retired_by(cls, changes: Mapping[str, Any]) -> frozenset[str]:
        pairs = {"warmup_steps": "warmup_ratio", "warmup_ratio": "warmup_steps", "use_amp": "precision"}
        return frozenset(
            other for name, other in pairs.items() if changes.get(name) is not None and other not in changes
        )

    def _inputs(self) -> dict[str, Any]:
        # Defaults were not given: a copy with another save_every_n_epochs takes the keep_last_n that goes with it.
        inputs = super()._inputs()
        pair = ("save_every_n_epochs", "keep_last_n")
        defaults = self.defaults()
        as_by_default = all(inputs[name] == defaults[name] for name in pair)
        return {name: value for name, value in inputs.items() if not (as_by_default and name in pair)}

    @property
    def can_finish_early(self) -> bool:
        """Whether the schedule has a decay that can begin at any step."""
        return self.use_lr_schedule and self.lr_schedule == "wsd"

    @property
    def home(self) -> Path | None:
        """Folder at which relative paths start, where `at` has set one; None: the working folder when they are used."""
        home: Path | None = self.__dict__.get("home_folder")
        return home

    def at(self, folder: Path) -> Self:
        """An equal config whose relative paths start at `folder`, wherever the process is by then.

        The folder is no setting: it is neither saved nor compared, so that a config file fits every machine. One that was set
        before stays.
        """
        if self.home is not None:
            return self
        made = super().replace()
        made.__dict__["home_folder"] = folder.absolute()
        return made

    def replace(self, /, **changes: Any) -> Self:
        made = super().replace(**changes)
        if self.home is not None:
            made.__dict__["home_folder"] = self.home
        return made

    def with_absolute_paths(self) -> Self:
        """A copy with absolute paths: where this run writes, on this machine."""
        home = self.home or Path.cwd()
        paths = {name: getattr(self, name) for name in ("output_dir", "checkpoint_dir", "export_dir")}
        return self.replace(
            **{
                name: str(absolute_path(home / Path(path).expanduser()))
                for name, path in paths.items()
                if path is not None
            }
        )

    @property
    def wandb_enabled(self) -> bool:
        """Whether tracking with Weights & Biases was asked for."""
        return self.use_wandb if self.use_wandb is not None else self.wandb_project is not None

    @property
    def samples_per_step(self) -> int:
        """Samples in one full optimizer step."""
        return self.batch_size * self.gradient_accumulation_steps

    def validate(self) -> bool:  # type: ignore[override]  # the documented name; pydantic's own `validate` is deprecated
        """True. An object that exists is valid: construction raises `ConfigError` otherwise."""
        return True

    def diff(self, other: TrainingConfig) -> dict[str, tuple[Any, Any]]:
        """Fields that differ, as {name: (mine, the other's)}."""
        mine, theirs = self.to_dict(), other.to_dict()
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}

    def save(self, path: str | Path) -> str:
        """Write to a `.json`, `.yaml` or `.yml` file, atomically. Returns the absolute path.

        Raises:
            FileWriteError: the disk is full, or the path cannot be written to. ConfigError: another extension.
        """
        from utils.training.config_files import save_config_file

        return save_config_file(path, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` wrote or a person did. Raises `ConfigError`, or `DataNotFoundError` if it is absent."""
        from utils.training.config_files import read_config_file

        return cls.from_dict(read_config_file(path))


def compare_configs(first: TrainingConfig, second: TrainingConfig) -> dict[str, dict[str, Any]]:
    """Differences between `first` and `second`.

    Returns:
        {"changed": {field: (first's, second's)}, "added": {...}, "removed": {...}}; a field counts as added when it was
        None and as removed when it became None. The run's name does not count.
    """
    comparison: dict[str, dict[str, Any]] = {"changed": {}, "added": {}, "removed": {}}
    for name, (old, new) in first.diff(second).items():
        if name == "run_name":
            continue
        if old is None:
            comparison["added"][name] = new
        elif new is None:
            comparison["removed"][name] = old
        else:
            comparison["changed"][name] = (old, new)
    return comparison


def __getattr__(name: str) -> Any:
    # The documented import path of the builder; it lives beside this file.
    if name == "TrainingConfigBuilder":
        from utils.training.config_builder import TrainingConfigBuilder

        return TrainingConfigBuilder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
