"""The runs of a folder as a panel shows them, and what can be done with them. Each action returns a sentence to show."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.errors import ConfigError
from utils.storage import absolute_path
from utils.training.run_state import RunStatus
from utils.training.run_table import RunTable
from utils.training.run_table.upkeep import size_bytes, write_notes, write_tags
from utils.ui.run_comparison import MOST_RUNS, comparison, read_run
from utils.ui.run_report import write_report
from utils.ui.runs import RunSummary, age_text, list_runs
from utils.views.html import Html, element, pill, text
from utils.views.values import size_text

HEADER = ("run", "state", "progress", "best", "trained", "tags and notes")

#: status -> icon and class of its pill, as docs/DESIGN.md has them.
_PILLS: dict[RunStatus, tuple[str, str]] = {
    "running": ("●", "tb-run"), "finished": ("✓", "tb-pass"), "stopped": ("■", "tb-warn"), "broken off": ("▲", "tb-warn"),
    "failed": ("✕", "tb-fail"),
}  # fmt: skip


@dataclass(frozen=True)
class ManagedRun:
    """One row.

    Attributes:
        run: its summary; cells: texts under HEADER.
    """

    run: RunSummary
    cells: tuple[str, ...]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    def markup(self) -> Html:
        """The row's cells after the name, as markup."""
        icon, css_class = _PILLS[self.run.status]
        state = element("span", pill(icon, self.run.status, css_class), class_="tb-run-state")
        cells = [found for found in zip(HEADER[2:], self.cells[2:], strict=True) if found[0] != HEADER[-1] or found[1]]
        return element(
            "div", state, *(_cell(name, content) for name, content in cells), class_="tb-run-cells"
        )  # fmt: skip


def _cell(name: str, content: str) -> Html:
    said = element("span", text(f"{name} "), class_="tb-soft")
    return element("span", said, text(content or "–"), class_=f"tb-run-{name.split()[0]}")


class ManagedRuns:
    """The runs in `output_dir`, the one that trained last first.

    Args:
        output_dir: where runs are.
    """

    def __init__(self, output_dir: str | Path = "runs") -> None:
        self.folder = absolute_path(output_dir)

    def rows(self, *, archived: bool = False, now_s: float | None = None) -> list[ManagedRun]:
        """The runs as they are now.

        Args:
            archived: the archived runs instead of the others; now_s: seconds since 1970, None: now.
        """
        now = time.time() if now_s is None else now_s
        runs = sorted(
            list_runs(self.folder, archived=archived), key=lambda run: (run.status != "running", -run.written_at)
        )
        return [ManagedRun(run, _cells(run, now)) for run in runs]

    def to_text(self) -> str:
        """The runs in words, a line each."""
        lines = ["  ".join((row.cells[0], row.run.status, *filter(None, row.cells[2:]))) for row in self.rows()]
        return "\n".join([f"Runs in {self.folder}:", *lines]) if lines else f"There is no run in {self.folder} yet."

    def annotate(self, name: str, notes: str, tags: str) -> str:
        """Replace a run's notes and tags; tags are separated by commas."""
        path = self._path(name)
        write_notes(path, notes)
        write_tags(path, filter(None, map(str.strip, tags.split(","))))
        return f"Notes and tags of {name} were saved."

    def archive(self, names: Sequence[str]) -> str:
        """Put runs away: their folders stay where they are, and lists leave them out."""
        table = self._table()
        for name in names:
            table.archive(name)
        return f"Archived: {', '.join(names)}. The folders stay where they are; “Archived runs” shows them."

    def restore(self, names: Sequence[str]) -> str:
        """Take runs out of the archive."""
        table = self._table()
        for name in names:
            table.restore(name)
        return f"Restored: {', '.join(names)}."

    def question(self, names: Sequence[str]) -> str:
        """What deleting these runs would do, to be confirmed. Raises `TrainbookError` where one of them cannot be deleted."""
        table = self._table()
        sizes = [table.to_delete(name)[1] for name in names]
        what = f"run {names[0]!r}" if len(names) == 1 else f"{len(names)} runs ({', '.join(names)})"
        return f"Delete {what} for good, {size_text(sum(sizes))} with checkpoints, history and exports? This cannot be undone."

    def delete(self, names: Sequence[str]) -> str:
        """Delete runs for good. Raises `TrainbookError`; those before the one that failed are gone then."""
        table = self._table()
        for name in names:
            table.to_delete(name)  # all of them, before any is deleted
        deleted = [table.delete(name) for name in names]
        left = "".join(f" Checkpoints in {run.left} were kept." for run in deleted if run.left is not None)
        return f"Deleted: {', '.join(names)} ({size_text(sum(run.size_bytes for run in deleted))}).{left}"

    def report(self, name: str) -> str:
        """Write the run's report.html. Returns where it is."""
        return f"The report of {name} is {write_report(self._path(name))}."

    def compared(self, names: Sequence[str]) -> Html:
        """Runs side by side as markup. Raises `ConfigError` for fewer than two or too many."""
        if not 2 <= len(names) <= MOST_RUNS:
            raise ConfigError(f"got {len(names)} runs to compare; choose between two and {MOST_RUNS}.")
        return comparison([read_run(self._path(name)) for name in names])

    def details(self, names: Iterable[str]) -> str:
        """Where the chosen runs are and how large they are."""
        return "; ".join(f"{self._path(name)} ({size_text(size_bytes(self._path(name)))})" for name in names)

    def path(self, name: str) -> Path:
        """The folder of a run. Raises `RunNotFoundError`."""
        return self._path(name)

    def _path(self, name: str) -> Path:
        return self.folder / str(self._table().get(name).name)

    def _table(self) -> RunTable:
        return RunTable(self.folder)


def _cells(run: RunSummary, now_s: float) -> tuple[str, ...]:
    progress = "" if run.step is None else f"step {run.step:,}"
    if run.step is not None and run.total_steps:
        progress += f" of {run.total_steps:,} ({min(1.0, run.step / run.total_steps):.0%})"
    best = "" if run.best is None else f"{run.monitor} {run.best:.4g}"
    words = " · ".join(filter(None, [", ".join(run.tags), " ".join(run.notes.split())]))
    age = age_text(now_s - run.written_at) if run.written_at else ""
    return run.name, run.status, progress, best, age, words
