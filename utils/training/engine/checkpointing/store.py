"""Checkpoints: one self-verifying file each. Commit, find the newest, rotate.

A file is `epoch_N.pt` (N completed epochs) or `step_N.pt` (N steps, within an epoch); `best.pt` is a second name of the best
one. Content: tensors and plain values only, so it loads with `weights_only=True` and can run no code. torch.save keeps a CRC
of every record; `verify` reads them all, so a torn or rotten file is found before it is used.

A folder is listed by its files' headers: what stands beside the tensors, whose data stay on disk. Only the file that is used
is verified and read as a whole.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import CheckpointError, CheckpointNotFoundError, CheckpointWriteError
from utils.storage import atomic_write, link_or_copy, remove_stale_temporaries
from utils.training.engine.checkpointing.content import FORMAT, SCHEMA, checked_content
from utils.training.engine.checkpointing.reading import (
    Payload,
    load_verified,
    read_plain,
    refuse_foreign_file_on_old_torch,
    verify,
    verify_header,
)
from utils.training.engine.checkpointing.snapshot import storage_bytes
from utils.training.engine.checkpointing.writing import write_file

log = logging.getLogger("trainbook.engine")

__all__ = [
    "BEST", "FORMAT", "SCHEMA", "CheckpointStore", "Entry", "FollowersStore", "Payload", "checkpoint_files", "entries_of",
    "newest", "newest_header", "read_checkpoint", "read_header", "read_plain", "refuse_foreign_file_on_old_torch", "verify",
    "write_file",
]  # fmt: skip

BEST = "best.pt"
_NAME = re.compile(r"^(epoch|step)_(\d+)\.pt$")
# Between two checkpoints the history grows, and nothing else does.
_GROWTH_BYTES = 16 << 10

# What a header has: everything that says which run this is and how far it was, and no tensor.
_HEADER = (
    "format", "schema", "run", "state", "value", "regular", "optimizer_kind", "batch_plan", "config", "task_spec",
    "fingerprint", "environment", "base_model",
)  # fmt: skip


def read_checkpoint(path: str | Path, *, mapped: bool = False) -> Payload:
    """Load a checkpoint of the engine onto the CPU, after verifying it.

    Args:
        mapped: tensors are views of the file, read when they are used; the file must not change until then.
    Raises:
        CheckpointNotFoundError: no such file.
        CheckpointError: damaged, not made by Trainbook, made by a newer version, or holding objects that could run code.
    """
    path = Path(path)
    return checked_content(read_plain(path, mapped=mapped), str(path))


def read_header(path: str | Path) -> Payload:
    """A checkpoint's entries without its tensors, verified as far as they are read: a few kilobytes of a file of any size.

    Raises:
        CheckpointNotFoundError, CheckpointError: as `read_checkpoint`; damage to the tensors' data is not seen.
    """
    path = Path(path)
    refuse_foreign_file_on_old_torch(path)
    verify_header(path)
    payload = checked_content(load_verified(path, mapped=True), str(path), random_state=False)
    return {name: payload[name] for name in _HEADER if name in payload}


@dataclass(frozen=True)
class Entry:
    """A committed checkpoint.

    Attributes:
        step: optimizer steps done; value: the monitored metric when it was saved, None when there was none.
        epoch: completed epochs; tells a stop after an epoch's last step from the epoch's end.
        run_id: the run that wrote it.
        regular: False when it was saved only because it was among the best; such a one does not count as one of the last.
        best_step: where the run had been best until then (`TrainState.best`); None when nothing was measured.
    """

    path: Path
    step: int
    value: float | None
    run_id: str
    regular: bool = True
    epoch: int = 0
    best_step: int | None = None

    @classmethod
    def of(cls, path: Path, payload: Payload) -> Entry:
        """The entry of a file with this content."""
        state = payload["state"]
        best_step = state.get("best", {}).get("step")
        return cls(
            path, state["step"], payload["value"], payload["run"]["id"], payload["regular"], state["epoch"], best_step
        )  # fmt: skip

    @property
    def position(self) -> tuple[int, int]:
        """Progress of the run, to compare: larger is newer."""
        return self.step, self.epoch


def checkpoint_files(folder: Path) -> list[Path]:
    """Files of `folder` that have a checkpoint's name; folders and strangers are left out."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if (_NAME.match(path.name) or path.name == BEST) and path.is_file()]


