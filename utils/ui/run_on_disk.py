"""A run read from its folder: for a front end that lost the live view, or that watches a run of another process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, DataNotFoundError
from utils.training.config_files import read_config_file
from utils.training.run_state import modified_at, read_state, run_status
from utils.ui.live_run import LiveRun, Row, RunEvent, past_of

# Values of `RunStatus` that mean: no process trains in this folder now.
_OVER = ("finished", "stopped", "broken off", "failed")


class StopFile:
    """Stands for the `Control` of a run in another process, which obeys a file STOP in its folder."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "STOP"

    @property
    def requested(self) -> bool:
        """Whether a stop has been requested and not been obeyed yet."""
        return self._path.exists()

    def request_stop(self, reason: str) -> None:
        """Ask the run to finish its step, save and end. Its stop reason will be "stop_file"."""
        self._path.touch()


def run_on_disk(run_dir: Path) -> tuple[LiveRun, str | None]:
    """The run in `run_dir` as its files describe it now, and why it ended; None while it runs.

    Every file may be missing: what it would say is not known then. Speed and remaining time never are.
    """
    state = read_state(run_dir) or {}
    status = run_status(run_dir, state)
    past = past_of(run_dir)
    planned = _planned(run_dir)
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
                "total_steps": _total_steps(planned, past["rows"]),
                "best_value": best.get("value"),
                "best_step": best.get("step"),
            },
        )
    )
    run.epoch = int(state.get("epoch") or 0)
    run.saved_file = _newest_checkpoint(run_dir, planned.get("checkpoint_dir"))
    run.requested(pause=False, stop=StopFile(run_dir).requested)
    if status == "failed":
        run.failed(str(state.get("error") or "the run failed"))
    elif status in _OVER:
        run.ended()
    return run, (status if status == "broken off" else state.get("stop_reason")) if run.over else None


def _planned(run_dir: Path) -> Mapping[str, Any]:
    """The training settings in config.yaml; {} where there is no readable one."""
    try:
        planned = read_config_file(run_dir / "config.yaml").get("training")
    except (ConfigError, DataNotFoundError):
        return {}
    return planned if isinstance(planned, dict) else {}


def _total_steps(planned: Mapping[str, Any], rows: Iterable[Row]) -> int | None:
    """Steps of the whole run: max_steps, or as many an epoch as the first complete one had, whichever is less."""
    limits = [planned["max_steps"]] if planned.get("max_steps") else []
    complete = [row for row in rows if row.get("event") == "epoch" and row.get("complete", True)]
    if complete and planned.get("epochs"):
        limits.append(complete[0]["step"] // (complete[0]["epoch"] + 1) * planned["epochs"])
    return min(limits, default=None)


def _newest_checkpoint(run_dir: Path, checkpoint_dir: str | None) -> str | None:
    folder = Path(checkpoint_dir) if checkpoint_dir else run_dir / "checkpoints"
    files = [*folder.glob("epoch_*.pt"), *folder.glob("step_*.pt")]
    return max(files, key=modified_at).name if files else None
