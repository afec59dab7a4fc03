"""Training a copy of a model for a check, with the engine and within a budget of time."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from utils.adapters.forward import ModelCall
from utils.checks.probe import Probe, left_as_it_was
from utils.checks.real_data import CheckData, batches
from utils.training.engine.callbacks import Callback, Logs
from utils.training.training_config import TrainingConfig

# Loss of the last quarter of the steps as a share of that of the quarter before, below which training was not finished.
STILL_FALLING = 0.95


@dataclass(frozen=True)
class Budget:
    """Time budget of the checks that train.

    Attributes:
        deadline: by `time.monotonic`; math.inf: no limit.
        stop: asked after every step; True ends the training.
    """

    deadline: float = math.inf
    stop: Callable[[], bool] | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop was requested."""
        return self.stop is not None and self.stop()

    @property
    def over(self) -> bool:
        """Whether the budget is used up, or a stop was requested."""
        return self.stopped or time.monotonic() >= self.deadline

    @property
    def reason(self) -> str:
        """Reason why the budget is used up, for a result."""
        return "it was stopped" if self.stopped else "the time limit was reached"


class Watch(Callback):
    """Keeps the loss of each step and stops the training when the budget is over."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.losses: list[float] = []
        self.ended_early = False

    def on_step_end(self, step: int, trainer: Any, logs: Logs | None = None) -> None:
        self.losses.append((logs or {})["train/loss"])
        if self.budget.over:
            self.ended_early = True
            trainer.request_stop("time limit of the check")


@dataclass(frozen=True)
class Trained:
    """A copy of a model after its training.

    Attributes:
        model: the copy.
        losses: of each step, nats per target (squared error for numbers).
        steps: that were done; ended_early: whether the budget ended them.
        seconds: that the training took.
    """

    model: nn.Module
    losses: list[float]
    steps: int
    ended_early: bool
    seconds: float

    @property
    def unfinished(self) -> bool:
        """Whether the loss was still falling, so that more steps would have given a better model."""
        quarter = len(self.losses) // 4
        if self.ended_early or not quarter:
            return True
        return sum(self.losses[-quarter:]) < STILL_FALLING * sum(self.losses[-2 * quarter : -quarter])

    def continued(self, more: Trained) -> Trained:
        """This training and a further one of its copy as one."""
        return Trained(
            more.model,
            [*self.losses, *more.losses],
            self.steps + more.steps,
            more.ended_early,
            self.seconds + more.seconds,
        )


def train_copy(
    found: Probe, data: CheckData, *, steps: int, batch_size: int, learning_rate: float, budget: Budget,
    model: nn.Module | None = None, seed: int = 0,
) -> Trained:  # fmt: skip
    """Train a copy of the model (or of `model`) on the training part for `steps` optimizer steps in fp32."""
    from utils.training.engine.trainer import Trainer  # heavy, and the other tiers do without it

    watch, twin = Watch(budget), copy.deepcopy(found.model if model is None else model)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        config = TrainingConfig(
            epochs=100_000, max_steps=steps, batch_size=batch_size, learning_rate=learning_rate, precision="32",
            output_dir=folder, random_seed=seed, save_every_n_epochs=100_000, keep_last_n=2,
        )  # fmt: skip
        Trainer(
            twin, training_config=config, task_spec=data.given_spec, tokenizer=data.tokenizer, callbacks=[watch]
        ).train(data.train)
    return Trained(twin, watch.losses, len(watch.losses), watch.ended_early, time.monotonic() - began)


def seconds_per_step(found: Probe, data: CheckData, batch_size: int, model: nn.Module | None = None) -> float:
    """Estimate the time of a training step from the second of two forward and backward passes of a batch."""
    model = copy.deepcopy(found.model if model is None else model)
    call, times = ModelCall(model), []
    with left_as_it_was(model), torch.enable_grad():
        model.train()
        for batch in list(batches(model, data, data.train, batch_size, batch_size))[:1] * 2:
            batch = {name: value.to(found.device) for name, value in batch.items()}
            began = time.perf_counter()
            outputs = call(_with_decoder(model, data, batch))
            outputs.float().square().mean().backward()  # type: ignore[no-untyped-call]
            if found.device.type == "cuda":
                torch.cuda.synchronize(found.device)
            times.append(time.perf_counter() - began)
    return times[-1]


def _with_decoder(model: nn.Module, data: CheckData, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch as the task calls the model with it."""
    from utils.training.engine.loss.tasks.base import make_task
    from utils.training.engine.loss.tasks.tokens import TokenTask

    task = make_task(data.task_spec, TrainingConfig())
    return task.inputs(model, batch) if isinstance(task, TokenTask) else batch
