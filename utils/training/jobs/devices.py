"""A training on several devices of this host: torchrun starts its processes, and a worker or a notebook watches them.

The watcher and the first process of the training talk through a folder. job.json goes to the processes, then the requests: a
file `stop` with the reason, `pause` for as long as it exists, `save`. progress.json and outcome.json come back. Processes whose
watcher is gone finish their step, save and end.
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
from utils.scrubbing import describe_error, scrub
from utils.storage import write_json, write_text
from utils.training.jobs import process
from utils.training.jobs.config import JobConfig
from utils.training.jobs.lease import WORKER_STOPPED, LeaseKeeper
from utils.training.jobs.store import Job

if TYPE_CHECKING:
    from utils.training.engine.interrupts import Control
    from utils.training.job_worker import Worker

#: Seconds between two looks at the folder, on both sides.
POLL_S = 0.2
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
        run_dir = ""
        with started(folder, int(job.spec["devices"])) as processes:
            while processes.poll() is None:
                time.sleep(POLL_S)
                run_dir = _take_progress(worker, job, keeper, folder, run_dir)
        _take_progress(worker, job, keeper, folder, run_dir)
        outcome = read(folder / "outcome.json")
        if outcome is None:
            raise _DevicesError(no_results(folder, processes.returncode))
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
def started(folder: Path, devices: int) -> Iterator[subprocess.Popen[bytes]]:
    """torchrun with `devices` processes that train what the folder's job.json says. At an exception they are stopped."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={devices}",
        "-m", "utils.training.jobs.devices", str(folder / "job.json"),
    ]  # fmt: skip
    # What this process can import, they can.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    with open(folder / "output.txt", "wb") as output:
        # A session of their own: Ctrl-C in a terminal reaches the watcher, which stops them in good order.
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
                _kill(processes)
            raise


def _kill(processes: subprocess.Popen[bytes]) -> None:
    """End torchrun, which starts each training process in a session of its own, and those processes."""
    children = process.children(processes.pid)
    for pid in (processes.pid, *children):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    processes.wait()


def no_results(folder: Path, status: int) -> str:
    """Error message for processes that ended without a result: the end of their output."""
    lines = (folder / "output.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-_QUOTED:]
    quoted = "\n".join(lines)
    return f"the training processes ended with status {status} and no results:\n{quoted}"


def _take_progress(worker: Worker, job: Job, keeper: LeaseKeeper, folder: Path, noted: str) -> str:
    """Pass on how far the training is; the run's folder once it is known, which is noted in the queue."""
    progress = read(folder / "progress.json")
    if progress is None:
        return noted
    if progress["run_dir"] != noted:
        with contextlib.suppress(LeaseLostError):  # the keeper notices, and stops the run
            worker.queue.store.note_run(job, progress["run_dir"])
            worker.queue.store.log_as_owner(job, f"trains on {job.spec['devices']} devices in {progress['run_dir']}")
    if progress["row"] is not None:
        keeper.progress = progress["row"]
    return str(progress["run_dir"])


def read(path: Path) -> dict[str, Any] | None:
    """The content of a file that the other side writes; None before it is written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content if isinstance(content, dict) else None


# ---- in the processes that torchrun starts ----


def main(job_file: str) -> int:
    """Train as one of the processes. The first one writes the outcome."""
    from utils.training.job_worker import is_for_good
    from utils.training.jobs.running import JobProgress, kept

    content = json.loads(Path(job_file).read_text(encoding="utf-8"))
    folder, first = Path(content["folder"]), os.environ.get("RANK", "0") == "0"
    written_at = -1.0
    run_dir = ""

    def started(path: str) -> None:
        nonlocal run_dir
        run_dir = path
        write_json(folder / "progress.json", {"row": None, "run_dir": run_dir})

    def report(row: dict[str, Any]) -> None:
        nonlocal written_at
        if time.monotonic() - written_at >= POLL_S:
            written_at = time.monotonic()
            write_json(folder / "progress.json", {"row": row, "run_dir": run_dir})

    try:
        watching = JobProgress(report, lambda sentence: None, started, lambda: None)
        trainer, train_data, val_data, resume_from = _prepared(content, watching)
        with _watched(folder, content["worker"], trainer.control) if first else contextlib.nullcontext():
            results = trainer.train(train_data, val_data, resume_from=resume_from)
    except Exception as error:
        if first:
            outcome = {
                "error": describe_error(error), "for_good": is_for_good(error), "locked": isinstance(error, RunLockedError),
                "kind": type(error).__name__, "message": scrub(str(error)),
            }  # fmt: skip
            write_json(folder / "outcome.json", outcome)
        raise
    if first:
        more = {"precision": results.precision, "export_dir": results.export_dir, "export_error": results.export_error}
        more["fine_tuning"] = results.fine_tuning
        spec = None if results.task_spec is None else results.task_spec.to_dict()
        write_json(folder / "outcome.json", {"results": kept(results), **more, "task_spec": spec})
    return 0


def _prepared(content: dict[str, Any], watching: Any) -> tuple[Any, Any, Any, Any]:
    """The trainer, its training and validation data, and where it continues: of a job, or of a notebook."""
    if "spec" in content:
        from utils.training.jobs.running import prepare

        return (*prepare(JobConfig.from_spec(content["spec"]), content["name"], [watching]), "auto")
    from utils.training.jobs.handed import received

    return received(content["socket"], watching)


@contextlib.contextmanager
def _watched(folder: Path, watcher: str, control: Control) -> Iterator[None]:
    """Pass the watcher's requests on, and make one to stop when the watcher is gone."""
    ended = threading.Event()

    def watch() -> None:
        paused = False
        while not ended.wait(POLL_S):
            if (folder / "stop").exists():
                control.request_stop((folder / "stop").read_text(encoding="utf-8"))
                return
            if process.is_gone(watcher):
                control.request_stop(WORKER_STOPPED)
                return
            if (folder / "pause").exists() != paused:
                paused = not paused
                (control.pause.set if paused else control.pause.clear)()
            for request, name in ((control.save_now, "save"), (control.finish, "finish")):
                if (folder / name).exists():
                    (folder / name).unlink()
                    request.set()

    thread = threading.Thread(target=watch, name="trainbook-job-watch")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
