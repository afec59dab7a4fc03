"""The only place where text becomes HTML. Everything that is not markup made here goes through `text`.

Classes refer to the style sheet of `utils.views.design`; without it the markup is plain but complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NewType

from utils.scrubbing import scrub

#: Markup that was built here from escaped text. Only this module makes values of this type.
Html = NewType("Html", str)


def text(value: object) -> Html:
    """`value` as text that a browser shows as it is, without secrets: no tag, attribute or entity in it has an effect."""
    return Html(escape(scrub(str(value)), quote=True))


#: Attributes whose values come from outside. The others are geometry and names of the library's own: they are escaped too, but
#: a search for secrets in the hundreds of them would cost more than all the rest of a drawing.
_SAYS = frozenset({"alt", "aria_label", "content", "download", "href", "src", "title", "value"})


def element(tag: str, *children: Html, **attributes: object) -> Html:
    """One HTML or SVG element. `children` are markup already; every attribute's value is escaped.

    An attribute is written as Python can name it: `class_="a"`, `aria_label="b"`, `stroke_width=2`. One that is None is
    left out; `viewBox` and its like keep their case.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{text(value) if name in _SAYS else escape(str(value), quote=True)}"'
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
    return element("div", element("strong", text("Error: ")), text(sentence), more, role="alert", class_="tb-alert")


def table(title: str, rows: Mapping[str, str]) -> Html:
    """A two-column table with row headers; line breaks in values are kept."""
    body = (element("tr", element("th", text(name), scope="row"), element("td", text(rows[name]))) for name in rows)
    return element("table", element("caption", text(title)), element("tbody", *body), class_="tb-table tb-pairs")


def facts(rows: Mapping[str, str]) -> Html:
    """Names and values in as many columns as there is room for."""
    pairs = (element("div", element("dt", text(name)), element("dd", text(value))) for name, value in rows.items())
    return element("dl", *pairs, class_="tb-facts")


# Characters of a number in a card that is shown large: in all, and without a blank.
_LONGEST, _LONGEST_WORD = 10, 8


def number_cards(rows: Mapping[str, str]) -> Html:
    """Numbers in cards, each below its name; of "value (note)" the note is shown smaller. Without any, no markup."""
    cells = []
    for name, value in rows.items():
        number, _, note = value.partition(" (")
        is_long = len(number) > _LONGEST or any(len(word) > _LONGEST_WORD for word in number.split())
        long = "tb-long" if is_long else None
        note = note.removesuffix(")")
        parts = [element("span", text(name)), element("b", text(number), class_=long)]
        parts += [element("small", text(note), title=note)] if note else []
        cells.append(element("div", *parts, class_="tb-kpi"))
    return element("div", *cells, class_="tb-kpis") if cells else text("")


def fact_cards(sections: Mapping[str, Mapping[str, str]]) -> Html:
    """A card for each section with its names and values, as many beside each other as there is room for."""
    titles = {name: element("div", text(name), class_="tb-title", role="heading", aria_level=3) for name in sections}
    cards = (element("div", titles[name], facts(rows), class_="tb-card") for name, rows in sections.items())
    return element("div", *cards, class_="tb-sections")


def columns(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Html:
    """A table with a row of column headers; the first cell of each row is its header. Line breaks in values are kept."""
    head = element("tr", *(element("th", text(name), scope="col") for name in header))
    body = (
        element("tr", element("th", text(row[0]), scope="row"), *(element("td", text(value)) for value in row[1:]))
        for row in rows
    )
    caption = element("caption", text(title)) if title else text("")
    return element("table", caption, element("thead", head), element("tbody", *body), class_="tb-table")


def bars(title: str, header: Sequence[str], shares: Sequence[tuple[str, float]]) -> Html:
    """A table of names with their shares, from 0 to 1, as percentages and as bars. `header` has two names."""
    head = element("tr", *(element("th", text(name), scope="col") for name in header), element("td"))
    body = []
    for name, share in shares:
        filled = element("div", style=f"width:{100 * min(1.0, max(0.0, share)):.1f}%")
        bar = element("td", element("div", filled, class_="tb-bar", aria_hidden="true"))
        number = element("td", text(f"{share:.1%}"), class_="tb-number")
        body.append(element("tr", element("th", text(name), scope="row"), number, bar))
    caption = element("caption", text(title))
    return element("table", caption, element("thead", head), element("tbody", *body), class_="tb-table tb-bars")


def pill(icon: str, words: str, css_class: str) -> Html:
    """A state or verdict: icon, word and colour. `css_class` is one of tb-pass, tb-warn, tb-fail, tb-none and tb-run."""
    mark = element("span", text(icon), class_="tb-icon", aria_hidden="true")
    return element("span", mark, element("span", text(words)), class_=f"tb-pill {css_class}")
