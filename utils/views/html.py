"""The only place where text becomes HTML. Everything that is not markup made here goes through `text`.

Colours come from the page (`currentColor`), so that light and dark themes are both readable.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import NewType

#: Markup that was built here from escaped text. Only this module makes values of this type.
Html = NewType("Html", str)

_RULE = "border-bottom:1px solid color-mix(in srgb,currentColor 20%,transparent)"
_CELL = f"padding:2px 12px 2px 0;text-align:left;vertical-align:top;{_RULE}"
_TABLE = "border-collapse:collapse;color:inherit;background:transparent"


def text(value: object) -> Html:
    """`value` as text that a browser shows as it is: no tag, attribute or entity in it has an effect."""
    return Html(escape(str(value), quote=True))


def table(title: str, rows: Mapping[str, str]) -> Html:
    """A two-column table with row headers; line breaks in values are kept."""
    body = "".join(
        f'<tr><th scope="row" style="{_CELL};font-weight:600">{text(name)}</th>'
        f'<td style="{_CELL};white-space:pre-wrap">{text(value)}</td></tr>'
        for name, value in rows.items()
    )
    caption = f'<caption style="text-align:left;font-weight:600;padding-bottom:4px">{text(title)}</caption>'
    return Html(f'<table class="tb-table" style="{_TABLE}">{caption}{body}</table>')
