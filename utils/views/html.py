"""The only place where text becomes HTML. Everything that is not markup made here goes through `text`.

Colours come from the page (`currentColor`), so that light and dark themes are both readable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NewType

from utils.scrubbing import scrub

#: Markup that was built here from escaped text. Only this module makes values of this type.
Html = NewType("Html", str)

_RULE = "border-bottom:1px solid color-mix(in srgb,currentColor 20%,transparent)"
_CELL = f"padding:2px 12px 2px 0;text-align:left;vertical-align:top;{_RULE}"
_TABLE = "border-collapse:collapse;color:inherit;background:transparent"


def text(value: object) -> Html:
    """`value` as text that a browser shows as it is, without secrets: no tag, attribute or entity in it has an effect."""
    return Html(escape(scrub(str(value)), quote=True))


def element(tag: str, *children: Html, **attributes: object) -> Html:
    """One HTML or SVG element. `children` are markup already; every attribute's value is escaped.

    An attribute is written as Python can name it: `class_="a"`, `aria_label="b"`, `stroke_width=2`. One that is None is
    left out; `viewBox` and its like keep their case.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{text(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{written}>{''.join(children)}</{tag}>")


def style_sheet(css: str) -> Html:
    """A style element. Browsers read its content as it is, so text that could end it, or that needs escaping, is refused."""
    if text(css) != css:
        raise ValueError("a style sheet holds no quotes, ampersands or angle brackets, and no secrets")
    return element("style", Html(" ".join(css.split())))


def joined(parts: Iterable[Html]) -> Html:
    """Markup after markup."""
    return Html("".join(parts))


_SPOKEN_ONLY = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap"


def status(sentence: str, spoken_only: bool = False) -> Html:
    """One line that screen readers speak when it changes; `spoken_only`: it takes no room on the page."""
    style = _SPOKEN_ONLY if spoken_only else "font-weight:600;color:inherit"
    return element("div", text(sentence), role="status", aria_live="polite", style=style)


def alert(sentence: str, details: str = "") -> Html:
    """An error that is spoken at once and seen without colour; `details` can be unfolded."""
    more = (
        element("details", element("summary", text("Details")), element("pre", text(details))) if details else text("")
    )
    return element(
        "div",
        element("strong", text("Error: ")),
        text(sentence),
        more,
        role="alert",
        style="border:2px solid currentColor;padding:4px 8px;margin:4px 0;color:inherit",
    )


def table(title: str, rows: Mapping[str, str]) -> Html:
    """A two-column table with row headers; line breaks in values are kept."""
    body = "".join(
        f'<tr><th scope="row" style="{_CELL};font-weight:600">{text(name)}</th>'
        f'<td style="{_CELL};white-space:pre-wrap">{text(value)}</td></tr>'
        for name, value in rows.items()
    )
    caption = f'<caption style="text-align:left;font-weight:600;padding-bottom:4px">{text(title)}</caption>'
    return Html(f'<table class="tb-table" style="{_TABLE}">{caption}{body}</table>')


def columns(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table with a row of column headers; the first cell of each row is its header. Line breaks in values are kept."""
    style = f"{_CELL};white-space:pre-wrap;font-variant-numeric:tabular-nums"
    head = element("tr", *(element("th", text(name), scope="col", style=f"{_CELL};font-weight:600") for name in header))
    body = (
        element(
            "tr",
            element("th", text(row[0]), scope="row", style=f"{style};font-weight:600"),
            *(element("td", text(value), style=style) for value in row[1:]),
        )
        for row in rows
    )
    caption = element("caption", text(title), style="text-align:left;font-weight:600;padding-bottom:4px")
    return element("table", caption, head, *body, class_="tb-table", style=_TABLE)
