"""One trial of a search: which values, what came of them, and where the run is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

TrialStatus = Literal["running", "finished", "pruned", "failed", "stopped"]


@dataclass
class Trial:
    """One trial.

    Attributes:
        number: from 0, in the order of the search.
        params: the config's name (or model.<argument>) -> value.
        status: "finished"; "pruned": ended early because others were better; "failed": see `reason`; "stopped": it was asked
            to stop and can be continued; "running": it runs, or its process ended without a word.
        value: the monitored metric's best value in this run, or None.
        reason: why it did not finish, in words; empty for a finished one.
        run_dir: the run's folder; None before its first step.
        best_model_path: its best checkpoint.
        steps: optimizer steps; seconds: time spent training.
    """

    number: int
    params: dict[str, Any]
    status: TrialStatus = "running"
    value: float | None = None
    reason: str = ""
    run_dir: str | None = None
    best_model_path: str | None = None
    steps: int = 0
    seconds: float = 0.0

    @property
    def is_over(self) -> bool:
        """Whether the trial is not to be run again."""
        return self.status in ("finished", "pruned", "failed")

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trial:
        """The inverse of `to_dict`."""
        return cls(**values)


def best_of(trials: list[Trial], mode: str) -> Trial | None:
    """The finished trial with the best value; None when none has finished with one."""
    finished = [trial for trial in trials if trial.status == "finished" and trial.value is not None]
    if not finished:
        return None
    sign = 1.0 if mode == "min" else -1.0
    return min(finished, key=lambda trial: sign * (trial.value or 0.0))
