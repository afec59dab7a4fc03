"""Kill and suspend a queue's workers at random, and check that every job was completed exactly once.

    python -m benchmarks.queue_storm --jobs 200 --workers 8 --database sqlite
    python -m benchmarks.queue_storm --jobs 200 --workers 8 --database postgresql

Workers are ended with SIGKILL and replaced, or suspended with SIGSTOP for longer than their lease. `postgresql` starts a server
of its own from the system's package. Exit status 1 when an acknowledged job is lost, or was completed by more than one claim.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import tempfile
from pathlib import Path

from tests.kit.databases import postgres_server
from tests.kit.queue_storm import storm


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--attacks", type=int, help="kills and suspensions; default: half as many as jobs")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    attacks = arguments.jobs // 2 if arguments.attacks is None else arguments.attacks
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if arguments.database == "sqlite":
            url = f"sqlite:///{folder}/jobs.db"
        else:
            url = stack.enter_context(postgres_server())()
        found = storm(url, folder, arguments.jobs, arguments.workers, attacks, arguments.seed)
    print(
        f"{arguments.database}: {found.jobs} jobs in {found.seconds:.0f} s, {found.killed} workers killed, {found.suspended} "
        f"suspended, {found.repeated} jobs with more than one owner, {len(found.problems)} problems"
    )
    for problem in found.problems:
        print(f"  {problem}")
    return bool(found.problems)


if __name__ == "__main__":
    sys.exit(main())
