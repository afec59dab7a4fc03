"""The live view of a run as HTML with inline SVG: light to make, readable on light and dark pages, and still there in a
saved notebook. Takes plain data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from utils.scrubbing import environment_read_once
from utils.views.curves import SMOOTHED_LOSS, STEP_LOSS, VALIDATION_LOSS, Points
from utils.views.design import styled
from utils.views.figures import Line, figure, small_figure
from utils.views.html import Html, element, joined, number_cards, pill, text
from utils.views.tables import with_few_breaks
from utils.views.values import value_text

#: State -> icon, word, CSS class of its colour.
_STATES = {
    "starting": ("○", "starting", "tb-none"),
    "training": ("●", "training", "tb-run"),
    "validating": ("●", "validating", "tb-run"),
    "pausing": ("‖", "pausing", "tb-warn"),
    "paused": ("‖", "paused", "tb-warn"),
    "stopping": ("■", "stopping", "tb-warn"),
    "ended": ("✓", "finished", "tb-pass"),
    "stopped": ("■", "stopped", "tb-warn"),
    "broken off": ("✕", "interrupted", "tb-warn"),
    "failed": ("✕", "failed", "tb-fail"),
}

#: Kind of a notice -> icon and CSS class.
_NOTICES = {"fail": ("✕", "tb-fail"), "warn": ("▲", "tb-warn"), "note": ("•", "tb-none")}


@dataclass(frozen=True)
class Small:
    """A small figure: a curve with its newest value.

    Attributes:
        name: what it is. value: the newest, in words. colour: a name in the design.
    """

    name: str
    value: str
    points: Points
    colour: str


@dataclass(frozen=True)
class Validation:
    """A row of the table of validations, each value in words; "" where it is not known."""

    step: str
    train: str
    loss: str
    metric: str
    time: str
    best: bool = False


@dataclass(frozen=True)
class Notice:
    """Something the user should know.

    Attributes:
        kind: "fail", "warn" or "note". title: a few words, shown as a pill; may be empty.
    """

    kind: str
    title: str
    sentence: str


@dataclass(frozen=True)
class LivePicture:
    """Snapshot of a live view. Points are (optimizer step, value).

    Attributes:
        heading: the run's name.
        sentence: one line that says it all. where: the part of it that the state and the times beside it do not say; "": all.
        fraction: share of the steps that is done, 0 to 1; None: not known.
        over: whether the run is over; its progress bar is left out where the share is not known.
        state: what the run is doing, a key of `_STATES`.
        facts: label -> value, in reading order; of "value (note)" the note is shown smaller.
        loss, smoothed, validation, rate: the curves. smalls: curves without axes.
        baselines: name -> loss to compare with.
        last_step: right end of the horizontal axis; None: the last point's.
        nonfinite_steps: steps whose loss was NaN or infinite.
        elapsed, left: durations in words; validating: progress of a validation in words.
        validations: the newest first; metric: name of their fourth column, "" for none.
        events: (step, what happened), the newest first; event_count: how many there were.
        samples: (prompt, text that begins with it); samples_title: what they are; before: texts of the same prompts at
            the validation before; before_title: which one.
        notices: what the user should know. advice: how to continue a run that was stopped.
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
    notices: Sequence[Notice] = field(default_factory=tuple)
    over: bool = False
    state: str = "training"
    smalls: Sequence[Small] = ()
    baselines: Mapping[str, float] = field(default_factory=dict)
    where: str = ""
    elapsed: str = ""
    left: str = ""
    validating: str = ""
    validations: Sequence[Validation] = ()
    metric: str = ""
    events: Sequence[tuple[int, str]] = ()
    event_count: int = 0
    before: Sequence[tuple[str, str]] = ()
    before_title: str = ""
    advice: str = ""


def live_view(picture: LivePicture, folded_under: str = "") -> Html:
    """The whole view with its style sheet: what stays in a saved notebook.

    Args:
        folded_under: a sentence that unfolds the view; "": it is open.
    """
    content = live_content(picture)
    if folded_under:
        content = element("details", element("summary", text(folded_under)), content)
    return styled(content, css_class="tb-live-view")


@environment_read_once()
def live_content(picture: LivePicture) -> Html:
    """The whole view without its style sheet, for a page that has it already: a drawing is then a third smaller."""
    return element(
        "div",
        _head(picture),
        number_cards(picture.facts),
        element("div", element("div", live_curves(picture), class_="tb-plot"), class_="tb-card"),
        _smalls(picture.smalls),
        _below(picture),
        _notices(picture.notices),
        class_="tb-stack",
    )


def _below(picture: LivePicture) -> Html:
    """Validations and events beside the samples."""
    samples, rest = _samples(picture), [part for part in (_validations(picture), _events(picture)) if part]
    columns = [element("div", *rest, class_="tb-narrow tb-stack")] if rest else []
    columns += [element("div", samples, class_="tb-wide tb-stack")] if samples else []
    return element("div", *columns, class_="tb-split") if columns else text("")


def live_curves(picture: LivePicture) -> Html:
    """Losses over optimizer steps as one SVG image whose label says the newest numbers."""
    count = len(picture.nonfinite_steps)
    return figure(
        [
            Line(STEP_LOSS, picture.loss, "train", 1, opacity=0.45),
            Line(SMOOTHED_LOSS, picture.smoothed, "train", 2.2),
            Line(VALIDATION_LOSS, picture.validation, "val", 2, dash="6 4", marks=True),
        ],
        _spoken(picture), axis="loss per target", last_step=picture.last_step, levels=picture.baselines,
        crosses=picture.nonfinite_steps, cross_label=f"NaN or infinite ({count:,})" if count else "",
        empty="" if picture.over else "The curves begin with the first step.",
    )  # fmt: skip


