"""JobQueue: trainings that wait in a database for workers, and outlive the process that submitted them.

    queue = JobQueue("sqlite:///training_jobs.db")
    job_id = queue.submit_job(JobConfig(model_factory="my_models:make", train_data="my_models:rows"))
    queue.get_job_status(job_id)                                    # pending, running, completed, failed, cancelled

    python cli/run_training.py worker --queue sqlite:///training_jobs.db          as many as there are devices

Jobs whose model factory or data are objects of one process are run by that process: `queue.work()`.

Not covered: side effects outside the database and the run's folder. A job runs at least once, and one whose worker is killed
may, for example, log the same steps to a tracking service twice.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError, JobNotFoundError, Problem, QueueError
from utils.schema import nearest, shown
from utils.training.jobs import process
from utils.training.jobs.config import JobConfig
from utils.training.jobs.database import Database
from utils.training.jobs.ray_address import is_ray
from utils.training.jobs.ray_cluster import RayCluster, RayStore
from utils.training.jobs.store import STATES, Job, JobStore, metadata

if TYPE_CHECKING:
    import threading

    import pandas as pd

log = logging.getLogger("trainbook.queue")

__all__ = ["Job", "JobConfig", "JobQueue"]

_LEVELS = ("debug", "info", "warning", "error")


class JobQueue:
    """A queue of trainings in SQLite (one host), PostgreSQL (several) or on a Ray cluster. Safe to use from several threads and
    processes.

    Args:
        url: sqlite:///file.db (relative to the current folder), postgresql://user@host/database, or ray://host:10001, which
            is the client server of a running Ray cluster; the cluster runs the jobs, and no worker has to be started.
        timeout_s: how long to wait for another process that has the database locked.
        clock: seconds since 1970, instead of the database's clock; for tests.

    Attributes:
        url: with an absolute path and without a password; notices: warnings that were raised while opening.
    Raises:
        ConfigError: the URL is not one of a queue. MissingPackageError: psycopg for PostgreSQL, ray for Ray.
        QueueError: it cannot be opened or written; says why. QueueBusyError: another process keeps it locked.
    """

    def __init__(self, url: str, *, timeout_s: float = 10.0, clock: Callable[[], float] | None = None) -> None:
        place: Database | RayCluster
        if is_ray(url):
            place = RayCluster(url, timeout_s)
            self._use(RayStore(place), place)
        else:
            place = Database(url, metadata, timeout_s, clock)
            self._use(JobStore(place), place)

    @classmethod
    def of_store(cls, store: RayStore, place: RayCluster) -> JobQueue:
        """The queue as a task of a Ray cluster sees it."""
        queue = cls.__new__(cls)
        queue._use(store, place)
        return queue

    def _use(self, store: JobStore, place: Database | RayCluster) -> None:
        self.store, self._place = store, place
        self.url, self.notices = place.url, place.notices
        self._one_host = isinstance(place, Database) and place.is_sqlite
        self._results: dict[int, Any] = {}

    def __repr__(self) -> str:
        return f"JobQueue({self.url!r})"

    def close(self) -> None:
        """Close the connections; the queue stays usable."""
        self._place.close()

    # ---- jobs ----

    def submit_job(self, job_config: JobConfig, *, priority: int | None = None) -> int:
        """Add a job and return its id. When this returns the job is stored; when it raises, nothing is.

        A job that holds objects of this process (see `JobConfig`) is accepted on SQLite, and elsewhere with `durable=False`;
        not with `durable=True` or for several devices. A warning is logged: only this process can run it, with `work()` or
        `start_worker()`.

        Raises:
            ConfigError: lists what is wrong, such as the parts that no other process can import.
        """
        if isinstance(job_config, Mapping):
            job_config = JobConfig(**job_config)
        if not isinstance(job_config, JobConfig):
            raise ConfigError(f"submit_job takes a JobConfig; got {shown(job_config)}.")
        priority = job_config.priority if priority is None else priority
        if isinstance(priority, bool) or not isinstance(priority, int) or not 1 <= priority <= 10:
            raise ConfigError.from_problems(
                "submit_job", [Problem("priority", f"Priority must be 1-10; got {shown(priority)}")]
            )
        if job_config.devices > 1 and isinstance(self._place, RayCluster):
            raise ConfigError(
                f"devices={job_config.devices}: a Ray cluster runs each job on one device. Submit it with devices=1, or to a "
                "queue in SQLite or PostgreSQL, whose workers start one process per device."
            )
        obstacles = job_config.obstacles()
        local = bool(obstacles) and self._may_stay_here(job_config)
        spec = {"local": job_config.keep_here()} if local else job_config.spec()
        try:
            job_id = self.store.submit(
                {
                    # Ids begin again in a new database, while runs stay where they are.
                    "name": f"{job_config.name}-{secrets.token_hex(4)}", "job_type": job_config.job_type,
                    "priority": priority, "spec": spec, "home": process.identity() if local else None,
                    "max_attempts": job_config.max_attempts, "max_retries": job_config.max_retries,
                }
            )  # fmt: skip
        except BaseException:
            JobConfig.forget(spec)
            raise
        if local:
            what = "; ".join(f"{problem.field}: {problem.message}" for problem in obstacles)
            log.warning(
                "Job %s can only be run by this process, with queue.work(), and fails when the process ends. %s",
                job_id,
                what,
            )
        return job_id

    def _may_stay_here(self, job: JobConfig) -> bool:
        """Whether a job that only this process can run is accepted."""
        if job.durable or job.devices > 1:
            return False
        return self._one_host or job.durable is False

    def get_job(self, job_id: int) -> Job | None:
        """A job as it is now; None for an unknown id."""
        return self.store.get(_whole(job_id))

    def get_job_status(self, job_id: int) -> str:
        """pending, running, completed, failed or cancelled. Raises `JobNotFoundError`."""
        return self._known(job_id).status

    def get_job_results(self, job_id: int) -> Any:
        """The results of a completed job: the `TrainingResults` when this object ran it, else a dict of their plain values.

        Raises:
            QueueError: the job is not completed; says its state, and the error of a failed one. JobNotFoundError: no such job.
        """
        if job_id in self._results:
            return self._results[job_id]
        job = self._known(job_id)
        if job.status != "completed":
            reason = {
                "failed": f"it failed: {job.error}", "cancelled": "it was cancelled", "pending": "it has not started",
                "running": f"it is being run by {process.shown(job.owner)}",
            }[job.status]  # fmt: skip
            raise QueueError(f"job {job_id} has no results: {reason}.")
        return dict(job.results or {})

    def list_jobs(
        self, status: str | None = None, job_type: str | None = None, *, limit: int | None = None
    ) -> list[Job]:
        """Jobs by descending priority, the oldest first. Raises `ConfigError` for an unknown status."""
        if status is not None and status not in STATES:
            guess = nearest(str(status), STATES)
            hint = f"; did you mean {guess!r}?" if guess else ""
            raise ConfigError(f"status is one of {', '.join(STATES)}; got {shown(status)}{hint}")
        return self.store.jobs(status, job_type, limit)

    def cancel_job(self, job_id: int) -> bool:
        """Cancel a job: a waiting one at once, a running one after its current step, with its checkpoint kept.

        Returns False when it has ended already. Raises `JobNotFoundError`.
        """
        return self.store.cancel(_whole(job_id))

    def retry_job(self, job_id: int) -> bool:
        """Put a failed or cancelled job back into the queue, with all its attempts; it continues from its checkpoint.

        Returns False in any other state, and after `max_retries` times. Raises `JobNotFoundError`.
        """
        return self.store.retry(_whole(job_id))

    # ---- logs and statistics ----

    def log_job_message(self, job_id: int, message: str, level: str = "info") -> None:
        """Add a line to a job's log; passwords and tokens are removed from it."""
        if str(level).lower() not in _LEVELS:
            raise ConfigError(f"level is one of {', '.join(_LEVELS)}; got {shown(level)}")
        self.store.log(_whole(job_id), str(message), str(level).lower())

    def get_job_logs(self, job_id: int) -> pd.DataFrame:
        """A job's log as a DataFrame, oldest line first: time (UTC), level, message, token (of the claim that wrote it)."""
        import pandas as pd

        frame = pd.DataFrame(self.store.log_rows(_whole(job_id)), columns=["at", "level", "message", "token"])
        frame.insert(0, "time", pd.to_datetime(frame.pop("at"), unit="s", utc=True))
        frame["token"] = frame["token"].astype("Int64")
        return frame

    def get_queue_stats(self) -> dict[str, Any]:
        """Jobs by state, total, workers, oldest_pending_s, mean_duration_s (seconds; None when there is nothing to measure)."""
        return self.store.statistics()

    # ---- owners ----

    def claim_job(self, worker_id: str | None = None, *, lease_s: float = 60.0) -> Job | None:
        """Become the owner of the next job, for `lease_s` seconds or until `heartbeat`; None when none is due.

        For workers of your own. Exactly one caller gets a job, and `job.token` is larger than that of every earlier claim.
        """
        me = process.identity()
        job = self.store.claim(worker_id or me, me, lease_s)
        if job is None:  # nothing else to do: look for owners that died
            self.store.sweep()
            job = self.store.claim(worker_id or me, me, lease_s)
        return job

    def heartbeat(self, job: Job, progress: Mapping[str, Any] | None = None) -> bool:
        """Extend the lease of a claimed job; True when it should be cancelled. Raises `LeaseLostError`."""
        return self.store.heartbeat(job, progress)

    def complete_job(self, job: Job, results: Mapping[str, Any]) -> None:
        """Store the results (plain values) of a claimed job. Raises `LeaseLostError`: they were not taken."""
        self.store.complete(job, results)
        JobConfig.forget(job.spec)

    def fail_job(self, job: Job, error: str, *, for_good: bool = False) -> str:
        """A claimed job failed; its new state: pending for another attempt, or failed. Raises `LeaseLostError`."""
        return self.store.fail(job, error, for_good=for_good)

    def release_job(self, job: Job, reason: str = "given back") -> None:
        """Give a claimed job back; the attempt does not count. Raises `LeaseLostError`."""
        self.store.release(job, reason)

    def work(self, max_jobs: int | None = None, *, lease_s: float = 60.0, callbacks: Any = ()) -> int:
        """Run jobs in this process until none is due; returns how many were run. Runs this process's own jobs too."""
        from utils.training.job_worker import Worker

        return Worker(self, lease_s=lease_s, callbacks=callbacks).run(max_jobs, until_empty=True)

    def start_worker(self, *, lease_s: float = 60.0, poll_s: float = 1.0) -> BackgroundWorker:
        """Run jobs in a thread of this process until `stop()`; for a notebook."""
        return BackgroundWorker(self, lease_s, poll_s)

    def keep_results(self, job_id: int, results: Any) -> None:
        """The full results of a job that this object ran; for workers."""
        self._results[job_id] = results

    def _known(self, job_id: int) -> Job:
        job = self.store.get(_whole(job_id))
        if job is None:
            raise JobNotFoundError(f"there is no job {job_id} in {self.url}.")
        return job


class BackgroundWorker:
    """A worker in a thread. As a context manager it stops at the end of the block."""

    def __init__(self, queue: JobQueue, lease_s: float, poll_s: float) -> None:
        import threading

        from utils.training.job_worker import Worker

        self._worker = Worker(queue, lease_s=lease_s, poll_s=poll_s)
        self._thread: threading.Thread = threading.Thread(target=self._worker.run, name="trainbook-worker")
        self._thread.start()

    def stop(self) -> None:
        """Finish the current step, save, give the job back, and wait for the thread's end."""
        self._worker.stop()
        self._thread.join()

    def __enter__(self) -> BackgroundWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _whole(job_id: Any) -> int:
    if isinstance(job_id, bool) or not isinstance(job_id, int):
        raise ConfigError(f"a job's id is a whole number, as submit_job returns it; got {shown(job_id)}")
    return job_id
