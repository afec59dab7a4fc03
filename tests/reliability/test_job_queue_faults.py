"""The job queue under faults: killed and suspended workers, clocks that jump, databases that are locked, damaged or remote."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
import torch

from tests.kit.crash import Child, Fuse, in_child
from tests.kit.queue_storm import storm
from tests.kit.toys import golden_config, plain_lm, train_set
from utils.errors import LeaseLostError, QueueBusyError, QueueError
from utils.training import Callback, JobConfig, JobQueue, Trainer
from utils.training.engine.checkpointing.store import read_checkpoint

URL = "sqlite:///jobs.db"
CONFIG = golden_config(run_name=None, early_stopping_patience=None)


class Clock:
    """The time plus what a test adds to it."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def durable(**changes) -> JobConfig:
    named = {
        "model_factory": "tests.kit.toys:plain_lm", "train_data": "tests.kit.toys:train_set", "training_config": CONFIG,
    }  # fmt: skip
    return JobConfig(**{**named, **changes})


def acknowledge(path: str, *numbers: int) -> None:
    """Append a line in one write, so that a kill leaves all of it or nothing."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (" ".join(map(str, numbers)) + "\n").encode())
    os.close(file)


def acknowledged(path: str) -> list[tuple[int, ...]]:
    lines = Path(path).read_text("utf-8").splitlines() if Path(path).exists() else []
    return [tuple(map(int, line.split())) for line in lines]


def submit_and_work(jobs: int, statements: int) -> Callable[[], None]:
    """A process that submits `jobs` and completes what it can claim, killed before its `statements`-th SQL statement or commit."""

    def run() -> None:
        fuse = Fuse(statements)
        for name in ("before_cursor_execute", "commit"):
            sa.event.listen(sa.Engine, name, lambda *_: fuse.burn())
        queue = JobQueue(URL, timeout_s=60)
        for _ in range(jobs):
            acknowledge("submitted", queue.submit_job(durable(max_attempts=1000)))
        while (job := queue.claim_job()) is not None:
            queue.complete_job(job, {"token": job.token})
            acknowledge("completed", job.id, job.token)

    return run


def test_f36_eight_processes_on_one_queue_are_killed_at_random():
    draw, killed = random.Random(0), 0
    for _ in range(6):
        children = [Child(submit_and_work(2, draw.randint(1, 60))) for _ in range(8)]
        killed += sum(child.join().killed for child in children)
    assert in_child(submit_and_work(0, 0)).exit_code == 0
    assert killed > 24
    queue = JobQueue(URL)
    jobs = {job.id: job for job in queue.list_jobs()}
    assert {job.status for job in jobs.values()} == {"completed"}
    assert {number for (number,) in acknowledged("submitted")} <= set(jobs)
    assert any(job.attempts > 1 for job in jobs.values()), "no worker was killed while it had a job"
    for job in jobs.values():
        assert job.results == {"token": job.token}
        assert list(queue.get_job_logs(job.id)["message"]).count("completed") == 1
    completed = acknowledged("completed")
    assert max(Counter(number for number, _ in completed).values()) == 1
    assert all(jobs[number].token == token for number, token in completed)
    queue.close()
    assert sqlite3.connect("jobs.db").execute("PRAGMA integrity_check").fetchone() == ("ok",)


class Suspended(Callback):
    """Stops its own process, as SIGSTOP from outside would, after some steps."""

    def on_step_end(self, step, trainer, logs=None):
        if step == 5:
            os.kill(os.getpid(), signal.SIGSTOP)


def test_f37_a_worker_that_was_suspended_past_its_lease_changes_nothing():
    clock = Clock()
    queue = JobQueue(URL, clock=clock)
    number = queue.submit_job(durable())
    queue.close()
    worker = Child(lambda: JobQueue(URL).work(1, callbacks=[Suspended()]))
    _, status = os.waitpid(worker.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    owner = queue.get_job(number)
    assert (owner.status, owner.token) == ("running", 1)
    assert queue.claim_job() is None, "its lease has not ended yet"

    clock.ahead += 100
    assert queue.work() == 1  # the suspended process has the run's folder: the job is given back, for later
    waiting = queue.get_job(number)
    assert (waiting.status, waiting.token, waiting.attempts) == ("pending", 2, 1)
    with pytest.raises(LeaseLostError):
        queue.complete_job(owner, {"final_loss": 0.0})

    worker.kill(signal.SIGCONT)
    assert worker.join().exit_code == 0
    assert queue.get_job_status(number) == "pending", "what the late worker had was not taken"
    clock.ahead += 100
    assert queue.work() == 1
    job = queue.get_job(number)
    assert (job.status, job.token, job.attempts) == ("completed", 3, 2), job.error
    unbroken = Trainer(plain_lm(), None, CONFIG).train(train_set()).model.state_dict()
    continued = read_checkpoint(Path(job.results["checkpoint_path"]))["model"]
    assert all(torch.equal(continued[name], tensor) for name, tensor in unbroken.items())


def test_a_job_whose_workers_all_die_ends_failed_after_its_attempts():
    queue = JobQueue(URL)
    number = queue.submit_job(durable(max_attempts=3))
    queue.close()

    def claim_and_die() -> None:
        assert JobQueue(URL).claim_job() is not None
        os.kill(os.getpid(), signal.SIGKILL)

    for attempt in (1, 2, 3):
        assert in_child(claim_and_die).killed
        assert queue.get_job(number).attempts == attempt
    assert queue.claim_job() is None
    job = queue.get_job(number)
    assert job.status == "failed"
    assert "stopped answering" in job.error


@pytest.mark.parametrize("jump", [3600.0, -3600.0], ids=["forward", "back"])
def test_f38_the_clock_jumps_by_an_hour(jump):
    clock = Clock()
    queue = JobQueue(URL, clock=clock)
    failed_once, running, waiting = (queue.submit_job(durable(), priority=priority) for priority in (9, 8, 7))
    assert queue.fail_job(queue.claim_job(), "once") == "pending"
    owner = queue.claim_job("owner", lease_s=60)
    assert owner.id == running

    clock.ahead += jump
    claims = []
    while (job := queue.claim_job("another", lease_s=60)) is not None:
        claims.append(job)
    assert [job.id for job in claims] == [failed_once, *([running] if jump > 0 else []), waiting]
    if jump > 0:  # one duplicate, and the earlier owner is refused
        with pytest.raises(LeaseLostError):
            queue.complete_job(owner, {"by": "owner"})
    else:
        assert queue.heartbeat(owner) is False
        claims.append(owner)
    for job in claims:
        queue.complete_job(job, {"by": job.owner})
    assert len(queue.list_jobs("completed")) == 3
    assert queue.get_job_results(running)["by"] == ("another" if jump > 0 else "owner")


def test_f39_a_database_that_is_locked_remote_or_damaged(monkeypatch):
    JobQueue(URL).close()
    locked, release = os.pipe(), os.pipe()

    def hold_the_lock() -> None:
        connection = sqlite3.connect("jobs.db", isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        os.write(locked[1], b"x")
        os.read(release[0], 1)
        connection.execute("ROLLBACK")

    holder = Child(hold_the_lock)
    os.read(locked[0], 1)
    with pytest.raises(QueueBusyError, match=f"stayed locked.*process {holder.pid}"):
        JobQueue(URL, timeout_s=0.1).submit_job(durable())
    submitted: list[int] = []

    def submit_with_patience() -> None:
        patient = JobQueue(URL, timeout_s=60)
        submitted.append(patient.submit_job(durable()))
        patient.close()

    thread = threading.Thread(target=submit_with_patience)
    thread.start()
    os.write(release[1], b"x")
    holder.join()
    thread.join()
    for descriptor in (*locked, *release):
        os.close(descriptor)
    queue = JobQueue(URL)
    assert [job.id for job in queue.list_jobs()] == submitted
    queue.close()

    with monkeypatch.context() as patched:
        patched.setattr("utils.training.jobs.database.filesystem_of", lambda _: "nfs4")
        with pytest.raises(QueueError, match="network drive"):
            JobQueue(URL)

    size = os.path.getsize("jobs.db")
    with open("jobs.db", "r+b") as file:  # the header stays: what is damaged are the pages behind it
        file.seek(1024)
        file.write(b"\xa5" * (size - 1024))
    damaged = Path("jobs.db").read_bytes()
    queue = JobQueue(URL)
    assert queue.list_jobs() == []
    assert "jobs.db.corrupt" in queue.notices[0]
    assert Path("jobs.db.corrupt").read_bytes() == damaged
    assert JobQueue(URL).notices == []


def test_a_database_that_cannot_be_written_is_one_plain_error():
    queue = JobQueue(URL)
    queue.close()

    def read_only(connection, _) -> None:
        connection.execute("PRAGMA query_only=ON")

    sa.event.listen(sa.Pool, "connect", read_only)
    try:
        with pytest.raises(QueueError, match=r"jobs\.db cannot be written") as caught:
            queue.submit_job(durable())
    finally:
        sa.event.remove(sa.Pool, "connect", read_only)
        queue.close()
    assert "\n" not in str(caught.value)
    assert queue.list_jobs() == []


def test_workers_that_are_killed_and_suspended_complete_every_job_once(database_url, tmp_path):
    """The short form of `python -m benchmarks.queue_storm`."""
    found = storm(database_url, tmp_path, jobs=8, workers=4, attacks=6)
    assert found.problems == []
    assert found.jobs >= 8
    assert found.killed + found.suspended > 0
