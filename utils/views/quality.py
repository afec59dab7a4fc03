"""Pictures of a dataset: how long its rows are, and how often each label occurs. Takes plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOUR, _LIMIT = "#1f4e9c", "#c05a00"
#: Most bars of one picture; the others are drawn as one.
MAX_BARS = 30


def length_histogram(
    lengths: Sequence[int] | np.ndarray, unit: str, limit: int | None = None, *, noun: str = "row"
) -> Figure:
    """How many rows have which length, lengths on a logarithmic axis.

    Args:
        lengths: one a row; those of 0 are named under the title.
        unit: what they are counted in.
        limit: where rows will be cut: a labelled line.
        noun: what a row is called, such as "text".
    """
    from matplotlib.figure import Figure

    values = np.asarray(lengths)
    empty, values = int((values == 0).sum()), values[values > 0]
    figure = Figure(figsize=(8, 3.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    figure.suptitle(f"Lengths of the {noun}s")
    if empty:
        axes.set_title(f"{empty:,} empty {noun}s are not drawn", fontsize=9)
    if len(values):
        first, last = int(values.min()), int(values.max())
        edges = np.unique(np.round(np.geomspace(first, last + 1, 41)))
        edges = edges if len(edges) > 1 else np.array([first, first + 1])
        axes.hist(values, bins=edges.tolist(), color=_COLOUR, edgecolor="white", linewidth=0.4)
        axes.set_xscale("log")
    if limit is not None:
        axes.axvline(limit, color=_LIMIT, linestyle="--", label=f"max_length: {limit:,}")
        axes.legend(frameon=False, fontsize=9)
    axes.set_xlabel(unit)
    axes.set_ylabel(f"{noun}s")
    _plain(axes)
    return figure


def label_bars(counts: Mapping[str, int], *, noun: str = "row") -> Figure:
    """How many rows have each label, most frequent first; beyond `MAX_BARS` the rest together. `noun` names a row."""
    from matplotlib.figure import Figure

    shown = list(counts.items())[:MAX_BARS]
    if len(counts) > MAX_BARS:
        shown.append((f"{len(counts) - MAX_BARS:,} others", sum(list(counts.values())[MAX_BARS:])))
    figure = Figure(figsize=(8, 1.2 + 0.25 * len(shown)), dpi=110, layout="constrained")
    axes = figure.subplots()
    figure.suptitle(f"{noun.capitalize()}s of each label")
    places = range(len(shown))
    bars = axes.barh(places, [count for _, count in shown], color=_COLOUR)
    axes.bar_label(bars, [f"{count:,}" for _, count in shown], padding=3, fontsize=8)
    # A label may hold a dollar sign, which would begin a formula.
    axes.set_yticks(places, [name[:40].replace("$", r"\$") for name, _ in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"{noun}s")
    _plain(axes)
    return figure


def _plain(axes: object) -> None:
    axes.grid(visible=True, alpha=0.3, linewidth=0.6)  # type: ignore[attr-defined]
    axes.spines[["top", "right"]].set_visible(False)  # type: ignore[attr-defined]
