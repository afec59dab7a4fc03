"""The learning-rate range test as a figure: for a page, and for a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from utils.views.figures import Across, Line, figure
from utils.views.html import Html

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

    drawn = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = drawn.subplots()
    drawn.suptitle("Learning-rate range test")
    axes.set_title(note, fontsize=9, wrap=True)
    axes.plot(rates, losses, color="#1f4e9c", linewidth=0.7, alpha=0.55, label="loss of each step")
    axes.plot(rates, smoothed, color="#1f4e9c", linewidth=1.8, label="smoothed")
    if suggestion is not None:
        axes.axvline(suggestion, color="#c05a00", linestyle="--", linewidth=1.4, label=f"suggestion: {suggestion:.2g}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss (mean per target)")
    room, top = _room(smoothed)
    axes.set_ylim(min(*losses, *smoothed) - 0.1 * room, top)
    axes.grid(visible=True, alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return drawn


def range_test_figure(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggestion: float | None
) -> Html:
    """The same as SVG in the colours of the page. Arguments as for `range_test_curve`; losses above its axis end at the top."""
    _, top = _room(smoothed)
    start, end = math.log10(rates[0]), math.log10(rates[-1])
    places = [math.log10(rate) - start for rate in rates]
    decades = range(math.ceil(start - 1e-9), math.floor(end + 1e-9) + 1)
    marked = None if suggestion is None else (f"suggestion {suggestion:.2g}", math.log10(suggestion) - start)
    of_steps, mean = (
        [*zip(places, (min(value, top) for value in values), strict=True)] for values in (losses, smoothed)
    )
    lines = [Line("loss of each step", of_steps, "train", 1, opacity=0.45), Line("smoothed", mean, "train", 2.2)]
    spoken = "no suggestion" if suggestion is None else f"suggestion {suggestion:.2g}"
    return figure(
        lines, f"Loss over the learning rate from {rates[0]:.0e} to {rates[-1]:.0e}; {spoken}.", axis="loss per target",
        across=Across(
            "learning rate (logarithmic)", end - start, [(power - start, f"1e{power}") for power in decades], marked
        ),
    )  # fmt: skip


def _room(smoothed: Sequence[float]) -> tuple[float, float]:
    """By how much the loss fell, at least 5 % of it, and the top of an axis that leaves half of that above the first loss."""
    first = smoothed[0]
    room = max(first - min(smoothed), 0.05 * abs(first)) or 1.0
    return room, first + 0.5 * room
