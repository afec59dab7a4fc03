"""Decide how a training begins: resume a run, from which checkpoint, or start a new one."""

from __future__ import annotations

import contextlib
import copy
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from utils.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    DataTypeError,
)
from utils.schema import shown
from utils.storage import (
    absolute_path,
)
from utils.training.config_rules import run_name_problem
from utils.training.engine.checkpointing.store import (
    BEST,
    Entry,
    Payload,
    checkpoint_files,
    entries_of,
    newest,
    read_checkpoint,
    read_header,
)
from utils.training.engine.checkpointing.weights import check_kinds
from utils.training.engine.distributed.world import World
from utils.training.run_folder import FollowersFolder, RunFolder
from utils.training.training_config import TrainingConfig

log = logging.getLogger("trainbook.run")

# Raises `CheckpointError` for a content, named as its file, that a run cannot continue from.
Check = Callable[[Payload, str], None]


@dataclass
class Start:
    """Start of a training.

    Attributes:
        folder: the run's folder, locked.
        checkpoint, source: what to continue from; None for a new run.
        in_place: whether the checkpoint belongs to this folder's run, as opposed to starting a new run from it.
    """

    folder: RunFolder
    checkpoint: Payload | None = None
    source: Path | None = None
    in_place: bool = False
    notices: list[str] = field(default_factory=list)

    @property
    def entry(self) -> Entry | None:
        """The checkpoint as its folder lists it; None for a new run."""
        return None if self.checkpoint is None or self.source is None else Entry.of(self.source, self.checkpoint)

    @property
    def precision(self) -> object:
        """The precision that the checkpoint's run was computed in; None for a new run."""
        return None if self.checkpoint is None else self.checkpoint["environment"].get("precision")

    def release(self) -> None:
        """Let go of the file and of its weights and averages, once the model and the optimizer have them.

        The tensors of `checkpoint` are views of the file until then; what is left of it is copied.
        """
        if self.checkpoint is not None:
            kept = {name: value for name, value in self.checkpoint.items() if name not in _LARGE}
            self.checkpoint = copy.deepcopy(kept)


# Entries of a checkpoint that have tensors of the model's size.
_LARGE = ("model", "optimizer", "model_state_dict", "optimizer_state_dict")


def decide_start(
    config: TrainingConfig, resume_from: Any, stack: contextlib.ExitStack, world: World | None = None,
    model: nn.Module | None = None,
) -> Start:  # fmt: skip
    """Continue or start new. The folder is locked until `stack` closes.

    Of several processes the main one decides; the others receive the decision, and read the same checkpoint from the same path.

    Args:
        resume_from: None (a new run), "auto" (continue this run_name or checkpoint_dir if it has a checkpoint), "latest" or
            "best" (continue, and fail without a checkpoint), a checkpoint file, a run's or checkpoints' folder, or a results
            object.
        model: what is to be trained; a checkpoint of the run whose weights are other kinds of numbers is skipped as damaged.
    Raises:
        CheckpointNotFoundError, CheckpointError: nothing there, nothing intact, or the folder belongs to another run.
        RunLockedError: another process is training there.
    """
    world = world or World()

    def check(payload: Payload, source: str) -> None:
        if model is not None:
            check_kinds(model, payload["model"], source)

    starts: list[Start] = []

    def decide() -> tuple[Any, ...]:
        start = _start(config, resume_from, stack, check)
        starts.append(start)
        folder = start.folder
        return folder.path, folder.checkpoints, folder.run_id, start.source, start.in_place, start.notices

    path, checkpoints, run_id, source, in_place, notices = world.from_main(decide)
    if not world.is_main:
        checkpoint = None if source is None else read_checkpoint(source, mapped=True)
        return Start(FollowersFolder(path, checkpoints, run_id), checkpoint, source, in_place, notices)
    starts[0].folder.may_lose_rows = config.on_save_error == "warn"
    return starts[0]


