"""A job on several devices of this host: torchrun starts its processes, and the worker watches them.

The worker keeps the lease. Between it and the first process of the training there is a folder: job.json in one direction, then
a file `stop` with the reason; progress.json and outcome.json in the other. Processes whose worker is gone stop at a step.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import LeaseLostError, QueueError, RunLockedError
from utils.scrubbing import describe_error
from utils.storage import write_json, write_text
from utils.training.jobs import process
from utils.training.jobs.config import JobConfig
from utils.training.jobs.lease import WORKER_STOPPED, LeaseKeeper
from utils.training.jobs.store import Job

if TYPE_CHECKING:
    from utils.training.job_worker import Worker

_POLL_S = 0.2
# Lines of the processes' output that an error quotes.
_QUOTED = 30


class _DevicesError(QueueError):
    """The processes of a job ended without results."""


def train_on_devices(worker: Worker, job: Job, keeper: LeaseKeeper) -> dict[str, Any]:
    """Train a job in `devices` processes; the outcome as `Worker` expects it.

    Raises:
        RunLockedError: another process trains in the run's folder. QueueError: the training failed; says how.
    """
    with tempfile.TemporaryDirectory(prefix="trainbook-job-") as name:
        folder = Path(name)
        content = {"spec": job.spec, "name": job.name, "worker": process.identity(), "folder": str(folder)}
        write_json(folder / "job.json", content)

        def ask(reason: str) -> None:
            write_text(folder / "stop", reason)

        worker.on_stop(ask, keeper)
        with open(folder / "output.txt", "wb") as output, _started(job, folder, output) as processes:
            while processes.poll() is None:
                time.sleep(_POLL_S)
                _take_progress(worker, job, keeper, folder)
        _take_progress(worker, job, keeper, folder)
        outcome = _read(folder / "outcome.json")
        if outcome is None:
            lines = (folder / "output.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-_QUOTED:]
            quoted = "\n".join(lines)
            raise _DevicesError(
                f"the processes of the job ended with status {processes.returncode} and no results:\n{quoted}"
            )
        if "error" in outcome:
            if outcome["locked"]:
                raise RunLockedError(outcome["error"])
            if outcome["for_good"]:
                raise _failed_for_good(outcome["error"])
            raise _DevicesError(outcome["error"])
        return outcome


def _failed_for_good(error: str) -> Exception:
    from utils.errors import ConfigError

    return ConfigError(error)


@contextlib.contextmanager
def _started(job: Job, folder: Path, output: Any) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={job.spec['devices']}",
        "-m", "utils.training.jobs.devices", str(folder / "job.json"),
    ]  # fmt: skip
    # What this process can import, they can.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    # A session of their own: Ctrl-C in a terminal reaches the worker, which stops them in good order.
    processes = subprocess.Popen(
        command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )
    try:
        yield processes
    except BaseException:
        # Ctrl-C: wait for a step's end and a checkpoint. A second one ends them at once.
        try:
            write_text(folder / "stop", WORKER_STOPPED)
            processes.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(processes.pid, signal.SIGKILL)
            processes.wait()
        raise


def _take_progress(worker: Worker, job: Job, keeper: LeaseKeeper, folder: Path) -> None:
    progress = _read(folder / "progress.json")
    if progress is None or progress["row"] == keeper.progress:
        return
    if keeper.progress is None and progress["run_dir"]:
        with contextlib.suppress(LeaseLostError):
            worker.queue.store.note_run(job, progress["run_dir"])
            worker.queue.store.log_as_owner(job, f"trains on {job.spec['devices']} devices in {progress['run_dir']}")
    keeper.progress = progress["row"]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content if isinstance(content, dict) else None


# ---- in the processes that torchrun starts ----


def main(job_file: str) -> int:
    """Train a job as one of its processes. The first one writes the outcome."""
    from utils.training.job_worker import is_for_good
    from utils.training.jobs.running import JobProgress, kept, prepare

    content = json.loads(Path(job_file).read_text(encoding="utf-8"))
    folder, first = Path(content["folder"]), os.environ.get("RANK", "0") == "0"
    written_at = -1.0
    run_dir = ""

    def started(path: str) -> None:
        nonlocal run_dir
        run_dir = path

    def report(row: dict[str, Any]) -> None:
        nonlocal written_at
        if time.monotonic() - written_at >= _POLL_S:
            written_at = time.monotonic()
            write_json(folder / "progress.json", {"row": row, "run_dir": run_dir})

    try:
        watching = JobProgress(report, lambda sentence: None, started, lambda: None)
        trainer, train_data, val_data = prepare(JobConfig.from_spec(content["spec"]), content["name"], [watching])
        with _watched(folder, content["worker"], trainer.request_stop) if first else contextlib.nullcontext():
            results = trainer.train(train_data, val_data, resume_from="auto")
    except Exception as error:
        if first:
            outcome = {
                "error": describe_error(error), "for_good": is_for_good(error), "locked": isinstance(error, RunLockedError),
            }  # fmt: skip
            write_json(folder / "outcome.json", outcome)
        raise
    if first:
        write_json(folder / "outcome.json", {"results": kept(results)})
    return 0


@contextlib.contextmanager
def _watched(folder: Path, worker: str, ask: Any) -> Iterator[None]:
    """Pass the worker's request to stop on, and make one when the worker is gone."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_S):
            if (folder / "stop").exists():
                ask((folder / "stop").read_text(encoding="utf-8"))
                return
            if process.is_gone(worker):
                ask(WORKER_STOPPED)
                return

    thread = threading.Thread(target=watch, name="trainbook-job-watch")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
