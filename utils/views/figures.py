"""Curves as inline SVG: small, without script, in the colours of the page.

Strokes and fills are attributes, which hold where a code host drops style sheets; with the design's style sheet its colours
replace them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from utils.views.curves import Points
from utils.views.html import Html, element, joined, text

# The drawing's size in its own units; it scales with the page's width.
WIDTH, HEIGHT = 920, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 26, 38

# Points of a curve that are marked; more would touch each other.
_MOST_MARKS = 60

# Of a small figure.
_MINI_WIDTH, _MINI_HEIGHT = 240, 44

#: Name of a colour in the design -> colour where there is no style sheet, readable on white and on near-black.
FALLBACK = {"train": "#3b82d6", "val": "#d9730d", "base": "#9669ec", "good": "#2da44e", "soft": "#8b8b8b"}


@dataclass(frozen=True)
class Line:
    """One curve of a figure.

    Attributes:
        name: in the legend. points: (step, value).
        colour: a name in the design; width, dash, opacity: of the stroke; marks: a square on each point.
    """

    name: str
    points: Points
    colour: str
    width: float = 2.0
    dash: str | None = None
    opacity: float | None = None
    marks: bool = False

    @property
    def stroke(self) -> dict[str, object]:
        """Attributes of the curve's stroke."""
        return {
            "class_": f"tb-c-{self.colour}", "stroke": FALLBACK[self.colour], "stroke_width": self.width,
            "stroke_dasharray": self.dash, "stroke_opacity": self.opacity,
        }  # fmt: skip


@dataclass(frozen=True)
class Across:
    """A horizontal axis of something other than steps, which begins at 0 in the units of the points.

    Attributes:
        name: what it is. last: its right end. ticks: (place, words).
        marked: name and place of a vertical line, or None.
    """

    name: str
    last: float
    ticks: Sequence[tuple[float, str]]
    marked: tuple[str, float] | None = None


def figure(
    lines: Sequence[Line], label: str, *, axis: str, last_step: float | None = None, across: Across | None = None,
    levels: Mapping[str, float] | None = None, crosses: Sequence[int] = (), cross_label: str = "", empty: str = "",
) -> Html:  # fmt: skip
    """Curves over optimizer steps as one SVG image.

    Args:
        label: what screen readers get. axis: name of the vertical axis.
        last_step: right end of the horizontal axis; with None, the last point's. across: another horizontal axis.
        levels: name -> value of horizontal lines to compare with. crosses: steps marked on the lower edge, of which the first
            50 are drawn; cross_label: what they are. empty: words in place of the ticks while there is no point.
    """
    shown = [line for line in lines if line.points]
    last = across.last if across else max([last_step or 0, 1, *(line.points[-1][0] for line in shown)])
    marked = across.marked if across else None
    compared = {name: value for name, value in (levels or {}).items() if math.isfinite(value)}
    values = [value for line in shown for _, value in line.points]
    low, high = _range([*values, *(compared.values() if values else ())])
    panel = _Panel(_TOP, HEIGHT - _TOP - _BOTTOM, last, low, high)
    return element(
        "svg",
        *_legend(shown, compared if values else {}, marked),
        panel.frame(axis, ticks=5 if values or not empty else 0),
        _label(WIDTH / 2, HEIGHT / 2, empty, anchor="middle", class_="tb-empty") if empty and not values else text(""),
        *(panel.level(value) for value in (compared.values() if values else ())),
        *(panel.line(line) for line in lines),
        *(panel.squares(line) for line in shown if line.marks and len(line.points) <= _MOST_MARKS),
        panel.crosses(crosses),
        panel.mark(marked[1]) if marked else text(""),
        *(_axis(panel, across.ticks, across.name) if across else _step_axis(panel, last if values or last_step else 0)),
        _label(WIDTH, HEIGHT - 8, f"× {cross_label}", anchor="end") if cross_label else text(""),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=label,
    )


def small_figure(points: Points, label: str, colour: str) -> Html:
    """A curve without axes, as wide as its place; its numbers stand beside it."""
    low, high = _range([value for _, value in points])
    least = 0.1 * max(abs(low), abs(high))  # a few percent of noise are not to fill the figure
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    first, last = (points[0][0], points[-1][0]) if points else (0.0, 1.0)
    drawn = points if len(points) != 1 else [points[0], (points[0][0] + 1, points[0][1])]
    x_scale, y_scale = _MINI_WIDTH / ((last - first) or 1.0), (_MINI_HEIGHT - 4) / (high - low)
    return element(
        "svg",
        element(
            "polyline", points=_path(drawn, -first * x_scale, x_scale, 2 + high * y_scale, -y_scale), fill="none",
            class_=f"tb-c-{colour}",
            stroke=FALLBACK[colour], stroke_width=1.6, stroke_linejoin="round", vector_effect="non-scaling-stroke",
        ),
        viewBox=f"0 0 {_MINI_WIDTH} {_MINI_HEIGHT}", preserveAspectRatio="none", role="img", aria_label=label,
        height=_MINI_HEIGHT, style=f"height:{_MINI_HEIGHT}px",
    )  # fmt: skip


def _path(points: Points, x_start: float, x_scale: float, y_start: float, y_scale: float) -> str:
    """`points` of a polyline: most of a drawing's time goes here, so that each point is one formatting and no call."""
    return " ".join([f"{x_start + x_scale * step:.1f},{y_start + y_scale * value:.1f}" for step, value in points])


