"""A report of checks as HTML and as text. Takes plain data.

Every verdict is an icon and a word as well as a colour (docs/DESIGN.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from utils.views.design import styled
from utils.views.html import Html, element, joined, pill, text
from utils.views.tables import summary_text
from utils.views.token_strip import attribution_strip
from utils.views.values import ValueRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A check's name, its verdict, what was measured, and what to do.
Row = tuple[str, str, str, str]

#: By verdict: icon, CSS class, and the words of a count, singular and plural.
_VERDICTS: Mapping[str, tuple[str, str, str, str]] = {
    "fail": ("✕", "fail", "failed", "failed"),
    "warn": ("▲", "warn", "warning", "warnings"),
    "pass": ("✓", "pass", "passed", "passed"),
    "not run": ("○", "none", "not run", "not run"),
}
_UNKNOWN = ("•", "none", "", "")

# As many checks that need no attention are shown; more are folded.
_MOST_SHOWN = {"pass": 8, "not run": 4}
# As many values without a limit, too.
_MOST_OTHERS = 8


@dataclass(frozen=True)
class Details:
    """Details of one check, shown beside its row.

    Attributes:
        findings: (verdict, summary, remedy) of each problem; where there are any they stand in place of the row's texts.
        values: measured values with their limits and the limits' sources.
        tokens: (token, attribution) of an input, shown as coloured text.
        not_run: parts of the check that could not run, with their reasons.
    """

    findings: Sequence[tuple[str, str, str]] = ()
    values: Sequence[ValueRow] = ()
    tokens: Sequence[tuple[str, float]] = ()
    not_run: Mapping[str, str] = field(default_factory=dict)


def report_html(
    title: str, rows: Sequence[Row], pictures: Mapping[str, Figure] | None = None,
    details: Mapping[str, Details] | None = None, seconds: float | None = None,
) -> Html:  # fmt: skip
    """The report as markup with its own style sheet, self-contained and without script.

    Findings come first. Many checks that passed, or did not run, are folded behind their number.

    Args:
        title: heading of the report.
        rows: one per check, in any order.
        pictures: by the name of their check. Visible where something is wrong, else to unfold.
        details: by the name of their check.
        seconds: how long the checks took.
    """
    shown, folded = _folded(rows)

    def table(some: Sequence[Row], label: str) -> Html:
        header = element("tr", *(element("th", text(name), scope="col", class_="tb-soft") for name in _HEADER))
        body = (_row(row, (pictures or {}).get(row[0]), (details or {}).get(row[0], Details())) for row in some)
        return element(
            "table",
            element("thead", header, class_="tb-head"),
            element("tbody", *body, class_="tb-rows"),
            aria_label=label,
        )

    names = {name for name, *_ in rows}
    others = joined(_picture(name, figure) for name, figure in (pictures or {}).items() if name not in names)
    parts = [table(shown, title) if shown else element("p", text("No problem was found."), class_="tb-nothing")]
    parts += [element("details", element("summary", text(words)), table(some, words)) for words, some in folded.items()]
    card = element("div", *parts, class_="tb-card")
    return styled(_top(title, rows, seconds), card, others, css_class="tb-checks")


def _folded(rows: Sequence[Row]) -> tuple[list[Row], dict[str, list[Row]]]:
    """Rows to show, findings first; and under a summary those that are folded. Where nothing ran, nothing is folded."""
    by_verdict = {verdict: [row for row in rows if row[1] == verdict] for verdict in _VERDICTS}
    shown = [*by_verdict["fail"], *by_verdict["warn"], *(row for row in rows if row[1] not in _VERDICTS)]
    folded = {}
    for verdict, words in (("pass", "checks passed"), ("not run", "checks did not run")):
        some = by_verdict[verdict]
        if len(some) <= _MOST_SHOWN[verdict] or (verdict == "not run" and len(some) == len(rows)):
            shown += some
            continue
        reasons = {row[2] for row in some} if verdict == "not run" else set()
        why = f": {reasons.pop()}" if len(reasons) == 1 else ""
        folded[f"{len(some)} {words}{why}"] = some
    return shown, folded


_HEADER = ("check", "verdict", "what was measured")


def report_text(heading: str, rows: Sequence[Row]) -> str:
    """The report for a terminal: a paragraph per check. A table would be several hundred characters wide."""
    return summary_text(heading, {name: _in_words(*rest) for name, *rest in rows})


def page(title: str, body: Html) -> str:
    """`body` as the whole text of an HTML file, readable in the browser's light and dark colours."""
    style = "font-family:system-ui,sans-serif;max-width:1120px;margin:2em auto;padding:0 1em;color-scheme:light dark"
    head = element(
        "head", element("meta", charset="utf-8"), element("meta", name="viewport", content="width=device-width"),
        element("meta", name="color-scheme", content="light dark"), element("title", text(title)),
    )  # fmt: skip
    return "<!DOCTYPE html>\n" + element("html", head, element("body", body, style=style), lang="en")


def _in_words(verdict: str, summary: str, remedy: str) -> str:
    return f"{verdict}: {summary}" + (f"\nWhat to do: {remedy}" if remedy else "")


def _top(title: str, rows: Sequence[Row], seconds: float | None) -> Html:
    """Title, one pill per kind of verdict with its count, and the time."""
    pills = []
    for verdict, (_, _, one, several) in _VERDICTS.items():
        if count := sum(row[1] == verdict for row in rows):
            pills.append(_pill(verdict, f"{count} {one if count == 1 else several}"))
    time = text("") if seconds is None else element("span", text(duration(seconds)), class_="tb-time tb-soft")
    return element("div", element("span", text(title), class_="tb-title"), *pills, time, class_="tb-top")


