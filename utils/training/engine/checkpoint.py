"""Checkpoints: one self-verifying file each. Commit, verify, find the newest, rotate.

A file is `epoch_N.pt` (N completed epochs) or `step_N.pt` (N steps, within an epoch); `best.pt` is a second name of the best
one. Content: tensors and plain values only, so it loads with `weights_only=True` and can run no code. torch.save keeps a CRC
of every record; `verify` reads them all, so a torn or rotten file is found before it is used.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import pickle
import re
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from utils.errors import CheckpointError, CheckpointNotFoundError, CheckpointWriteError
from utils.storage import atomic_write, free_bytes, link_or_copy, remove_stale_temporaries

log = logging.getLogger("trainbook.engine")

FORMAT = 1
BEST = "best.pt"
_NAME = re.compile(r"^(epoch|step)_(\d+)\.pt$")
_FOLDER_ATTRIBUTE = 0x10  # in a zip's external attributes, as MS-DOS had it
_REQUIRED = (
    "format",
    "run",
    "state",
    "value",
    "regular",
    "model",
    "optimizer",
    "schedule",
    "rng",
    "config",
    "fingerprint",
    "environment",
)

Payload = dict[str, Any]


def verify(path: Path) -> None:
    """Check every record of a checkpoint file against its CRC. Raises `CheckpointError` that says what is wrong."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
            # A record marked as a folder would pass, and torch would then leave its tensor as it finds the memory.
            folders = [record.filename for record in archive.infolist() if record.external_attr & _FOLDER_ATTRIBUTE]
    except FileNotFoundError:
        raise CheckpointNotFoundError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder, not a checkpoint file.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        size = path.stat().st_size if path.exists() else 0
        if size and not _begins_as_archive(path):
            raise CheckpointError(
                _refusal(f"{path} is not the zip archive that torch.save writes, and anything else")
            ) from None
        raise CheckpointError(f"{path} is damaged ({error}; {size} bytes); use an older checkpoint.") from None
    if bad is not None:
        raise CheckpointError(
            f"{path} is damaged: record {bad!r} does not match its checksum; use an older checkpoint."
        )
    if folders:
        raise CheckpointError(
            f"{path} is damaged: record {folders[0]!r} is marked as a folder; use an older checkpoint."
        )


