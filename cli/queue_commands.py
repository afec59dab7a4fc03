"""Work with a job queue from the command line.

    trainbook worker --queue sqlite:///training_jobs.db                       run jobs until stopped
    trainbook worker --queue sqlite:///training_jobs.db --until-empty         run what is due, then end
    trainbook queue submit --queue sqlite:///training_jobs.db --config job.yaml --priority 8
    trainbook queue list --queue sqlite:///training_jobs.db --status running
    trainbook queue show 3 --queue …        also: logs 3, cancel 3, retry 3, stats

Start as many workers as there are devices, in the folder from which "module:function" names can be imported. A worker that gets
SIGTERM or Ctrl-C finishes its step, saves, and gives its job back; one that is killed loses its job to another worker after the
lease, and the job continues from its checkpoint. TRAINBOOK_QUEUE is used where --queue is not given.

Exit status: 0 done, 1 cancel or retry was not possible, 2 an error that the message explains, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cli.common import Parser
from utils.errors import ConfigError, JobNotFoundError, TrainbookError
from utils.training.job_queue import Job, JobConfig, JobQueue

if TYPE_CHECKING:
    from torch import nn

    from utils.data import PreparedData


def main(arguments: Sequence[str]) -> int:
    """Run one command. Returns the exit status."""
    options = make_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.command == "worker" else logging.WARNING, format="%(message)s")
    try:
        url = options.queue or os.environ.get("TRAINBOOK_QUEUE")
        if not url:
            raise ConfigError("which queue? Give --queue sqlite:///training_jobs.db, or set TRAINBOOK_QUEUE.")
        sys.path.insert(0, os.getcwd())  # started as a file, Python would look beside the file only
        queue = JobQueue(url)
        try:
            return int(options.run(queue, options))
        finally:
            queue.close()
    except TrainbookError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the job was given back to the queue", file=sys.stderr)
        return 130


def make_parser() -> argparse.ArgumentParser:
    """The arguments of both commands, after their word."""
    _, _, details = (__doc__ or "").partition("\n")
    parser = Parser(prog="trainbook", docstring=__doc__)
    where = Parser(add_help=False)
    where.add_argument(
        "--queue", metavar="URL", help="sqlite:///file.db, postgresql://user@host/database or ray://host:10001"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="worker|queue")

    worker = commands.add_parser("worker", parents=[where], help="run jobs", epilog=details)
    worker.add_argument("--max-jobs", type=int, metavar="N", help="end after N jobs")
    worker.add_argument("--until-empty", action="store_true", help="end when no job is due")
    worker.add_argument(
        "--lease", type=float, default=60.0, metavar="S", help="seconds until a silent worker's job is taken"
    )
    worker.add_argument(
        "--poll", type=float, default=1.0, metavar="S", help="seconds between two looks at an empty queue"
    )
    worker.set_defaults(run=_worker)

    queue = commands.add_parser("queue", help="submit, list, show, cancel, retry, logs, stats", epilog=details)
    actions = queue.add_subparsers(dest="action", required=True, metavar="ACTION")
    submit = actions.add_parser("submit", parents=[where], help="add a job from a job file")
    submit.add_argument("--config", metavar="FILE", help="the job, as for training; without it the starter job")
    submit.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="change one value of the job")
    submit.add_argument("--priority", type=int, default=5, metavar="1-10", help="larger ones are claimed first")
    submit.add_argument("--devices", type=int, metavar="N", help="processes that train it together")
    submit.add_argument("--max-attempts", type=int, default=3, metavar="N")
    submit.set_defaults(run=_submit)
    listing = actions.add_parser("list", parents=[where], help="jobs by priority")
    listing.add_argument("--status", help="pending, running, completed, failed or cancelled")
    listing.add_argument("--limit", type=int, default=50, metavar="N")
    listing.set_defaults(run=_list)
    for name, run, text in (
        ("show", _show, "a job with its results"), ("logs", _logs, "a job's log"), ("cancel", _cancel, "cancel a job"),
        ("retry", _retry, "put a failed or cancelled job back"),
    ):  # fmt: skip
        action = actions.add_parser(name, parents=[where], help=text)
        action.add_argument("job", type=int, metavar="ID")
        action.set_defaults(run=run)
    stats = actions.add_parser("stats", parents=[where], help="jobs by state")
    stats.set_defaults(run=_stats)
    return parser


def _worker(queue: JobQueue, options: argparse.Namespace) -> int:
    from utils.training.job_worker import Worker

    for sentence in queue.notices:
        print(sentence, file=sys.stderr)
    print(f"worker of {queue.url}; stop it with Ctrl-C", flush=True)
    done = Worker(queue, lease_s=options.lease, poll_s=options.poll).run(
        options.max_jobs, until_empty=options.until_empty
    )
    print(f"{done} job{'' if done == 1 else 's'} run")
    return 0


def _submit(queue: JobQueue, options: argparse.Namespace) -> int:
    from cli.job_files import JobConfig as JobFile
    from cli.job_files import setup_of

    job = JobFile.from_file(options.config, options.set)
    values = job.to_dict()
    setup = setup_of(job)
    config, folder = setup.training_config, {"folder": os.getcwd()}
    job_id = queue.submit_job(
        JobConfig(
            model_factory="cli.queue_commands:model_of_job", train_data="cli.queue_commands:data_of_job",
            arguments={"job": values, **(folder if setup.names_model else {})},
            data_arguments={"job": values, **folder}, training_config=config,
            priority=options.priority, devices=options.devices, max_attempts=options.max_attempts, durable=True,
        )
    )  # fmt: skip
    print(f"job {job_id} submitted to {queue.url}")
    return 0


def model_of_job(job: Mapping[str, Any], folder: str = ".") -> nn.Module:
    """The model of a job file's content, with its relative paths starting at `folder`."""
    import contextlib

    from cli.job_files import JobConfig as JobFile
    from cli.job_files import model_maker

    with contextlib.chdir(folder):
        return model_maker(JobFile.from_dict(job))()