def duration(seconds: float) -> str:
    """Seconds as a person reads them: "0.4 s", "38 s", "2 min 5 s"."""
    if seconds < 9.5:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _pill(verdict: str, words: str) -> Html:
    icon, css_class, _, _ = _VERDICTS.get(verdict, _UNKNOWN)
    return pill(icon, words, f"tb-{css_class}")


def _row(row: Row, picture: Figure | None, details: Details) -> Html:
    name, verdict, summary, remedy = row
    drawn = text("") if picture is None else _picture(name, picture)
    values = _values(details.values) if details.values else text("")
    tokens = attribution_strip(details.tokens) if details.tokens else text("")
    more = [*_parts_not_run(details.not_run), tokens]
    label = "Measured values and limits" if values else "Picture"
    found = _findings(verdict, summary, remedy, details.findings)
    if verdict in ("fail", "warn"):
        parts = [found, *more, drawn, _fold(text(label), values, open_="")]
    elif details.findings:
        parts = [found, *more, _fold(text(label), values, drawn)]
    else:  # one line for what is right: the sentence itself unfolds what was measured
        parts = [_fold(text(summary), values, drawn, class_="tb-said") or _paragraph(summary), _remedy(remedy), *more]
    return element(
        "tr",
        element("th", text(name), scope="row", class_="tb-name"),
        element("td", _pill(verdict, verdict), class_="tb-verdict"),
        element("td", *parts, class_="tb-measured"),
    )


def _fold(label: Html, *content: Html, open_: str | None = None, class_: str | None = None) -> Html:
    """Content behind a label; without content, nothing."""
    if not any(content):
        return text("")
    return element("details", element("summary", label), *content, open=open_, class_=class_)


def _findings(verdict: str, summary: str, remedy: str, findings: Sequence[tuple[str, str, str]]) -> Html:
    if not findings:
        return joined([_paragraph(summary), _remedy(remedy)])
    several = len(findings) > 1
    return joined(
        element(
            "div",
            _paragraph(found, kind if several else ""),
            _remedy(what),
            class_=f"tb-finding tb-{_VERDICTS.get(kind, _UNKNOWN)[1]}",
        )
        for kind, found, what in findings
    )


def _paragraph(sentence: str, verdict: str = "") -> Html:
    """A sentence; of several findings each begins with its own verdict."""
    if not verdict:
        return element("p", text(sentence))
    icon = element("span", text(_VERDICTS.get(verdict, _UNKNOWN)[0]), class_="tb-icon", aria_hidden="true")
    return element("p", icon, text(" "), element("strong", text(f"{verdict}:")), text(f" {sentence}"))


def _remedy(remedy: str) -> Html:
    if not remedy:
        return text("")
    return element("p", text("→ "), element("strong", text("What to do: ")), text(remedy), class_="tb-do")


def _parts_not_run(reasons: Mapping[str, str]) -> list[Html]:
    icon = element("span", text(_VERDICTS["not run"][0]), class_="tb-icon", aria_hidden="true")
    return [
        element("p", icon, text(f" not run: {name.replace('_', ' ')} ({reason})"), class_="tb-soft tb-none")
        for name, reason in reasons.items()
    ]


def _values(rows: Sequence[ValueRow]) -> Html:
    """Values with limits as a table, the others in one paragraph below it."""
    compared = [row for row in rows if row.limit]
    others = [
        element("span", element("span", text(row.name), class_="tb-soft"), text(" "), element("strong", text(row.value)))
        for row in rows if not row.limit
    ]  # fmt: skip
    listed = element("p", *(joined([other, text(" ")]) for other in others), class_="tb-others") if others else text("")
    if len(others) > _MOST_OTHERS:
        listed = element("details", element("summary", text(f"{len(others)} values without a limit")), listed)
    return joined([_compared(compared) if compared else text(""), listed])


def _compared(rows: Sequence[ValueRow]) -> Html:
    """A row for each value; columns that would be empty are left out."""
    columns = {
        "value": ("tb-number", _value), "limit": ("tb-limit", lambda row: text(row.limit)),
        "source of the limit": ("tb-soft", lambda row: text(row.source)),
    }  # fmt: skip
    cells = {name: [make(row) for row in rows] for name, (_, make) in columns.items()}
    kept = [name for name, column in cells.items() if any(column)]
    heads = [
        ("measured" if "value" in kept else "compared with a limit", ""),
        *((name, columns[name][0]) for name in kept),
    ]
    header = element(
        "tr", *(element("th", text(name), scope="col", class_=f"tb-soft {own}".strip()) for name, own in heads)
    )
    body = (
        element(
            "tr", element("th", text(row.name), scope="row"),
            *(element("td", cells[name][number], class_=columns[name][0]) for name in kept),
        )
        for number, row in enumerate(rows)
    )  # fmt: skip
    return element("table", element("thead", header), element("tbody", *body), class_="tb-values")


def _value(row: ValueRow) -> Html:
    """The value; one beyond its limit is bold and has a mark."""
    if not row.outside:
        return text(row.value)
    mark = element("span", text("✕"), class_="tb-icon tb-fail", role="img", aria_label="beyond the limit")
    return joined([mark, text(" "), element("strong", text(row.value))])


def _picture(name: str, figure: Figure) -> Html:
    from utils.views.themed import themed_figure

    return element("div", themed_figure(figure, f"{name}, drawn"), class_="tb-picture")