def entries_of(folder: Path) -> tuple[list[Entry], list[str]]:
    """The checkpoints of `folder`, newest first, by their headers; best.pt is not among them.

    Returns:
        the entries, whose tensors may still be damaged; and why files with a checkpoint's name are not among them.
    """
    entries, reasons = [], []
    # A file's name does not say how many steps an epoch had, so the newest is known only from what is in it.
    for path in _by_time(folder):
        try:
            entries.append(_remembered(path) or _remember(Entry.of(path, read_header(path))))
        except CheckpointError as error:
            reasons.append(str(error))
    return sorted(entries, key=lambda entry: entry.position, reverse=True), reasons


def _by_time(folder: Path) -> list[Path]:
    """The checkpoints of `folder` but best.pt, the last one that was written first."""
    return sorted(
        (path for path in checkpoint_files(folder) if path.name != BEST),
        key=lambda path: path.stat().st_mtime, reverse=True,
    )  # fmt: skip


# Entries of files that this process has read or written, by what tells that a file is another one or was written again. While
# a run starts its folder is listed several times, and reading a header takes longer than writing a small checkpoint.
_entries: dict[tuple[str, int, int, int, int], Entry] = {}
_MOST_ENTRIES = 1024


def _identity(path: Path) -> tuple[str, int, int, int, int]:
    status = path.stat()
    return str(path), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _remembered(path: Path) -> Entry | None:
    try:
        return _entries.get(_identity(path))
    except OSError:
        return None  # reading it says what is wrong


def _remember(entry: Entry) -> Entry:
    if len(_entries) >= _MOST_ENTRIES:
        _entries.clear()
    with contextlib.suppress(OSError):  # gone by now
        _entries[_identity(entry.path)] = entry
    return entry


def newest(
    folder: Path, *, mapped: bool = False, check: Callable[[Payload, str], None] = lambda payload, source: None
) -> tuple[Path, Payload]:
    """The intact checkpoint of `folder` with the most steps, and its content. Bad files are skipped with a warning.

    best.pt is taken only when it is the last one left.

    Args:
        mapped: see `read_checkpoint`.
        check: called with a content and its file's name; raises `CheckpointError` to have the file skipped.
    Raises:
        CheckpointNotFoundError: the folder has no checkpoint at all.
        CheckpointError: it has some, and none is intact; lists what was tried.
    """
    ahead: dict[Path, Payload] = {}
    # Nearly always it is the last one that was written: read at once as a whole, it needs no header.
    for path in _by_time(folder)[:1]:
        with contextlib.suppress(CheckpointError):  # read once more below, it says what is wrong
            ahead[path] = read_checkpoint(path, mapped=mapped)
            _remember(Entry.of(path, ahead[path]))
    entries, reasons = entries_of(folder)
    for reason in reasons:
        log.warning("Skipped: %s", reason)
    candidates = [entry.path for entry in entries]
    if (folder / BEST).is_file():
        candidates.append(folder / BEST)  # better than beginning again, when all others are gone or damaged
    for path in candidates:
        try:
            payload = ahead.pop(path, None) or read_checkpoint(path, mapped=mapped)
            check(payload, str(path))
            return path, payload
        except CheckpointError as error:
            reasons.append(str(error))
            log.warning("Skipped: %s", error)
    if reasons:
        raise CheckpointError(_none_intact(folder, reasons))
    raise CheckpointNotFoundError(f"{folder} holds no checkpoint (epoch_N.pt or step_N.pt).")


