"""The most memory that this process took, on an accelerator or in the host, since a moment."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import torch

from utils.training.engine.hardware.memory import free_memory

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Measures from when it is made.

    In the host it is resident memory, with what the allocator holds back, and whatever else the process does meanwhile
    counts too. On a CUDA device it is what torch's allocator reserved.

    Args:
        kind: the device's, as torch names it.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        free_memory()
        self._before: int | None = None
        if kind == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_reserved()
        elif kind == "cpu":
            with contextlib.suppress(OSError):  # not Linux, or a container that does not allow it
                _CLEAR_REFS.write_text("5", encoding="ascii")  # sets the peak to what is resident now: proc(5)
                self._before = _status_bytes("VmRSS")

    def grown_bytes(self) -> int | None:
        """Bytes by which the peak since then is above what was in use; None where that is not known."""
        if self._before is None:
            return None
        now = torch.cuda.max_memory_reserved() if self._kind == "cuda" else _status_bytes("VmHWM")
        return None if now is None else max(0, now - self._before)


def _status_bytes(name: str) -> int | None:
    found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None
