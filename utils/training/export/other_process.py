"""Exported files, loaded and run in another process, which imports nothing of Trainbook and shares no state with this one."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import torch
from torch import Tensor, nn

from utils.errors import ExportError

# For all of one comparison, which may take long on a slow machine; this only ends a process that hangs.
_PATIENCE_S = 3600.0
# Idle processes that are kept at most: each takes a few hundred megabytes.
_MOST_IDLE = 3

_PROGRAM = Path(__file__).with_name("reader_program.py")

#: What a process imports before its first request. The first has no code of any model.
_PRELOADED = {"torch": ("torch",), "transformers": ("torch", "transformers.models.auto", "transformers.generation")}
# Where the process finds what this one has installed: isolated Python looks in fewer places.
_PACKAGES = ("torch", "transformers", "safetensors", "peft", "gguf", "onnxruntime")

Kind = Literal["torchscript", "torch_export", "aot_inductor"]


class UnreadableError(ExportError):
    """The other process could not do what it was asked; it lives on, or ended."""


class _Process:
    """One other process: requests and answers, in turn."""

    def __init__(self, room: str) -> None:
        self.room = room
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        environment = {
            **os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error",
            "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        preloaded = _PRELOADED.get(room, _PRELOADED["torch"])
        # -I: no modules from the working folder, from the environment or from Trainbook's folder.
        command = [sys.executable, "-I", "-W", "ignore", str(_PROGRAM), *map(os.pathsep.join, (_folders(), preloaded))]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment,
                cwd=tempfile.gettempdir(),
            )  # fmt: skip
        except OSError as error:
            self._errors.close()
            raise ExportError(
                f"no other process could be started to verify the export: {error.strerror or error}"
            ) from error
        self.usable = True

    def ask(self, request: str, **arguments: Any) -> Any:
        """The answer to a request. Raises UnreadableError: an error there, or the process ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        buffer = io.BytesIO()
        torch.save((request, arguments), buffer)
        usable, self.usable = self.usable, False  # an interrupt below leaves an answer that nobody has read
        try:
            self._process.stdin.write(struct.pack("<q", buffer.tell()) + buffer.getvalue())
            self._process.stdin.flush()
            header = self._process.stdout.read(8)
            answer = self._process.stdout.read(struct.unpack("<q", header)[0]) if len(header) == 8 else b""
        except BrokenPipeError:
            answer = b""
        if not answer:
            raise UnreadableError(f"the exported file does not run in another process: {self._last_line()}")
        self.usable = usable
        outcome, value = torch.load(io.BytesIO(answer), weights_only=True)
        if outcome == "error":
            raise UnreadableError(f"the exported file does not run in another process: {value}")
        return value

    def kill(self) -> None:
        """End the process, whatever it is doing. Somebody who waits for its answer gets an error."""
        self._process.kill()

    def end(self) -> None:
        """End the process and what belongs to it."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _last_line(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"it ended with exit code {self._process.returncode}"


def _folders() -> tuple[str, ...]:
    """The folders that hold the packages which exported files need."""
    specs = (importlib.util.find_spec(name) for name in _PACKAGES)
    found = (str(Path(spec.origin).parent.parent) for spec in specs if spec is not None and spec.origin is not None)
    return tuple(dict.fromkeys(found))


class _Pool:
    """Processes that have nothing to do. They are kept while somebody holds the pool, and end with its last holder."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._holders = 0
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """In a fork of this process: the processes are those of the parent, and so is whoever holds the lock."""
        self._lock, self._idle, self._holders = threading.Lock(), [], 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders = max(0, self._holders - 1)
                ended = [] if self._holders else self._idle
                self._idle = self._idle if self._holders else []
            for process in ended:
                process.end()

    def prepare(self, room: str) -> None:
        """Start a process that will be wanted soon, so that it imports its packages meanwhile."""
        with self._lock:
            wanted = self._holders > 0 and all(process.room != room for process in self._idle)
            if wanted:
                self._idle.append(_Process(room))

    @contextlib.contextmanager
    def process(self, room: str) -> Iterator[_Process]:
        with self._lock:
            fitting = [process for process in self._idle if process.room == room]
            if fitting:
                self._idle.remove(fitting[-1])
        process = fitting[-1] if fitting else _Process(room)
        guard = threading.Timer(_PATIENCE_S, process.kill)
        guard.start()
        try:
            process.ask("settings", threads=torch.get_num_threads(), precision=torch.get_float32_matmul_precision())
            yield process
        finally:
            # Also after an error: it is usable as long as every request was answered.
            with contextlib.suppress(UnreadableError):
                if process.usable:
                    process.ask("close")
            guard.cancel()
            guard.join()
            self._put_back(process)

    def _put_back(self, process: _Process) -> None:
        with self._lock:
            ended = []
            if process.usable and self._holders:
                self._idle.append(process)
                while len(self._idle) > _MOST_IDLE:
                    ended.append(self._idle.pop(0))
            else:
                ended.append(process)
        for one in ended:
            one.end()


