"""Read a run's past from its folder, and make its curves. No widgets, no torch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from utils.storage import read_json_lines
from utils.training.samples import read_samples
from utils.views.curves import Points, decimated

# Most points of a live curve: it is drawn anew twice a second, and a panel is not wider than this.
MAX_LIVE_POINTS = 400

#: Entry of doctor.jsonl -> the name of that baseline, what a model scores that ignores its inputs; the best one first.
_BASELINES = {
    "validation_unigram_loss": "unigram model", "unigram_loss": "unigram entropy", "guess_loss": "baseline without inputs",
}  # fmt: skip


def past_of(run_dir: Path) -> dict[str, Any]:
    """Read a run's past from its folder.

    Returns:
        "rows" of its history; where there are any, "past_samples", of the last two validations, oldest first; and "baseline",
        as `baseline_of` finds it.
    """
    samples, baseline = read_samples(run_dir), baseline_of(run_dir)
    return {
        "rows": read_json_lines(run_dir / "history.jsonl"), **({"past_samples": samples[-2:]} if samples else {}),
        **({} if baseline is None else {"baseline": baseline}),
    }  # fmt: skip


def baseline_of(run_dir: Path) -> tuple[str, float] | None:
    """Name and loss of what a model scores that ignores its inputs, as the doctor measured it; None: not known."""
    path = run_dir / "doctor.jsonl"
    starts = [row for row in read_json_lines(path) if row.get("event") == "start"] if path.is_file() else []
    for key, name in _BASELINES.items():
        for row in starts:
            if isinstance(row.get(key), (int, float)):
                return name, float(row[key])
    return None


class Curve:
    """Points of one curve, at most `2 * limit` of them: of a longer one the extremes of each stretch are kept."""

    def __init__(self, limit: int = MAX_LIVE_POINTS) -> None:
        self._limit = limit
        self._points: Points = []

    def add(self, step: float, value: float | None) -> None:
        """Add a point; None and values that are not finite are left out."""
        if value is None or not math.isfinite(value):
            return
        self._points.append((float(step), float(value)))
        if len(self._points) > 2 * self._limit:
            self._points = decimated(self._points, self._limit)

    @property
    def points(self) -> Points:
        """(step, value), at most `limit`."""
        return decimated(self._points, self._limit)

    @property
    def last(self) -> float | None:
        """The newest value."""
        return self._points[-1][1] if self._points else None
