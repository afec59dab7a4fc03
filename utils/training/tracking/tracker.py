"""The tracker interface: four methods, called in order from one thread of the tracker's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

RunEnding = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class RunFacts:
    """Facts about a run that a tracker gets when it starts.

    Attributes:
        name: the run's name; folder: its folder, absolute; run_id: its identity, the same after a resume.
        config: its TrainingConfig as plain values, without secrets.
        step: optimizer steps done before; 0 for a new run.
    """

    name: str
    folder: Path
    run_id: str
    config: Mapping[str, Any]
    step: int = 0


@runtime_checkable
class Tracker(Protocol):
    """Destination of a run's metrics.

    All methods are called from a background thread, so they may block and may raise: the training does not notice. The first
    exception ends the tracking of this run, and is reported once, at its end.

    Attributes:
        name: what messages call it, such as "TensorBoard".
        patience_s: how long the end of a training waits for it, in seconds.
    """

    name: str
    patience_s: float

    def start(self, run: RunFacts) -> str | None:
        """Open the run. Returns a sentence the user should know, or None."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Store a row: `step` (optimizer steps so far), `epoch` in rows of epochs, and metrics by name, NaN included."""

    def artifact(self, path: Path) -> None:
        """Store a file of the run's."""

    def finish(self, status: RunEnding) -> None:
        """Close the run."""