def data_of_job(job: Mapping[str, Any], folder: str, model: nn.Module) -> PreparedData:
    """The data of a job file's content, with its relative paths starting at `folder`."""
    import contextlib

    from cli.job_files import JobConfig as JobFile
    from cli.job_files import setup_of
    from utils.data import prepare_data

    with contextlib.chdir(folder):
        return prepare_data(setup_of(JobFile.from_dict(job), model), model)


def _list(queue: JobQueue, options: argparse.Namespace) -> int:
    jobs = queue.list_jobs(options.status, limit=options.limit)
    rows = [("id", "status", "priority", "attempts", "step", "name"), *map(_row, jobs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _row(job: Job) -> tuple[str, ...]:
    attempts = f"{job.attempts}/{job.max_attempts}"
    return str(job.id), job.status, str(job.priority), attempts, str(job.progress.get("step", "-")), job.name


def _found(queue: JobQueue, job_id: int) -> Job:
    job = queue.get_job(job_id)
    if job is None:
        raise JobNotFoundError(f"there is no job {job_id} in {queue.url}.")
    return job


def _show(queue: JobQueue, options: argparse.Namespace) -> int:
    job = _found(queue, options.job)
    for name in ("id", "name", "status", "priority", "run_dir", "error"):
        print(f"{name:<12}{getattr(job, name) if getattr(job, name) is not None else '-'}")
    print(f"{'attempts':<12}{job.attempts} of {job.max_attempts}, put back {job.retries} of {job.max_retries} times")
    for name, at in (("submitted", job.created_at), ("started", job.started_at), ("ended", job.ended_at)):
        print(f"{name:<12}{'-' if at is None else time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(at))}")
    for name, value in job.progress.items():
        print(f"{name:<12}{value}")
    for name in ("final_loss", "best_value", "best_model_path", "checkpoint_path", "stop_reason"):
        if job.results is not None:
            print(f"{name:<16}{job.results.get(name)}")
    return 0


def _logs(queue: JobQueue, options: argparse.Namespace) -> int:
    for row in queue.get_job_logs(options.job).itertuples():
        print(f"{row.time:%Y-%m-%d %H:%M:%S}  {row.level:<7}  {row.message}")
    return 0


def _cancel(queue: JobQueue, options: argparse.Namespace) -> int:
    if not queue.cancel_job(options.job):
        print(f"job {options.job} has ended already: {queue.get_job_status(options.job)}", file=sys.stderr)
        return 1
    status = queue.get_job_status(options.job)
    print(f"job {options.job} {'cancelled' if status == 'cancelled' else 'stops after its current step'}")
    return 0


def _retry(queue: JobQueue, options: argparse.Namespace) -> int:
    if not queue.retry_job(options.job):
        job = _found(queue, options.job)
        print(
            f"job {job.id} is {job.status} and was put back {job.retries} of {job.max_retries} times: not possible",
            file=sys.stderr,
        )
        return 1
    print(f"job {options.job} waits again")
    return 0


def _stats(queue: JobQueue, options: argparse.Namespace) -> int:
    print(json.dumps(queue.get_queue_stats(), indent=2))
    return 0
