"""A hyper-parameter search as a static figure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Number, status, value of the metric or None, hyper-parameters.
TrialRow = tuple[int, str, float | None, Mapping[str, Any]]

# Every status has a marker of its own, so that the figure reads in black and white too.
_MARKERS = {"finished": "o", "pruned": "v", "stopped": "s", "running": "s", "failed": "x"}
_COLOURS = {"finished": "#1f4e9c", "pruned": "#777777", "stopped": "#777777", "running": "#777777", "failed": "#c05a00"}
_MOST_PANELS = 6
_COLUMNS = 3


def search_figure(
    trials: Sequence[TrialRow], names: Sequence[str], by_logarithm: Sequence[str], metric: str, mode: str, title: str = "Search"
) -> Figure:  # fmt: skip
    """The trials' values in order, with the best so far, and below over each of the first six hyper-parameters.

    Args:
        trials: (number, status, value or None, hyper-parameters); trials without a finite value are crosses on the lower edge.
        names: hyper-parameters, one panel each; those in `by_logarithm` on a logarithmic axis, texts as categories.
        metric: name of the value; mode: "min" or "max".
    Returns:
        A figure 9 inches wide.
    """
    from matplotlib.figure import Figure

    shown = list(names[:_MOST_PANELS])
    rows = math.ceil(len(shown) / _COLUMNS)
    figure = Figure(figsize=(9, 3 + 2.4 * rows), dpi=110, layout="constrained")
    figure.suptitle(title)
    top, *parts = figure.subfigures(1 + (rows > 0), 1, height_ratios=[3, 2.4 * rows][: 1 + (rows > 0)], squeeze=False)[
        :, 0
    ]
    axes = top.subplots()
    _scatter(axes, [(number, status, value) for number, status, value, _ in trials])
    _best_so_far(axes, trials, mode)
    axes.set_xlabel("trial")
    axes.set_ylabel(metric)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
    for part in parts:
        panels = part.subplots(rows, _COLUMNS, squeeze=False, sharey=True).flatten()
        for panel, name in itertools.zip_longest(panels, shown):
            if name is None:
                panel.set_visible(False)
            else:
                _panel(panel, trials, name, name in by_logarithm)
        for panel in panels[::_COLUMNS]:
            panel.set_ylabel(metric)
    return figure


def _panel(axes: Axes, trials: Sequence[TrialRow], name: str, logarithmic: bool) -> None:
    values = [params.get(name) for *_, params in trials]
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
    if logarithmic and numeric:
        axes.set_xscale("log")
    if numeric:
        places: list[Any] = values
    else:
        texts = [str(value) for value in values]
        order = list(dict.fromkeys(texts))
        places = [order.index(text) for text in texts]
        axes.set_xticks(range(len(order)), order)
    _scatter(axes, [(place, status, value) for place, (_, status, value, _) in zip(places, trials, strict=True)])
    axes.set_xlabel(name)


def _scatter(axes: Axes, points: Sequence[tuple[Any, str, float | None]]) -> None:
    """One series a status; those without a value stand on the lower edge."""
    for status in dict.fromkeys(status for _, status, _ in points):
        mine = [(place, value) for place, of, value in points if of == status]
        look: dict[str, Any] = {"marker": _MARKERS.get(status, "o"), "color": _COLOURS.get(status, "#1f4e9c"), "s": 28}
        known = [(place, value) for place, value in mine if value is not None and math.isfinite(value)]
        unknown = [place for place, value in mine if value is None or not math.isfinite(value)]
        if known:
            axes.scatter([place for place, _ in known], [value for _, value in known], label=status, **look)
        if unknown:
            label = None if known else f"{status}, no value"
            axes.scatter(
                unknown, [0.02] * len(unknown), transform=axes.get_xaxis_transform(), label=label, clip_on=False, **look
            )
    axes.grid(visible=True, alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _best_so_far(axes: Axes, trials: Sequence[TrialRow], mode: str) -> None:
    better = min if mode == "min" else max
    finished = [(n, v) for n, status, v, _ in trials if status == "finished" and v is not None and math.isfinite(v)]
    if not finished:
        return
    best = list(itertools.accumulate((value for _, value in finished), better))
    axes.step(
        [number for number, _ in finished],
        best,
        where="post",
        color="#1f4e9c",
        linestyle="--",
        linewidth=1.2,
        label="best so far",
    )
