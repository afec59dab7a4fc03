"""search_hyperparameters: checks what was asked for, and runs the trials here or on a Ray cluster."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from utils.errors import ConfigError
from utils.schema import nearest, shown
from utils.training.config_rules import run_name_problem
from utils.training.engine.callbacks import Callback
from utils.training.jobs.ray_address import is_ray
from utils.training.search.job import SearchJob
from utils.training.search.record import SearchRecord
from utils.training.search.results import SearchResults
from utils.training.search.session import SearchSession
from utils.training.search.space import SearchSpace
from utils.training.search.strategies import DEFAULT_TRIALS, make_strategy, strategy_name
from utils.training.search.trial import Trial
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig


def search_hyperparameters(
    model: nn.Module | Callable[..., nn.Module], space: Mapping[str, Any] | SearchSpace, train_data: Any, val_data: Any = None,
    *, strategy: str = "random", n_trials: int | None = None, training_config: Any = None, config: Any = None,
    task_spec: TaskSpec | None = None, tokenizer: Any = None, data_collator: Any = None, monitor: str | None = None,
    mode: str | None = None, name: str | None = None, seed: int | None = None, timeout_s: float | None = None,
    storage: Any = None, prune: bool = False, sampler: Any = None, callbacks: Sequence[Callback] = (),
    on_trial_end: Callable[[Trial], None] | None = None, backend: str = "local",
) -> SearchResults:  # fmt: skip
    """Train one model for each combination of hyper-parameters and say which was best.

    Every trial starts from a fresh model and the config's seed, is a run of its own (`<name>-trial0`, …) and is judged by the
    best value of the monitored metric. A trial that fails is recorded with its reason, and the search continues. Called again
    with the same name, the search continues: finished trials are not run again, an interrupted one from its checkpoint. Called
    in several processes of one machine with the same name at the same time, the processes share the search: each trial is run
    by one of them, the trial of a killed process is continued by another one, and each call returns all trials when they have
    ended.

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
        backend: "local": in this process; "ray" or "ray://host:10001": on a Ray cluster, as many trials at once as it has GPUs
            or else CPUs. Model, data and callbacks are pickled, and output_dir is on a disk that all machines share.
    Raises:
        ConfigError, DataError, ModelError: what would make every trial fail; before any work.
        MissingPackageError: strategy "optuna" without Optuna, backend "ray" without Ray.
        CheckpointError, RunLockedError: the disk is full, or another process trains in a trial's run folder.
        TrainingInterrupted: Ctrl-C; saved; `.results` are the SearchResults so far.
    Not covered: whether the data are still the same when a search continues. Processes that share a search use the same
    output_dir on a local disk; with prune=True and without a storage, each compares its trials with those that it ran itself.
    """
    job = SearchJob.of(
        model, train_data, val_data, training_config, config, task_spec, tokenizer, data_collator, callbacks
    )
    check_backend(backend)
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
        with record.shared(_plan(kind, seed, space, job)):
            chosen = make_strategy(
                kind, space, job.config.mode, record.name, seed, storage=storage, prune=prune, sampler=sampler
            )
        stack.callback(chosen.close)
        deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
        session = SearchSession(job, space, chosen, record, limit, deadline, on_trial_end or (lambda trial: None))
        if backend == "local":
            session.run()
        else:
            from utils.training.search.on_ray import run_on_ray

            run_on_ray(session, None if backend == "ray" else backend)
    return session.results()


def check_backend(backend: Any) -> None:
    """Raise `ConfigError` for a backend that there is not."""
    if backend in ("local", "ray") or is_ray(backend):
        return
    guess = nearest(str(backend), ("local", "ray"))
    hint = f"; did you mean {guess!r}?" if guess else ""
    raise ConfigError(
        f"backend is 'local', 'ray' or a cluster's URL such as 'ray://host:10001'; got {shown(backend)}{hint}"
    )


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


def _plan(kind: str, seed: int, space: SearchSpace, job: SearchJob) -> dict[str, Any]:
    """Facts that must match for a search to be resumed: the trials' shared inputs without those that change no result."""
    settings = {k: v for k, v in job.config.to_dict().items() if k not in TrainingConfig.NOT_LEARNED}
    return {"strategy": kind, "seed": seed, "space": space.describe(), "training": settings}