def _spoken(picture: LivePicture) -> str:
    parts = [
        f"{name} {points[-1][1]:.3g}"
        for name, points in ((SMOOTHED_LOSS, picture.smoothed), (VALIDATION_LOSS, picture.validation))
        if points
    ]
    parts += [f"{name} {value:.3g}" for name, value in picture.baselines.items()]
    return f"Curves of the loss over optimizer steps. {', '.join(parts) or 'No step is finished yet'}."


def _head(picture: LivePicture) -> Html:
    """Name, state and progress."""
    state = pill(*_STATES.get(picture.state, _STATES["training"]))
    progress = text("") if picture.over and picture.fraction is None else _progress(picture.fraction)
    times = [
        element("span", text(words), class_=own)
        for words, own in (
            (picture.elapsed, None),
            (picture.validating, None),
            (picture.advice, None),
            (picture.left, "tb-right"),
        )
        if words
    ]
    return element(
        "div",
        element(
            "div",
            element("span", text(picture.heading), class_="tb-title", role="heading", aria_level=3),
            state,
            element("span", text(picture.where or picture.sentence), class_="tb-soft"),
            class_="tb-row",
        ),
        element("div", progress, style="margin:8px 0 4px"),
        element("div", *times, class_="tb-row tb-help") if times else text(""),
    )


def _progress(fraction: float | None) -> Html:
    share = None if fraction is None else f"{min(1.0, max(0.0, fraction)):.4f}"
    return element("progress", value=share, max=1, aria_label="share of the steps that is done")


def _smalls(smalls: Sequence[Small]) -> Html:
    cards = []
    for small in smalls:
        values = [value for _, value in small.points]
        if not values:
            continue
        span = f"{value_text(min(values))} to {value_text(max(values))}"
        head = element("div", text(small.name), class_="tb-help")
        label = f"{small.name}: {small.value}, {span} so far"
        parts = [head, element("b", text(small.value)), small_figure(small.points, label, small.colour)]
        cards.append(element("div", *parts, element("div", text(span), class_="tb-help"), class_="tb-card tb-mini"))
    return element("div", *cards, class_="tb-minis") if cards else text("")


def _validations(picture: LivePicture) -> Html:
    """One row a validation, the best marked by a star."""
    if not picture.validations:
        return text("")
    names = ["step", "train", "validation", *([picture.metric] if picture.metric else []), "time"]
    head = element("tr", *(element("th", text(name), scope="col", class_="tb-number") for name in names))
    rows = []
    for row in picture.validations:
        cells = [row.train, row.loss, *([row.metric] if picture.metric else []), row.time]
        step = joined([_star(), text(f"\u00a0{row.step}")]) if row.best else text(row.step)
        first = element("th", step, scope="row", class_="tb-number")
        rows.append(element("tr", first, *(element("td", text(cell), class_="tb-number") for cell in cells)))
    table = element("table", element("thead", head), element("tbody", *rows), aria_label="validations, newest first")
    legend = joined([text("Validations, "), _star(), text(" the best")])
    return element("div", element("div", legend, class_="tb-title"), table, class_="tb-card tb-scroll")


def _star() -> Html:
    """The mark of the best row, which screen readers call by its name."""
    return element("span", text("★"), role="img", aria_label="best")


def _events(picture: LivePicture) -> Html:
    """The newest events, with the number of those before them."""
    if not picture.events:
        return text("")
    more = f", the newest {len(picture.events)} of {picture.event_count:,}"
    title = "Events" + (more if picture.event_count > len(picture.events) else "")
    lines = (
        element("li", element("span", text(f"step {step:,}"), class_="tb-soft"), text(f"  {what}"))
        for step, what in picture.events
    )
    return element(
        "div",
        element("div", text(title), class_="tb-title"),
        element("ul", *lines, class_="tb-list"),
        class_="tb-card",
    )


def _samples(picture: LivePicture) -> Html:
    """Each sample with its own line breaks, beside the one of the validation before."""
    if not picture.samples:
        return text("")
    before = dict(picture.before)
    rows = []
    for prompt, written in picture.samples:
        cells = [_sample(prompt, written)]
        if prompt in before and picture.before_title:
            cells.append(element("div", _sample(prompt, before[prompt], picture.before_title), class_="tb-soft"))
        rows.append(element("div", *cells, class_="tb-pair"))
    return element("div", element("div", text(picture.samples_title), class_="tb-title"), *rows, class_="tb-card")


def _sample(prompt: str, written: str, title: str = "") -> Html:
    rest = written[len(prompt) :] if written.startswith(prompt) else written
    head = element("div", text(title), class_="tb-help") if title else text("")
    body = element("pre", element("b", text(prompt)), text(with_few_breaks(rest)))
    return element("div", head, body, class_="tb-sample")


def _notices(notices: Sequence[Notice]) -> Html:
    if not notices:
        return text("")
    lines = []
    for notice in notices:
        icon, css_class = _NOTICES[notice.kind]
        mark = (
            pill(icon, notice.title, css_class)
            if notice.title
            else element("span", text(icon), class_=f"tb-icon {css_class}", aria_hidden="true")
        )
        lines.append(element("li", mark, text(" "), text(notice.sentence)))
    return element("div", element("ul", *lines, class_="tb-list"), class_="tb-card")
