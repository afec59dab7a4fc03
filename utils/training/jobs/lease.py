"""The thread that extends a lease while its job runs, and hears of a cancellation or of another owner."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from utils.errors import LeaseLostError, QueueError
from utils.training.jobs.store import Job, JobStore

log = logging.getLogger("trainbook.queue")

#: Why a run was stopped: what its results then say.
LEASE_LOST, CANCELLED, WORKER_STOPPED = "lease_lost", "job_cancelled", "worker_stopped"

# Between two heartbeats at most, so that a cancellation is noticed soon.
_LONGEST_PAUSE_S = 5.0


class LeaseKeeper:
    """Extends a job's lease every third of it, from entering the `with` block to its end.

    The lease counts as lost when another owner has the job, or when no heartbeat was confirmed for its whole length by this
    host's monotonic clock: the process was suspended, or the database cannot be reached.

    Attributes:
        lost, cancelled: whether the lease was lost, whether somebody asked to cancel the job.
        progress: what the next heartbeat reports; replaced, never changed.
    """

    def __init__(self, store: JobStore, job: Job, on_stop: Callable[[str], None]) -> None:
        assert job.lease_s is not None
        self._store, self._job, self._on_stop = store, job, on_stop
        self._lease_s = job.lease_s
        self._valid_until = time.monotonic() + self._lease_s
        self._ended = threading.Event()
        self._one_at_a_time = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"trainbook-lease-{job.id}")
        self.lost = self.cancelled = False
        self.progress: dict[str, Any] | None = None

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def check(self) -> None:
        """Between two steps: whether this process was suspended for longer than its lease. Costs nothing while it was not."""
        if time.monotonic() > self._valid_until and not self.lost:
            self._beat()

    def _run(self) -> None:
        while not self._ended.wait(min(self._lease_s / 3, _LONGEST_PAUSE_S)):
            if not threading.main_thread().is_alive():  # the interpreter is ending and waits for the training's thread
                self._on_stop(WORKER_STOPPED)
            self._beat()
            if self.lost:
                return

    def _beat(self) -> None:
        with self._one_at_a_time:
            if self.lost:
                return
            asked = time.monotonic()
            try:
                cancel = self._store.heartbeat(self._job, self.progress)
            except LeaseLostError as error:
                self._lose(str(error))
                return
            except QueueError as error:
                if asked > self._valid_until:
                    self._lose(str(error))
                else:
                    log.warning("Job %s: its lease could not be extended: %s", self._job.id, error)
                return
            self._valid_until = asked + self._lease_s
            if cancel and not self.cancelled:
                self.cancelled = True
                self._on_stop(CANCELLED)

    def _lose(self, reason: str) -> None:
        self.lost = True
        log.warning("Job %s: %s The run stops after this step.", self._job.id, reason)
        self._on_stop(LEASE_LOST)