@dataclass(frozen=True)
class _Panel:
    """One pair of axes: from steps and values to the drawing's units."""

    top: float
    height: float
    last_step: float
    low: float
    high: float

    def x(self, step: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * min(1.0, step / self.last_step)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.top + self.height * (1 - min(1.0, max(0.0, share)))

    def frame(self, name: str, ticks: int) -> Html:
        """Left axis with round numbers, faint lines, and the panel's name."""
        rows = []
        for value in _round_values(self.low, self.high, ticks) if ticks else ():
            y = self.y(value)
            rows.append(_stroke(_LEFT, y, WIDTH - _RIGHT, y, stroke_opacity=0.15))
            rows.append(_label(_LEFT - 6, y + 4, _number(value), anchor="end"))
        middle, base = self.top + self.height / 2, self.top + self.height
        rows.append(_stroke(_LEFT, base, WIDTH - _RIGHT, base, stroke_opacity=0.5))
        rows.append(_label(11, middle, name, anchor="middle", transform=f"rotate(-90 11 {middle:g})"))
        return joined(rows)

    def level(self, value: float) -> Html:
        """A dotted horizontal line."""
        y = f"{self.y(value):.1f}"
        return element(
            "line", x1=_LEFT, y1=y, x2=WIDTH - _RIGHT, y2=y, class_="tb-c-base", stroke=FALLBACK["base"], stroke_width=1.6,
            stroke_dasharray="2 4",
        )  # fmt: skip

    def mark(self, step: float) -> Html:
        """A dashed vertical line."""
        x = f"{self.x(step):.1f}"
        return element(
            "line", x1=x, y1=self.top, x2=x, y2=self.top + self.height, class_="tb-c-val", stroke=FALLBACK["val"],
            stroke_width=1.6, stroke_dasharray="6 4",
        )  # fmt: skip

    def line(self, line: Line) -> Html:
        """The curve, or a dot when there is but one point."""
        if len(line.points) == 1:
            x, y = (f"{place:.1f}" for place in (self.x(line.points[0][0]), self.y(line.points[0][1])))
            return element("circle", cx=x, cy=y, r=2.5, class_=f"tb-f-{line.colour}", fill=FALLBACK[line.colour])
        y_scale = self.height / (self.high - self.low)
        x_scale, y_start = (WIDTH - _LEFT - _RIGHT) / self.last_step, self.top + self.height + self.low * y_scale
        path = _path(line.points, _LEFT, x_scale, y_start, -y_scale)
        return element("polyline", points=path, fill="none", stroke_linejoin="round", **line.stroke)

    def squares(self, line: Line) -> Html:
        """A small square on each point."""
        return joined(
            element(
                "rect", x=f"{self.x(s) - 3:.1f}", y=f"{self.y(v) - 3:.1f}", width=6, height=6,
                class_=f"tb-f-{line.colour}", fill=FALLBACK[line.colour],
            )
            for s, v in line.points
        )  # fmt: skip

    def crosses(self, steps: Sequence[int]) -> Html:
        """A cross on the lower edge at each of the first 50 steps that had no finite loss."""
        base = self.top + self.height - 7
        return joined(_label(self.x(step), base, "×", anchor="middle", font_weight="bold") for step in steps[:50])


def _legend(lines: Sequence[Line], levels: Mapping[str, float], marked: tuple[str, float] | None) -> list[Html]:
    shown: list[Html] = []
    x = float(_LEFT)
    levelled = [Line(f"{name} {_short(value)}", [], "base", 1.6, "2 4") for name, value in levels.items()]
    levelled += [Line(marked[0], [], "val", 1.6, "6 4")] if marked else []
    for line in (*lines, *levelled):
        shown.append(element("line", x1=f"{x:g}", y1=10, x2=f"{x + 24:g}", y2=10, **line.stroke))
        shown.append(_label(x + 29, 14, line.name))
        x += 44 + 6.8 * len(line.name)
    return shown


def _step_axis(panel: _Panel, last: float) -> list[Html]:
    values = [value for value in _round_values(0, last, 10) if value == int(value)] if last else []
    return _axis(panel, [(value, f"{value:,.0f}") for value in values], "optimizer steps")


def _axis(panel: _Panel, ticks: Sequence[tuple[float, str]], name: str) -> list[Html]:
    base = panel.top + panel.height
    words = [_step_label(panel.x(place), base + 15, said) for place, said in ticks]
    return [*words, _label((_LEFT + WIDTH - _RIGHT) / 2, base + 30, name, anchor="middle")]


def _step_label(x: float, y: float, content: str) -> Html:
    """Centred under its tick; at the right edge it ends there, or a long number would be cut off."""
    fits = x + 4.2 * len(content) <= WIDTH
    return _label(x if fits else WIDTH, y, content, anchor="middle" if fits else "end")


def _label(x: float, y: float, content: str, anchor: str = "start", **attributes: object) -> Html:
    return element(
        "text",
        text(content),
        x=f"{x:g}",
        y=f"{y:g}",
        text_anchor=anchor,
        font_size=12,
        fill="currentColor",
        **attributes,
    )


def _stroke(x1: float, y1: float, x2: float, y2: float, **attributes: object) -> Html:
    return element("line", x1=x1, y1=f"{y1:.1f}", x2=x2, y2=f"{y2:.1f}", stroke="currentColor", **attributes)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The values' span with a little room; of no value or of equal ones a span of 1."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or 0.5
    return (max(0.0, low - room) if low >= 0 else low - room), high + room


def _round_values(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 multiples of 1, 2 or 5 times a power of ten between `low` and `high`."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    spacing = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / spacing - 1e-9)
    return [round(index * spacing, 12) for index in range(first, math.floor(high / spacing + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-") if 0 < abs(value) < 1e-3 else f"{value:g}"


def _short(value: float) -> str:
    return f"{value:.2f}" if 0.01 <= abs(value) < 1000 else f"{value:.3g}"