_pool = _Pool()


def kept_processes() -> contextlib.AbstractContextManager[None]:
    """Within the block other processes are used again, for all formats and exports in it; without it each ends at once."""
    return _pool.held()


def prepare(room: str) -> None:
    """Start a process of a room, "torch" or "transformers", in the background; within `kept_processes` only."""
    _pool.prepare(room)


class Loaded:
    """A model in another process."""

    def __init__(self, process: _Process) -> None:
        self._process = process

    def run(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Call it: its logits, or {name: tensor} of a model without logits. Raises ExportError where it fails."""
        return self._process.ask("run", arguments=arguments, named=dict(named))

    def ask(self, request: str, **arguments: Any) -> Any:
        """Another request of `reader_program.Reader`."""
        return self._process.ask(request, **arguments)


@contextlib.contextmanager
def loaded_elsewhere(request: str, room: str = "transformers", **arguments: Any) -> Iterator[Loaded]:
    """A model that another process loads.

    Args:
        request: a method of `reader_program.Reader` that loads, with its arguments.
        room: "torch", "transformers", or any other name of processes with the same code in them.
    Raises:
        UnreadableError: it does not load; with the other process's reason.
    """
    with _pool.process(room) as process:
        process.ask(request, **arguments)
        yield Loaded(process)


def code_room(model: nn.Module) -> str:
    """The room of processes that import the code of `model`: those that imported the same version of the same files.

    Raises:
        UnreadableError: another process cannot import a class of it; says which, and why.
    """
    files = {}
    for kind in {type(module) for module in model.modules()}:
        name, home = kind.__qualname__, sys.modules.get(kind.__module__)
        if kind.__module__ == "__main__":
            raise UnreadableError(f"the class {name} is defined in this notebook or script, not in a module")
        if "<locals>" in name:
            raise UnreadableError(f"the class {name} is defined inside a function")
        package = kind.__module__.partition(".")[0]
        file = getattr(home, "__file__", None)
        if package in ("torch", "transformers"):
            files[package] = ""
        elif file is None or not Path(file).is_file():
            raise UnreadableError(f"the class {name} has no file that another process could import")
        else:
            files[file] = str(os.stat(file).st_mtime_ns)
    if files.keys() <= {"torch", "transformers"}:
        return "transformers" if "transformers" in files else "torch"
    return " ".join(f"{file}@{stamp}" for file, stamp in sorted(files.items()))


class OtherProcess:
    """A context manager that is called like the model: `with OtherProcess(kind, file, names) as run: logits = run(batch)`.

    Args:
        kind: how the file is loaded.
        file: the exported model.
        names: the inputs of a batch that the file takes, in order.
    Raises:
        ExportError: the file does not load, or fails on a batch. Carries the other process's reason.
    """

    def __init__(self, kind: Kind, file: Path, names: tuple[str, ...]) -> None:
        self._loading = loaded_elsewhere(kind, "torch", file=str(file))
        self._names = names

    def __enter__(self) -> OtherProcess:
        self._loaded = self._loading.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loading.__exit__(kind, error, trace)

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = self._loaded.run(tuple(batch[name] for name in self._names if name in batch), {})
        return logits
