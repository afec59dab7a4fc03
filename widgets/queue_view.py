"""The queue panel: submit this setup as a job, see all jobs, open a job's live view, cancel, retry, read the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ipywidgets

from utils.environment import ui_mode
from utils.ui.queue_jobs import HEADER, QueueJobs
from utils.views.design import styled
from utils.views.display import LiveOutput, show_html, show_text
from utils.views.html import Html, columns
from widgets.follow_slot import FollowSlot
from widgets.forms import (
    button,
    code,
    heading,
    markup_box,
    panel,
    paragraph,
    primary,
    problem_line,
    row,
    set_markup,
    small,
)
from widgets.guarded import error_sentence

if TYPE_CHECKING:
    from torch import nn

    from utils.training.job_queue import JobQueue
    from utils.ui.setup_config import SetupConfig


def queue_panel(
    queue: JobQueue | str, setup: SetupConfig | None = None, model: nn.Module | None = None, *, ui: str | None = None
) -> QueueJobs:
    """Show the jobs of a queue. Starts no worker, and makes no database before something is submitted.

    Args:
        queue: a JobQueue or its URL, such as "sqlite:///training_jobs.db".
        setup, model: what the button Submit adds as a job; None: jobs can only be watched.
        ui: "auto", "widget", "html", "text" or "none" (`utils.environment.ui_mode`).
    Returns:
        the jobs, with `submit`, `cancel`, `retry` and `log` for those who rather type.
    """
    jobs = QueueJobs(queue, setup, model)
    mode = ui_mode(ui)
    if mode == "widget":
        LiveOutput(QueuePanel(jobs, submits=setup is not None).box, jobs.to_text())
    elif mode == "html":
        show_html(styled(_table(jobs, f"Jobs in {jobs.url}")), jobs.to_text())
    elif mode == "text":
        show_text(jobs.to_text())
    return jobs


def _table(jobs: QueueJobs, title: str) -> Html:
    rows = jobs.rows()
    if not rows:
        return paragraph(f"No job in {jobs.url} yet.")
    return columns(title, HEADER, [found.cells for found in rows])


class QueuePanel:
    """The panel's widgets.

    Attributes:
        box: what is shown; table, message, log: its texts; job: the menu of jobs; live: the live view of one job.
        submit, refresh, open, cancel, retry, show_log: the buttons.
    """

    def __init__(self, jobs: QueueJobs, *, submits: bool = True) -> None:
        self._jobs = jobs
        self.message, self.table, self.log = (markup_box(f"tb-queue-{name}") for name in ("message", "table", "log"))
        self.job = ipywidgets.Dropdown(
            description="Job", style={"description_width": "initial"},
            layout=ipywidgets.Layout(width="auto", max_width="320px"),
        )  # fmt: skip
        self.job.add_class("tb-queue-job")
        self._slot = FollowSlot("tb-queue-live")
        self.live = self._slot.box
        self.submit = primary(self._button("Submit this setup", "submit", self._submit))
        self.refresh = self._button("Refresh", "refresh", lambda _: self._say(""))
        self.open = self._button("Live view", "open", self._open)
        self.cancel = self._button("Cancel job", "cancel", lambda _: self._say(jobs.cancel(self.job.value)))
        self.retry = self._button("Retry", "retry", lambda _: self._say(jobs.retry(self.job.value)))
        self.show_log = self._button("Log", "log-button", self._show_log)
        self._actions = row(self.job, self.open, self.cancel, self.retry, self.show_log)
        self.box = panel(
            markup_box(markup=heading(f"Jobs in {jobs.url}")),
            row(*([self.submit] if submits else []), self.refresh), self.table,
            self._actions, self.message, self.log, self.live,
            markup_box(markup=small("Jobs are run by workers; each of these commands in a terminal starts one:")),
            markup_box(markup=code(jobs.worker_command)),
        )  # fmt: skip
        self.draw()

    def draw(self) -> None:
        """Show the jobs as they are now."""
        rows, chosen = self._jobs.rows(), self.job.value
        set_markup(self.table, _table(self._jobs, "") if rows else paragraph("No job yet."))
        self.job.options = [(f"{found.id} ({found.status})", found.id) for found in rows]
        if rows:
            self.job.value = chosen if chosen in [found.id for found in rows] else rows[0].id
        self._actions.layout.display = None if rows else "none"

    def _button(self, label: str, name: str, handler: Any) -> Any:
        return button(label, f"tb-queue-{name}", handler, self._report)

    def _report(self, error: BaseException) -> None:
        set_markup(self.message, problem_line(error_sentence(error)))

    def _say(self, sentence: str) -> None:
        set_markup(self.message, paragraph(sentence))
        self.draw()

    def _submit(self, _: Any) -> None:
        self._say(f"Job {self._jobs.submit()} waits for a worker.")

    def _show_log(self, _: Any) -> None:
        set_markup(self.log, code(self._jobs.log(self.job.value)))

    def _open(self, _: Any) -> None:
        """The live view of a job from its run's folder, in place of the one before."""
        folder = self._jobs.folder(self.job.value)
        if self._slot.open(folder):
            self._say(f"Job {self.job.value} trains in {folder}.")
