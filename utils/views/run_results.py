"""The results of a run as HTML: its numbers, its curves as inline SVG in the colours of the page, and its files and notes.

Takes plain data. The same curves as a file are `utils.views.curves`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from utils.views.curves import EPOCH_LOSS, STEP_LOSS, VALIDATION_LOSS, Points, Row, curve_points, decimated
from utils.views.design import styled
from utils.views.figures import Line, figure, small_figure
from utils.views.html import Html, element, number_cards, text
from utils.views.values import value_text

# Most points of one curve in a page.
_MOST_POINTS = 400


def results_html(
    title: str, cards: Mapping[str, str], curves: Html, rows: Mapping[str, str], notes: Sequence[str], *,
    folded: bool = False,
) -> Html:  # fmt: skip
    """Results of a run, complete in itself.

    Args:
        cards: name -> number, shown large; of "value (note)" the note is shown smaller.
        curves: as `curves_html` makes them. folded: show them on request, because the page has them already.
        rows: everything else by name. notes: sentences.
    """
    body = (
        element("tr", element("th", text(name), scope="row"), element("td", text(value)))
        for name, value in rows.items()
    )
    table = element("table", element("tbody", *body), class_="tb-table tb-pairs", aria_label=title)
    parts = [
        element("div", text(title), class_="tb-title", role="heading", aria_level=3),
        number_cards(cards),
        element("details", element("summary", text("Curves")), curves) if folded else curves,
        element("div", table, class_="tb-card"),
    ]
    if notes:
        parts.append(element("div", element("div", text("Notes"), class_="tb-title"), _listed(notes), class_="tb-card"))
    return styled(element("div", *parts, class_="tb-stack"))


def curves_html(
    epoch_rows: Sequence[Row], step_rows: Sequence[Row] = (), evaluate_rows: Sequence[Row] = (),
    baselines: Mapping[str, float] | None = None,
) -> Html:  # fmt: skip
    """Losses over optimizer steps, and the learning rate, as inline SVG. Arguments as of `training_curves`."""
    per_step, per_epoch = curve_points(step_rows, "train/loss"), curve_points(epoch_rows, "train/loss")
    validation = curve_points([*evaluate_rows, *epoch_rows], "val/loss")
    rates = _finite(curve_points(step_rows or epoch_rows, "train/learning_rate"))
    broken = sorted({int(step) for step, value in [*per_step, *per_epoch, *validation] if not math.isfinite(value)})
    lines = [
        Line(STEP_LOSS, _finite(per_step), "train", 1, opacity=0.45),
        Line(EPOCH_LOSS, _finite(per_epoch), "train", 2.2),
        Line(VALIDATION_LOSS, _finite(validation), "val", 2, dash="6 4", marks=True),
    ]
    losses = figure(
        lines, _spoken(lines, baselines or {}), axis="loss per target", levels=baselines, crosses=broken,
        cross_label=f"NaN or infinite ({len(broken):,})" if broken else "",
    )  # fmt: skip
    drawn = [element("div", element("div", losses, class_="tb-plot"), class_="tb-card")]
    if rates:
        drawn.append(_rate(rates))
    return element("div", *drawn, class_="tb-stack")


def _rate(rates: Points) -> Html:
    values = [value for _, value in rates]
    words = f"{value_text(min(values))} to {value_text(max(values))}, at the end {value_text(values[-1])}"
    head = element("div", text("learning rate"), class_="tb-help")
    label = f"learning rate: {words}"
    return element(
        "div", head, small_figure(rates, label, "train"), element("div", text(words), class_="tb-help"),
        class_="tb-card tb-mini",
    )  # fmt: skip


def _finite(points: Points) -> Points:
    return decimated([point for point in points if math.isfinite(point[1])], _MOST_POINTS)


def _spoken(lines: Sequence[Line], baselines: Mapping[str, float]) -> str:
    parts = [f"{line.name} {line.points[-1][1]:.3g}" for line in lines if line.points]
    parts += [f"{name} {value:.3g}" for name, value in baselines.items()]
    return f"Training curves: {', '.join(parts) or 'no step is finished yet'}."


def _listed(sentences: Iterable[str]) -> Html:
    return element("ul", *(element("li", text(sentence)) for sentence in sentences), class_="tb-list")
