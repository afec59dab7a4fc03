"""TensorBoard: event files in the run's folder, read with `tensorboard --logdir runs`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.training.tracking.tracker import RunEnding, RunFacts


class TensorBoardTracker:
    """Scalars into `<run>/tensorboard`. A resumed run continues there; repeated steps replace the former ones."""

    name = "TensorBoard"
    patience_s = 5.0

    def __init__(self) -> None:
        self._writer: Any = None

    def start(self, run: RunFacts) -> str | None:
        """Open an event file, and write the config into it as text."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step + 1 if run.step else None)
        if not run.step:
            self._writer.add_text("config", f"```\n{json.dumps(run.config, indent=2, default=str)}\n```", 0)
        return None

    def log(self, row: Mapping[str, Any]) -> None:
        """Write a row's metrics at its step."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, row["step"])

    def artifact(self, path: Path) -> None:
        """Nothing: the event file lies beside the run's files."""

    def finish(self, status: RunEnding) -> None:
        """Close the event file."""
        self._writer.close()
