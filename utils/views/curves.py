"""Training curves as a static figure.

Built on `matplotlib.figure.Figure`, never on pyplot: no global state, no window, usable from any thread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from utils.storage import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Point = tuple[float, float]
Points = list[Point]

# One name for each number, in the live view, the curves and a run's summary.
STEP_LOSS = "training loss (step)"
SMOOTHED_LOSS = "training loss (smoothed)"
EPOCH_LOSS = "training loss (epoch mean)"
VALIDATION_LOSS = "validation loss"

# Most points of one curve: more than the panel has pixels for cannot be seen, and makes the file large.
MAX_POINTS = 800

# Every curve has its own dash and marker, so that the figure reads in black and white too.
_TRAIN = {"color": "#1f4e9c", "linestyle": "-"}
_VALIDATION = {"color": "#c05a00", "linestyle": "--", "marker": "s", "markersize": 4.5}
_BASELINE = {"color": "#555555", "linestyle": ":", "linewidth": 1.4}


def training_curves(
    epoch_rows: Sequence[Row],
    step_rows: Sequence[Row] = (),
    evaluate_rows: Sequence[Row] = (),
    baselines: Mapping[str, float] | None = None,
    title: str = "Training",
) -> Figure:
    """Losses over optimizer steps, with the learning rate in a second panel.

    Args:
        epoch_rows: one mapping an epoch: `step`, `train/loss`; where there are any, `val/loss`, `train/learning_rate`.
        step_rows: one mapping a step: `step`, `train/loss`, `train/learning_rate`.
        evaluate_rows: validations inside an epoch: `step`, `val/loss`.
        baselines: losses to compare with, such as {"unigram model": 6.1}; drawn as labelled horizontal lines.
        title: the figure's title.
    Returns:
        A figure of 8 x 5.5 inches. Values that are NaN or infinite are crosses on the lower edge of the loss panel, at
        their step. Curves of more than `MAX_POINTS` points keep the extremes of each stretch.
    """
    from matplotlib.figure import Figure

    per_step, per_epoch = curve_points(step_rows, "train/loss"), curve_points(epoch_rows, "train/loss")
    validation = curve_points([*evaluate_rows, *epoch_rows], "val/loss")
    rates = curve_points(step_rows or epoch_rows, "train/learning_rate")

    figure = Figure(figsize=(8, 5.5), dpi=110, layout="constrained")
    figure.suptitle(title)
    loss_axes, rate_axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _draw(loss_axes, per_step, STEP_LOSS, {**_TRAIN, "linewidth": 0.7, "alpha": 0.55})
    _draw(
        loss_axes,
        per_epoch,
        EPOCH_LOSS,
        {**_TRAIN, "marker": "o", "markersize": 4.5, "linewidth": 1.6},
    )
    _draw(loss_axes, validation, VALIDATION_LOSS, {**_VALIDATION, "linewidth": 1.6})
    for name, loss in (baselines or {}).items():
        if not math.isfinite(loss):
            continue
        loss_axes.axhline(loss, **_BASELINE)
        loss_axes.annotate(
            f"{name}: {loss:.3f}", (1, loss), xycoords=("axes fraction", "data"), xytext=(-4, 3),
            textcoords="offset points", ha="right", va="bottom", color=_BASELINE["color"], fontsize=9,
        )  # fmt: skip
    _mark_non_finite(loss_axes, [*per_step, *per_epoch, *validation])
    loss_axes.set_ylabel("loss (mean per target)")
    _draw(rate_axes, rates, "learning rate", {"color": "#333333", "linestyle": "-", "linewidth": 1.2})
    rate_axes.set_ylabel("learning rate")
    rate_axes.set_xlabel("optimizer steps")
    last_step = max((step for step, _ in [*per_step, *per_epoch, *validation]), default=1)
    rate_axes.set_xlim(0, last_step * 1.02)
    rate_axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in (loss_axes, rate_axes):
        axes.grid(visible=True, alpha=0.3, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    if rates:
        rate_axes.set_ylim(bottom=0)
    if per_step or per_epoch or validation:
        loss_axes.legend(frameon=False, fontsize=9)
    else:
        loss_axes.text(0.5, 0.5, "no step is finished yet", transform=loss_axes.transAxes, ha="center", va="center")
    return figure


def decimated(points: Points, limit: int = MAX_POINTS) -> Points:
    """At most `limit` of `points`: of each stretch its lowest and highest, and always the first and the last.

    Non-finite points do not count as extremes; they are drawn apart.
    """
    if len(points) <= limit:
        return points
    buckets = (limit - 2) // 2
    inner = points[1:-1]
    kept = [points[0]]
    for index in range(buckets):
        stretch = inner[index * len(inner) // buckets : (index + 1) * len(inner) // buckets]
        extremes = {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
        kept.extend(sorted(extremes))
    return [*kept, points[-1]]


def figure_png(figure: Figure) -> bytes:
    """The figure as a PNG file's bytes, on a white ground so that it reads in dark themes."""
    import io

    buffer = io.BytesIO()
    _write_png(figure, buffer)
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Commit the figure as a PNG file; makes the folder. A crash leaves the old file or the new one.

    Returns:
        The absolute path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return atomic_write(path, lambda file: _write_png(figure, file)).resolve()


def _write_png(figure: Figure, file: IO[bytes]) -> None:
    figure.savefig(file, format="png", facecolor="white")


def curve_points(rows: Iterable[Row], key: str) -> Points:
    """Points (step, value) of the rows that have `key`, by step; of several at one step the last."""
    found: dict[float, float] = {}
    for row in rows:
        value = row.get(key)
        if value is not None:
            found[float(row["step"])] = float(value)
    return sorted(found.items())


def _draw(axes: Axes, points: Points, label: str, style: Mapping[str, Any]) -> None:
    finite = [point for point in points if math.isfinite(point[1])]
    if finite:
        steps, values = zip(*decimated(finite), strict=True)
        # A line needs two points; a single one is only seen with a marker.
        axes.plot(steps, values, label=label, **{**({"marker": "."} if len(finite) == 1 else {}), **style})


def _mark_non_finite(axes: Axes, points: Points) -> None:
    steps = sorted({step for step, value in points if not math.isfinite(value)})
    if steps:
        axes.plot(
            steps, [0.0] * len(steps), transform=axes.get_xaxis_transform(), clip_on=False, zorder=5,
            label="NaN or infinite", color="#a00000", linestyle="none", marker="x", markersize=7, markeredgewidth=1.8,
        )  # fmt: skip
