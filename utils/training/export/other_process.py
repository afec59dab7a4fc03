"""An exported file, loaded and run in a process that has nothing but torch: neither this library nor the model's code."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import torch
from torch import Tensor

from utils.errors import ExportError

# One forward pass may take long on a slow machine; this only ends a process that hangs.
_PATIENCE_S = 600.0

Kind = Literal["torchscript", "torch_export", "aot_inductor"]

_CODE = """
import io, os, struct, sys, torch

answers = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)  # whatever is printed does not mix with the answers
load = {
    "torchscript": lambda path: torch.jit.load(path),
    "torch_export": lambda path: torch.export.load(path).module(),
    "aot_inductor": lambda path: torch._inductor.aoti_load_package(path),
}
model = load[sys.argv[1]](sys.argv[2])
while header := sys.stdin.buffer.read(8):
    arguments = torch.load(io.BytesIO(sys.stdin.buffer.read(struct.unpack("<q", header)[0])), weights_only=True)
    with torch.no_grad():
        outputs = model(*arguments)
    if isinstance(outputs, dict):
        outputs = outputs["logits"]
    if isinstance(outputs, (tuple, list)):
        outputs = next(part for part in outputs if isinstance(part, torch.Tensor) and part.dim())
    buffer = io.BytesIO()
    torch.save(outputs.detach().clone(), buffer)
    answers.write(struct.pack("<q", buffer.tell()) + buffer.getvalue())
    answers.flush()
"""


class OtherProcess:
    """A context manager that is called like the model: `with OtherProcess(kind, file, names) as run: logits = run(batch)`.

    Args:
        kind: how the file is loaded.
        file: the exported model.
        names: the inputs of a batch that the file takes, in order.
    Raises:
        ExportError: the process ended: the file does not load, or fails on a batch. Carries its last line.
    """

    def __init__(self, kind: Kind, file: Path, names: tuple[str, ...]) -> None:
        self._kind, self._file, self._names = kind, file, names

    def __enter__(self) -> OtherProcess:
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            # -I: no modules from the working folder and no PYTHONPATH.
            [sys.executable, "-I", "-c", _CODE, self._kind, str(self._file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        buffer = io.BytesIO()
        torch.save([batch[name] for name in self._names if name in batch], buffer)
        guard = threading.Timer(_PATIENCE_S, self._process.kill)
        guard.start()
        try:
            self._process.stdin.write(struct.pack("<q", buffer.tell()) + buffer.getvalue())
            self._process.stdin.flush()
            header = self._process.stdout.read(8)
            answer = self._process.stdout.read(struct.unpack("<q", header)[0]) if len(header) == 8 else b""
        except BrokenPipeError:
            answer = b""
        finally:
            guard.cancel()
            guard.join()
        if not answer:
            raise ExportError(f"the exported file does not run in another process: {self._last_line()}")
        logits: Any = torch.load(io.BytesIO(answer), weights_only=True)
        return logits  # type: ignore[no-any-return]

    def _last_line(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"it ended with exit code {self._process.returncode}"
