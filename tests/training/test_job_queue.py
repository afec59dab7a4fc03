"""The job queue: states, exactly one owner, fencing, bounded attempts, and a killed worker's job that continues exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.kit.crash import in_child
from tests.kit.toys import golden_config, plain_lm, train_set
from tests.kit.tree import ROOT
from utils.errors import ConfigError, JobNotFoundError, LeaseLostError, QueueError
from utils.training import Callback, JobConfig, JobQueue, Trainer
from utils.training.engine.checkpointing.store import read_checkpoint

URL = "sqlite:///jobs.db"
CONFIG = golden_config(run_name=None, early_stopping_patience=None)


class Clock:
    """Seconds that pass when a test says so."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(clock, database_url):
    found = JobQueue(database_url, clock=clock)
    yield found
    found.close()


def durable(**changes) -> JobConfig:
    named = {
        "model_factory": "tests.kit.toys:plain_lm", "train_data": "tests.kit.toys:train_set", "training_config": CONFIG,
    }  # fmt: skip
    return JobConfig(**{**named, **changes})


def broken():
    """A model factory that fails."""
    raise ConfigError("no such model")


def test_a_job_of_this_processs_objects_runs_here_on_sqlite_and_is_refused_for_other_hosts(clock, database_url):
    queue = JobQueue(database_url, clock=clock)
    job = JobConfig(lambda: plain_lm(), train_data=train_set(), training_config=CONFIG)
    if database_url.startswith("sqlite"):
        number = queue.submit_job(job)
        queue.work()
        assert queue.get_job_status(number) == "completed"
    else:
        with pytest.raises(ConfigError, match="module:function"):
            queue.submit_job(job)
        assert queue.list_jobs() == []
    queue.close()


def test_a_queue_that_nobody_holds_leaves_no_open_file():
    queue = JobQueue(URL)
    queue.submit_job(durable())
    file = str(Path("jobs.db").resolve())
    assert file in open_files()
    del queue
    assert file not in open_files()


def open_files() -> set[str]:
    """Paths that this process has open; a skip where the system does not say."""
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("the system does not list a process's open files")
    return {os.readlink(entry) for entry in folder.iterdir() if entry.is_symlink()}


def test_the_database_has_the_clock_that_all_workers_share(database_url, monkeypatch):
    """A host whose clock is a day ahead neither takes a running job away nor loses its own lease."""
    queue = JobQueue(database_url)
    queue.submit_job(durable())
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86_400)
    job = queue.claim_job("ahead", lease_s=60)
    monkeypatch.undo()
    assert queue.claim_job("another") is None
    assert abs(job.lease_until - 60 - real()) < 3600
    queue.complete_job(job, {"final_loss": 1.0})
    queue.close()


def test_a_job_goes_from_pending_to_completed(queue):
    number = queue.submit_job(durable())
    assert queue.get_job_status(number) == "pending"
    with pytest.raises(QueueError, match="has not started"):
        queue.get_job_results(number)
    assert queue.work() == 1
    assert queue.get_job_status(number) == "completed"
    results = queue.get_job_results(number)
    assert results["final_loss"] == Trainer(plain_lm(), None, CONFIG).train(train_set())["final_loss"]
    logs = queue.get_job_logs(number)
    assert list(logs.columns) == ["time", "level", "message", "token"]
    assert queue.get_queue_stats()["completed"] == 1
    assert not queue.cancel_job(number)
    assert not queue.retry_job(number)


def test_what_waits_is_claimed_by_priority_and_then_by_age(queue):
    numbers = [queue.submit_job(durable(), priority=priority) for priority in (5, 9, 5, 1)]
    assert [job.id for job in queue.list_jobs()] == [numbers[index] for index in (1, 0, 2, 3)]
    assert [queue.claim_job().id for _ in numbers] == [numbers[index] for index in (1, 0, 2, 3)]
    assert queue.claim_job() is None
    assert len(queue.list_jobs("running")) == 4
    assert queue.list_jobs("pending") == []


@pytest.mark.parametrize("priority", [0, 11, True, "5"])
def test_a_priority_out_of_range_submits_nothing(queue, priority):
    with pytest.raises(ConfigError, match="Priority must be 1-10"):
        queue.submit_job(durable(), priority=priority)
    assert queue.list_jobs() == []


def test_unknown_jobs_and_states(queue):
    assert queue.get_job(7) is None
    for ask in (queue.get_job_status, queue.cancel_job, queue.retry_job, queue.get_job_logs):
        with pytest.raises(JobNotFoundError):
            ask(7)
    with pytest.raises(ConfigError, match="did you mean 'completed'"):
        queue.list_jobs("complete")


