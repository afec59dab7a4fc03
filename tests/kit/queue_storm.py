"""Workers of one queue that are killed and suspended at random while they submit and complete jobs.

Each worker submits jobs until enough are acknowledged, claims what is due, holds each job for a few heartbeats and completes it
with its token. Acknowledgements are appended to files, one line per write, so that a kill leaves a line whole or not at
all. Jobs train nothing: the storm is about who owns them.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.kit.crash import Child
from utils.errors import LeaseLostError, QueueBusyError
from utils.training import JobConfig, JobQueue

#: Seconds of a lease; workers are suspended for longer, so that another one takes their jobs.
LEASE_S = 1.0
_SUSPENDED_S = 1.5 * LEASE_S
_HEARTBEATS, _PAUSE_S = 3, 0.01
_REFERENCE = "tests.kit.toys:plain_lm"


def acknowledge(path: Path, *numbers: int) -> None:
    """Append a line in one write."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (" ".join(map(str, numbers)) + "\n").encode())
    os.close(file)


def acknowledged(path: Path) -> list[tuple[int, ...]]:
    """The lines so far."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


@dataclass
class StormReport:
    """What a storm came to.

    Attributes:
        jobs: in the queue at the end. killed, suspended: workers. repeated: jobs that had more than one owner.
        problems: broken promises, each in a sentence; empty when all were kept.
    """

    jobs: int = 0
    killed: int = 0
    suspended: int = 0
    repeated: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def storm(url: str, folder: Path, jobs: int, workers: int, attacks: int, seed: int = 0) -> StormReport:
    """Complete at least `jobs` jobs with `workers` processes, of which one is killed or suspended `attacks` times."""
    draw, report, began = random.Random(seed), StormReport(), time.monotonic()
    JobQueue(url, timeout_s=60).close()  # the tables are there before anyone is killed

    parent = os.getpid()

    def start() -> Child:
        return Child(lambda: _work(url, folder, jobs, parent))

    running = [start() for _ in range(workers)]
    asleep: dict[int, float] = {}
    try:
        while running:
            time.sleep(draw.uniform(0.01, 0.1))
            now = time.monotonic()
            for pid in [pid for pid, until in asleep.items() if now >= until]:
                del asleep[pid]
                os.kill(pid, signal.SIGCONT)
            for child in [child for child in running if _has_ended(child.pid)]:
                running.remove(child)
                asleep.pop(child.pid, None)  # it had ended when it was to be suspended
                child.join()  # raises what a worker raised
            awake = [child for child in running if child.pid not in asleep]
            if not awake or report.killed + report.suspended >= attacks:
                continue
            victim = draw.choice(awake)
            if draw.random() < 0.5 and len(asleep) < max(1, workers // 4):  # most of them work on
                report.suspended += 1
                asleep[victim.pid] = now + _SUSPENDED_S
                victim.kill(signal.SIGSTOP)
            else:
                victim.kill()
                running.remove(victim)
                report.killed += victim.join().killed
                running.append(start())
    finally:
        for child in running:
            child.kill()
            child.join()
    report.seconds = time.monotonic() - began
    _judge(report, url, folder, jobs)
    return report


def _work(url: str, folder: Path, jobs: int, parent: int) -> None:
    """A worker's life, until every job has ended or the storm's process has."""
    queue = JobQueue(url, timeout_s=60)
    config = JobConfig(_REFERENCE, train_data=_REFERENCE, max_attempts=1000)
    while os.getppid() == parent:
        enough = len(acknowledged(folder / "submitted")) >= jobs
        if not enough:
            acknowledge(folder / "submitted", queue.submit_job(config))
        job = queue.claim_job(lease_s=LEASE_S)
        if job is None:
            stats = queue.get_queue_stats()
            if enough and stats["pending"] == stats["running"] == 0:
                return
            time.sleep(_PAUSE_S)
            continue
        try:
            for step in range(_HEARTBEATS):
                time.sleep(_PAUSE_S)
                queue.heartbeat(job, {"step": step})
            queue.complete_job(job, {"token": job.token})
        except (LeaseLostError, QueueBusyError):
            continue  # another worker has the job, or takes it when the lease ends
        acknowledge(folder / "completed", job.id, job.token)


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _judge(report: StormReport, url: str, folder: Path, wanted: int) -> None:
    queue = JobQueue(url)
    jobs = {job.id: job for job in queue.list_jobs()}
    submitted = [number for (number,) in acknowledged(folder / "submitted")]
    completed = acknowledged(folder / "completed")
    report.jobs, report.repeated = len(jobs), sum(job.attempts > 1 for job in jobs.values())

    def expect(kept: bool, sentence: str) -> None:
        if not kept:
            report.problems.append(sentence)

    expect(len(submitted) >= wanted, f"{len(submitted)} submissions were acknowledged, {wanted} were wanted")
    expect(set(submitted) <= set(jobs), f"acknowledged jobs are lost: {sorted(set(submitted) - set(jobs))}")
    for job in jobs.values():
        expect(job.status == "completed", f"job {job.id} is {job.status}: {job.error}")
        expect(job.results == {"token": job.token}, f"job {job.id} has the results of another claim")
        said = list(queue.get_job_logs(job.id)["message"]).count("completed")
        expect(said == 1, f"job {job.id} was completed {said} times")
    for number, count in Counter(number for number, _ in completed).items():
        expect(count == 1, f"the completion of job {number} was acknowledged {count} times")
    for number, token in completed:
        expect(number in jobs and jobs[number].token == token, f"job {number} was completed by an old claim, {token}")
    queue.close()
