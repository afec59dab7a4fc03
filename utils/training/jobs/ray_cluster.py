"""A queue on a Ray cluster: one actor keeps the jobs, and starts Ray tasks that run them.

The actor lives on the head node as long as the cluster does, whoever submitted the jobs. Its rows are in an SQLite file of the
head node, in the same tables as every other queue, so that priorities, leases, fencing tokens and attempts are the same; a new
actor continues with that file. Each task claims the first job that is due, as every worker does, and ends when it has run it.
Ray decides where and when tasks run, and does not repeat one whose process dies: its job is claimed by another task.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, QueueError
from utils.schema import shown
from utils.training.jobs.database import Database
from utils.training.jobs.ray_address import connect, environment, import_ray
from utils.training.jobs.store import Job, JobStore, metadata

log = logging.getLogger("trainbook.queue")

_ADDRESS = re.compile(r"ray://(?P<host>\[[0-9a-fA-F:]+\]|[\w.-]+):(?P<port>\d{1,5})/?")
_NAMESPACE, _ACTOR = "trainbook", "trainbook-queue"
#: Seconds between two looks of the actor at its jobs; a submission wakes it at once.
POLL_S = 1.0
# Tasks that wait in Ray or run. More jobs than that wait in the queue, where their priorities still count.
_MOST_TASKS = 1000
# The first call waits for the actor's process to start.
_START_S = 120.0

# The queues of this process that use its one connection, which was made for the first of them.
_users: set[RayCluster] = set()
_connecting = threading.RLock()


class RayCluster:
    """A connection to a cluster, made when it is first needed.

    Attributes:
        url: ray://host:port of the cluster's client server; notices: what a user should know.
    Raises:
        ConfigError: the URL has another form. MissingPackageError: no Ray. QueueError: nothing answers there.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        found = _ADDRESS.fullmatch(url)
        if found is None:
            raise ConfigError(f"a Ray cluster's URL is like ray://host:10001; got {shown(url)}")
        self.url, self._timeout_s = url, timeout_s
        self._host, self._port = found["host"].strip("[]"), int(found["port"])
        self.notices: list[str] = []
        self._ray = import_ray(f"for the queue {url}")
        self._actor: Any = None
        self.actor()

    def actor(self) -> Any:
        """The actor that keeps the queue, started if the cluster has none."""
        with _connecting:
            if self._actor is None:
                self._connect()
                self._actor = _actor_of(self._ray)
        return self._actor

    def close(self) -> None:
        """End the connection, unless another queue of this process uses it; the next call makes a new one."""
        with _connecting:
            self._actor = None
            if self in _users:
                _users.remove(self)
                if not _users:
                    self._ray.shutdown()

    def _connect(self) -> None:
        """Raises `QueueError`."""
        if self._ray.is_initialized():
            if not _users:
                sentence = "This process is connected to a Ray cluster already; the queue is that cluster's."
                if sentence not in self.notices:
                    self.notices.append(sentence)
                    log.warning(sentence)
                return
            other = next(iter(_users)).url
            if other != self.url:
                raise QueueError(
                    f"this process is connected to {other}, and a process has one connection to Ray: close that queue before "
                    f"{self.url} is opened."
                )
        else:
            try:  # Ray itself would try for half a minute
                socket.create_connection((self._host, self._port), timeout=self._timeout_s).close()
                connect(self._ray, self.url, namespace=_NAMESPACE)
            except (OSError, RuntimeError) as error:
                raise QueueError(
                    f"no Ray cluster answers at {self.url}: {error}. The port is that of Ray's client server: ray start --head "
                    "--ray-client-server-port 10001, with the same versions of Python and Ray as here."
                ) from error
        _users.add(self)

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """A method of the actor's `JobStore`.

        Raises:
            TrainbookError: what the method raises. QueueError: the actor cannot be reached; the call may have had its effect.
        """
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        try:
            return self._ray.get(self.actor().call.remote(method, arguments, named), timeout=_START_S)
        except RayTaskError as error:
            raise error.cause from None
        except (RayError, GetTimeoutError, ConnectionError) as error:
            self._actor = None
            raise QueueError(f"the queue at {self.url} does not answer ({type(error).__name__}): {error}") from error


