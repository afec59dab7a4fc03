"""A model whose training is disturbed from within, at a known step: by the death of a process, or by a cancellation."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import torch
from torch import Tensor

from tests.kit.toys import PlainLM
from utils.training import JobQueue
from utils.training.jobs import process

#: Training passes of a process before the disturbance: past the first epoch, and before the last one.
PASSES = 14


class AttackedLM(PlainLM):
    """PlainLM that obeys the files in `folder`, each once: kill_rank, kill_worker (holds its pid), cancel (holds URL and id)."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder, self.passes = Path(folder), 0

    def forward(self, tokens: Tensor) -> Tensor:
        self.passes += self.training
        if self.training and self.passes == PASSES:
            self._attack(os.environ.get("RANK"))
        return super().forward(tokens)

    def _attack(self, rank: str | None) -> None:
        if rank == "1" and (self.folder / "kill_rank").exists():
            (self.folder / "kill_rank").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        if rank == "0" and (self.folder / "kill_worker").exists():
            (self.folder / "kill_worker").unlink()
            # This process, torchrun, the worker.
            os.kill(_parent(os.getppid()), signal.SIGKILL)
            _wait_for_the_request()
        if rank == "0" and (self.folder / "cancel").exists():
            url, number = (self.folder / "cancel").read_text().split()
            (self.folder / "cancel").unlink()
            JobQueue(url).cancel_job(int(number))
            _wait_for_the_request()


def attacked_lm(folder: str) -> AttackedLM:
    """The same weights each time."""
    torch.manual_seed(0)
    return AttackedLM(folder)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _wait_for_the_request() -> None:
    """Until the thread that passes a request to stop on has done so: the training ends with this very step."""
    until = time.monotonic() + 120
    for thread in threading.enumerate():
        if thread.name == "trainbook-job-watch":
            thread.join(until - time.monotonic())
            assert not thread.is_alive()


def processes_of(pid: int | None = None) -> list[int]:
    """What this process has started and is still there, but for the processes that tests of exports keep."""
    found = process.children(os.getpid() if pid is None else pid)
    return [one for one in found if "reader_program.py" not in process._read(Path(f"/proc/{one}/cmdline"))]