def _start(config: TrainingConfig, resume_from: Any, stack: contextlib.ExitStack, check: Check) -> Start:
    output_dir = absolute_path(config.output_dir)
    checkpoint_dir = absolute_path(config.checkpoint_dir) if config.checkpoint_dir else None
    if resume_from is None:
        return _new_run(config, output_dir, checkpoint_dir, stack)
    checkpoint_dir = _folder_of_run(config.run_name, checkpoint_dir, may_start=resume_from == "auto")
    if isinstance(resume_from, str) and resume_from in _BY_NAME:
        return _named_run(config, resume_from, output_dir, checkpoint_dir, stack, check)
    path = _checkpoint_path(resume_from)
    own = checkpoint_dir or (output_dir / config.run_name / "checkpoints" if config.run_name else None)
    if own is not None and own.resolve() == (path if path.is_dir() else path.parent).resolve():
        if not path.is_dir():
            read_header(path)  # a file that was named and cannot be read is an error, whatever else is there
        start = _continue(config, output_dir, checkpoint_dir, stack, check)
        if path.is_dir() or (start.source is not None and start.source.resolve() == path.resolve()):
            return start
        check(read_checkpoint(path, mapped=True), str(path))
        raise CheckpointError(
            f"{path} is not the newest checkpoint of its run ({start.source} is): continuing would overwrite what came "
            "after. Choose another run_name (and checkpoint_dir) to start a new run from it, or resume_from='auto'."
        )
    source, payload = newest(path, mapped=True) if path.is_dir() else (path, read_checkpoint(path, mapped=True))
    start = _new_run(config, output_dir, checkpoint_dir, stack)
    start.checkpoint, start.source = payload, source
    start.notices.append(f"New run {start.folder.name}, started from {source} (step {payload['state']['step']}).")
    return start


def _new_run(
    config: TrainingConfig, output_dir: Path, checkpoint_dir: Path | None, stack: contextlib.ExitStack
) -> Start:
    folder = RunFolder.reserve(output_dir, config.run_name, checkpoint_dir)
    notices = []
    if checkpoint_dir is not None and checkpoint_files(checkpoint_dir):
        folder = RunFolder(folder.path, _free_folder(checkpoint_dir, folder.name))
        notices.append(
            f"checkpoint_dir={str(checkpoint_dir)!r} holds checkpoints of another run, so those of this run are in "
            f"{folder.checkpoints}. To continue it, use run_name={folder.checkpoints.name!r} and resume_from='auto'."
        )
    folder.lock(stack)
    if config.run_name is not None and folder.name != config.run_name:
        notices.append(
            f"A run {config.run_name!r} is there already; this one is {folder.name!r}. 'auto' would continue the first."
        )
    return Start(folder, notices=notices)


def _folder_of_run(run_name: str | None, checkpoint_dir: Path | None, *, may_start: bool) -> Path | None:
    """Checkpoint folder of run `run_name`: `checkpoint_dir`, or a folder below it when another run has that one.

    Args:
        may_start: whether a run that has no checkpoints yet gets a folder of its own.
    """
    if checkpoint_dir is None or run_name is None:
        return checkpoint_dir
    below = checkpoint_dir / run_name
    if checkpoint_files(below):
        return below
    if may_start and checkpoint_files(checkpoint_dir) and not _is_name_of(run_name, _newest_header(checkpoint_dir)):
        return below
    return checkpoint_dir


def _newest_header(checkpoint_dir: Path) -> Payload:
    """Header of the newest checkpoint in a folder, without its tensors."""
    entries, _ = entries_of(checkpoint_dir)
    return read_header(entries[0].path) if entries else newest(checkpoint_dir, mapped=True)[1]


def _free_folder(checkpoint_dir: Path, name: str) -> Path:
    """A folder below `checkpoint_dir` without checkpoints: `name`, else `name-2` and so on."""
    folder, number = checkpoint_dir / name, 1
    while checkpoint_files(folder):
        number += 1
        folder = checkpoint_dir / f"{name}-{number}"
    return folder


def _is_name_of(run_name: str, payload: Payload) -> bool:
    """Whether a run that was asked to be called `run_name` wrote this checkpoint; a name that was taken got a number."""
    return re.fullmatch(re.escape(run_name) + r"(-\d+)?", payload["run"]["name"]) is not None


