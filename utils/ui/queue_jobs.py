"""A job queue as the notebook's panel shows it: its jobs as rows, and what can be done with them. No widgets, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError, first_line
from utils.views.tables import columns_text

if TYPE_CHECKING:
    from torch import nn

    from utils.training.job_queue import JobQueue
    from utils.training.jobs.store import Job
    from utils.ui.setup_config import SetupConfig

#: Columns of the table of jobs.
HEADER = ("job", "status", "priority", "attempts", "progress", "name", "error")

_FILE = "sqlite:///"
# Lines of a job's log that are shown: the newest ones.
_LOG_LINES = 40


@dataclass(frozen=True)
class QueueRow:
    """One job in short.

    Attributes:
        id: its number; status: its state in the queue.
        cells: what the table shows, as `HEADER` names it.
        run_dir: the folder of its run; None before it started.
    """

    id: int
    status: str
    cells: tuple[str, ...]
    run_dir: Path | None


class QueueJobs:
    """The jobs of one queue, and this notebook's setup as a new one.

    A queue in a file that does not exist yet is empty, and is made by the first submission.

    Args:
        queue: a JobQueue or its URL.
        setup, model: what `submit` adds as a job.
    """

    def __init__(self, queue: JobQueue | str, setup: SetupConfig | None = None, model: nn.Module | None = None) -> None:
        self._queue: JobQueue | None = None if isinstance(queue, str) else queue
        self.url: str = queue if isinstance(queue, str) else queue.url
        self._setup, self._model = setup, model

    def submit(self, priority: int = 5) -> int:
        """Add the setup as a job that any worker can run; its id.

        Raises:
            ConfigError: there is no setup, or other processes cannot make the model: its class is in a notebook's cell.
        """
        from utils.models.origins import origin_of
        from utils.training.job_queue import JobConfig

        if self._setup is None or (self._model is None and not self._setup.names_model):
            raise ConfigError("there is no setup to submit: open the panel with queue_panel(queue, setup, model).")
        # A model that the setup names is loaded or created by the worker, a pretrained one with its tokenizer.
        is_named = self._setup.names_model
        origin = {} if is_named or self._model is None else origin_of(self._model)
        if origin is None:
            raise ConfigError(
                f"a worker cannot make this {type(self._model).__name__}, because it was not made by name. Make it with "
                "ModelRegistry.create(name, …) or load_model('model.py:Class'), or submit a JobConfig whose model_factory is "
                '"module:function".'
            )
        job: Mapping[str, Any] = {"model": origin, **self._setup.sections()}
        folder = {"folder": str(self._setup.home)}
        config = JobConfig(
            "cli.queue_commands:model_of_job", train_data="cli.queue_commands:data_of_job",
            arguments={"job": job, **(folder if is_named else {})}, data_arguments={"job": job, **folder},
            training_config=self._setup.training_config, priority=priority, durable=True,
        )  # fmt: skip
        return self._opened().submit_job(config)

    def rows(self) -> list[QueueRow]:
        """Every job, the newest first."""
        return [_row(job) for job in sorted(self._jobs(), key=lambda job: -job.id)]

    def cancel(self, job_id: int) -> str:
        """Cancel a job; what happened, in words."""
        done = self._opened().cancel_job(job_id)
        return (
            f"Job {job_id} is cancelled; a run under way stops after its step." if done else f"Job {job_id} has ended."
        )

    def retry(self, job_id: int) -> str:
        """Put a failed or cancelled job back; what happened, in words."""
        done = self._opened().retry_job(job_id)
        reason = "only failed and cancelled jobs go back, and each at most `max_retries` times"
        return f"Job {job_id} waits again." if done else f"Job {job_id} was not put back: {reason}."

    def log(self, job_id: int) -> str:
        """The newest lines of a job's log."""
        rows = self._opened().store.log_rows(job_id)[-_LOG_LINES:]
        return "\n".join(f"{row['level']}: {row['message']}" for row in rows)

    def folder(self, job_id: int) -> Path:
        """The folder of a job's run. Raises `ConfigError`: it has not started."""
        job = self._opened().get_job(job_id)
        if job is None or job.run_dir is None:
            raise ConfigError(f"Job {job_id} has no run yet: no worker has started it.")
        return Path(job.run_dir)

    @property
    def worker_command(self) -> str:
        """Command that starts a worker of this queue."""
        return f"python cli/run_training.py worker --queue {self.url}"

    def to_text(self) -> str:
        """The table as text."""
        rows = self.rows()
        if not rows:
            return f"No job in {self.url} yet. A worker is started by: {self.worker_command}"
        return columns_text(HEADER, [row.cells for row in rows])

    def _jobs(self) -> list[Job]:
        missing = self.url.startswith(_FILE) and not Path(self.url.removeprefix(_FILE).partition("?")[0]).exists()
        return [] if self._queue is None and missing else self._opened().list_jobs()

    def _opened(self) -> JobQueue:
        if self._queue is None:
            from utils.training.job_queue import JobQueue

            self._queue = JobQueue(self.url)
            self.url = self._queue.url
        return self._queue


def _row(job: Job) -> QueueRow:
    step, loss = job.progress.get("step"), job.progress.get("train/loss")
    progress = "-" if step is None else f"step {step:,}" + ("" if loss is None else f", loss {loss:.4f}")
    error = first_line(job.error or "") if job.status != "completed" else ""
    cells = (
        str(job.id), job.status, str(job.priority), f"{job.attempts}/{job.max_attempts}", progress, job.name, error,
    )  # fmt: skip
    return QueueRow(job.id, job.status, cells, None if job.run_dir is None else Path(job.run_dir))
