"""A worker: claims jobs, trains them, and writes only what its lease allows.

A job whose worker dies is claimed by another one and continues from its newest checkpoint, bit for bit: the run has one folder,
named by the job, and the folder's lock lets one process train there at a time. A worker that was suspended for longer than its
lease stops at its next step; its queue entries are refused, because the job has a newer fencing token by then.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from utils.errors import (
    ConfigError,
    DataError,
    DataNotFoundError,
    LeaseLostError,
    ModelError,
    NonFiniteError,
    QueueError,
    RunLockedError,
)
from utils.scrubbing import describe_error, scrub
from utils.training.engine.interrupts import Request
from utils.training.job_queue import JobQueue
from utils.training.jobs.config import JobConfig
from utils.training.jobs.lease import CANCELLED, WORKER_STOPPED, LeaseKeeper
from utils.training.jobs.store import Job

log = logging.getLogger("trainbook.queue")

#: Errors that the same job would meet again: it is failed at once. Missing files may come back.
_FOR_GOOD = (ConfigError, DataError, ModelError, NonFiniteError)

Outcome = dict[str, Any]


def is_for_good(error: BaseException) -> bool:
    """Whether another attempt would fail in the same way."""
    return isinstance(error, _FOR_GOOD) and not isinstance(error, DataNotFoundError)


class Worker:
    """Runs the jobs of a queue, one after another. Several workers, in any number of processes, share a queue.

    Args:
        lease_s: seconds after which another worker may take the job of one that stopped answering. Shorter means sooner; much
            shorter than a slow step is fine, because a thread extends the lease.
        poll_s: seconds between two looks at an empty queue.
        callbacks: for the Trainer of every job that runs in this process.
    """

    def __init__(
        self, queue: JobQueue, *, lease_s: float = 60.0, poll_s: float = 1.0, callbacks: Sequence[Any] = ()
    ) -> None:
        for name, value in (("lease_s", lease_s), ("poll_s", poll_s)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
                raise ConfigError(f"{name} is a number of seconds above 0; got {value!r}")
        self.queue, self.lease_s, self.poll_s = queue, float(lease_s), float(poll_s)
        self.callbacks = list(callbacks)
        self._stopping, self._terminated = Request(), False
        self._ask: Callable[[str], None] | None = None  # asks the training under way to stop

    def stop(self) -> None:
        """Finish the current step, save, give the job back and return from `run`. From any thread or signal handler."""
        self._stopping.set()
        ask = self._ask
        if ask is not None:
            ask(WORKER_STOPPED)

    def run(self, max_jobs: int | None = None, *, until_empty: bool = False) -> int:
        """Run jobs until `stop`, `max_jobs` or (with `until_empty`) until none is due; returns how many were run.

        Raises:
            ConfigError: `max_jobs` is no whole number of at least 1.
            SystemExit: SIGTERM, with status 143; the job was given back.
            TrainingInterrupted, KeyboardInterrupt: Ctrl-C; the job was given back.
        """
        if max_jobs is not None and (isinstance(max_jobs, bool) or not isinstance(max_jobs, int) or max_jobs < 1):
            raise ConfigError(f"max_jobs is a whole number of at least 1, or None; got {max_jobs!r}")
        done = 0
        with self._sigterm_stops():
            while not self._stopping.is_set() and (max_jobs is None or done < max_jobs):
                if not threading.main_thread().is_alive():
                    break
                try:
                    job = self.queue.claim_job(lease_s=self.lease_s)
                    if job is None and until_empty:
                        break
                    if job is not None:
                        done += 1
                        self._run_one(job)
                        continue
                except QueueError as error:
                    if until_empty:
                        raise
                    log.warning("The queue cannot be used at the moment: %s", error)
                self._stopping.wait(self.poll_s)
        if self._terminated:
            raise SystemExit(143)
        self._stopping.clear()
        return done

    @contextlib.contextmanager
    def _sigterm_stops(self) -> Iterator[None]:
        """SIGTERM ends `run` in good order; the Trainer has a handler of its own while it trains."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def terminated(*_: object) -> None:
            self._terminated = True
            self.stop()

        before = signal.signal(signal.SIGTERM, terminated)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)

    def _run_one(self, job: Job) -> None:
        """Run a claimed job and write how it ended. Nothing is written when the lease was lost."""
        store = self.queue.store
        keeper = LeaseKeeper(store, job, lambda reason: self._ask and self._ask(reason))
        try:
            with keeper:
                outcome = self._attempt(job, keeper)
            if keeper.lost:
                return
            self._write(job, outcome, keeper)
        except LeaseLostError as error:
            log.warning(str(error))
        except RunLockedError as error:
            # A worker that was suspended still has the run; it stops when it wakes up, or its lock ends with it.
            store.release(job, f"waits for the run's folder: {error}", wait_s=self.lease_s / 2)
        except BaseException as error:
            if keeper.lost:
                log.warning("Job %s: %s", job.id, describe_error(error))
                if isinstance(error, Exception):
                    return
                raise
            ends_worker = isinstance(error, KeyboardInterrupt) or (
                isinstance(error, SystemExit) and (error.code == 143 or self._terminated)
            )
            if ends_worker:
                with contextlib.suppress(LeaseLostError):
                    store.release(job, "given back: its worker was stopped")
                raise
            if not isinstance(error, (Exception, SystemExit)):
                raise
            with contextlib.suppress(LeaseLostError):
                store.log_as_owner(job, scrub("".join(traceback.format_exception(error))), "error")
                store.fail(job, describe_error(error), for_good=is_for_good(error))
        finally:
            self._ask = None

    def _attempt(self, job: Job, keeper: LeaseKeeper) -> Outcome:
        """Train; the outcome has "results" and, for a training in this process, "full"."""
        config = JobConfig.from_spec(job.spec)
        if config.devices > 1:
            from utils.training.jobs.devices import train_on_devices

            return train_on_devices(self, job, keeper)
        from utils.training.jobs.running import JobProgress, kept, prepare

        store = self.queue.store

        def say(sentence: str) -> None:
            with contextlib.suppress(LeaseLostError):  # the keeper notices, and stops the run
                store.log_as_owner(job, sentence)

        def started(run_dir: str) -> None:
            with contextlib.suppress(LeaseLostError):
                store.note_run(job, run_dir)

        def report(progress: dict[str, Any]) -> None:
            keeper.progress = progress

        watching = JobProgress(report, say, started, keeper.check)
        trainer, train_data, val_data = prepare(config, job.name, [watching, *self.callbacks])
        self.on_stop(trainer.request_stop, keeper)
        results = trainer.train(train_data, val_data, resume_from="auto")
        return {"results": kept(results), "full": results}

    def on_stop(self, ask: Callable[[str], None], keeper: LeaseKeeper) -> None:
        """Let `ask(reason)` stop the training from now on; at once, when a stop was requested before."""
        self._ask = ask
        if keeper.lost or keeper.cancelled or self._stopping.is_set():
            ask("lease_lost" if keeper.lost else CANCELLED if keeper.cancelled else WORKER_STOPPED)

    def _write(self, job: Job, outcome: Outcome, keeper: LeaseKeeper) -> None:
        store, results = self.queue.store, outcome["results"]
        reason = results["stop_reason"]
        if reason == WORKER_STOPPED:
            store.release(job, f"given back after step {results['steps']}: its worker was stopped")
        elif reason == CANCELLED:
            store.cancelled(job, f"cancelled after step {results['steps']}; saved as {results['checkpoint_path']}")
        elif reason == "stop_file":
            store.cancelled(job, f"stopped by the STOP file of its run after step {results['steps']}")
        else:
            if keeper.progress is not None:
                store.heartbeat(job, keeper.progress)
            if "full" in outcome:
                self.queue.keep_results(job.id, outcome["full"])
            try:
                self.queue.complete_job(job, results)
            except LeaseLostError:
                self.queue.keep_results(job.id, None)
                raise