def newest_header(folder: Path) -> tuple[Path, Payload]:
    """Like `newest`, without the tensors: a few kilobytes are read of a checkpoint of any size.

    Raises:
        As `newest`; damage to the tensors' data is not noticed.
    """
    entries, reasons = entries_of(folder)
    paths = [entry.path for entry in entries] + ([folder / BEST] if (folder / BEST).is_file() else [])
    for path in paths:
        try:
            return path, read_header(path)
        except CheckpointError as error:
            reasons.append(str(error))
    if reasons:
        raise CheckpointError(_none_intact(folder, reasons))
    raise CheckpointNotFoundError(f"{folder} holds no checkpoint (epoch_N.pt or step_N.pt).")


def _none_intact(folder: Path, reasons: Sequence[str]) -> str:
    listed = "\n  ".join(reasons)
    return (
        f"{folder} holds no intact checkpoint:\n  {listed}\nPut a copy of one there, or train anew with another run_name (and "
        "checkpoint_dir)."
    )


def _best_step(entries: Sequence[Entry]) -> int | None:
    """The best step so far, as the newest checkpoint has it."""
    return max(entries, key=lambda entry: entry.position).best_step if entries else None


class CheckpointStore:
    """The checkpoints of one run in one folder: commits new ones and removes those that are no longer needed.

    Args:
        folder: made when absent.
        run_id: files of other runs are never overwritten or removed.
        keep_last_n: newest checkpoints kept, at least 2; keep_best_k: best ones kept.
        mode: "min" or "max" of the monitored metric.
        keep_every_n_epochs: those of every n-th epoch's end are never removed; None: no such ones.
    Attributes:
        entries: what is committed; a commit in another thread sets it when it is done.
        pending: what is being committed by another thread, set and cleared by the thread that asked for it. What is said of
            values counts it as committed, so that it does not depend on how fast the disk is.
    Raises:
        CheckpointWriteError: the folder cannot be made or written to; says which path.
    """

    def __init__(
        self, folder: Path, run_id: str, keep_last_n: int = 2, keep_best_k: int = 1, mode: str = "min",
        keep_every_n_epochs: int | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.run_id = folder, run_id
        self.keep_every_n_epochs = keep_every_n_epochs
        self.keep_last_n, self.keep_best_k, self.mode = max(2, keep_last_n), keep_best_k, mode
        self.entries: list[Entry] = []
        self.pending: Entry | None = None
        self._last_size = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._has_links = _tried(folder)
        except OSError as error:
            raise CheckpointWriteError(
                f"checkpoints cannot be written to {folder}: {error.strerror or error}. Choose another checkpoint_dir."
            ) from None
        remove_stale_temporaries(folder)

    def adopt(self, up_to: Entry | None = None) -> None:
        """List the files that this run has already committed, after a restart.

        Args:
            up_to: the checkpoint that the run continues from. Newer files were found to be damaged: they are neither counted
                nor removed, as those without a readable header.
        """
        entries, _ = entries_of(self.folder)
        self.entries = [
            entry
            for entry in reversed(entries)
            if entry.run_id == self.run_id and (up_to is None or entry.position <= up_to.position)
        ]
        if self.entries:
            self._last_size = self.entries[-1].path.stat().st_size
        try:
            self._point_best()  # the process may have died between a commit and this
        except OSError as error:
            log.warning("%s could not be updated: %s", self.folder / BEST, error)

    def would_be_best(self, value: float | None) -> bool:
        """Whether a checkpoint with this value, which is not the run's best, would be among the `keep_best_k` that are kept."""
        if value is None or value != value:
            return False
        known = self._known()
        ranked = self._ranked(known)
        if len(ranked) < self.keep_best_k:
            return True
        last = ranked[self.keep_best_k - 1]
        # A better value alone does not replace the run's best: it may be better by less than min_delta.
        return last.step != _best_step(known) and self._sign * value < self._sign * (last.value or 0.0)

    def value_at(self, step: int) -> float | None:
        """The metric with which the state after `step` was saved, None when it was not."""
        return next((entry.value for entry in self._known() if entry.step == step and entry.value is not None), None)

    def _known(self) -> list[Entry]:
        pending = self.pending
        if pending is None:
            return self.entries
        return [kept for kept in self.entries if kept.path != pending.path] + [pending]

    def commit(self, payload: Payload, name: str, go_on: Callable[[], None] = lambda: None) -> Path:
        """Write `payload` under `name`, completely or not at all; then update best.pt and remove what is not needed.

        Args:
            go_on: called again and again until the file has its name; what it raises ends the commit, without a trace.
        Raises:
            CheckpointWriteError: says path, needed and free bytes; older checkpoints are intact, no part is left behind.
        """
        path = self.folder / name
        # The first one is read back whole: it shows that what is saved can be loaded. Later ones differ only in numbers.
        check = verify if self._last_size else _check_readable
        entry = Entry.of(path, payload)
        needed = max(self._last_size, storage_bytes(payload)) + _GROWTH_BYTES
        # best.pt is another name of the same file, and takes space only where there are no hard links.
        copies = 2 if self.would_be_best(entry.value) and not self._has_links else 1
        write_file(path, payload, copies * needed, check, go_on)
        self._last_size = path.stat().st_size
        self.entries = [kept for kept in self.entries if kept.path != path] + [_remember(entry)]
        try:
            self._point_best()
            self._rotate()
        except OSError as error:
            raise CheckpointWriteError(
                f"{path} is saved, but best.pt or older files could not be changed: {error}."
            ) from error
        return path

    @property
    def best(self) -> Entry | None:
        """The checkpoint of the step that the run's state calls the best; None when it was not saved.

        By value, the earlier one of equals, where no state says which one it is.
        """
        ranked = self._ranked(self.entries)
        if not ranked or _best_step(self.entries) not in (None, ranked[0].step):
            return None
        return ranked[0]

    @property
    def _sign(self) -> float:
        return 1.0 if self.mode == "min" else -1.0

    def _ranked(self, entries: list[Entry]) -> list[Entry]:
        """Entries with a value: the run's best, then by value."""
        valued = [entry for entry in entries if entry.value is not None and entry.value == entry.value]
        best_step = _best_step(entries)
        return sorted(
            valued, key=lambda entry: (entry.step != best_step, self._sign * (entry.value or 0.0), entry.step)
        )

    def _point_best(self) -> None:
        """Make best.pt the best checkpoint's second name; never a symlink, which a copy of the folder would not hold."""
        best, target = self.best, self.folder / BEST
        if best is None:
            return
        with contextlib.suppress(OSError):
            if target.samefile(best.path):
                return
        link_or_copy(best.path, target)

    def _rotate(self) -> None:
        newest_first = sorted(self.entries, key=lambda entry: entry.position, reverse=True)
        last = [entry for entry in newest_first if entry.regular][: self.keep_last_n]
        due = [entry for entry in newest_first if self._is_kept_by_number(entry)]
        kept = {entry.path for entry in [newest_first[0], *last, *due, *self._ranked(self.entries)[: self.keep_best_k]]}
        for entry in newest_first:
            if entry.path not in kept:
                entry.path.unlink(missing_ok=True)
        self.entries = [entry for entry in self.entries if entry.path in kept]

    def _is_kept_by_number(self, entry: Entry) -> bool:
        every = self.keep_every_n_epochs
        return every is not None and entry.path.name.startswith("epoch") and entry.epoch % every == 0


class FollowersStore(CheckpointStore):
    """Checkpoint store of a process that does not write: in distributed training the main process keeps the checkpoints."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.folder, self.run_id = folder, run_id
        self.entries = []

    def adopt(self, up_to: Entry | None = None) -> None:
        """Nothing: the files are the main process's."""

    def would_be_best(self, value: float | None) -> bool:
        """False: the main process knows."""
        return False

    def value_at(self, step: int) -> float | None:
        """None: the main process knows."""
        return None


def _check_readable(path: Path) -> None:
    verify(path)
    checked_content(load_verified(path, mapped=True), str(path))


def _tried(folder: Path) -> bool:
    """Write a file of nothing to `folder`. Returns whether files there can have a second name."""
    probe = atomic_write(folder / ".writable", lambda file: None)
    second = folder / ".writable-too"
    try:
        os.link(probe, second)
    except OSError:
        return False
    finally:
        probe.unlink()
        second.unlink(missing_ok=True)
    return True