class RayStore(JobStore):
    """The rows of a queue that an actor keeps: every method is the actor's."""

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster

    def submit(self, values: Mapping[str, Any]) -> int:
        return int(self._cluster.call("submit", dict(values)))

    def get(self, job_id: int) -> Job | None:
        found: Job | None = self._cluster.call("get", job_id)
        return found

    def jobs(self, status: str | None, job_type: str | None, limit: int | None) -> list[Job]:
        return list(self._cluster.call("jobs", status, job_type, limit))

    def cancel(self, job_id: int) -> bool:
        return bool(self._cluster.call("cancel", job_id))

    def retry(self, job_id: int) -> bool:
        return bool(self._cluster.call("retry", job_id))

    def log(self, job_id: int, message: str, level: str) -> None:
        self._cluster.call("log", job_id, message, level)

    def log_rows(self, job_id: int) -> list[dict[str, Any]]:
        return list(self._cluster.call("log_rows", job_id))

    def statistics(self) -> dict[str, Any]:
        return dict(self._cluster.call("statistics"))

    def due(self) -> int:
        return int(self._cluster.call("due"))

    def claim(self, owner: str, home: str, lease_s: float) -> Job | None:
        found: Job | None = self._cluster.call("claim", owner, home, lease_s)
        return found

    def sweep(self) -> None:
        self._cluster.call("sweep")

    def heartbeat(self, job: Job, progress: Mapping[str, Any] | None = None) -> bool:
        return bool(self._cluster.call("heartbeat", job, None if progress is None else dict(progress)))

    def note_run(self, job: Job, run_dir: str) -> None:
        self._cluster.call("note_run", job, run_dir)

    def log_as_owner(self, job: Job, message: str, level: str = "info") -> None:
        self._cluster.call("log_as_owner", job, message, level)

    def complete(self, job: Job, results: Mapping[str, Any]) -> None:
        self._cluster.call("complete", job, dict(results))

    def fail(self, job: Job, error: str, *, for_good: bool = False) -> str:
        return str(self._cluster.call("fail", job, error, for_good=for_good))

    def release(self, job: Job, reason: str, wait_s: float = 0.0) -> None:
        self._cluster.call("release", job, reason, wait_s)

    def cancelled(self, job: Job, reason: str) -> None:
        self._cluster.call("cancelled", job, reason)


# ---- in the cluster ----


class QueueKeeper:
    """The actor: keeps the jobs, and has as many tasks as there are jobs to run."""

    def __init__(self) -> None:
        self._ray = ray = import_ray("within a Ray cluster")
        self._store = JobStore(Database(_database_url(ray.get_runtime_context().gcs_address), metadata, 10.0, None))
        self._me = ray.get_runtime_context().current_actor
        self._tasks: list[Any] = []
        self._wake = threading.Event()
        threading.Thread(target=self._dispatch_forever, name="trainbook-queue", daemon=True).start()

    def call(self, method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """A method of the store."""
        answer = getattr(self._store, method)(*arguments, **named)
        if method in ("submit", "retry", "release", "fail"):
            self._wake.set()
        return answer

    def _dispatch_forever(self) -> None:
        while True:
            self._wake.wait(POLL_S)
            self._wake.clear()
            try:
                self._dispatch()
            except Exception as error:  # noqa: BLE001 - the disk or the cluster may be back at the next look
                log.warning("Jobs cannot be handed out at the moment: %s", error)

    def _dispatch(self) -> None:
        """Start tasks, so that there is one for each job that is due."""
        self._store.sweep()
        if self._tasks:
            _, self._tasks = self._ray.wait(self._tasks, num_returns=len(self._tasks), timeout=0)
        running = self._store.statistics()["running"]
        unclaimed = max(0, len(self._tasks) - running)
        missing = min(self._store.due() - unclaimed, _MOST_TASKS - len(self._tasks))
        if missing <= 0:
            return
        gpus = 1 if self._ray.cluster_resources().get("GPU") else 0
        # Not repeated by Ray: whether a job has attempts left is the queue's to say.
        task = self._ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(run_next_job)
        self._tasks += [task.remote(self._me) for _ in range(missing)]


def run_next_job(actor: Any) -> int:
    """A Ray task: run the first job that is due; returns 0 if no job is waiting."""
    from utils.training.job_queue import JobQueue
    from utils.training.job_worker import Worker

    cluster = _Within(actor)
    return Worker(JobQueue.of_store(RayStore(cluster), cluster)).run(1, until_empty=True)


class _Within(RayCluster):
    """The cluster, seen from one of its own tasks."""

    def __init__(self, actor: Any) -> None:
        self.url, self.notices = "ray", []
        self._ray, self._actor = import_ray("within a Ray cluster"), actor

    def actor(self) -> Any:
        return self._actor


def _database_url(address: str) -> str:
    """The file of the cluster at this address, in the data folder of the user who runs the head node."""
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "trainbook"
    data.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{data / ('ray-' + re.sub(r'[^0-9A-Za-z.]+', '-', address) + '.db')}"


def _actor_of(ray: Any) -> Any:
    """The cluster's actor; whoever comes first starts it."""
    options = {
        "name": _ACTOR, "namespace": _NAMESPACE, "lifetime": "detached", "get_if_exists": True, "max_restarts": -1,
        # No share of a node's work; on the head node, where the file is.
        "num_cpus": 0, "resources": {"node:__internal_head__": 0.001}, "max_concurrency": 16, "runtime_env": environment(),
    }  # fmt: skip
    return ray.remote(**options)(QueueKeeper).remote()
