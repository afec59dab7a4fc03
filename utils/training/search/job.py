"""Shared inputs of a search's trials, and the training of one trial: in this process or in another one."""

from __future__ import annotations

import copy
import logging
import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from utils.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingPackageError,
    ModelError,
    RunLockedError,
    TrainingInterrupted,
)
from utils.scrubbing import scrub
from utils.training.engine import rng
from utils.training.engine.callbacks import Callback, Logs
from utils.training.engine.hardware.memory import is_out_of_memory
from utils.training.engine.results import TrainingResults
from utils.training.engine.trainer import Trainer
from utils.training.search.space import MODEL, SearchSpace
from utils.training.search.strategies import PRUNED
from utils.training.search.trial import Trial
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

log = logging.getLogger("trainbook.search")

# Endings after which a trial is done. A time limit that the config sets is the trial's budget, not an interruption.
_DONE = ("finished", "max_steps", "early_stopping", "finish_now", "time_limit")
_TIMEOUT = "search_timeout"


class _NotFreshError(ModelError):
    """The factory returned a model that a trial before has trained."""


# What is no trial's fault: the disk, another process, a missing package. It ends the search.
_NOT_THE_TRIALS = (CheckpointError, RunLockedError, MissingPackageError, _NotFreshError)
_WRONG_FROM_THE_START = (ConfigError, DataError, ModelError)


@dataclass(frozen=True)
class Ending:
    """Outcome of a trial's training.

    Attributes:
        trial: with its status, value and run. refusal: the error that kept it from starting, if one did.
        concerns_all: whether the refusal would meet every other trial too.
    """

    trial: Trial
    refusal: Exception | None = None
    concerns_all: bool = False


