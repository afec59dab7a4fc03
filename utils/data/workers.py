"""Loader processes: batches prepared ahead by other processes, whose failures name the process and the sample.

A process writes into shared memory which sample it reads before it reads it. So when it is killed, which nobody can catch, or
never comes back, there is still something to say.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from utils.data.batch import Batch
from utils.data.sources import DatasetSource, Source
from utils.errors import DataError, TrainbookError, first_line

#: Seconds without a batch after which a loader process is taken to hang.
TIMEOUT_S = 120.0
# A process that died is noticed after this at the latest.
_LOOK_EVERY_S = 1.0

# Columns of the notes that processes keep. NONE: nothing under way.
_PID, _BATCH, _SAMPLE = range(3)
_NONE = -1

_TORCH_HANDLERS = "torch.utils.data._utils.signal_handling"


@dataclass(frozen=True)
class _Failure:
    """Message of a loader process about a batch that it could not prepare."""

    worker: int
    pid: int
    message: str
    trace: str


class _Work(Dataset[Any]):
    """Batch number k of an epoch, prepared in a loader process."""

    def __init__(self, source: Source, chunks: Sequence[np.ndarray], notes: Tensor) -> None:
        self._source, self._chunks, self._notes = source, chunks, notes

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, k: int) -> Batch | _Failure:
        info = get_worker_info()
        assert info is not None
        note = self._notes[info.id]
        note.copy_(torch.tensor([os.getpid(), k, _NONE]))
        if isinstance(self._source, DatasetSource):
            self._source.before_sample = lambda index: note[_SAMPLE].fill_(index)
        try:
            batch = self._source.take(self._chunks[k].tolist())
        except Exception as error:  # noqa: BLE001 - whatever a user's dataset raises is raised again by the main process
            message = str(error) if isinstance(error, TrainbookError) else first_line(error, with_class=True)
            return _Failure(info.id, os.getpid(), message, traceback.format_exc())
        note[_BATCH:] = _NONE
        return batch


class LoaderProcesses:
    """The batches of an epoch, in order, prepared by `num_workers` processes.

    Args:
        chunks: the samples of each batch.
        timeout_s: seconds that a batch may be waited for.
    """

    def __init__(
        self, source: Source, chunks: Sequence[np.ndarray], num_workers: int, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._source, self._chunks, self._num_workers, self._timeout_s = source, chunks, num_workers, timeout_s
        self._notes = torch.full((num_workers, 3), _NONE, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._processes: list[BaseProcess] = []
        self._batches: Iterator[Any] = iter(())

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches.

        Raises:
            DataError: a sample cannot be read, or a process died or hangs; names process and sample.
        """
        others = set(multiprocessing.active_children())
        # A generator of its own: creating a loader's iterator must not draw from the run's random state.
        self._batches = iter(
            DataLoader(
                _Work(self._source, self._chunks, self._notes), batch_size=None, num_workers=self._num_workers,
                timeout=min(_LOOK_EVERY_S, self._timeout_s), generator=torch.Generator().manual_seed(0),
            )
        )  # fmt: skip
        self._processes = [child for child in multiprocessing.active_children() if child not in others]
        with _deaths_wait_until_asked():
            try:
                for k in range(len(self._chunks)):
                    yield self._next(k)
            finally:
                self._batches = iter(())  # ends the processes, which live as long as their loader does

    def _next(self, k: int) -> Batch:
        """Batch k."""
        began = time.monotonic()
        while True:
            try:
                answer = next(self._batches)
            except (RuntimeError, OSError, EOFError) as error:
                problem = self._problem(error, k, time.monotonic() - began)
            else:
                if isinstance(answer, _Failure):
                    _raise(answer)
                return answer  # type: ignore[no-any-return]
            # Raised here and not above: the loader's own error would come along, and its frames hold the loader and with it
            # its processes for as long as somebody keeps the error.
            if problem is not None:
                raise DataError(problem)

    def _problem(self, error: Exception, k: int, waited_s: float) -> str | None:
        """Interpret the loader's `error` while waiting for batch k; None: keep waiting. Raises it when it is not a
        loader failure."""
        slow = "timed out" in str(error)
        # What a dying process still held is missed before the process is gone.
        sentinels = [process.sentinel for process in self._processes]
        dead = multiprocessing.connection.wait(sentinels, timeout=0 if slow else _LOOK_EVERY_S)
        if dead:
            return self._death(self._processes[sentinels.index(dead[0])])  # type: ignore[arg-type]
        if not slow:
            raise error
        # The loader keeps its place when it times out, so it can be asked again.
        return self._hang(k) if waited_s >= self._timeout_s else None

    def _death(self, process: BaseProcess) -> str:
        process.join()
        code = process.exitcode or 0
        name = signal.Signals(-code).name if -code in signal.valid_signals() else ""
        how = f"was killed ({name})" if name else f"ended with exit code {code}"
        worker = next((w for w in range(self._num_workers) if int(self._notes[w, _PID]) == process.pid), None)
        who = f"loader process {'' if worker is None else f'{worker} '}(pid {process.pid})"
        at = "before its first batch" if worker is None else self._doing(worker)
        memory = " The system kills a process like that when memory runs out." if name == "SIGKILL" else ""
        return f"{who} {how} {at}.{memory} Lower num_workers or batch_size, or see with num_workers=0 what the dataset does."

    def _hang(self, k: int) -> str:
        worker = next((w for w in range(self._num_workers) if int(self._notes[w, _BATCH]) == k), None)
        waited = f"no batch came for {self._timeout_s:g} s"
        ways = (
            "See with num_workers=0 where it stands. If a sample really takes that long, give the data in a DataLoader with a "
            "longer timeout (seconds)."
        )
        if worker is None:
            return f"{waited}, though every loader process is alive. {ways}"
        pid = int(self._notes[worker, _PID])
        message = f"loader process {worker} (pid {pid}) hangs {self._doing(worker)}: {waited}. {ways}"
        with contextlib.suppress(ProcessLookupError):  # it may have ended in this moment
            os.kill(pid, signal.SIGTERM)  # or it would be waited for once more when the loader is taken down
        return message

    def _doing(self, worker: int) -> str:
        batch, sample = (int(value) for value in self._notes[worker, _BATCH:])
        of = f" of {type(self._source.dataset).__name__}" if isinstance(self._source, DatasetSource) else ""
        if sample != _NONE:
            return f"while it read sample {sample}{of}"
        if batch != _NONE:
            return f"while it prepared the samples {', '.join(map(str, self._chunks[batch][:8].tolist()))}"
        return "between two batches"


def _raise(failure: _Failure) -> NoReturn:
    error = DataError(f"loader process {failure.worker} (pid {failure.pid}): {failure.message}")
    error.add_note(f"There it was:\n{failure.trace}")
    raise error


@contextlib.contextmanager
def _deaths_wait_until_asked() -> Iterator[None]:
    """A loader process that dies is an error where its batch is asked for, at a step boundary.

    torch's handler of SIGCHLD raises wherever the main thread stands, which may be between an update and its bookkeeping. It
    is set aside for the length of the block; other handlers are left alone.
    """
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") and _in_main_thread() else None
    if getattr(handler, "__module__", None) != _TORCH_HANDLERS:
        yield
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        if _in_main_thread():  # a generator may be closed from anywhere
            signal.signal(signal.SIGCHLD, handler)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
