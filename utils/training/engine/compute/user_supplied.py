"""Parts that the caller supplies instead of the engine: optimizer, scheduler, criterion."""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from utils.errors import ConfigError

Criterion = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class OwnParts:
    """Criterion, optimizer and schedule that the caller supplies.

    Attributes:
        optimizer: over the model's parameters; the config's optimizer, learning rate and weight decay are not used then.
        criterion: the loss, `criterion(outputs, labels)`; None: the task's objective.
        scheduler: of torch.optim.lr_scheduler; without one the optimizer's learning rates stay.
        scheduler_interval: whether the scheduler is stepped after each "epoch", or after each optimizer "step", as those of
            transformers' get_*_schedule are meant to be.
        device: where to train, as torch names devices; None: as the engine finds.
    """

    optimizer: torch.optim.Optimizer
    criterion: Criterion | None = None
    scheduler: Any = None
    device: str | None = None
    scheduler_interval: Literal["epoch", "step"] = "epoch"

    def check(self, model: nn.Module) -> None:
        """Raises `ConfigError` when the optimizer could not train `model`, or no checkpoint could restore what it trains."""
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise ConfigError(f"optimizer: got a {type(self.optimizer).__name__}; expected a torch.optim.Optimizer.")
        own = {id(parameter) for parameter in model.parameters()}
        strange = sum(id(parameter) not in own for parameter in parameters_of(self.optimizer))
        if strange:
            raise ConfigError(
                f"optimizer: {strange} of its {len(parameters_of(self.optimizer))} parameters are not the model's. Make it "
                "from model.parameters(), after the model has its final form."
            )
        closure = inspect.signature(type(self.optimizer).step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ConfigError(
                f"optimizer: {type(self.optimizer).__name__} computes the loss again within a step (a closure), which this "
                "loop does not do. Take another one, such as torch.optim.AdamW."
            )
        if self.scheduler is not None and getattr(self.scheduler, "optimizer", self.optimizer) is not self.optimizer:
            raise ConfigError("scheduler: it is of another optimizer. Make it from the one that is given.")
        if self.scheduler_interval not in ("epoch", "step"):
            raise ConfigError(f"scheduler_interval: got {self.scheduler_interval!r}; expected 'epoch' or 'step'.")
        if self.scheduler_interval == "step" and isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ConfigError(
                "scheduler_interval: got 'step' with ReduceLROnPlateau, which needs a metric; set 'epoch'."
            )


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Everything that the optimizer changes."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


#: Entry of a saved scheduler's state: how many optimizer steps it has followed.
_FOLLOWED = "followed_steps"


class OwnSchedule:
    """A caller's scheduler, or none, in the place of `Schedule`: the optimizer's own learning rates.

    ReduceLROnPlateau is given what its mode asks for: the loss for "min", the accuracy for "max"; of the validation, or of the
    training where there is none.

    Args:
        every_step: whether the scheduler is stepped after each optimizer step; otherwise after each epoch.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: Any = None, every_step: bool = False) -> None:
        self._optimizer, self._scheduler = optimizer, scheduler
        self._every_step = every_step and scheduler is not None
        self._steps = 0  # that the scheduler has followed

    def at(self, step: int) -> float:
        """Learning rate of the next step, of the first group."""
        return float(self._optimizer.param_groups[0]["lr"])

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """The learning rate after `step` steps, each of which the scheduler follows if it is to be stepped with them."""
        while self._every_step and self._steps < step:
            with warnings.catch_warnings():
                # torch takes an optimizer for one that was never stepped after a resume, and where the first step was skipped.
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
                self._scheduler.step()
            self._steps += 1
        return self.at(step)

    def after_evaluation(self, improved: bool) -> None:
        """Nothing: a scheduler follows epochs or optimizer steps."""

    def after_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Step the scheduler. Raises `ConfigError` when a plateau scheduler waits for a metric that is not measured."""
        if self._scheduler is None or self._every_step:
            return
        if not isinstance(self._scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self._scheduler.step()
            return
        name = "loss" if self._scheduler.mode == "min" else "accuracy"
        value = metrics.get(f"val/{name}", metrics.get(f"train/{name}"))
        if value is None:
            raise ConfigError(
                f"scheduler: ReduceLROnPlateau(mode={self._scheduler.mode!r}) waits for the {name}, which is not measured. "
                'Make it with mode="min", for the loss.'
            )
        self._scheduler.step(value)

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's memory, as plain values."""
        state = {} if self._scheduler is None else self._scheduler.state_dict()
        if self._every_step:
            state = {**state, _FOLLOWED: self._steps}
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a memory from `state_dict`; one of another scheduler is skipped."""
        if self._scheduler is None or not state:
            return
        own = self._scheduler.state_dict()
        if self.state_dict().keys() != state.keys():
            return
        if self._every_step:
            self._steps = int(state[_FOLLOWED])
            state = {name: value for name, value in state.items() if name != _FOLLOWED}
        counters = {name for name, value in own.items() if isinstance(value, Counter)}
        self._scheduler.load_state_dict(
            {name: Counter(value) if name in counters else value for name, value in state.items()}
        )
