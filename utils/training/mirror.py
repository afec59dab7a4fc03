"""A second place for checkpoints, such as a mounted Google Drive: verified copies, made while training continues.

The first place is always a local disk. A failure of the mirror is reported once and marks it stale; training never waits for it
and never fails because of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import queue
import shutil
import threading
from pathlib import Path
from typing import IO

log = logging.getLogger("trainbook.mirror")

_PIECE = 4 << 20  # bytes read at once
_DRIVE = Path("/content/drive")  # where Colab mounts it


def mirror_folder(path: str | Path) -> Path:
    """The folder that `path` means: one that begins with MyDrive is on the mounted drive, where there is one."""
    given = Path(path).expanduser()
    on_drive = not given.is_absolute() and given.parts[:1] == ("MyDrive",) and _DRIVE.is_dir()
    return _DRIVE / given if on_drive else given.absolute()


class Mirror:
    """Copies files into `folder`, in a thread of its own, in order; of several versions of one name only the newest.

    A copy gets its name when it was read back and is the same as the source, byte for byte. The old copy of that name, and
    what is removed, is emptied first: Google Drive moves what is deleted or replaced into its bin, where it goes on counting
    against the quota.

    Attributes:
        stale: whether a file that was submitted is not there as it should be; `reason` says why. It is lifted by the next
            copies that succeed, when nothing is missing any more.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reason: str | None = None
        self._missing: set[str] = set()
        self._waiting: dict[str, IO[bytes] | None] = {}
        self._names: queue.Queue[str] = queue.Queue()
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._busy: tuple[str, ...] = ()  # the name that is being copied
        self._said = False

    @property
    def stale(self) -> bool:
        """Whether the mirror lacks something."""
        return bool(self._missing)

    def submit(self, path: Path) -> None:
        """Copy `path` when its turn comes. It is opened now, so that it may be replaced or removed meanwhile."""
        try:
            source: IO[bytes] | None = open(path, "rb")  # noqa: SIM115 - the thread that copies it closes it
        except OSError as error:
            self._fail(path.name, f"{path} cannot be read: {error.strerror}")
            return
        self._enqueue(path.name, source)

    def remove(self, name: str) -> None:
        """Remove the copy of that name when its turn comes."""
        self._enqueue(name, None)

    def finish(self, timeout_s: float = 60.0) -> bool:
        """Wait until everything is copied, at most `timeout_s`. Returns whether the mirror is complete; says so if not."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout_s)
            if thread.is_alive():
                with self._guard:
                    self._missing |= {*self._waiting, *self._busy}
                self._say(f"it is not done after {timeout_s:.0f} s")
        return not self.stale

    def _enqueue(self, name: str, source: IO[bytes] | None) -> None:
        with self._guard:
            replaced = self._waiting.pop(name, None)
            if replaced is not None:
                replaced.close()  # a newer version is here before this one's turn
            self._waiting[name] = source
            self._names.put(name)
            if self._thread is None or not self._thread.is_alive():
                # A daemon: a drive that hangs must not keep the process from ending.
                self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._guard:
                try:
                    name = self._names.get_nowait()
                except queue.Empty:
                    self._thread = None
                    return
                if name not in self._waiting:
                    continue
                source = self._waiting.pop(name)
                self._busy = (name,)
            self._do(name, source)
            self._busy = ()

    def _do(self, name: str, source: IO[bytes] | None) -> None:
        try:
            if source is None:
                _emptied_and_removed(self.folder / name)
            else:
                with source:
                    self._copy(source, self.folder / name)
        except OSError as error:
            self._fail(name, str(error.strerror or error))
            return
        self._missing.discard(name)
        if not self._missing:
            self.reason = None

    def _copy(self, source: IO[bytes], target: Path) -> None:
        """A verified copy under the target's name. Raises `OSError`; what was there is intact unless the copy is complete."""
        if not self.folder.parent.is_dir():
            raise OSError(f"{self.folder.parent} is not there; is the drive mounted?")
        self.folder.mkdir(exist_ok=True)
        temporary, old = target.with_name(f".{target.name}.part"), target.with_name(f".{target.name}.old")
        try:
            with open(temporary, "wb") as file:
                shutil.copyfileobj(source, file, _PIECE)
                file.flush()
                os.fsync(file.fileno())
            source.seek(0)
            with open(temporary, "rb") as copy:
                if _digest(copy) != _digest(source):
                    raise OSError(f"{temporary} was read back and is not what was written")
            # The new copy first: a crash in between leaves one too many, not one too few.
            with contextlib.suppress(FileNotFoundError):
                os.replace(target, old)
            os.replace(temporary, target)
            _emptied_and_removed(old)
        except OSError:
            with contextlib.suppress(OSError):
                _emptied_and_removed(temporary)
            raise

    def _fail(self, name: str, reason: str) -> None:
        self._missing.add(name)
        self._say(f"{name}: {reason}")

    def _say(self, reason: str) -> None:
        self.reason = reason
        if not self._said:
            self._said = True
            log.warning("The copy in %s is not up to date (%s). Training continues; local checkpoints are intact.",
                        self.folder, reason)  # fmt: skip


def _digest(file: IO[bytes]) -> bytes:
    hasher = hashlib.blake2b()
    while piece := file.read(_PIECE):
        hasher.update(piece)
    return hasher.digest()


def _emptied_and_removed(path: Path) -> None:
    """Remove a file after making it empty: a bin keeps what is removed, with its size."""
    with contextlib.suppress(FileNotFoundError):
        os.truncate(path, 0)
        path.unlink()