def _named_run(
    config: TrainingConfig, which: str, output_dir: Path, checkpoint_dir: Path | None, stack: contextlib.ExitStack,
    check: Check,
) -> Start:  # fmt: skip
    if config.run_name is None and checkpoint_dir is None:
        if which != "auto":
            raise CheckpointNotFoundError(
                f"resume_from={which!r} continues a run by its name: set run_name or checkpoint_dir, or give a file's path."
            )
        start = _new_run(config, output_dir, None, stack)
        start.notices.append(
            f"resume_from='auto' finds a run by its name; none is set, so this is the new run {start.folder.name}."
        )
        return start
    folder = output_dir / config.run_name if config.run_name else None
    checkpoints = checkpoint_dir or (folder / "checkpoints" if folder else output_dir)
    if which == "best":
        source = checkpoints / BEST
        payload = read_checkpoint(source, mapped=True)
        start = _new_run(config, output_dir, None if checkpoint_dir is None else checkpoint_dir, stack)
        start.checkpoint, start.source = payload, source
        start.notices.append(
            f"New run {start.folder.name}, started from the best checkpoint of {checkpoints.parent.name}."
        )
        return start
    if checkpoint_files(checkpoints) or (folder is not None and folder.is_dir()):
        start = _continue(config, output_dir, checkpoint_dir, stack, check)
        if start.checkpoint is None and which == "latest":
            raise CheckpointNotFoundError(
                f"{checkpoints} holds no checkpoint yet; resume_from='auto' starts when there is none."
            )
        return start
    if which == "latest":
        raise CheckpointNotFoundError(
            f"{checkpoints} holds no checkpoint; resume_from='auto' starts when there is none."
        )
    return _new_run(config, output_dir, checkpoint_dir, stack)


def _continue(
    config: TrainingConfig, output_dir: Path, checkpoint_dir: Path | None, stack: contextlib.ExitStack, check: Check
) -> Start:
    """Lock the existing run, then read its newest checkpoint; a run that has none yet begins again in its folder."""
    if checkpoint_dir is not None and checkpoint_files(checkpoint_dir):
        folder = _owner(config.run_name, output_dir, checkpoint_dir)
    else:
        assert config.run_name is not None
        folder = RunFolder(output_dir / config.run_name, checkpoint_dir)
    folder.lock(stack)
    try:
        source, payload = newest(folder.checkpoints, mapped=True, check=check)
    except CheckpointNotFoundError:
        folder.new_identity()
        return Start(folder, in_place=True)
    folder.run_id = payload["run"]["id"]
    return Start(folder, payload, source, in_place=True)


def _owner(run_name: str | None, output_dir: Path, checkpoint_dir: Path) -> RunFolder:
    """The folder of the run whose checkpoints are in `checkpoint_dir`; a new one when it is gone.

    Raises:
        CheckpointError: they are of another run than `run_name`.
    """
    header = _newest_header(checkpoint_dir)
    name, run_id = header["run"]["name"], header["run"]["id"]
    # A folder's name may have a number behind the run's: `RunFolder.reserve`.
    if reason := run_name_problem(re.sub(r"-\d+$", "", name)):
        raise CheckpointError(
            f"{checkpoint_dir} holds checkpoints of a run called {shown(name)}: a run's name {reason}."
        )
    if run_name is not None and not _is_name_of(run_name, header):
        raise CheckpointError(
            f"checkpoint_dir={str(checkpoint_dir)!r} holds checkpoints of run {name!r}, not of {run_name!r}; they are never "
            f"overwritten. Set run_name={name!r} to continue that run, or choose another checkpoint_dir."
        )
    folder = RunFolder(output_dir / name, checkpoint_dir)
    if folder.path.is_dir() and folder.run_id == run_id:
        return folder
    return RunFolder.reserve(output_dir, run_name, checkpoint_dir)


def absolute_source(resume_from: Any) -> Any:
    """`resume_from` of `decide_start`, with a path made absolute: the working folder may change before it is read."""
    if isinstance(resume_from, Path) or (isinstance(resume_from, str) and resume_from not in _BY_NAME):
        return absolute_path(resume_from)
    return resume_from


_BY_NAME = ("auto", "latest", "best")


def _checkpoint_path(resume_from: Any) -> Path:
    """The file or checkpoints' folder that `resume_from` means."""
    known = getattr(resume_from, "checkpoint_path", None)
    if known is None and not isinstance(resume_from, (str, Path)):
        raise DataTypeError(
            f"resume_from is a path, a results object, 'auto', 'latest', 'best' or None; got a {type(resume_from).__name__}."
        )
    path = absolute_path(known or resume_from)
    if (path / "checkpoints").is_dir():
        return path / "checkpoints"
    if not path.exists():
        raise CheckpointNotFoundError(f"{path} does not exist; resume_from names a checkpoint file or a run's folder.")
    return path
