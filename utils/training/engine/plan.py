"""The arguments of a trainer, and the run plan made from them: plain values, decided before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError
from utils.schema import shown

if TYPE_CHECKING:
    from torch import nn

    from utils.data.module import UniversalDataModule
    from utils.training.engine.compute.user_supplied import OwnParts
    from utils.training.engine.distributed.world import World
    from utils.training.engine.loss.objective import Objective
    from utils.training.task_spec import TaskSpec
    from utils.training.training_config import TrainingConfig


@dataclass(frozen=True)
class TrainerArguments:
    """Arguments of a `Trainer`; see there.

    Attributes:
        config: how to train; model_config: the model's own configuration, where there is one beside it.
    """

    model: nn.Module
    config: TrainingConfig
    model_config: Any = None
    task_spec: TaskSpec | None = None
    tokenizer: Any = None
    data_collator: Any = None
    own_parts: OwnParts | None = None

    @property
    def criterion(self) -> Any:
        """The caller's criterion; None: the task's loss."""
        return None if self.own_parts is None else self.own_parts.criterion

    @property
    def optimizer(self) -> Any:
        """The caller's optimizer; None: the config's."""
        return None if self.own_parts is None else self.own_parts.optimizer

    @property
    def pad_token_id(self) -> int | None:
        """The padding id of the tokenizer, else of the task, else of the model's configuration."""
        known = (getattr(self.tokenizer, "pad_token_id", None), getattr(self.task_spec, "pad_token_id", None))
        return next((pad for pad in (*known, whole_number(self.model_config, "pad_token_id")) if pad is not None), None)


@dataclass(frozen=True)
class RunPlan:
    """Plan of a run.

    Attributes:
        config: how to train.
        data: the batches of training and validation.
        task_spec: the task, complete; objective: the loss that belongs to it.
        world: the processes that train together.
        accumulation: batches of `data` in one optimizer step.
        total_steps: optimizer steps of the whole run; None: unknown, because the length of the data is.
        monitor: the metric that decides which state is best, and mode: whether "min" or "max" of it is.
        patience: values of `monitor` in a row without improvement that end the run; None: never.
        tokenizer: it made the ids of text; None: unknown, and no metric per byte of text.
    """

    config: TrainingConfig
    data: UniversalDataModule
    task_spec: TaskSpec
    objective: Objective
    world: World
    accumulation: int
    total_steps: int | None
    monitor: str
    mode: str
    patience: int | None = None
    tokenizer: Any = None

    @property
    def monitors_training(self) -> bool:
        """Whether the monitored metric is one of the training epoch, as opposed to the validation."""
        return self.monitor.startswith("train/")


def whole_number(config: Any, name: str) -> int | None:
    """A whole number in the model's configuration; None where there is none. Raises `ConfigError` for anything else."""
    value = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ConfigError(f"config.{name}: got {shown(value)}; expected a whole number or None.")
