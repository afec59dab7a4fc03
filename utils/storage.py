"""Files that survive a crash: atomic writes, folder locks, free-space checks.

A write is committed in five steps, so that a reader sees the old file or the new one and never a part of it: temporary file in
the same folder, write, flush and fsync, rename over the target, fsync of the folder.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import socket
import stat
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from utils.errors import FileWriteError, RunLockedError
from utils.scrubbing import scrubbed

try:
    import fcntl
except ImportError:  # Windows has no flock; a lock there relies on the owner's record alone
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"^\.(?P<name>.+)\.(?P<host>[^.]*)\.(?P<pid>\d+)\.tmp$")


def host_name() -> str:
    """This machine's name, without dots so that it can stand in a file name."""
    return socket.gethostname().replace(".", "-")


def process_is_alive(pid: int) -> bool:
    """Whether a process of this machine has the id `pid`."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class NotRegularFileError(OSError):
    """A path leads to a device, a pipe or a socket: reading it may never end."""


def require_regular_file(path: Path) -> int:
    """The size in bytes of a regular file (or of the one that a symbolic link leads to).

    Raises:
        IsADirectoryError, NotRegularFileError, or what `stat` raises.
    """
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise NotRegularFileError(f"{path} is a device, a pipe or a socket")
    return status.st_size


def absolute_path(path: str | os.PathLike[str]) -> Path:
    """`path` without `~` and independent of the working folder from now on; symbolic links stay as they are."""
    return Path(path).expanduser().absolute()


def path_from(home: Path, path: str) -> str:
    """`path` as it has to be written now, where it was given when the working folder was `home`."""
    return path if home == Path.cwd() else str(home / Path(path).expanduser())


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable. Filesystems that cannot sync a folder (some network mounts) are skipped."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def atomic_write(
    path: str | Path, write: Callable[[IO[bytes]], object], verify: Callable[[Path], None] | None = None
) -> Path:
    """Commit a file: `write` fills it, `verify` may look at it before it gets its name.

    Args:
        path: the target; its folder must exist.
        write: called with a binary file object.
        verify: called with the temporary file's path; raises to refuse the commit.
    Raises:
        OSError: nothing was changed at `path`; the temporary file is gone.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if verify is not None:
            verify(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # a write that fails does not say where
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)
    return path


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a second name of `source` in one step: a hard link, or a copy where the filesystem has none."""
    temporary = _temporary(target)
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        with open(source, "rb") as original:
            atomic_write(target, lambda file: shutil.copyfileobj(original, file))
        return
    os.replace(temporary, target)
    sync_folder(target.parent)


def _temporary(path: Path) -> Path:
    """The name of `path` while it is being written; `remove_stale_temporaries` knows it again."""
    return path.with_name(f".{path.name}.{host_name()}.{os.getpid()}.tmp")


def write_text(path: str | Path, text: str) -> Path:
    """Commit a UTF-8 text file."""
    return atomic_write(path, lambda file: file.write(text.encode()))


def write_json(path: str | Path, value: Any) -> Path:
    """Commit `value` as JSON, indented, without secrets; NaN and infinity, which JSON does not have, become null."""
    plain = _finite(scrubbed(value))
    return write_text(path, json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    """A copy of plain values in which numbers that JSON cannot hold are None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value


def remove_stale_temporaries(folder: Path) -> None:
    """Delete what crashed writers left: temporary files of this machine whose process is gone."""
    for entry in folder.iterdir():
        match = _TEMPORARY.match(entry.name)
        if not match or match["host"] != host_name():
            continue
        pid = int(match["pid"])
        if pid == os.getpid() or not process_is_alive(pid):
            with contextlib.suppress(OSError):
                entry.unlink()


def free_bytes(folder: Path) -> int:
    """Free space for this user on the filesystem of `folder`."""
    return shutil.disk_usage(folder).free


def append_line(path: Path, line: str) -> None:
    """Append one line with a single write, so that a reader never sees half of another process's line.

    Raises:
        OSError: the disk is full or gone; no part of the line is left in the file.
    """
    data = line.encode() + b"\n"
    with open(path, "ab", buffering=0) as file:
        before = file.seek(0, os.SEEK_END)
        written = 0
        try:
            written = file.write(data)
            if written < len(data):  # what a disk does that has room for a part of it
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        finally:
            if written < len(data):
                file.truncate(before)


# Where a row says which of its nulls are numbers that JSON cannot hold, and which ones.
_NOT_FINITE = "not_finite"


def json_line(row: Mapping[str, Any]) -> str:
    """`row` as one line of JSON. NaN and infinity, which JSON does not have, become null; `read_json_lines` restores them
    from the entry "not_finite", such as {"train/loss": "nan"}."""
    odd = {name: str(value) for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
    plain = {**row, **dict.fromkeys(odd), _NOT_FINITE: odd} if odd else row
    return json.dumps(plain, allow_nan=False)


def _restored(row: dict[str, Any]) -> dict[str, Any]:
    odd = row.pop(_NOT_FINITE, {})
    return row | {name: float(value) for name, value in odd.items()}


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no readable one: it is absent, or a crash tore it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file, as `json_line` writes them, or []. A last line that a crash cut off is left
    out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(_restored(json.loads(line)))
        except json.JSONDecodeError:
            break
    return rows


class FolderLock:
    """Exclusive use of a folder by one process, through `flock` on a file in it.

    The lock ends with the process, however it ends; the file's content (pid, host) only names the holder in messages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            RunLockedError: another process has it, whom the message names; or it cannot be opened or locked.
            FileWriteError: the disk is full.
        """
        try:
            file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 - held open for as long as the lock is
        except OSError as error:
            raise RunLockedError(
                f"{self.path} cannot be opened ({error.strerror}); choose another output_dir."
            ) from None
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(file)
            file.close()
            raise RunLockedError(
                f"{self.path.parent} is in use by {holder}. Wait for it to end, stop it with a file STOP in its run's folder, "
                "or choose another run_name and checkpoint_dir."
            ) from None
        except OSError as error:
            file.close()
            raise RunLockedError(
                f"{self.path} cannot be locked ({error.strerror}); choose an output_dir on a local disk."
            ) from None
        try:
            file.seek(0)
            file.truncate()
            file.write(json.dumps({"pid": os.getpid(), "host": host_name()}))
            file.flush()
        except OSError as error:
            with contextlib.suppress(OSError):  # closing tries to write it once more
                file.close()
            raise FileWriteError(
                f"{self.path} cannot be written: {error.strerror or error}. Free some space, or choose another output_dir."
            ) from error
        self._file = file
        _held.add(self)

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        _held.discard(self)
        if self._file is not None:
            self._file.close()
            self._file = None

    def is_taken(self) -> bool:
        """Whether a process, this one included, holds the lock now. Changes nothing; False where it cannot be known."""
        try:
            with open(self.path, encoding="utf-8") as file:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no lock file, or a file system without locks
            return False
        return False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The lock for the length of a `with` block."""
        self.acquire()
        try:
            yield
        finally:
            self.release()


_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _let_go() -> None:
    """In a forked child: without this, a loader process that outlives a killed run would keep the run's folder locked."""
    for lock in tuple(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        record = json.loads(file.read())
        return f"process {record['pid']} on {record['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
