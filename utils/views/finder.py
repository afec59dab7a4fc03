"""The learning-rate range test as a static figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def range_test_curve(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggestion: float | None, note: str = ""
) -> Figure:
    """Loss over the learning rate (logarithmic), with the suggested rate as a labelled line.

    Args:
        rates, losses, smoothed: one value a step, in order of the steps.
        suggestion: a rate; None: none is drawn.
        note: a sentence under the title.
    Returns:
        A figure of 8 x 4.5 inches. The loss axis ends shortly above the first loss, so that a divergence does not flatten
        the part that matters.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    figure.suptitle("Learning-rate range test")
    axes.set_title(note, fontsize=9, wrap=True)
    axes.plot(rates, losses, color="#1f4e9c", linewidth=0.7, alpha=0.55, label="loss of each step")
    axes.plot(rates, smoothed, color="#1f4e9c", linewidth=1.8, label="smoothed")
    if suggestion is not None:
        axes.axvline(suggestion, color="#c05a00", linestyle="--", linewidth=1.4, label=f"suggestion: {suggestion:.2g}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss (mean per target)")
    lowest, first = min(smoothed), smoothed[0]
    room = max(first - lowest, 0.05 * abs(first)) or 1.0
    axes.set_ylim(min(*losses, lowest) - 0.1 * room, first + 0.5 * room)
    axes.grid(visible=True, alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure
