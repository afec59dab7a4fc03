"""Tables as plain text, for terminals, logs and the text form of a notebook's output."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence


def summary_text(title: str, rows: Mapping[str, str], width: int = 0) -> str:
    """`title`, then one line a row: the name, then the value, aligned. Further lines of a value are indented alike.

    Args:
        width: characters of the names' column, at least.
    """
    width = max([width, *(len(name) for name in rows)])
    indent = " " * (width + 4)
    lines = [f"  {name:<{width}}  {value}".rstrip().replace("\n", f"\n{indent}") for name, value in rows.items()]
    return "\n".join([title, *lines])


def sections_text(sections: Mapping[str, Mapping[str, str]]) -> str:
    """Every section as `summary_text`, with the values of all of them in one column."""
    width = max((len(name) for rows in sections.values() for name in rows), default=0)
    return "\n".join(summary_text(title, rows, width) for title, rows in sections.items())


def columns_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns under a ruled header; the last column is not padded."""
    widths = [max(len(row[index]) for row in [header, *rows]) for index in range(len(header))]
    rule = ["-" * width for width in widths]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, rule, *rows]
    ]
    return "\n".join(lines)


_BREAK = "\N{RETURN SYMBOL}"
# As many line breaks in a row are written as their number: a model that writes nothing else would fill the page.
_MANY_BREAKS = re.compile(r"(?:[ \t]*\n){4,}")


def on_one_line(value: str) -> str:
    """`value` with a sign and a space for every line break; many in a row as a sign and their number."""
    shown = value.replace("\r\n", "\n")
    return _MANY_BREAKS.sub(lambda found: f"{_counted(found)} ", shown).replace("\n", f"{_BREAK} ")


def visible(token: str) -> str:
    """A token with signs for its line breaks, and for spaces where it has nothing else."""
    shown = token.replace("\n", _BREAK)
    return shown if shown.strip() else shown.replace(" ", "\N{OPEN BOX}")


def with_few_breaks(value: str) -> str:
    """`value` with its line breaks, but for many in a row, which become a line with a sign and their number."""
    return _MANY_BREAKS.sub(lambda found: f"\n{_counted(found)}\n", value.replace("\r\n", "\n"))


def _counted(found: re.Match[str]) -> str:
    return f"{_BREAK} × {found[0].count(chr(10))}"
