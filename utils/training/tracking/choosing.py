"""Choose the trackers of a training: by name or as objects, from the Trainer, the environment and the config."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from utils.errors import ConfigError, Problem
from utils.schema import nearest, shown
from utils.training.tracking.tracker import Tracker
from utils.training.training_config import TrainingConfig

#: Environment variable with names of trackers, separated by commas, for trainings that are given none.
VARIABLE = "TRAINBOOK_TRACKERS"


class _Known(NamedTuple):
    """Class of a tracker, the package it needs, and how that is installed."""

    place: str
    package: str
    install: str


_EXTRA = 'pip install -e ".[tracking]"'

#: The trackers that come with the library, by name.
TRACKERS: Mapping[str, _Known] = {
    "wandb": _Known("utils.training.tracking.wandb_tracker:WandbTracker", "wandb", _EXTRA),
    "tensorboard": _Known("utils.training.tracking.tensorboard_tracker:TensorBoardTracker", "tensorboard", _EXTRA),
    "mlflow": _Known("utils.training.tracking.mlflow_tracker:MlflowTracker", "mlflow", _EXTRA),
    "trackio": _Known("utils.training.tracking.trackio_tracker:TrackioTracker", "trackio", "pip install trackio"),
}


def check_trackers(trackers: str | Sequence[str | Tracker] | None) -> tuple[str | Tracker, ...]:
    """The trackers that were asked for; None: those that TRAINBOOK_TRACKERS names.

    Raises:
        ConfigError: an unknown name, with the nearest known one, or an object that is no tracker; lists every problem.
    """
    source = "trackers" if trackers is not None else VARIABLE
    if trackers is None:
        trackers = os.environ.get(VARIABLE, "")
    if isinstance(trackers, str):
        trackers = [name.strip() for name in trackers.split(",") if name.strip()]
    elif isinstance(trackers, Tracker):
        trackers = [trackers]
    problems = []
    for tracker in trackers:
        if isinstance(tracker, str) and tracker not in TRACKERS:
            guess = nearest(tracker, TRACKERS)
            hint = f"; did you mean {guess!r}?" if guess else ""
            problems.append(Problem(source, f"got {shown(tracker)}; known are {', '.join(TRACKERS)}{hint}", guess))
        elif isinstance(tracker, type) or not isinstance(tracker, (str, Tracker)):
            given = f"the class {tracker.__name__}" if isinstance(tracker, type) else f"a {type(tracker).__name__}"
            reason = f"got {given}; give a name, or an object with name, patience_s, start, log, artifact and finish"
            problems.append(Problem(source, reason))
    if problems:
        raise ConfigError.from_problems("Trainer", problems)
    return tuple(tracker for number, tracker in enumerate(trackers) if tracker not in trackers[:number])


def make_trackers(
    config: TrainingConfig, trackers: Sequence[str | Tracker] = (), notices: list[str] | None = None
) -> list[Tracker]:
    """The trackers of one training: those that were asked for, and W&B where the config asks for it.

    Args:
        trackers: names and objects, as `check_trackers` returns them.
        notices: where a missing package is reported; it is no error.
    """
    wanted = list(trackers)
    if config.wandb_enabled and "wandb" not in wanted:
        wanted.append("wandb")
    made: list[Tracker] = []
    for tracker in wanted:
        if not isinstance(tracker, str):
            made.append(tracker)
            continue
        known = TRACKERS[tracker]
        if not _is_there(known.package):
            if notices is not None:
                notices.append(
                    f"Not tracked: {known.package} is not installed ({known.install}). history.jsonl holds everything."
                )
            continue
        module, _, name = known.place.partition(":")
        made.append(getattr(importlib.import_module(module), name)())
    return made


def _is_there(package: str) -> bool:
    """Whether the package is installed or, as tests and notebooks do with a stub of their own, was put into `sys.modules`."""
    if package in sys.modules:
        return sys.modules[package] is not None
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # a finder of another package's failed
        return False
