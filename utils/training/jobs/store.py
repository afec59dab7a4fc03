"""Jobs as rows, and every transition between their states as one transaction.

    pending ──claim──> running ──complete──> completed
       ^                  │ ├──────fail───> failed      (attempts used up, or an error that a repetition cannot mend)
       │                  │ └──────cancel─> cancelled
       └── fail, release, lease ended ┘

A claim gives the job a new fencing token, larger than every one before. Whatever an owner writes names that token, so an owner
that lost its lease changes nothing, however late it wakes up.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from utils.errors import JobNotFoundError, LeaseLostError
from utils.scrubbing import scrub, scrubbed
from utils.training.jobs import process
from utils.training.jobs.database import Database

STATES = ("pending", "running", "completed", "failed", "cancelled")

#: Seconds before the second attempt, doubled for each further one, and the longest wait.
BACKOFF_S, LONGEST_BACKOFF_S = 5.0, 3600.0
_LONGEST_ERROR = 20_000

metadata = sa.MetaData()
sa.Table("trainbook_queue", metadata, sa.Column("version", sa.Integer, nullable=False))
_jobs = sa.Table(
    "trainbook_jobs", metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("job_type", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("spec", sa.Text, nullable=False),
    sa.Column("home", sa.Text),  # the one process that can run it; NULL: any
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("max_retries", sa.Integer, nullable=False),
    sa.Column("retries", sa.Integer, nullable=False, default=0),
    sa.Column("token", sa.Integer, nullable=False, default=0),
    sa.Column("owner", sa.Text),
    sa.Column("lease_s", sa.Double),
    sa.Column("lease_until", sa.Double),
    sa.Column("not_before", sa.Double, nullable=False, default=0.0),
    sa.Column("cancel_requested", sa.Boolean, nullable=False, default=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("ended_at", sa.Double),
    sa.Column("run_dir", sa.Text),
    sa.Column("progress", sa.Text),
    sa.Column("results", sa.Text),
    sa.Column("error", sa.Text),
    sqlite_autoincrement=True,  # the id of a job that was removed never comes back
)  # fmt: skip
_logs = sa.Table(
    "trainbook_job_logs", metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.Integer, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("token", sa.Integer),
    sqlite_autoincrement=True,
)  # fmt: skip
_j = _jobs.c
# The order in which jobs are claimed, so that a claim reads one entry however long the queue is.
sa.Index("trainbook_jobs_waiting", _j.status, _j.priority.desc(), _j.id)
sa.Index("trainbook_jobs_leases", _j.status, _j.lease_until)
_has_home = _j.home.is_not(None)
sa.Index("trainbook_jobs_homes", _j.status, _j.home, sqlite_where=_has_home, postgresql_where=_has_home)
sa.Index("trainbook_job_logs_jobs", _logs.c.job_id, _logs.c.id)


@dataclass(frozen=True)
class Job:
    """A job as it was when it was read. Times are seconds since 1970 by the database's clock.

    Attributes:
        status: pending, running, completed, failed or cancelled.
        token: the fencing token; grows with every claim. owner: the process that claimed it last.
        attempts: claims since it was submitted or retried, but for those that were given back; retries: calls of `retry_job`.
        durable: whether any process can run it, as opposed to only the one that submitted it.
        not_before: earliest time of the next attempt.
        progress: what its worker reported last, such as {"step": 120, "epoch": 3}; error: of the last attempt.
    """

    id: int
    name: str
    job_type: str
    status: str
    priority: int
    spec: dict[str, Any]
    home: str | None
    max_attempts: int
    attempts: int
    max_retries: int
    retries: int
    token: int
    owner: str | None
    lease_s: float | None
    lease_until: float | None
    not_before: float
    cancel_requested: bool
    created_at: float
    started_at: float | None
    ended_at: float | None
    run_dir: str | None
    progress: dict[str, Any]
    results: dict[str, Any] | None
    error: str | None

    @property
    def durable(self) -> bool:
        """Whether any process can run it."""
        return self.home is None

    @classmethod
    def of(cls, row: Row[Any]) -> Job:
        """Load from a database row."""
        values = dict(row._mapping)
        for name in ("spec", "progress", "results"):
            values[name] = None if values[name] is None else json.loads(values[name])
        return cls(**{**values, "progress": values["progress"] or {}})


class JobStore:
    """The rows of one queue. Safe to use from several threads and after a fork."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # ---- by anybody ----

    def submit(self, values: Mapping[str, Any]) -> int:
        """A new pending job with these columns; its id. When this returns, the job survives the death of any process."""
        with self.database.writing() as c:
            row = {"status": "pending", **values, "spec": json.dumps(values["spec"]), "created_at": self.database.now()}
            job_id = int(c.execute(sa.insert(_jobs).values(row).returning(_j.id)).scalar_one())
            self._log(c, job_id, f"submitted with priority {values['priority']}")
        return job_id

    def get(self, job_id: int) -> Job | None:
        """A job; None for an unknown id."""
        with self.database.reading() as c:
            row = c.execute(sa.select(_jobs).where(_j.id == job_id)).one_or_none()
        return None if row is None else Job.of(row)

    def jobs(self, status: str | None, job_type: str | None, limit: int | None) -> list[Job]:
        """Jobs in the order in which they would be claimed."""
        query = sa.select(_jobs).order_by(_j.priority.desc(), _j.id).limit(limit)
        if status is not None:
            query = query.where(_j.status == status)
        if job_type is not None:
            query = query.where(_j.job_type == job_type)
        with self.database.reading() as c:
            return [Job.of(row) for row in c.execute(query)]

    def cancel(self, job_id: int) -> bool:
        """Cancel a waiting job now, ask a running one to stop; False when it has ended."""
        with self.database.writing() as c:
            self._require(c, job_id)
            waiting = c.execute(
                sa.update(_jobs).where(_j.id == job_id, _j.status == "pending")
                .values(status="cancelled", cancel_requested=True, ended_at=self.database.now())
            )  # fmt: skip
            if waiting.rowcount:
                self._log(c, job_id, "cancelled before it started")
                return True
            asked = c.execute(
                sa.update(_jobs).where(_j.id == job_id, _j.status == "running").values(cancel_requested=True)
            )
            if asked.rowcount:
                self._log(c, job_id, "cancellation requested; the run stops after its current step")
            return bool(asked.rowcount)

    def retry(self, job_id: int) -> bool:
        """Put a failed or cancelled job back into the queue; False in another state or after `max_retries` times."""
        with self.database.writing() as c:
            self._require(c, job_id)
            done = c.execute(
                sa.update(_jobs)
                .where(_j.id == job_id, _j.status.in_(("failed", "cancelled")), _j.retries < _j.max_retries)
                .values(
                    status="pending", attempts=0, retries=_j.retries + 1, not_before=0.0, cancel_requested=False,
                    ended_at=None, error=None,
                )
            )  # fmt: skip
            if done.rowcount:
                self._log(c, job_id, "put back into the queue")
            return bool(done.rowcount)

    def log(self, job_id: int, message: str, level: str) -> None:
        """A line in a job's log."""
        with self.database.writing() as c:
            self._require(c, job_id)
            self._log(c, job_id, message, level)

    def log_rows(self, job_id: int) -> list[dict[str, Any]]:
        """A job's log, oldest line first."""
        query = sa.select(_logs.c.at, _logs.c.level, _logs.c.message, _logs.c.token)
        with self.database.reading() as c:
            self._require(c, job_id)
            rows = c.execute(query.where(_logs.c.job_id == job_id).order_by(_logs.c.id))
            return [dict(row._mapping) for row in rows]

    def statistics(self) -> dict[str, Any]:
        """Counts by state, workers, waiting time and duration in seconds."""
        now = self.database.now()
        with self.database.reading() as c:
            rows = c.execute(sa.select(_j.status, sa.func.count()).group_by(_j.status))
            counts: dict[str, int] = {state: number for state, number in rows}  # noqa: C416 - rows are no pairs to mypy
            oldest = c.execute(sa.select(now - sa.func.min(_j.created_at)).where(_j.status == "pending")).scalar()
            workers = c.execute(
                sa.select(sa.func.count(sa.distinct(_j.owner))).where(_j.status == "running")
            ).scalar_one()
            mean = c.execute(
                sa.select(sa.func.avg(_j.ended_at - _j.started_at)).where(_j.status == "completed")
            ).scalar()
        return {
            **{state: counts.get(state, 0) for state in STATES}, "total": sum(counts.values()), "workers": workers,
            "oldest_pending_s": oldest, "mean_duration_s": mean,
        }  # fmt: skip

    # ---- by workers ----

    def claim(self, owner: str, home: str, lease_s: float) -> Job | None:
        """Become the owner of the waiting job with the highest priority, the oldest first; returns None if no job is waiting.

        Args:
            owner: identity of the worker's process; home: of the process whose local jobs it can run.
        """
        values = {"of_owner": owner, "of_home": home, "for_s": lease_s}
        with self.database.writing() as c:
            self._end_leases(c)
            row = c.execute(self._claiming, values).one_or_none()
            if row is None:
                return None
            job = Job.of(row)
            self._log(
                c, job.id, f"attempt {job.attempts} of {job.max_attempts} by {process.shown(owner)}", token=job.token
            )
        return job

    @functools.cached_property
    def _is_due(self) -> Any:
        now = self.database.now()
        # A wait longer than the longest one comes from a clock that was put back.
        return sa.or_(_j.not_before <= now, _j.not_before > now + LONGEST_BACKOFF_S)

    @functools.cached_property
    def _claiming(self) -> Any:
        # Made once: SQLAlchemy takes longer to put this statement together than SQLite to run it.
        now = self.database.now()
        first = (
            sa.select(_j.id)
            .where(_j.status == "pending", self._is_due, sa.or_(_j.home.is_(None), _j.home == sa.bindparam("of_home")))
            .order_by(_j.priority.desc(), _j.id).limit(1).with_for_update(skip_locked=True)
        )  # fmt: skip
        lease_s = sa.bindparam("for_s", type_=sa.Double)
        return (
            sa.update(_jobs).where(_j.id == first.scalar_subquery())
            .values(
                status="running", owner=sa.bindparam("of_owner"), token=_j.token + 1, attempts=_j.attempts + 1,
                lease_s=lease_s, lease_until=now + lease_s, started_at=sa.func.coalesce(_j.started_at, now),
            ).returning(_jobs)
        )  # fmt: skip

    @functools.cached_property
    def _ending(self) -> Any:
        now = self.database.now()
        over = sa.or_(_j.cancel_requested, _j.attempts >= _j.max_attempts)
        state = sa.case((_j.cancel_requested, "cancelled"), (_j.attempts >= _j.max_attempts, "failed"), else_="pending")
        lost = "the worker stopped answering (killed, out of memory, or suspended)"
        return (
            sa.update(_jobs).where(_j.status == "running", _j.lease_until <= now)
            .values(
                status=state, error=lost, not_before=0.0, lease_until=None, ended_at=sa.case((over, now), else_=None)
            ).returning(_j.id, _j.status, _j.attempts, _j.owner, _j.token)
        )  # fmt: skip

    @functools.cached_property
    def _logging(self) -> sa.Insert:
        columns: dict[str, Any] = {name: sa.bindparam(name) for name in ("job_id", "level", "message", "token")}
        return sa.insert(_logs).values(**columns, at=self.database.now())

    def sweep(self) -> None:
        """Take jobs away from owners whose lease has ended, and from processes of this host that are gone, without waiting for
        their leases."""
        with self.database.writing() as c:
            self._expire_the_dead(c)
            self._end_leases(c)

    def due(self) -> int:
        """Number of waiting jobs that any process could claim now."""
        with self.database.reading() as c:
            query = sa.select(sa.func.count()).where(_j.status == "pending", self._is_due, _j.home.is_(None))
            return int(c.execute(query).scalar_one())

    def heartbeat(self, job: Job, progress: Mapping[str, Any] | None = None) -> bool:
        """Extend the lease, counted from now; returns whether somebody asked to cancel.

        Raises:
            LeaseLostError: this claim is not the owner any more.
        """
        values: dict[str, Any] = {"lease_until": self.database.now() + job.lease_s}
        if progress is not None:
            values["progress"] = json.dumps(progress)
        with self.database.writing() as c:
            return bool(self._write_as_owner(c, job, values).cancel_requested)

    def note_run(self, job: Job, run_dir: str) -> None:
        """Store the location of the run, as the job's owner."""
        with self.database.writing() as c:
            self._write_as_owner(c, job, {"run_dir": run_dir})

    def log_as_owner(self, job: Job, message: str, level: str = "info") -> None:
        """A line in the job's log. Raises `LeaseLostError`."""
        with self.database.writing() as c:
            self._write_as_owner(c, job, {"owner": _j.owner})
            self._log(c, job.id, message, level, job.token)

    def complete(self, job: Job, results: Mapping[str, Any]) -> None:
        """The job is done. Raises `LeaseLostError`: the results are not taken."""
        with self.database.writing() as c:
            values = {
                "status": "completed", "results": json.dumps(scrubbed(results)), "ended_at": self.database.now(), "error": None,
            }  # fmt: skip
            self._write_as_owner(c, job, values)
            self._log(c, job.id, "completed", token=job.token)

    def fail(self, job: Job, error: str, *, for_good: bool = False) -> str:
        """An attempt failed: wait longer each time and try again, or end the job as failed. Returns its new state.

        Args:
            for_good: whether another attempt would fail in the same way.
        """
        error = scrub(error)[:_LONGEST_ERROR]
        wait_s = min(BACKOFF_S * 2.0 ** (job.attempts - 1), LONGEST_BACKOFF_S)
        with self.database.writing() as c:
            now = self.database.now()
            asked = bool(self._write_as_owner(c, job, {"error": error}).cancel_requested)
            over = for_good or job.attempts >= job.max_attempts
            state = "cancelled" if asked else "failed" if over else "pending"
            self._write_as_owner(
                c, job, {"status": state, "not_before": now + wait_s, "ended_at": None if state == "pending" else now}
            )
            again = f"; again in {wait_s:g} s" if state == "pending" else ""
            self._log(c, job.id, f"attempt {job.attempts} failed: {error}{again}", "error", job.token)
        return state

    def release(self, job: Job, reason: str, wait_s: float = 0.0) -> None:
        """Give the job back unfinished: it waits again and the attempt does not count."""
        with self.database.writing() as c:
            now = self.database.now()
            values = {"status": "pending", "attempts": _j.attempts - 1, "not_before": now + wait_s}
            if self._write_as_owner(c, job, values).cancel_requested:
                values = {"status": "cancelled", "ended_at": now}
                c.execute(sa.update(_jobs).where(_j.id == job.id).values(values))
                reason = "cancelled"
            self._log(c, job.id, reason, token=job.token)

    def cancelled(self, job: Job, reason: str) -> None:
        """The run was stopped on request; its checkpoint is kept."""
        with self.database.writing() as c:
            self._write_as_owner(c, job, {"status": "cancelled", "ended_at": self.database.now()})
            self._log(c, job.id, reason, token=job.token)

    # ---- parts of transactions ----

    def _write_as_owner(self, c: Connection, job: Job, values: Mapping[str, Any]) -> Row[Any]:
        """Change the job's row if `job` is still the newest claim of it."""
        row = c.execute(
            sa.update(_jobs)
            .where(_j.id == job.id, _j.token == job.token, _j.status == "running")
            .values(values)
            .returning(_j.cancel_requested)
        ).one_or_none()
        if row is None:
            raise LeaseLostError(
                f"job {job.id} is no longer owned by claim {job.token}: its lease ended, or the job did. Nothing was written."
            )
        return row

    def _end_leases(self, c: Connection) -> None:
        """Take jobs away from owners whose lease has ended."""
        rows = c.execute(self._ending).all()
        for row in rows:
            text = f"attempt {row.attempts}: {process.shown(row.owner)} stopped answering; now {row.status}"
            self._log(c, row.id, text, "warning", row.token)

    def _expire_the_dead(self, c: Connection) -> None:
        """End the leases of this host's processes that are gone, and local jobs that went with their process."""
        owners = c.execute(sa.select(_j.owner).where(_j.status == "running").distinct()).scalars()
        if dead := [owner for owner in owners if process.is_gone(owner)]:
            c.execute(sa.update(_jobs).where(_j.status == "running", _j.owner.in_(dead)).values(lease_until=0.0))
        waiting = _j.status.in_(("pending", "running"))
        homes = c.execute(sa.select(_j.home).where(waiting, _j.home.is_not(None)).distinct()).scalars()
        gone = [home for home in homes if process.is_gone(home)]
        if not gone:
            return
        error = "the process that submitted it has ended, and the job held objects of that process: submit it again"
        rows = c.execute(
            sa.update(_jobs).where(waiting, _j.home.in_(gone))
            .values(status="failed", error=error, ended_at=self.database.now(), lease_until=None).returning(_j.id)
        ).scalars()  # fmt: skip
        for job_id in rows.all():
            self._log(c, job_id, error, "error")

    def _require(self, c: Connection, job_id: int) -> None:
        if c.execute(sa.select(_j.id).where(_j.id == job_id)).one_or_none() is None:
            raise JobNotFoundError(f"there is no job {job_id} in {self.database.url}.")

    def _log(self, c: Connection, job_id: int, message: str, level: str = "info", token: int | None = None) -> None:
        c.execute(self._logging, {"job_id": job_id, "level": level, "message": scrub(message), "token": token})
