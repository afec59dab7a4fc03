"""A job on two devices: torchrun trains it, the worker holds the lease, and whatever ends a process, it continues exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kit.attacked import processes_of
from tests.kit.toys import golden_config
from tests.kit.tree import ROOT
from utils.training import JobConfig, JobQueue
from utils.training.engine.checkpointing.store import read_checkpoint
from utils.training.run_state import read_state

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are found in /proc"),
]

LEASE_S = 1.5


def job_in(folder: Path) -> JobConfig:
    config = golden_config(run_name=None, early_stopping_patience=None, epochs=6, output_dir=str(folder / "runs"))
    return JobConfig(
        "tests.kit.attacked:attacked_lm", train_data="tests.kit.toys:train_set", training_config=config, devices=2,
        arguments={"folder": str(folder)},
    )  # fmt: skip


class Clock:
    """Seconds that pass when a test says so."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """What a job learns that nothing disturbs."""
    folder = tmp_path_factory.mktemp("unbroken")
    queue = JobQueue(f"sqlite:///{folder}/jobs.db")
    number = queue.submit_job(job_in(folder))
    assert queue.work() == 1
    assert queue.get_job_status(number) == "completed", queue.get_job(number).error
    return queue.get_job_results(number)


def assert_same(results, unbroken):
    assert results["loss_history"] == unbroken["loss_history"]
    first, second = (read_checkpoint(Path(found["checkpoint_path"])) for found in (results, unbroken))
    for name, tensor in second["model"].items():
        assert torch.equal(first["model"][name], tensor), name


def test_two_processes_train_a_job_as_one(unbroken):
    assert unbroken["epochs_trained"] == 6
    assert any("Trained by 2 processes together" in notice for notice in unbroken["notices"])
    assert len(read_checkpoint(Path(unbroken["checkpoint_path"]))["other_processes"]) == 1
    assert processes_of() == []


def test_a_job_whose_worker_is_killed_stops_on_all_devices_and_the_next_worker_continues_it(unbroken, tmp_path):
    queue = JobQueue(f"sqlite:///{tmp_path}/jobs.db")
    number = queue.submit_job(job_in(tmp_path))
    (tmp_path / "kill_worker").touch()
    command = [
        sys.executable, str(ROOT / "cli" / "run_training.py"), "worker", "--queue", queue.url, "--until-empty",
    ]  # fmt: skip
    killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=400)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert queue.get_job_status(number) == "running"
    run_dir = Path(queue.get_job(number).run_dir)
    # The processes notice that they are alone, and end by themselves.
    subprocess.run(["flock", "--wait", "300", str(run_dir / "lock"), "true"], check=True)
    stopped = read_state(run_dir)
    assert (stopped["stop_reason"], stopped["epoch"] < 6) == ("worker_stopped", True)
    assert queue.work() == 1
    assert queue.get_job(number).attempts == 2
    assert_same(queue.get_job_results(number), unbroken)


def test_a_job_survives_a_killed_process_and_its_cancellation_reaches_all_of_them(tmp_path):
    clock = Clock()
    queue = JobQueue(f"sqlite:///{tmp_path}/jobs.db", clock=clock)
    number = queue.submit_job(job_in(tmp_path))
    (tmp_path / "kill_rank").touch()
    assert queue.work() == 1
    job = queue.get_job(number)
    assert (job.status, job.attempts) == ("pending", 1)
    # Said by the process that is left, or by torchrun where that was quicker to end it.
    assert "another one of this training did not answer" in job.error or "Signal 9 (SIGKILL)" in job.error
    assert processes_of() == []
    clock.now += 3600
    (tmp_path / "cancel").write_text(f"{queue.url} {number}")
    assert queue.work(lease_s=LEASE_S) == 1
    assert queue.get_job_status(number) == "cancelled", list(queue.get_job_logs(number).message)
    assert processes_of() == []
    assert read_state(Path(job.run_dir))["stop_reason"] == "job_cancelled"
    assert queue.get_job(number).token == 2
