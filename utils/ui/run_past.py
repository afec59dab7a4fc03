"""Read a run's past from its folder, and make its curves. No widgets, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.storage import read_json_lines
from utils.training.samples import read_samples
from utils.views.curves import Point, Points

# Most points of a live curve: it is drawn anew twice a second, and a panel is not wider than this.
MAX_LIVE_POINTS = 400

#: Entry of doctor.jsonl -> the name of that baseline of a language model, which ignores its inputs; the best one first.
_BASELINES = {
    "validation_unigram_loss": "unigram model", "unigram_loss": "unigram entropy",
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
    if not starts:
        return None
    for key, name in _BASELINES.items():
        for row in starts:
            if isinstance(row.get(key), (int, float)):
                return name, float(row[key])
    from utils.training.diagnosis.record import constant_baseline  # numpy, which the wizard does without

    found = constant_baseline(run_dir)
    return None if found is None or not math.isfinite(found[1].loss) else (found[0], found[1].loss)


class Curve:
    """Points of one curve, at most `limit` of them, equally dense from the first step to the last.

    The steps are divided into buckets of equal width, of which the lowest and the highest point are kept. Whenever there
    would be too many, the width doubles and neighbours are merged.
    """

    def __init__(self, limit: int = MAX_LIVE_POINTS) -> None:
        self._most_buckets = (limit - 2) // 2  # two points each, and the first and the last one
        self._width = 1
        self._buckets: list[_Bucket] = []
        self._ends: tuple[Point, Point] | None = None

    def add(self, step: float, value: float | None) -> None:
        """Add a point; None and values that are not finite are left out. Steps do not fall."""
        if value is None or not math.isfinite(value):
            return
        point = float(step), float(value)
        self._ends = (point if self._ends is None else self._ends[0]), point
        self._put(_Bucket(int(step) // self._width, point, point))
        while len(self._buckets) > self._most_buckets:
            self._width *= 2
            halved, self._buckets = self._buckets, []
            for bucket in halved:
                self._put(_Bucket(bucket.index // 2, bucket.low, bucket.high))

    def _put(self, new: _Bucket) -> None:
        last = self._buckets[-1] if self._buckets else None
        if last is None or new.index > last.index:
            self._buckets.append(new)
            return
        last.low, last.high = min(last.low, new.low, key=_value), max(last.high, new.high, key=_value)

    @property
    def points(self) -> Points:
        """(step, value), at most `limit`, by step."""
        if self._ends is None:
            return []
        points = []
        for bucket in self._buckets:
            low, high = bucket.low, bucket.high
            points += [low] if low == high else [low, high] if low < high else [high, low]
        first, last = self._ends
        return [*([first] if points[0] != first else []), *points, *([last] if points[-1] != last else [])]

    @property
    def last(self) -> float | None:
        """The newest value."""
        return None if self._ends is None else self._ends[1][1]


@dataclass
class _Bucket:
    """Points whose steps lie within one bucket's width: the lowest and the highest."""

    index: int
    low: Point
    high: Point


def _value(point: Point) -> float:
    return point[1]
