"""The live view of a run as HTML with inline SVG: light to make, readable on light and dark pages, and still there in a
saved notebook. Takes plain data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from utils.views.curves import SMOOTHED_LOSS, STEP_LOSS, VALIDATION_LOSS, Points
from utils.views.html import Html, element, joined, text
from utils.views.tables import on_one_line

# The drawing's size in its own units; it scales with the page's width.
WIDTH, LOSS_HEIGHT, RATE_HEIGHT = 760, 220, 70
_LEFT, _RIGHT, _TOP, _GAP, _BOTTOM = 58, 28, 22, 14, 34
_HEIGHT = _TOP + LOSS_HEIGHT + _GAP + RATE_HEIGHT + _BOTTOM

# Readable on white and on near-black; each line also has a dash and a mark of its own.
_TRAIN, _VALIDATION, _RATE = "#3b82d6", "#d9730d", "#8b8b8b"


@dataclass(frozen=True)
class LivePicture:
    """What a live view shows at one moment. Points are (optimizer step, value).

    Attributes:
        heading: the run's name.
        sentence: one line that says it all; screen readers get this.
        fraction: share of the steps that is done, 0 to 1; None: not known.
        over: whether the run is over; its progress bar is left out where the share is not known.
        facts: label -> value, in reading order.
        loss, smoothed, validation, rate: the curves.
        last_step: right end of the horizontal axis; None: the last point's.
        nonfinite_steps: steps whose loss was NaN or infinite.
        samples: (prompt, text that begins with it); samples_title: what they are.
        notices: sentences the user should know.
    """

    heading: str
    sentence: str
    fraction: float | None
    facts: Mapping[str, str]
    loss: Points
    smoothed: Points
    validation: Points
    rate: Points
    last_step: float | None = None
    nonfinite_steps: Sequence[int] = ()
    samples: Sequence[tuple[str, str]] = ()
    samples_title: str = "Samples"
    notices: Sequence[str] = field(default_factory=tuple)
    over: bool = False


def live_view(picture: LivePicture) -> Html:
    """The whole view: heading, progress, numbers, curves, samples, notices."""
    return element(
        "div",
        element("div", text(picture.heading), style="font-weight:600;font-size:110%"),
        element("div", text(picture.sentence), style="margin:2px 0 4px 0"),
        text("") if picture.over and picture.fraction is None else _progress(picture.fraction),
        _facts(picture.facts),
        live_curves(picture),
        _samples(picture.samples_title, picture.samples),
        _notices(picture.notices),
        class_="tb-live-view",
        style="max-width:860px;color:inherit;line-height:1.45",
    )


def live_curves(picture: LivePicture) -> Html:
    """Loss above, learning rate below, over optimizer steps, as one SVG image whose label says the newest numbers."""
    last = _last_step(picture)
    losses = [value for points in (picture.loss, picture.smoothed, picture.validation) for _, value in points]
    loss_panel = _Panel(_TOP, LOSS_HEIGHT, last, *_range(losses))
    rates = [value for _, value in picture.rate]
    rate_panel = _Panel(_TOP + LOSS_HEIGHT + _GAP, RATE_HEIGHT, last, 0.0, max(rates, default=0.0) * 1.1 or 1.0)
    return element(
        "svg",
        *_legend(picture),
        loss_panel.frame("loss per target", ticks=5),
        loss_panel.line(picture.loss, _TRAIN, stroke_width=1, stroke_opacity=0.45),
        loss_panel.line(picture.smoothed, _TRAIN, stroke_width=2.2),
        loss_panel.line(picture.validation, _VALIDATION, stroke_width=2, stroke_dasharray="6 4"),
        loss_panel.squares(picture.validation, _VALIDATION),
        loss_panel.crosses(picture.nonfinite_steps),
        rate_panel.frame("learning rate", ticks=2),
        rate_panel.line(picture.rate, _RATE, stroke_width=1.6),
        *_step_axis(rate_panel, last),
        viewBox=f"0 0 {WIDTH} {_HEIGHT}",
        role="img",
        aria_label=_spoken(picture),
        style="width:100%;height:auto;color:inherit;font-family:inherit",
    )


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
        for value in _round_values(self.low, self.high, ticks):
            y = self.y(value)
            rows.append(_stroke(_LEFT, y, WIDTH - _RIGHT, y, stroke_opacity=0.15))
            rows.append(_label(_LEFT - 6, y + 4, _number(value), anchor="end"))
        middle = self.top + self.height / 2
        rows.append(_stroke(_LEFT, self.top, _LEFT, self.top + self.height, stroke_opacity=0.6))
        rows.append(_stroke(_LEFT, self.top + self.height, WIDTH - _RIGHT, self.top + self.height, stroke_opacity=0.6))
        rows.append(_label(11, middle, name, anchor="middle", transform=f"rotate(-90 11 {middle:g})"))
        return joined(rows)

    def line(self, points: Points, colour: str, **attributes: object) -> Html:
        """The curve, or a dot when there is but one point."""
        if len(points) == 1:
            step, value = points[0]
            return element("circle", cx=f"{self.x(step):.1f}", cy=f"{self.y(value):.1f}", r=2.5, fill=colour)
        path = " ".join(f"{self.x(step):.1f},{self.y(value):.1f}" for step, value in points)
        return element("polyline", points=path, fill="none", stroke=colour, stroke_linejoin="round", **attributes)

    def squares(self, points: Points, colour: str) -> Html:
        """A small square on each point."""
        return joined(
            element("rect", x=f"{self.x(s) - 3:.1f}", y=f"{self.y(v) - 3:.1f}", width=6, height=6, fill=colour)
            for s, v in points
        )

    def crosses(self, steps: Sequence[int]) -> Html:
        """A cross on the lower edge at each of the first 50 steps that had no finite loss."""
        base = self.top + self.height - 7
        return joined(_label(self.x(step), base, "×", anchor="middle", font_weight="bold") for step in steps[:50])


def _legend(picture: LivePicture) -> list[Html]:
    entries = [
        (STEP_LOSS, picture.loss, {"stroke": _TRAIN, "stroke_width": 1, "stroke_opacity": 0.6}),
        (SMOOTHED_LOSS, picture.smoothed, {"stroke": _TRAIN, "stroke_width": 2.2}),
        (VALIDATION_LOSS, picture.validation, {"stroke": _VALIDATION, "stroke_width": 2, "stroke_dasharray": "6 4"}),
    ]
    shown: list[Html] = []
    x = float(_LEFT)
    for name, points, style in entries:
        if points:
            shown.append(element("line", x1=x, y1=10, x2=x + 26, y2=10, **style))
            shown.append(_label(x + 31, 14, name))
            x += 48 + 6.9 * len(name)
    if picture.nonfinite_steps:
        shown.append(_label(WIDTH, 14, f"× NaN or infinite ({len(picture.nonfinite_steps):,})", anchor="end"))
    return shown


def _step_axis(panel: _Panel, last: float) -> list[Html]:
    base = panel.top + panel.height
    values = [value for value in _round_values(0, last, 8) if value == int(value)]
    ticks = [_step_label(panel.x(value), base + 15, f"{value:,.0f}") for value in values]
    return [*ticks, _label((_LEFT + WIDTH - _RIGHT) / 2, base + 30, "optimizer steps", anchor="middle")]


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
        font_size=13,
        fill="currentColor",
        **attributes,
    )


def _stroke(x1: float, y1: float, x2: float, y2: float, **attributes: object) -> Html:
    return element("line", x1=x1, y1=f"{y1:.1f}", x2=x2, y2=f"{y2:.1f}", stroke="currentColor", **attributes)


def _last_step(picture: LivePicture) -> float:
    ends = [points[-1][0] for points in (picture.loss, picture.validation, picture.rate) if points]
    return max(picture.last_step or 0, *ends, 1) if ends else max(picture.last_step or 0, 1)


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


def _spoken(picture: LivePicture) -> str:
    parts = [
        f"{name} {points[-1][1]:.3g}"
        for name, points in ((SMOOTHED_LOSS, picture.smoothed), (VALIDATION_LOSS, picture.validation))
        if points
    ]
    return f"Curves of loss and learning rate over optimizer steps. {', '.join(parts) or 'No step is finished yet'}."


def _progress(fraction: float | None) -> Html:
    share = None if fraction is None else f"{min(1.0, max(0.0, fraction)):.4f}"
    return element("progress", value=share, max=1, aria_label="share of the steps that is done", style="width:100%")


def _facts(facts: Mapping[str, str]) -> Html:
    cells = joined(
        element(
            "span",
            element("span", text(name), style="opacity:.75"),
            text(" "),
            element("span", text(value), style="font-weight:600;font-variant-numeric:tabular-nums"),
            style="display:inline-block;margin-right:20px;white-space:nowrap",
        )
        for name, value in facts.items()
    )
    return element("div", cells, style="margin:4px 0")


def _samples(title: str, samples: Sequence[tuple[str, str]]) -> Html:
    if not samples:
        return text("")
    rows = []
    for prompt, written in samples:
        rest = written[len(prompt) :] if written.startswith(prompt) else written
        rows.append(
            element(
                "div",
                element("span", text(on_one_line(prompt)), style="font-weight:600"),
                text(on_one_line(rest)),
                style="white-space:pre-wrap;overflow-wrap:anywhere;margin:3px 0 3px 8px;padding-left:8px;"
                "border-left:2px solid color-mix(in srgb,currentColor 30%,transparent)",
            )
        )
    return element("div", element("div", text(title), style="font-weight:600;margin-top:4px"), *rows)


def _notices(notices: Sequence[str]) -> Html:
    if not notices:
        return text("")
    return element("ul", *(element("li", text(sentence)) for sentence in notices), style="margin:4px 0 0 0")
