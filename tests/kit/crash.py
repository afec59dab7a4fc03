"""Processes that die on purpose: forked from the warmed interpreter, killed by the kernel at a chosen moment.

A child starts in milliseconds because it is a copy of this process. It can be killed before its n-th operation on files, which
is found without a hook in the library: Python itself reports every open, rename, link and removal to audit hooks, and `os.fsync`
is wrapped in the child only.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What Python reports before it changes a folder's content; the paths are among the first arguments.
_CHANGES = {
    "os.rename": 2,
    "os.remove": 1,
    "os.link": 2,
    "os.mkdir": 1,
    "os.rmdir": 1,
    "os.symlink": 2,
    "os.truncate": 1,
}


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        signal: number of the signal that killed it, else None; exit_code: its exit code, else None.
        value: what its function returned, when it returned.
    """

    signal: int | None
    exit_code: int | None
    value: Any = None

    @property
    def killed(self) -> bool:
        """Whether it died by SIGKILL."""
        return self.signal == signal.SIGKILL


class Child:
    """A forked process that runs `function`, seen from its parent.

    `function` returns something picklable. An exception in it, SystemExit apart, is raised again by `join` with its traceback.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._reading, writing = os.pipe()
        with warnings.catch_warnings():
            # Newer Pythons warn of a fork beside threads; the child uses none of them, and leaves without any clean-up.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            os.close(self._reading)
            _run_and_leave(function, writing)
        os.close(writing)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def join(self) -> Ended:
        """Wait until it has ended."""
        with os.fdopen(self._reading, "rb") as pipe:
            answer = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        if os.WIFSIGNALED(status):
            return Ended(os.WTERMSIG(status), None)
        failed, value = pickle.loads(answer) if answer else (False, None)
        if failed:
            raise AssertionError(f"the child failed:\n{value}")
        return Ended(None, os.WEXITSTATUS(status), value)


def in_child(function: Callable[[], Any]) -> Ended:
    """Run `function` in a forked process and wait for its end."""
    return Child(function).join()


def _run_and_leave(function: Callable[[], Any], writing: int) -> None:
    """The child's whole life. It ends here: nothing of the parent's test runner may run a second time."""
    code = 0
    try:
        answer = (False, function())
    except SystemExit as leaving:  # what the interpreter would make of it
        answer, code = (False, None), leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # noqa: BLE001 - reported to the parent, which raises it
        answer, code = (True, traceback.format_exc()), 1
    with suppress(BrokenPipeError), os.fdopen(writing, "wb") as pipe:
        pickle.dump(answer, pipe)
    os._exit(code)


class Fuse:
    """Kills this process with SIGKILL at the n-th `burn`, in whichever thread. n = 0 never does."""

    def __init__(self, n: int) -> None:
        self.left = n
        self._one_at_a_time = threading.Lock()  # or two threads could both step past zero

    def burn(self, *_: object) -> None:
        """One step nearer to the end; any arguments, so that it can be a hook."""
        with self._one_at_a_time:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def watch_files(folder: Path, report: Callable[[str], object]) -> None:
    """Call `report("operation path")` before each operation that changes what is in `folder`. For the life of this process.

    Operations: opening for writing, rename, link, remove, making folders, fsync. Only for children: audit hooks cannot be
    taken away again.
    """
    root = str(folder.resolve())
    sync = os.fsync

    def inside(path: object) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.path.abspath(os.fspath(path)).startswith(root)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR) and inside(path):
                report(f"open {Path(path).name}")
        elif event in _CHANGES and any(map(inside, arguments[: _CHANGES[event]])):
            names = " ".join(Path(path).name for path in arguments[: _CHANGES[event]])
            report(f"{event.removeprefix('os.')} {names}")

    def reported_sync(descriptor: int) -> None:
        report("fsync")
        sync(descriptor)

    sys.addaudithook(hook)
    os.fsync = reported_sync


def file_operations(function: Callable[[], Any], folder: Path) -> list[str]:
    """The operations on `folder` that `function` does, in order; run in a child."""

    def recorded() -> list[str]:
        operations: list[str] = []
        watch_files(folder, operations.append)
        function()
        return operations

    return in_child(recorded).value


def killed_before(k: int, function: Callable[[], Any], folder: Path) -> Ended:
    """Run `function` in a child that dies before its k-th operation on `folder` (from 1)."""

    def doomed() -> None:
        watch_files(folder, Fuse(k).burn)
        function()

    return in_child(doomed)


def limit_file_size(size_bytes: int, *, fatal: bool = False) -> None:
    """No file of this process may grow beyond this: as a full disk does, a write fails in the middle of a file.

    Args:
        fatal: the kernel kills the process at that byte instead. For children: the limit cannot be lifted.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fatal else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))
