"""The curves of an experiment: loss, accuracy, learning rate and speed, an epoch at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by form as well as by colour.
_TRAIN = {"color": "#0b5394", "linestyle": "-", "marker": "o", "markersize": 3.5}
_VALIDATION = {"color": "#b45f06", "linestyle": "--", "marker": "s", "markersize": 3.5}


def experiment_curves(history: Mapping[str, Sequence[float]], first_epoch: int = 1, title: str = "") -> Figure:
    """Four panels over epochs.

    Args:
        history: train_loss, val_loss, train_accuracy, val_accuracy (0 to 100), learning_rate, train_speed and val_speed
            (batches a second); a list each. Values that are NaN or infinite leave a gap.
        first_epoch: number of the first entry.
    Returns:
        A figure of 10 x 7 inches.
    """
    from matplotlib.figure import Figure

    # Fixed margins: a computed layout takes as long as the drawing itself, and this is drawn while training waits.
    figure = Figure(figsize=(10, 7), dpi=110)
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.07, top=0.93, wspace=0.2, hspace=0.25)
    figure.suptitle(title)
    (loss, accuracy), (rate, speed) = figure.subplots(2, 2)
    for axes, name, label in ((loss, "loss", "loss (mean per sample)"), (accuracy, "accuracy", "accuracy (%)"),
                              (speed, "speed", "speed (batches a second)")):  # fmt: skip
        _pair(axes, history, name, first_epoch)
        axes.set_ylabel(label)
    _draw(rate, history.get("learning_rate", ()), first_epoch, "learning rate", {**_TRAIN, "color": "#333333"})
    rate.set_ylabel("learning rate")
    if any(value > 0 for value in history.get("learning_rate", ())):
        rate.set_yscale("log")
    for axes in (loss, accuracy, rate, speed):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(visible=True, alpha=0.3, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if not axes.lines:
            axes.text(0.5, 0.5, "nothing measured yet", transform=axes.transAxes, ha="center", va="center")
    return figure


def _pair(axes: Axes, history: Mapping[str, Sequence[float]], name: str, first_epoch: int) -> None:
    _draw(axes, history.get(f"train_{name}", ()), first_epoch, "training", _TRAIN)
    _draw(axes, history.get(f"val_{name}", ()), first_epoch, "validation", _VALIDATION)
    if axes.lines:
        axes.legend(frameon=False, fontsize=9)


def _draw(axes: Axes, values: Sequence[float], first_epoch: int, label: str, style: Mapping[str, object]) -> None:
    if any(math.isfinite(value) for value in values):
        epochs = range(first_epoch, first_epoch + len(values))
        axes.plot(list(epochs), [v if math.isfinite(v) else math.nan for v in values], label=label, **style)  # type: ignore[arg-type]
