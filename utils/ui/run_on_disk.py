"""A run read from its folder: for a front end that lost the live view, or that watches a run of another process."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, DataNotFoundError
from utils.storage import read_json_lines, write_text
from utils.training.config_files import read_config_file
from utils.training.engine.interrupts import KEEP_BEST
from utils.training.run_state import modified_at, read_state, run_status
from utils.ui.live_run import LiveRun, Row, RunEvent
from utils.ui.run_past import past_of

# Values of `RunStatus` that mean: no process trains in this folder now.
_OVER = ("finished", "stopped", "broken off", "failed")


class StopFile:
    """Stands for the `Control` of a run in another process, which obeys the files STOP and FINISH in its folder."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "STOP"

    @property
    def requested(self) -> bool:
        """Whether a stop has been requested and not been obeyed yet."""
        return self._path.exists()

    def request_stop(self, reason: str) -> None:
        """Ask the run to finish its step, save and end. Its stop reason is "keep_best" if `reason` is, else "stop_file"."""
        if reason == KEEP_BEST:
            write_text(self._path, f"{KEEP_BEST}\n")
        else:
            self._path.touch()

    def request_finish(self) -> None:
        """Ask the run to begin the decay of its schedule now."""
        self._path.with_name("FINISH").touch()


class RunFollower:
    """The run that other processes train for this one, read from its folder once in `every_s` seconds.

    Attributes:
        run_dir: the run's folder; None until the training began.
    """

    def __init__(self, every_s: float = 1.0) -> None:
        self.run_dir: Path | None = None
        self._row: Mapping[str, Any] = {}
        self._every_s, self._looked_s, self._epochs = every_s, -math.inf, 0
        self._saved_before_pause: tuple[Path | None, float] | None = None  # None: no pause is requested

    def tell(self, run_dir: str, row: Mapping[str, Any]) -> None:
        """Receive the run's location and its newest progress; called by the thread that watches the processes."""
        self._row = row
        self.run_dir = Path(run_dir)

    def look(self, *, pause: bool, stop: bool, last: bool = False) -> tuple[LiveRun, list[RunEvent]] | None:
        """The run as it is now, and an event for each epoch that ended since the last look; None: it is not time yet.

        Args:
            pause, stop: what this process has requested of the run.
            last: the processes have ended.
        """
        now = time.monotonic()
        if self.run_dir is None or (not last and now - self._looked_s < self._every_s):
            return None
        self._looked_s = now
        run, _ = run_on_disk(self.run_dir)
        run.step = max(run.step, int(self._row.get("step") or 0))
        run.epoch = max(run.epoch, int(self._row.get("epoch") or 0))
        run.requested(pause=pause, stop=stop)
        saved = newest_checkpoint(self.run_dir, planned_settings(self.run_dir).get("checkpoint_dir"))
        mark = (saved, 0.0 if saved is None else modified_at(saved))
        if not pause:
            self._saved_before_pause = None
        elif self._saved_before_pause is None:
            self._saved_before_pause = mark
        elif mark != self._saved_before_pause:  # a paused run waits once it is saved
            run.apply(RunEvent("on_checkpoint_saved", now, run.step, {"path": str(saved)}))
        rows = [row for row in read_json_lines(self.run_dir / "history.jsonl") if row.get("event") == "epoch"]
        events = [RunEvent("on_epoch_end", now, int(row["step"]), row) for row in rows[self._epochs :]]
        self._epochs = len(rows)
        return run, events


def run_on_disk(run_dir: Path) -> tuple[LiveRun, str | None]:
    """The run in `run_dir` as its files describe it now, and why it ended; None while it runs.

    Every file may be missing: what it would say is not known then. Speed and remaining time never are.
    """
    state = read_state(run_dir) or {}
    status = run_status(run_dir, state)
    past = past_of(run_dir)
    planned = planned_settings(run_dir)
    step = max([int(state.get("step") or 0), *(int(row["step"]) for row in past["rows"][-1:])])
    best = state.get("best") or {}
    run = LiveRun()
    run.apply(
        RunEvent(
            "on_train_begin",
            time.monotonic(),
            step,
            {
                "run_dir": str(run_dir),
                **past,
                "epochs": planned.get("epochs"),
                "total_steps": planned_steps(planned, past["rows"], state.get("finish_at")),
                "best_value": best.get("value"),
                "best_step": best.get("step"),
            },
        )
    )
    run.epoch = int(state.get("epoch") or 0)
    saved = newest_checkpoint(run_dir, planned.get("checkpoint_dir"))
    run.saved_file = None if saved is None else saved.name
    run.requested(pause=False, stop=StopFile(run_dir).requested)
    if status == "failed":
        run.failed(str(state.get("error") or "the run failed"))
    elif status in _OVER:
        run.ended()
    return run, (status if status == "broken off" else state.get("stop_reason")) if run.over else None


def can_finish_early(run_dir: Path) -> bool:
    """Whether the schedule of the run in `run_dir` has a decay that can begin at any step."""
    planned = planned_settings(run_dir)
    return planned.get("lr_schedule") == "wsd" and planned.get("use_lr_schedule", True) is not False


def planned_settings(run_dir: Path) -> Mapping[str, Any]:
    """The training settings in config.yaml; {} where there is no readable one."""
    try:
        planned = read_config_file(run_dir / "config.yaml").get("training")
    except (ConfigError, DataNotFoundError):
        return {}
    return planned if isinstance(planned, dict) else {}


def planned_steps(planned: Mapping[str, Any], rows: Iterable[Row], finish_at: int | None = None) -> int | None:
    """Steps of the whole run: `finish_at`, max_steps, or as many an epoch as the first complete one had, whichever is least."""
    limits = [limit for limit in (finish_at, planned.get("max_steps")) if limit]
    complete = [row for row in rows if row.get("event") == "epoch" and row.get("complete", True)]
    if complete and planned.get("epochs"):
        limits.append(complete[0]["step"] // (complete[0]["epoch"] + 1) * planned["epochs"])
    return min(limits, default=None)


def newest_checkpoint(run_dir: Path, checkpoint_dir: str | None = None) -> Path | None:
    """The checkpoint file that was written last, or None."""
    folder = Path(checkpoint_dir) if checkpoint_dir else run_dir / "checkpoints"
    files = [*folder.glob("epoch_*.pt"), *folder.glob("step_*.pt")]
    return max(files, key=modified_at) if files else None
