"""search_hyperparameters: asks the strategy, trains each trial with `Trainer`, keeps the record."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from utils.schema import shown
from utils.scrubbing import scrub
from utils.training.engine import rng
from utils.training.engine.callbacks import Callback, Logs
from utils.training.engine.memory import free_memory, is_out_of_memory
from utils.training.engine.results import TrainingResults
from utils.training.engine.trainer import Trainer
from utils.training.search.record import SearchRecord
from utils.training.search.results import SearchResults
from utils.training.search.space import MODEL, SearchSpace
from utils.training.search.strategies import DEFAULT_TRIALS, PRUNED, Strategy, make_strategy, strategy_name
from utils.training.search.trial import Trial
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig, run_name_problem

log = logging.getLogger("trainbook.search")

# Endings after which a trial is done. A time limit that the config sets is the trial's budget, not an interruption.
_DONE = ("finished", "max_steps", "early_stopping", "time_limit")
_TIMEOUT = "search_timeout"


class _NotFreshError(ModelError):
    """The factory returned a model that a trial before has trained."""


# What is no trial's fault: the disk, another process, a missing package. It ends the search.
_NOT_THE_TRIALS = (CheckpointError, RunLockedError, MissingPackageError, _NotFreshError)
_WRONG_FROM_THE_START = (ConfigError, DataError, ModelError)


def search_hyperparameters(
    model: nn.Module | Callable[..., nn.Module], space: Mapping[str, Any] | SearchSpace, train_data: Any, val_data: Any = None,
    *, strategy: str = "random", n_trials: int | None = None, training_config: Any = None, config: Any = None,
    task_spec: TaskSpec | None = None, tokenizer: Any = None, data_collator: Any = None, monitor: str | None = None,
    mode: str | None = None, name: str | None = None, seed: int | None = None, timeout_s: float | None = None,
    storage: Any = None, prune: bool = False, sampler: Any = None, callbacks: Sequence[Callback] = (),
    on_trial_end: Callable[[Trial], None] | None = None,
) -> SearchResults:  # fmt: skip
    """Train one model for each combination of hyper-parameters and say which was best.

    Every trial starts from a fresh model and the config's seed, is a run of its own (`<name>-trial0`, …) and is judged by the
    best value of the monitored metric. A trial that fails is recorded with its reason, and the search goes on. Called again
    with the same name, the search continues: finished trials are not run again, an interrupted one from its checkpoint.

    Args:
        model: a factory that makes a model, called once a trial, with what the space has under "model."; or a model, copied
            for each trial, so that every trial starts from its present weights and it keeps them.
        space: see `SearchSpace`.
        train_data, val_data: what `Trainer.train` takes, or one PreparedData. Not data that only come in their own order.
        strategy: "grid" (every combination), "random" (none twice, by `seed`) or "optuna" (by default its TPE sampler; none
            twice where the combinations can be counted).
        n_trials: how many in all, those of earlier sessions included; None: a grid's all, else 20.
        training_config: what the trials share, or a setup that has one. Its run_name is not used.
        config: the model's own configuration, as for `Trainer`.
        monitor, mode: the metric and "min" or "max"; None: the config's. Without val_data the training metric of that name.
        name: the search's name; None: the next free searchN.
        seed: of random and Optuna's draws; None: the config's random_seed.
        timeout_s: seconds after which no trial begins and the running one is saved and stopped.
        storage, prune, sampler: for Optuna: a study's URL (sqlite:///runs/study.db) or storage object; end trials that are
            worse than the median of the others after as many epochs; a sampler instead of TPE.
        callbacks: for every trial's Trainer; on_trial_end: called with each `Trial` that has just ended.
    Raises:
        ConfigError, DataError, ModelError: what would make every trial fail; before any work.
        MissingPackageError: strategy "optuna" without Optuna.
        CheckpointError, RunLockedError: the disk is full, or another process works in the folder.
        TrainingInterrupted: Ctrl-C; saved; `.results` are the SearchResults so far.
    Not covered: several processes that share one search; whether the data are still the same when a search continues.
    """
    job = _Job.of(model, train_data, val_data, training_config, config, task_spec, tokenizer, data_collator, callbacks)
    job.config = _monitoring(job.config, monitor, mode)
    kind = strategy_name(strategy)
    if not isinstance(space, SearchSpace) or space.base != job.config:
        space = SearchSpace(space.describe() if isinstance(space, SearchSpace) else space, job.config)
    job.check(space)
    seed = job.config.random_seed if seed is None else seed
    limit = _limit(n_trials, kind == "grid")
    problem = None if name is None else run_name_problem(name)
    if problem is not None:
        raise ConfigError(f"name: got {shown(name)}; {problem}")
    # Made first, since what it refuses must not leave a folder behind; the study needs the name, known only then.
    if kind == "grid":
        space.grid()
    elif kind == "random":
        make_strategy(kind, space, job.config.mode, "", seed, storage=storage, prune=prune, sampler=sampler)
    record = SearchRecord.reserve(Path(job.config.with_absolute_paths().output_dir), name)
    with contextlib.ExitStack() as stack:
        record.open(_plan(kind, seed, space, job), stack)
        chosen = make_strategy(
            kind, space, job.config.mode, record.name, seed, storage=storage, prune=prune, sampler=sampler
        )
        stack.callback(chosen.close)
        record.trials = chosen.known(record.trials)
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        search = _Search(job, space, chosen, record, deadline, on_trial_end or (lambda trial: None))
        search.run(limit)
    return search.results(kind)


@dataclass
class _Job:
    """What every trial shares."""

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
    ) -> _Job:  # fmt: skip
        """From what the user has: rows or prepared data; a config, a mapping or a setup."""
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


@dataclass
class _Search:
    """One session of a search."""

    job: _Job
    space: SearchSpace
    strategy: Strategy
    record: SearchRecord
    deadline: float
    on_trial_end: Callable[[Trial], None]
    notices: list[str] = field(default_factory=list)
    first_refusal: BaseException | None = None

    def run(self, limit: float) -> None:
        """Run trials until there are `limit`, the strategy has no more, the time is over or somebody asks to stop."""
        if self.job.monitor != self.job.config.monitor:
            self.notices.append(
                f"No validation data: trials are judged by {self.job.monitor} instead of {self.job.config.monitor}."
            )
        size = self.space.size
        if size is not None and size < limit < math.inf:
            counted = f"{size} combination{'' if size == 1 else 's'}"
            self.notices.append(f"The search space has {counted}: there are no more trials, although {limit} were asked for.")
        number = 0
        while number < limit and time.monotonic() < self.deadline:
            trial = self._trial(number)
            if trial is None:
                break
            if not trial.is_over:
                self._run(trial)
                if trial.status == "stopped":
                    self.notices.append(f"Stopped in trial {number} ({trial.reason}); {self._how_to_go_on}")
                    break
            number += 1
        self._refuse_if_nothing_could_start()

    @property
    def _how_to_go_on(self) -> str:
        return f"to continue, call it again with name={self.record.name!r}."

    def _trial(self, number: int) -> Trial | None:
        """Trial `number`: one of an earlier session, or a new one."""
        if number < len(self.record.trials):
            return self.record.trials[number]
        params = self.strategy.ask(number)
        if params is None:
            return None
        self.record.trials.append(Trial(number, params))
        return self.record.trials[number]

    def _run(self, trial: Trial) -> None:
        """Train the trial and record how it ended; its memory is free afterwards."""
        trial.status, trial.reason = "running", ""
        self.record.save()
        try:
            self._settle(trial)
        except TrainingInterrupted as interrupt:
            trial.status, trial.reason = "stopped", "interrupted"
            self._take(trial, interrupt.results)
            self.record.save()
            raise TrainingInterrupted(
                f"The search was interrupted in trial {trial.number} and is saved in {self.record.folder}; "
                f"{self._how_to_go_on}", self.results(""),
            ) from None  # fmt: skip
        free_memory()
        if trial.is_over:
            self.strategy.tell(trial)
        self.record.save()
        log.info("Trial %d %s: %s %s", trial.number, trial.status, trial.value, trial.reason)
        self.on_trial_end(trial)

    def _settle(self, trial: Trial) -> None:
        twin = next((t for t in self.record.trials if t.status == "finished" and t.params == trial.params), None)
        if twin is not None:  # the same seed and the same values give the same run
            trial.status, trial.value, trial.reason = "finished", twin.value, f"the same values as trial {twin.number}"
            trial.run_dir, trial.best_model_path = twin.run_dir, twin.best_model_path
            return
        trainer: Trainer | None = None
        watching = [_Deadline(self.deadline), *self.strategy.callbacks(trial.number, self.job.monitor)]
        try:
            trainer = self.job.trainer(trial, f"{self.record.name}-trial{trial.number}", watching)
            results = trainer.train(self.job.train_data, self.job.val_data, resume_from="auto")
        except _NOT_THE_TRIALS:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a trial's model or settings raise is how that trial ended
            self._failed(trial, trainer, error)
        else:
            self._ended(trial, results)

    def _failed(self, trial: Trial, trainer: Trainer | None, error: Exception) -> None:
        started = trainer is not None and trainer.run_dir is not None
        if trainer is not None and trainer.run_dir is not None:
            trial.run_dir, trial.steps = str(trainer.run_dir), trainer.state.step
        if isinstance(error, _WRONG_FROM_THE_START) and not started:
            self.first_refusal = self.first_refusal or error
            if trainer is not None and not self._models_differ:  # data and model are every trial's
                trial.status, trial.reason = "failed", str(error)
                self._forget()
                raise error
        trial.status = "failed"
        what = "out of memory" if is_out_of_memory(error) else type(error).__name__
        trial.reason = scrub(f"{what}: {str(error) or 'no message'}")
        log.warning("Trial %d failed: %s", trial.number, trial.reason)

    @property
    def _models_differ(self) -> bool:
        return any(name.startswith(MODEL) for name in self.space.names)

    def _ended(self, trial: Trial, results: TrainingResults) -> None:
        self._take(trial, results)
        if results.stop_reason == PRUNED:
            trial.status, trial.reason = "pruned", "others were better after as many epochs"
        elif results.stop_reason not in _DONE:
            trial.status, trial.reason = "stopped", str(results.stop_reason)
        elif trial.value is None or not math.isfinite(trial.value):
            trial.status, trial.reason = "failed", f"no finite value of {self.job.monitor} was recorded"
            trial.value = None
        else:
            trial.status = "finished"

    @staticmethod
    def _take(trial: Trial, results: TrainingResults | None) -> None:
        if results is None:
            return
        trial.value, trial.run_dir = results.best_value, str(results.run_dir)
        trial.best_model_path = results.best_model_path
        trial.steps, trial.seconds = results.steps, results.training_time

    def _refuse_if_nothing_could_start(self) -> None:
        """What was wrong with every trial before its first step is an error of the search, not a result."""
        trials = self.record.trials
        if self.first_refusal is not None and all(t.status == "failed" and t.run_dir is None for t in trials):
            self._forget()
            raise self.first_refusal

    def _forget(self) -> None:
        """Leave no record of a search in which nothing was trained."""
        if all(trial.run_dir is None for trial in self.record.trials):
            self.record.discard()

    def results(self, strategy: str) -> SearchResults:
        """What has come out so far."""
        return SearchResults(
            name=self.record.name, folder=self.record.folder, strategy=strategy or self.record.strategy,
            monitor=self.job.monitor, mode=self.job.config.mode, space=self.space.describe(),
            trials=self.record.trials, training_config=self.job.config, notices=self.notices,
        )  # fmt: skip


class _Deadline(Callback):
    """Saves and stops the run when the search's time is over."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def on_batch_begin(self, batch_idx: int, trainer: Trainer, logs: Logs | None = None) -> None:
        if time.monotonic() >= self._deadline:
            trainer.request_stop(_TIMEOUT)


def _monitoring(config: TrainingConfig, monitor: str | None, mode: str | None) -> TrainingConfig:
    if monitor is None:
        return config if mode is None else config.replace(mode=mode)
    grows = monitor.endswith(("accuracy", "f1", "f1_macro", "f1_micro", "r2"))
    return config.replace(monitor=monitor, mode=mode or ("max" if grows else "min"))


def _limit(n_trials: int | None, grid: bool) -> float:
    if n_trials is None:
        return math.inf if grid else DEFAULT_TRIALS
    if isinstance(n_trials, bool) or not isinstance(n_trials, int) or n_trials < 1:
        raise ConfigError(f"n_trials={shown(n_trials)}; must be a whole number of at least 1")
    return n_trials


def _plan(kind: str, seed: int, space: SearchSpace, job: _Job) -> dict[str, Any]:
    """What must be the same for a search to be continued; what the trials share, without what changes no result."""
    settings = {k: v for k, v in job.config.to_dict().items() if k not in TrainingConfig.NOT_LEARNT}
    return {"strategy": kind, "seed": seed, "space": space.describe(), "training": settings}
