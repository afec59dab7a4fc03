"""Trackio, Hugging Face's local-first tracker: a database in its cache, shown by `trackio show`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.training.tracking.tracker import RunEnding, RunFacts

_PROJECT = "trainbook"


class TrackioTracker:
    """Rows to Trackio's local database, project "trainbook"; a resumed run continues under its name."""

    name = "Trackio"
    patience_s = 5.0

    def __init__(self) -> None:
        self._run: Any = None

    def start(self, run: RunFacts) -> str | None:
        """Open the run."""
        import trackio  # type: ignore[import-not-found]

        self._run = trackio.init(project=_PROJECT, name=run.name, config=dict(run.config), resume="allow")
        return None

    def log(self, row: Mapping[str, Any]) -> None:
        """Log a row at its step."""
        self._run.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])

    def artifact(self, path: Path) -> None:
        """Nothing: Trackio's local database has no place for files."""

    def finish(self, status: RunEnding) -> None:
        """Close the run."""
        self._run.finish()
