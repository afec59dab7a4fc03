"""What the job queue's transactions cost on SQLite, and whether a long table makes them slower.

    python -m benchmarks.job_queue                         100 and 100,000 jobs in the table, 200 rounds
    python -m benchmarks.job_queue --jobs 10000 --rounds 50

Each round submits a job, claims one, reports progress and completes it, once in a queue with 100 jobs, once in a queue where
all the other jobs wait, and once in a queue where they are completed. Printed are milliseconds, median and quartiles, and the
median over the rounds of the claim's time divided by that in the queue of 100. Exit status 1 when a median reaches 10 ms, or
the long table makes a claim slower by more than half.

Each transaction ends with an fsync, so the figures depend on the disk: `--folder` says where the databases are.
"""

from __future__ import annotations

import argparse
import logging
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks.report import Spread, ratios
from utils.training import JobConfig, JobQueue

SMALL = 100
SLOWEST_MS, LARGEST_RATIO = 10.0, 1.5
STEPS = ("submit", "claim", "update", "complete")

T = TypeVar("T")


def filled(path: Path, jobs: int, status: str) -> JobQueue:
    """A queue whose table holds copies of one job, of priorities 1 to 10, all in this state."""
    queue = JobQueue(f"sqlite:///{path}")
    queue.submit_job(_job())
    queue.close()
    connection = sqlite3.connect(path)
    names = [row[1] for row in connection.execute("PRAGMA table_info(trainbook_jobs)") if row[1] != "id"]
    values = {"status": "?", "priority": "1 + n % 10"}
    with connection:  # one by one it would take minutes, and end in the same rows
        connection.execute(
            f"WITH RECURSIVE numbers(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM numbers WHERE n < {jobs}) "  # noqa: S608
            f"INSERT INTO trainbook_jobs ({', '.join(names)}) "
            f"SELECT {', '.join(values.get(name, name) for name in names)} FROM trainbook_jobs, numbers WHERE id = 1",
            (status,),
        )
    connection.close()
    return queue


def _job() -> JobConfig:
    return JobConfig("benchmarks.job_queue:filled", train_data="benchmarks.job_queue:filled")  # never run


def one_round(queue: JobQueue) -> dict[str, float]:
    """Milliseconds of each step, for one job."""
    taken: dict[str, float] = {}

    def timed(step: str, function: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = function()
        taken[step] = 1000 * (time.perf_counter() - began)
        return result

    config = _job()
    timed("submit", lambda: queue.submit_job(config))
    job = timed("claim", queue.claim_job)
    assert job is not None, "a job was just submitted"
    timed("update", lambda: queue.heartbeat(job, {"step": 1, "train/loss": 1.0}))
    timed("complete", lambda: queue.complete_job(job, {"final_loss": 1.0}))
    return taken


def measure(folder: Path, jobs: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """The rounds of each queue; the queues take turns, so that a busy moment of the machine meets all of them."""
    queues = {
        f"{SMALL:,} waiting": filled(folder / "small.db", SMALL, "pending"),
        f"{jobs:,} waiting": filled(folder / "waiting.db", jobs, "pending"),
        f"{jobs:,} completed": filled(folder / "completed.db", jobs, "completed"),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in queues}
    for queue in queues.values():
        one_round(queue)  # connections and statements are made once
    for _ in range(rounds):
        for name, queue in queues.items():
            found[name].append(one_round(queue))
    for queue in queues.values():
        queue.close()
    return found


def main() -> int:
    """Print the figures; exit status 1 when they miss what is promised."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000, help="in the long tables")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="for the databases, removed afterwards; default: the system's")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        found = measure(Path(folder), arguments.jobs, arguments.rounds)
    first, *_ = found.values()
    missed = False
    print(f"{'jobs in the table':20}" + "".join(f"{step + ' ms':>26}" for step in STEPS) + f"{'claim, to 100':>26}")
    for name, rows in found.items():
        spreads = [Spread.of([row[step] for row in rows]) for step in STEPS]
        ratio = ratios([row["claim"] for row in rows], [row["claim"] for row in first])
        print(f"{name:20}" + "".join(f"{spread!s:>26}" for spread in (*spreads, ratio)))
        missed |= ratio.median > LARGEST_RATIO or any(spread.median >= SLOWEST_MS for spread in spreads)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