def read_checkpoint(path: str | Path) -> Payload:
    """Load a checkpoint of the engine onto the CPU, after verifying it.

    Raises:
        CheckpointNotFoundError: no such file.
        CheckpointError: damaged, not made by Trainbook, made by a newer version, or holding objects that could run code.
    """
    path = Path(path)
    verify(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch comments on foreign files before it refuses them
        return _loaded(path)


def read_plain(path: str | Path, *, mapped: bool = False) -> Any:
    """The content of any file of torch.save, of ours or of other systems, on the CPU: tensors and plain values only.

    Args:
        mapped: tensors stay on disk until they are used: for a look at the values beside them.
    Raises:
        CheckpointNotFoundError, CheckpointError: as `read_checkpoint`, whatever the content is.
    """
    path = Path(path)
    verify(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return _content(path, mapped)


def refuse_foreign_file_on_old_torch(path: Path) -> None:
    """A file that is named explicitly may be somebody else's, and `weights_only=True` had holes before torch 2.10."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 10):
        raise CheckpointError(
            f"{path}: loading a checkpoint by its path needs torch 2.10 or newer (this is {torch.__version__}), whose loader "
            "refuses code. Update torch, or continue a run of your own with resume_from='auto'."
        )


def _content(path: Path, mapped: bool = False) -> Any:
    """What is in a verified file. Touches no setting of the process, so that any thread may call it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"names {found[1]}" if found else "has a pickle that is not one of plain values"
        raise CheckpointError(_refusal(f"{path} {reason}, and anything but tensors and plain values")) from None
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read: {type(error).__name__}: {str(error).splitlines()[0]}") from None


def _loaded(path: Path) -> Payload:
    """The content of a verified file, which must be a checkpoint of the engine."""
    payload = _content(path)
    if not isinstance(payload, dict) or "format" not in payload:
        held = (
            f"a dict with {sorted(map(str, payload))[:6]}"
            if isinstance(payload, dict)
            else f"a {type(payload).__name__}"
        )
        raise CheckpointError(f"{path} is no Trainbook checkpoint: it holds {held}.")
    if payload["format"] != FORMAT:
        made_by = payload.get("environment", {}).get("trainbook", "another version")
        raise CheckpointError(
            f"{path} has checkpoint format {payload['format']} (Trainbook {made_by}); this version reads format {FORMAT}. "
            "Update Trainbook, or continue with the version that wrote it."
        )
    missing = [key for key in _REQUIRED if key not in payload]
    if missing:
        raise CheckpointError(f"{path} is incomplete: it lacks {', '.join(missing)}.")
    return payload


def _begins_as_archive(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _refusal(reason: str) -> str:
    return (
        f"{reason} could run code: refused. If you trust its author, load it in a process of your own and save its state_dict "
        "with safetensors."
    )


def load_model_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy `weights` into `model`; every name and shape must fit. Raises `CheckpointError` that names the first differences."""
    own = model.state_dict()
    differences = [f"{name}: only in the checkpoint" for name in weights if name not in own]
    differences += [f"{name}: only in the model" for name in own if name not in weights]
    differences += [
        f"{name}: {tuple(weights[name].shape)} in the checkpoint, {tuple(own[name].shape)} in the model"
        for name in own
        if name in weights and isinstance(own[name], Tensor) and weights[name].shape != own[name].shape
    ]
    if differences:
        more = f"\n  and {len(differences) - 5} more" if len(differences) > 5 else ""
        listed = "\n  ".join(differences[:5])
        raise CheckpointError(f"{source} is of another model; {len(differences)} entries differ:\n  {listed}{more}")
    model.load_state_dict(dict(weights))


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
        """How far the run was: larger is newer."""
        return self.step, self.epoch


def checkpoint_files(folder: Path) -> list[Path]:
    """Files of `folder` that have a checkpoint's name; folders and strangers are passed over."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if (_NAME.match(path.name) or path.name == BEST) and path.is_file()]


def newest(folder: Path) -> tuple[Path, Payload]:
    """The intact checkpoint of `folder` with the most steps, and its content. Bad files are passed over with a warning.

    best.pt is taken only when it is the last one left.

    Raises:
        CheckpointNotFoundError: the folder has no checkpoint at all.
        CheckpointError: it has some, and none is intact; lists what was tried.
    """
    paths = [path for path in checkpoint_files(folder) if path.name != BEST]
    found: tuple[Path, Payload] | None = None
    reasons = []
    # A file's name does not say how many steps an epoch had, so the newest is known only from what is in it.
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            payload = read_checkpoint(path)
        except CheckpointError as error:
            reasons.append(str(error))
            log.warning("Passed over: %s", error)
            continue
        if found is None or Entry.of(path, payload).position > Entry.of(*found).position:
            found = path, payload
    if found is None and (folder / BEST).is_file():
        with contextlib.suppress(CheckpointError):
            # Better than beginning again: all others are gone or damaged.
            found = folder / BEST, read_checkpoint(folder / BEST)
    if found is not None:
        return found
    if reasons:
        raise CheckpointError(f"{folder} holds no intact checkpoint:\n  " + "\n  ".join(reasons))
    raise CheckpointNotFoundError(f"{folder} holds no checkpoint (epoch_N.pt or step_N.pt).")


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
            atomic_write(folder / ".writable", lambda file: None).unlink()
        except OSError as error:
            raise CheckpointWriteError(
                f"checkpoints cannot be written to {folder}: {error.strerror or error}. Choose another checkpoint_dir."
            ) from None
        remove_stale_temporaries(folder)

    def adopt(self) -> None:
        """Take up the files that this run has already committed, after a restart."""
        for path in checkpoint_files(self.folder):
            if path.name == BEST:
                continue
            with contextlib.suppress(CheckpointError):  # a damaged file is neither counted nor removed
                payload = read_checkpoint(path)
                if payload["run"]["id"] == self.run_id:
                    self.entries.append(Entry.of(path, payload))
                    self._last_size = path.stat().st_size
        self.entries.sort(key=lambda entry: entry.position)
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
        write_file(path, payload, max(2 * self._last_size, _tensor_bytes(payload)), check, go_on)
        self._last_size = path.stat().st_size
        self.entries = [kept for kept in self.entries if kept.path != path] + [Entry.of(path, payload)]
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
        """Those with a value: the run's best, then by value."""
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
    """What a process has that does not write: of several that train together, the main one keeps the checkpoints."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.folder, self.run_id = folder, run_id
        self.entries = []

    def adopt(self) -> None:
        """Nothing: the files are the main process's."""

    def would_be_best(self, value: float | None) -> bool:
        """False: the main process knows."""
        return False

    def value_at(self, step: int) -> float | None:
        """None: the main process knows."""
        return None


def _write(payload: Payload, file: IO[bytes], go_on: Callable[[], None]) -> None:
    torch.save(payload, cast(IO[bytes], _Pieces(file, go_on)))  # it has the two methods that torch calls


def _then(check: Callable[[Path], None], go_on: Callable[[], None]) -> Callable[[Path], None]:
    def both(path: Path) -> None:
        go_on()
        check(path)
        go_on()

    return both


def _check_readable(path: Path) -> None:
    verify(path)
    _loaded(path)


def write_file(
    path: Path, payload: Payload, needed_bytes: int | None = None, check: Callable[[Path], None] = verify,
    go_on: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Commit `payload` as the file `path`, completely or not at all.

    Args:
        needed_bytes: free space that must be there; None: as much as its tensors take.
        check: called with the written file before it gets its name; raises to refuse it.
        go_on: called again and again meanwhile; what it raises ends the commit, without a trace.
    Raises:
        CheckpointWriteError: says path, needed and free bytes; what was there before is intact, no part is left behind.
    """
    needed = _tensor_bytes(payload) if needed_bytes is None else needed_bytes
    if strange := _not_plain(payload):
        raise CheckpointWriteError(
            f"{path} was not written, because it could not be loaded again: {'; '.join(strange[:5])}. A checkpoint holds "
            "tensors and plain values only; let state_dict() return those, such as float(x)."
        )
    try:
        free = free_bytes(path.parent)
        if free < needed:
            raise CheckpointWriteError(_no_space(path, needed, free))
        atomic_write(path, lambda file: _write(payload, file, go_on), _then(check, go_on))
    except CheckpointWriteError:
        raise
    except (OSError, RuntimeError) as error:
        cause = _os_error(error)
        if cause is None and not isinstance(error, CheckpointError):
            raise
        if cause is not None and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise CheckpointWriteError(_no_space(path, needed, free_bytes(path.parent))) from error
        raise CheckpointWriteError(
            f"{path} could not be written: {cause or error}. Older checkpoints are intact."
        ) from error


class _Pieces:
    """A file that is written in pieces, with a look between two of them whether it is still wanted."""

    SIZE = 16 << 20  # bytes: some 10 ms of a disk's time

    def __init__(self, file: IO[bytes], go_on: Callable[[], None]) -> None:
        self._file, self._go_on = file, go_on

    def write(self, data: Any) -> int:
        """Write all of `data`, any buffer of bytes."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), self.SIZE):
            self._go_on()
            self._file.write(view[start : start + self.SIZE])
        return len(view)

    def flush(self) -> None:
        """As files have it; torch calls it."""
        self._file.flush()


# What torch loads with weights_only=True. Subclasses are not meant: numpy's float64 is a float, and pickles as a call.
_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, set, torch.Size, torch.dtype, torch.device)


def _not_plain(value: Any, place: str = "") -> list[str]:
    """Where `value` holds something else than tensors and plain values."""
    if isinstance(value, Tensor) or type(value) in _PLAIN:
        return []
    if type(value) in (dict, OrderedDict):
        entries = [(f"{place}.{name}", entry) for name, entry in value.items()]
        entries += [(f"a key of {place}", name) for name in value if type(name) not in (str, int)]
    elif type(value) in (list, tuple):
        entries = [(f"{place}.{number}", entry) for number, entry in enumerate(value)]
    else:
        return [f"{place.removeprefix('.')} is a {type(value).__module__}.{type(value).__qualname__}"]
    return [found for name, entry in entries for found in _not_plain(entry, name)]


def _tensor_bytes(value: Any, seen: set[int] | None = None) -> int:
    """Bytes of the tensors in `value`; the same tensor under two names counts once, as it does in the file."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        known = id(value) in seen
        seen.add(id(value))
        return 0 if known else value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(_tensor_bytes(entry, seen) for entry in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_tensor_bytes(entry, seen) for entry in value)
    return 0


def _os_error(error: BaseException | None) -> OSError | None:
    """The operating system's error behind `error`: torch.save reports a full disk as a RuntimeError of its own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        error = error.__cause__ or error.__context__
    return None


def _no_space(path: Path, needed: int, free: int) -> str:
    return (
        f"{path}: not enough disk space; {needed:,} bytes are needed and {free:,} are free. Older checkpoints are intact. "
        "Free some space, lower keep_last_n, or choose another checkpoint_dir."
    )
