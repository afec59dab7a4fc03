"""A run on disk: its folder, who may write to it, and whether to continue it or to start a new one.

runs/<run_name>/
  config.yaml        the TrainingConfig and TaskSpec
  history.jsonl      one row an event: the source of every curve and table
  state.json         id, status, step, epoch, best value: what a person or a front end looks at
  environment.json   versions and device
  lineage.json       the run that this one was started from, if any
  checkpoints/       epoch_N.pt, step_N.pt, best.pt (elsewhere when checkpoint_dir is given)
  plots/  exports/
  lock               held while a process trains here
  STOP               made by anybody who wants the run to save and stop
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from utils import environment
from utils.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointWriteError,
    ConfigError,
    DataTypeError,
)
from utils.schema import shown
from utils.scrubbing import scrubbed
from utils.storage import (
    FolderLock,
    absolute_path,
    append_line,
    atomic_write,
    json_line,
    read_json_lines,
    remove_stale_temporaries,
    write_json,
)
from utils.training.config_files import write_config_file
from utils.training.engine.checkpointing.store import (
    BEST,
    Entry,
    Payload,
    check_kinds,
    checkpoint_files,
    entries_of,
    newest,
    read_checkpoint,
    read_header,
)
from utils.training.engine.distributed.world import World
from utils.training.training_config import TrainingConfig, run_name_problem

# Rows of steps are written together: opening the file costs more than a small model's step may.
_FLUSH_EVERY_S = 0.5

log = logging.getLogger("trainbook.run")

# Raises `CheckpointError` for a content, named as its file, that a run cannot continue from.
Check = Callable[[Payload, str], None]

_EXPERIMENT = re.compile(r"^exp(\d+)$")


class RunFolder:
    """One run's folder. Made by `reserve` or opened by path; nothing is written before `lock()`.

    Attributes:
        may_lose_rows: whether history rows that cannot be written are passed over with a warning.
    """

    def __init__(self, path: Path, checkpoints: Path | None = None) -> None:
        self.path = path = absolute_path(path)
        checkpoints = None if checkpoints is None else absolute_path(checkpoints)
        self.may_lose_rows = False
        self._warned: set[Path] = set()
        self._unwritten: list[str] = []  # rows of the history, as text
        self._flushed_at = 0.0
        self.checkpoints = checkpoints or path / "checkpoints"
        self.run_id = self._read_state().get("run_id") or uuid.uuid4().hex
        self._locks = [FolderLock(path / "lock")]
        if checkpoints is not None:
            self._locks.append(FolderLock(checkpoints / ".lock"))

    @classmethod
    def reserve(cls, output_dir: Path, run_name: str | None, checkpoints: Path | None = None) -> RunFolder:
        """Make a folder that was not there: `run_name`, else `run_name-2` and so on; without a name the next free expN.

        Raises:
            ConfigError: the folder cannot be made; says which path.
        """
        output_dir = absolute_path(output_dir)
        try:
            output_dir.mkdir(parents=True, exist_ok=True)
            taken = [int(m[1]) for p in output_dir.iterdir() if p.is_dir() and (m := _EXPERIMENT.match(p.name))]
            number = max(taken, default=0) + 1 if run_name is None else 1
            while True:
                name = f"exp{number}" if run_name is None else run_name if number == 1 else f"{run_name}-{number}"
                try:
                    (output_dir / name).mkdir()  # making it is what reserves it, also against other processes
                except FileExistsError:
                    number += 1
                    continue
                return cls(output_dir / name, checkpoints)
        except OSError as error:
            raise ConfigError(
                f"the run's folder cannot be made in {output_dir}: {error.strerror or error}. Choose another output_dir."
            ) from None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def history_file(self) -> Path:
        """Where the rows are."""
        return self.path / "history.jsonl"

    def lock(self, stack: contextlib.ExitStack) -> None:
        """Use this folder alone until `stack` closes. Raises `RunLockedError` that names the process that has it."""
        for lock in self._locks:
            try:
                lock.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CheckpointError(
                    f"{lock.path.parent} cannot be used: {error.strerror}. Choose another folder."
                ) from None
            stack.enter_context(lock.held())
            remove_stale_temporaries(lock.path.parent)

    def new_identity(self) -> None:
        """This folder holds another run from now on."""
        self.run_id = uuid.uuid4().hex

    def _read_state(self) -> dict[str, Any]:
        try:
            state = json.loads((self.path / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # absent, or torn by a crash of another program: checkpoints hold the id as well
        return state if isinstance(state, dict) else {}

    def write_state(self, status: str, **facts: Any) -> None:
        """Say where the run stands, for people and front ends. Nothing depends on it, so a failure is only logged."""
        path = self.path / "state.json"
        with self._written(path, go_on=True):
            write_json(path, {"run_id": self.run_id, "status": status, **facts})

    def write_description(self, config: dict[str, Any], task_spec: dict[str, Any], **sections: Any) -> None:
        """config.yaml and environment.json. Raises `CheckpointWriteError` that names the file.

        Args:
            sections: further sections of config.yaml.
        """
        config_file, environment_file = self.path / "config.yaml", self.path / "environment.json"
        with self._written(config_file):
            write_config_file(config_file, {"training": config, "task": task_spec, **sections})
        with self._written(environment_file):
            write_json(environment_file, environment.snapshot())

    def write_lineage(self, kind: str, parent: str, **facts: Any) -> None:
        """lineage.json: the run that this one starts from. Nothing depends on it, so a failure is only logged.

        Args:
            kind: "checkpoint" or "fork"; parent: the other run's name; facts: parent_id, checkpoint, step.
        """
        path = self.path / "lineage.json"
        with self._written(path, go_on=True):
            write_json(path, {"kind": kind, "parent": parent, **facts})

    def record(self, row: dict[str, Any]) -> None:
        """Append a row to the history. A step's row may wait in memory for half a second of training, or for `flush`.

        Raises `CheckpointWriteError` unless `may_lose_rows`.
        """
        self._unwritten.append(json_line(scrubbed(row)))
        if row["event"] != "step" or time.monotonic() - self._flushed_at >= _FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are still in memory. What a crash takes of them is not in a checkpoint either."""
        self._flushed_at = time.monotonic()
        if self._unwritten:
            lines, self._unwritten = "\n".join(self._unwritten), []
            with self._written(self.history_file, go_on=self.may_lose_rows):
                append_line(self.history_file, lines)

    @contextlib.contextmanager
    def _written(self, path: Path, *, go_on: bool = False) -> Iterator[None]:
        """A full or vanished disk becomes one error that names the file, or one warning for all of them."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            message = f"{path} could not be written: {reason}. Free some space; checkpoints are intact."
            if not go_on:
                raise CheckpointWriteError(message) from error
            if path not in self._warned:
                self._warned.add(path)
                log.warning("Training goes on: %s", message)

    def keep_history(self, count: int, rows: Iterable[dict[str, Any]]) -> int:
        """Cut the history to its first `count` rows: what came after the checkpoint is about to be done again.

        Args:
            rows: what the checkpoint itself remembers, used when the file has fewer than `count` rows.
        Returns:
            rows in the file afterwards.
        Raises:
            CheckpointWriteError: the file cannot be written; it is as it was.
        """
        kept = read_json_lines(self.history_file)[:count]
        if len(kept) < count:
            kept = list(rows)
        text = "".join(json_line(scrubbed(row)) + "\n" for row in kept)
        with self._written(self.history_file):
            atomic_write(self.history_file, lambda file: file.write(text.encode()))
        return len(kept)

    @property
    def stop_file(self) -> Path:
        """Making this file asks the run to save and stop."""
        return self.path / "STOP"

    def stop_requested(self) -> bool:
        """Whether the STOP file is there."""
        return self.stop_file.exists()

    def clear_stop(self) -> None:
        """Remove the STOP file: it was obeyed, or meant an earlier training."""
        self.stop_file.unlink(missing_ok=True)


class FollowersFolder(RunFolder):
    """A run's folder as the processes see it that do not write: of several that train together, the main one keeps it."""

    def __init__(self, path: Path, checkpoints: Path, run_id: str) -> None:
        self.path, self.checkpoints, self.run_id = path, checkpoints, run_id
        self.may_lose_rows = True

    def lock(self, stack: contextlib.ExitStack) -> None:
        """Nothing: the main process has the lock."""

    def write_state(self, status: str, **facts: Any) -> None:
        """Nothing."""

    def write_description(self, config: dict[str, Any], task_spec: dict[str, Any], **sections: Any) -> None:
        """Nothing."""

    def write_lineage(self, kind: str, parent: str, **facts: Any) -> None:
        """Nothing."""

    def record(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def keep_history(self, count: int, rows: Iterable[dict[str, Any]]) -> int:
        """Nothing; `count`."""
        return count

    def stop_requested(self) -> bool:
        """False: the main process looks."""
        return False

    def clear_stop(self) -> None:
        """Nothing."""


@dataclass
class Start:
    """How a training begins.

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

    Of several processes the main one decides; the others are told, and read the same checkpoint from the same path.

    Args:
        resume_from: None (a new run), "auto" (continue this run_name or checkpoint_dir if it has a checkpoint), "latest" or
            "best" (continue, and fail when there is none), a checkpoint file, a run's or checkpoints' folder, or a results
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
    """Where the checkpoints of run `run_name` are: in `checkpoint_dir`, or below it when another run has that folder.

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
    """What the newest checkpoint of a folder says besides its tensors."""
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
        raise CheckpointError(f"{checkpoint_dir} holds checkpoints of a run called {shown(name)}: a run's name {reason}.")
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