def test_a_job_is_claimed_by_exactly_one(queue):
    numbers = [queue.submit_job(durable()) for _ in range(24)]
    claimed, together = [], threading.Barrier(8)

    def claim_all() -> None:
        together.wait()
        while (job := queue.claim_job()) is not None:
            claimed.append((job.id, job.token))

    threads = [threading.Thread(target=claim_all) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(number for number, _ in claimed) == numbers


@pytest.mark.parametrize("max_jobs", [0, -1, True])
def test_a_worker_refuses_a_number_of_jobs_below_1(queue, max_jobs):
    with pytest.raises(ConfigError, match=f"max_jobs is a whole number of at least 1, or None; got {max_jobs}"):
        queue.work(max_jobs)


def test_a_lease_that_ran_out_goes_to_another_and_the_first_owner_is_fenced_off(queue, clock):
    number = queue.submit_job(durable())
    first = queue.claim_job("a", lease_s=60)
    clock.now += 59
    assert queue.heartbeat(first) is False
    assert queue.claim_job("b") is None
    clock.now += 61
    second = queue.claim_job("b", lease_s=60)
    assert (second.id, second.token > first.token, second.attempts) == (number, True, 2)
    for late in (
        lambda: queue.heartbeat(first), lambda: queue.complete_job(first, {"final_loss": 0.0}),
        lambda: queue.fail_job(first, "late"), lambda: queue.release_job(first),
    ):  # fmt: skip
        with pytest.raises(LeaseLostError):
            late()
    queue.complete_job(second, {"final_loss": 1.0})
    assert queue.get_job_results(number)["final_loss"] == 1.0


def test_a_job_that_always_fails_ends_failed_after_its_attempts(queue, clock):
    number = queue.submit_job(durable(max_attempts=3))
    waits = []
    for attempt in range(3):
        job = queue.claim_job()
        state = queue.fail_job(job, "boom: token=hf_" + "Ab3" * 11 + "z")
        assert state == ("pending" if attempt < 2 else "failed")
        begun = clock.now
        while state == "pending" and (found := queue.claim_job()) is None:
            clock.now += 1
        if state == "pending":
            waits.append(clock.now - begun)
            queue.release_job(found)
    assert waits[0] > 0
    assert waits[1] > waits[0]
    job = queue.get_job(number)
    assert job.status == "failed"
    assert "boom" in job.error
    assert "Ab3Ab3" not in job.error
    with pytest.raises(QueueError, match="boom"):
        queue.get_job_results(number)


def test_retry_and_cancel(queue):
    number = queue.submit_job(durable(max_attempts=1, max_retries=1))
    assert queue.fail_job(queue.claim_job(), "once") == "failed"
    assert queue.retry_job(number)
    assert queue.get_job_status(number) == "pending"
    assert queue.cancel_job(number)
    assert queue.get_job_status(number) == "cancelled"
    assert not queue.retry_job(number)
    running = queue.submit_job(durable())
    job = queue.claim_job()
    assert queue.cancel_job(running)
    assert queue.heartbeat(job) is True


def test_a_job_that_no_other_process_can_run_is_refused_where_it_must_be(queue):
    with pytest.raises(ConfigError, match="module:function") as caught:
        queue.submit_job(JobConfig(lambda: plain_lm(), train_data=train_set(), training_config=CONFIG, durable=True))
    assert "model_factory" in str(caught.value)
    assert "train_data" in str(caught.value)
    assert queue.list_jobs() == []


def test_a_failing_job_fails_with_the_models_error(queue):
    number = queue.submit_job(durable(model_factory=broken))
    queue.work()
    assert queue.get_job_status(number) == "failed"
    assert "no such model" in queue.get_job(number).error


@pytest.mark.parametrize("content", [b"", b"not a database, but long enough to be looked at" * 20])
def test_a_file_that_is_no_queue_is_not_damaged(content):
    Path("jobs.txt").write_bytes(content)
    if content:
        with pytest.raises(QueueError):
            JobQueue("sqlite:///jobs.txt")
        assert Path("jobs.txt").read_bytes() == content
    else:
        assert JobQueue("sqlite:///jobs.txt").list_jobs() == []


class Killed(Callback):
    """Kills its process when the second epoch is saved."""

    def on_checkpoint_saved(self, path, trainer, logs=None):
        if trainer.state.step >= 6:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_the_job_of_a_killed_worker_is_finished_exactly_by_the_next_one(tmp_path):
    queue = JobQueue(URL)
    number = queue.submit_job(durable())
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert in_child(lambda: JobQueue(URL).work(callbacks=[Killed()])).killed
    assert queue.get_job_status(number) == "running"
    command = [sys.executable, str(ROOT / "cli" / "run_training.py"), "worker", "--queue", URL, "--until-empty"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    job = queue.get_job(number)
    assert (job.status, job.attempts) == ("completed", 2), job.error
    unbroken = Trainer(plain_lm(), None, CONFIG).train(train_set())
    checkpoint = queue.get_job_results(number)["checkpoint_path"]
    for name, tensor in unbroken.model.state_dict().items():
        assert torch.equal(read_checkpoint(Path(checkpoint))["model"][name], tensor)


@pytest.mark.parametrize("url", ["ray://", "ray://host", "ray:///queue.db", "ray://host:port"])
def test_a_url_that_names_no_cluster_is_refused_with_an_example(url):
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match="ray://host:10001"):
        JobQueue(url)


def test_a_cluster_that_does_not_answer_is_an_error_at_once():
    pytest.importorskip("ray")
    with pytest.raises(QueueError, match="ray start --head"):
        JobQueue("ray://127.0.0.1:9", timeout_s=5.0)
