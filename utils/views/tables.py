"""Tables as plain text, for terminals, logs and the text form of a notebook's output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def summary_text(title: str, rows: Mapping[str, str]) -> str:
    """`title`, then one line a row: the name, then the value, aligned. Further lines of a value are indented alike."""
    width = max((len(name) for name in rows), default=0)
    indent = " " * (width + 4)
    lines = [f"  {name:<{width}}  {value}".rstrip().replace("\n", f"\n{indent}") for name, value in rows.items()]
    return "\n".join([title, *lines])


def columns_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns under a ruled header; the last column is not padded."""
    widths = [max(len(row[index]) for row in [header, *rows]) for index in range(len(header))]
    rule = ["-" * width for width in widths]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, rule, *rows]
    ]
    return "\n".join(lines)


def on_one_line(value: str) -> str:
    """`value` with a sign and a space for every line break."""
    return value.replace("\r\n", "\n").replace("\n", "\N{RETURN SYMBOL} ")