@dataclass
class SearchJob:
    """Inputs that all trials share: model, data and settings."""

    model: Any
    config: TrainingConfig
    model_config: Any
    train_data: Any
    val_data: Any
    task_spec: TaskSpec | None
    tokenizer: Any
    data_collator: Any
    callbacks: Sequence[Callback]
    last_made: Callable[[], nn.Module | None] = lambda: None

    @classmethod
    def of(
        cls, model: Any, train_data: Any, val_data: Any, training_config: Any, model_config: Any,
        task_spec: TaskSpec | None, tokenizer: Any, data_collator: Any, callbacks: Sequence[Callback],
    ) -> SearchJob:  # fmt: skip
        """Build from the user's arguments: rows or prepared data; a config, a mapping or a setup."""
        if not isinstance(model, nn.Module) and not callable(model):
            raise ModelError(f"a search takes a model or a factory that makes one; got a {type(model).__name__}.")
        own = getattr(training_config, "training_config", training_config)
        if isinstance(own, Mapping):
            own = TrainingConfig.from_dict(own)
        if hasattr(train_data, "train") and hasattr(train_data, "task_spec"):
            task_spec = task_spec or train_data.task_spec
            tokenizer = tokenizer or train_data.tokenizer
            val_data = train_data.validation if val_data is None else val_data
            train_data = train_data.train
        return cls(
            model,
            (own or TrainingConfig()).at(Path.cwd()),
            model_config,
            train_data,
            val_data,
            task_spec,
            tokenizer,
            data_collator,
            callbacks,
        )

    @property
    def monitor(self) -> str:
        """The metric that is there: without validation data that of the training data."""
        return self.config.monitor.replace("val/", "train/") if self.val_data is None else self.config.monitor

    def check(self, space: SearchSpace) -> None:
        """Raise `ConfigError` for model arguments without a factory that could take them."""
        arguments = [name for name in space.names if name.startswith(MODEL)]
        if arguments and isinstance(self.model, nn.Module):
            raise ConfigError(
                f"{', '.join(arguments)}: an argument of the model, but a finished model was given. Give a factory, such as "
                "lambda **arguments: MyModel(**arguments), which is called with them."
            )

    def trainer(self, trial: Trial, name: str, callbacks: Sequence[Callback]) -> Trainer:
        """The trial's Trainer around a fresh model."""
        values = {key: value for key, value in trial.params.items() if not key.startswith(MODEL)}
        checkpoints = self.config.checkpoint_dir
        config = self.config.replace(
            **values, run_name=name, checkpoint_dir=None if checkpoints is None else str(Path(checkpoints) / name)
        )
        return Trainer(
            self._fresh_model(trial, config.random_seed), self.model_config, config, self.task_spec, tokenizer=self.tokenizer,
            data_collator=self.data_collator, callbacks=[*self.callbacks, *callbacks],
        )  # fmt: skip

    def _fresh_model(self, trial: Trial, seed: int) -> nn.Module:
        if isinstance(self.model, nn.Module):
            return copy.deepcopy(self.model)
        arguments = {k.removeprefix(MODEL): value for k, value in trial.params.items() if k.startswith(MODEL)}
        # Seeded, so that trials differ by their hyper-parameters only, and a continued search makes the same models.
        with rng.preserved():
            rng.seed_all(seed)
            made: nn.Module = self.model(**arguments)
        if made is self.last_made():
            raise _NotFreshError(
                "the model factory returned the same model twice, which the trial before has trained. Make a new one in each "
                "call, or give the model itself: it is copied for each trial."
            )
        self.last_made = weakref.ref(made) if isinstance(made, nn.Module) else lambda: None
        return made

    def train(self, trial: Trial, name: str, callbacks: Sequence[Callback], *, models_differ: bool) -> Ending:
        """Train one trial as the run `name`, from its newest checkpoint if there is one. Whatever is wrong with the trial
        itself is its ending, not an exception.

        Args:
            models_differ: whether trials have models of different arguments, so that one refused model does not speak for all.
        Raises:
            CheckpointError, RunLockedError, MissingPackageError, ModelError: what is no trial's fault.
            TrainingInterrupted: Ctrl-C; `trial` holds how far it got.
        """
        trainer: Trainer | None = None
        try:
            trainer = self.trainer(trial, name, callbacks)
            results = trainer.train(self.train_data, self.val_data, resume_from="auto")
        except TrainingInterrupted as interrupt:
            trial.status, trial.reason = "stopped", "interrupted"
            _take(trial, interrupt.results)
            raise
        except _NOT_THE_TRIALS:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a trial's model or settings raise is how that trial ended
            return _failed(trial, trainer, error, models_differ)
        _take(trial, results)
        if results.stop_reason == PRUNED:
            trial.status, trial.reason = "pruned", "others were better after as many epochs"
        elif results.stop_reason not in _DONE:
            trial.status, trial.reason = "stopped", str(results.stop_reason)
        elif trial.value is None or not math.isfinite(trial.value):
            trial.status, trial.reason = "failed", f"no finite value of {self.monitor} was recorded"
            trial.value = None
        else:
            trial.status = "finished"
        return Ending(trial)


def _failed(trial: Trial, trainer: Trainer | None, error: Exception, models_differ: bool) -> Ending:
    trial.status = "failed"
    started = trainer is not None and trainer.run_dir is not None
    if trainer is not None and trainer.run_dir is not None:
        trial.run_dir, trial.steps = str(trainer.run_dir), trainer.state.step
    refused = isinstance(error, _WRONG_FROM_THE_START) and not started
    if refused and trainer is not None and not models_differ:  # data and model are every trial's
        trial.reason = str(error)
        return Ending(trial, error, concerns_all=True)
    what = "out of memory" if is_out_of_memory(error) else type(error).__name__
    trial.reason = scrub(f"{what}: {str(error) or 'no message'}")
    return Ending(trial, error if refused else None)


def _take(trial: Trial, results: TrainingResults | None) -> None:
    if results is None:
        return
    trial.value, trial.run_dir = results.best_value, str(results.run_dir)
    trial.best_model_path = results.best_model_path
    trial.steps, trial.seconds = results.steps, results.training_time


class Deadline(Callback):
    """Saves and stops the run when the search's time is over."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def on_batch_begin(self, batch_idx: int, trainer: Trainer, logs: Logs | None = None) -> None:
        if time.monotonic() >= self._deadline:
            trainer.request_stop(_TIMEOUT)
