"""A report of checks as HTML and as text. Takes plain data.

Verdicts are words: nothing is told by colour.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from utils.views.html import Html, columns, element, joined, text
from utils.views.tables import summary_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A check's name, its verdict, what was found, and what to do.
Row = tuple[str, str, str, str]

_HEADER = ("check", "verdict", "what was found", "what to do")


def report_html(heading: str, rows: Sequence[Row], pictures: Mapping[str, Figure] | None = None) -> Html:
    """The report as a table; under it each picture, to unfold. Self-contained: pictures are part of the markup.

    Args:
        heading: the table's caption.
        rows: one a check.
        pictures: by the name of their check.
    """
    drawn = joined(_picture(name, figure) for name, figure in (pictures or {}).items())
    return element("div", columns(heading, _HEADER, rows), drawn, class_="tb-checks")


def report_text(heading: str, rows: Sequence[Row]) -> str:
    """The report for a terminal: a paragraph a check. A table would be several hundred characters wide."""
    return summary_text(heading, {name: _told(verdict, found, remedy) for name, verdict, found, remedy in rows})


def page(title: str, body: Html) -> str:
    """`body` as the whole text of an HTML file, readable in the browser's light and dark colours."""
    style = "font-family:system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color-scheme:light dark"
    head = element("head", element("meta", charset="utf-8"), element("title", text(title)))
    return "<!DOCTYPE html>\n" + element("html", head, element("body", body, style=style), lang="en")


def _told(verdict: str, found: str, remedy: str) -> str:
    return f"{verdict}: {found}" + (f"\nWhat to do: {remedy}" if remedy else "")


def _picture(name: str, figure: Figure) -> Html:
    from utils.views.curves import figure_png

    source = f"data:image/png;base64,{base64.b64encode(figure_png(figure)).decode()}"
    image = element("img", src=source, alt=f"{name}, drawn", style="max-width:100%")
    return element("details", element("summary", text(f"Picture: {name}")), image)
