"""The runs on disk: what they are, their progress, how to resume them. Computed from the folders each time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.storage import absolute_path, read_json_lines
from utils.training.run_state import RunStatus, modified_at, read_state, run_status
from utils.training.run_table.upkeep import is_archived, read_notes, read_tags
from utils.ui.live_picture import ENDINGS
from utils.ui.run_on_disk import planned_settings, planned_steps, run_on_disk
from utils.views.display import show_columns, show_text

_TO_DO = {
    "running": "wait, or stop it: its buttons, or a file STOP in its folder",
    "finished": "nothing: it is done",
    "stopped": "continue: run the Training cell again with this run_name",
    "broken off": "continue: run the Training cell again with this run_name",
    "failed": "look at its error, change what is wrong, run the Training cell again",
}

# What a finished run needs to train further, by its stop reason.
_TO_TRAIN_FURTHER = {
    "finished": "a larger `epochs`",
    "max_steps": "a larger `max_steps` (or none)",
    "finish_now": "another `epochs` or `max_steps`",
    "early_stopping": "a larger `early_stopping_patience` (or none)",
}


@dataclass(frozen=True)
class RunSummary:
    """One run's folder in short.

    Attributes:
        name: the folder's name; path: where it is.
        status: "running": a process holds its lock; "broken off": its process ended without a word (its newest checkpoint
            is intact); the others as the run said itself.
        reason: why it ended, in words; of a failed one its error.
        stop_reason: the same as `TrainingResults.stop_reason`; None when state.json does not have it.
        step, epoch: optimizer steps and completed epochs of the newest checkpoint, None when it says nothing.
        validation_loss: of its last validation, in nats per target; None when it had none.
        total_steps: planned optimizer steps; None: not known yet. best: best value so far of the metric `monitor`; None: none.
        written_at: when it trained last, in seconds since 1970.
        notes, tags: what somebody wrote about it; archived: whether it was put away.
    """

    name: str
    path: Path
    status: RunStatus
    reason: str
    step: int | None
    epoch: int | None
    validation_loss: float | None
    stop_reason: str | None = None
    total_steps: int | None = None
    best: float | None = None
    monitor: str = "val/loss"
    written_at: float = 0.0
    notes: str = ""
    tags: tuple[str, ...] = ()
    archived: bool = False

    @property
    def to_do(self) -> str:
        """Possible next action."""
        change = _TO_TRAIN_FURTHER.get(self.stop_reason or "") if self.status == "finished" else None
        further = "" if change is None else f"; to train further, set {change} and on_config_change='continue'"
        return _TO_DO[self.status] + further


def list_runs(output_dir: str | Path = "runs", *, archived: bool | None = False) -> list[RunSummary]:
    """The runs in `output_dir`, by name, or []. Folders that hold no run are skipped.

    Args:
        archived: False: those that are not archived; True: those that are; None: both.
    """
    found = [(path, read_state(path)) for path in _folders(absolute_path(output_dir))]
    return [
        _summary(path, state) for path, state in found
        if state is not None and archived in (None, is_archived(path))
    ]  # fmt: skip


def _folders(folder: Path) -> list[Path]:
    """Folders in `folder` that may be runs, by name; names that begin with a dot are skipped."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def newest_run(output_dir: str | Path = "runs") -> Path | None:
    """Folder of the run in `output_dir` that was written to last, one that is under way before all others; None: no run.

    Archived runs are left out.
    """
    found = [path for path in _folders(Path(output_dir)) if not is_archived(path)]
    runs = [(path, state) for path in found if (state := read_state(path)) is not None]
    if not runs:
        return None
    return max(runs, key=lambda run: (run_status(*run) == "running", _written_at(run[0])))[0]


def continue_sentence(output_dir: str | Path = "runs", now_s: float | None = None) -> str:
    """Sentence on resuming the newest run in `output_dir`, or starting a new one; empty where it is finished, running,
    or absent.

    Args:
        now_s: seconds since 1970; None: now.
    """
    folder = newest_run(output_dir)
    state = None if folder is None else read_state(folder)
    if folder is None or state is None or run_status(folder, state) not in ("stopped", "broken off"):
        return ""
    live, _ = run_on_disk(folder)
    total = f" of {live.total_steps:,}" if live.total_steps else ""
    age = age_text((time.time() if now_s is None else now_s) - _written_at(folder))
    return (
        f"Continue run {folder.name} (step {live.step:,}{total}, {age}): keep run_name={folder.name!r} and run all cells. "
        "New run: choose another run_name."
    )


def age_text(seconds: float) -> str:
    """Age in words, to one unit."""
    for name, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {name} ago"
    return "just now"


def show_runs(output_dir: str | Path = "runs") -> None:
    """Show every run in `output_dir` as a table: its state and how to resume it."""
    runs = list_runs(output_dir)
    if not runs:
        show_text(f"There is no run in {absolute_path(output_dir)} yet.")
        return
    rows = [
        (
            run.name,
            run.status,
            run.reason,
            "-" if run.step is None else f"{run.step:,} ({run.epoch} epochs)",
            "-" if run.validation_loss is None else f"{run.validation_loss:.4f}",
            run.to_do,
        )
        for run in runs
    ]
    show_columns(f"Runs in {output_dir}", ("run", "status", "why", "steps", "validation loss", "next step"), rows)


def _summary(path: Path, state: dict[str, Any]) -> RunSummary:
    status = run_status(path, state)
    rows = read_json_lines(path / "history.jsonl")
    losses = [row["val/loss"] for row in rows if row.get("event") == "evaluate" and "val/loss" in row]
    planned = planned_settings(path)
    best = (state.get("best") or {}).get("value")
    notes = read_notes(path)
    return RunSummary(
        name=path.name,
        path=path,
        status=status,
        reason=_reason(status, state),
        step=state.get("step"),
        epoch=state.get("epoch"),
        validation_loss=losses[-1] if losses else None,
        stop_reason=state.get("stop_reason"),
        total_steps=planned_steps(planned, rows, state.get("finish_at")),
        best=best if isinstance(best, (int, float)) else None,
        monitor=str(planned.get("monitor") or "val/loss"),
        written_at=_written_at(path),
        notes=str(planned.get("notes") or "") if notes is None else notes,
        tags=tuple(read_tags(path)),
        archived=is_archived(path),
    )


def _written_at(path: Path) -> float:
    return max(modified_at(path / name) for name in ("history.jsonl", "state.json"))


def _reason(status: RunStatus, state: dict[str, Any]) -> str:
    if status == "failed":
        return str(state.get("error", ""))
    if status in ("running", "broken off"):
        return ""
    reason = str(state.get("stop_reason"))
    return ENDINGS.get(reason, f"Stopped ({reason})")
