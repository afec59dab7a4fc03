"""Commit one checkpoint file: completely or not at all, and only what can be loaded again."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from utils.errors import CheckpointError, CheckpointWriteError
from utils.storage import atomic_write, free_bytes
from utils.training.engine.checkpointing.reading import Payload, remember_as_own, verify
from utils.training.engine.checkpointing.snapshot import storage_bytes
from utils.training.engine.hardware.memory import free_memory


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
    needed = storage_bytes(payload) if needed_bytes is None else needed_bytes
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
        remember_as_own(path)
    except CheckpointWriteError:
        raise
    except (OSError, RuntimeError) as error:
        cause = _os_error(error)
        if cause is None and not isinstance(error, CheckpointError):
            raise
        if cause is not None and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise CheckpointWriteError(_no_space(path, needed, free_bytes(path.parent))) from error
        raise CheckpointWriteError(
            f"{path} could not be written: {str(cause or error).rstrip('.')}. Older checkpoints are intact."
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
        """Flush as files do; torch calls it."""
        self._file.flush()


# What torch loads with weights_only=True. Subclasses are not meant: numpy's float64 is a float, and pickles as a call.
_PLAIN = frozenset(
    {type(None), bool, int, float, complex, str, bytes, bytearray, set, torch.Size, torch.dtype, torch.device}
)


def _not_plain(value: Any, place: str = "") -> list[str]:
    """Places in `value` that hold anything but tensors and plain values."""
    if type(value) in _PLAIN or isinstance(value, Tensor):
        return []
    if type(value) in (dict, OrderedDict):
        entries = [(f"{place}.{name}", entry) for name, entry in value.items() if type(entry) not in _PLAIN]
        entries += [(f"a key of {place}", name) for name in value if type(name) not in (str, int)]
    elif type(value) in (list, tuple):
        entries = [(f"{place}.{number}", entry) for number, entry in enumerate(value) if type(entry) not in _PLAIN]
    else:
        return [f"{place.removeprefix('.')} is a {type(value).__module__}.{type(value).__qualname__}"]
    return [found for name, entry in entries for found in _not_plain(entry, name)]


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


def _write(payload: Payload, file: IO[bytes], go_on: Callable[[], None]) -> None:
    torch.save(payload, cast(IO[bytes], _Pieces(file, go_on)))  # it has the two methods that torch calls


def _then(check: Callable[[Path], None], go_on: Callable[[], None]) -> Callable[[Path], None]:
    def both(path: Path) -> None:
        go_on()
        if not _checked(check, path):
            free_memory()  # what a step frees stays with the process; given back, it is enough to map the file
            check(path)
        go_on()

    return both


def _checked(check: Callable[[Path], None], path: Path) -> bool:
    """Whether the file passed; False when the system has no memory to map it. Raises as `check` for what is wrong with it."""
    try:
        check(path)
    except CheckpointError as error:
        if os.strerror(errno.ENOMEM) not in str(error):
            raise
        return False
    return True
