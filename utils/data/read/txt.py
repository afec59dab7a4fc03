"""A plain text -> rows of one column, "text": the file, its paragraphs or its lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from utils.data.read.decoding import CHUNK_BYTES
from utils.data.read.rows import Row

#: Most characters of a row. Longer texts are cut: before a blank line, else at a line's end, else at a blank.
LONGEST_TEXT = 1 << 20


def text_rows(pieces: Iterable[str], unit: str) -> Iterator[Row]:
    """The rows of a text that comes in pieces.

    Rows without a visible character are skipped. The rows of unit "file", joined, are the text; of the others the line
    end after the row is left out.

    Args:
        unit: "file", "paragraph" or "line"; see `ReadOptions`.
    Memory: one row and one piece, however long the lines are.
    """
    pieces = iter(pieces)
    start = _beginning(pieces)
    if unit == "paragraph" and "\n\n" not in start:
        unit = "line"
    groups = {"file": _chunks, "paragraph": _paragraphs, "line": _lines}[unit]
    for line, text in groups(_parts(chain([start], pieces))):
        if text and not text.isspace():
            yield Row(line, {"text": text})


def _beginning(pieces: Iterator[str]) -> str:
    """About the first MiB, from which the unit is known."""
    start = ""
    for piece in pieces:
        start += piece
        if len(start) >= CHUNK_BYTES:
            break
    return start


def _parts(pieces: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The lines with their numbers, each with its "\\n"; one of more than `LONGEST_TEXT` characters in several parts."""
    number, rest = 1, ""
    for piece in pieces:
        *lines, rest = (rest + piece).split("\n")
        for line in lines:
            yield from ((number, part) for part in _cut(line + "\n"))
            number += 1
        while len(rest) > LONGEST_TEXT:
            end = _cut_before(rest)
            yield number, rest[:end]
            rest = rest[end:]
    if rest:
        yield number, rest


def _cut(text: str) -> Iterator[str]:
    while len(text) > LONGEST_TEXT:
        end = _cut_before(text)
        yield text[:end]
        text = text[end:]
    yield text


def _cut_before(text: str) -> int:
    """Where to split a text that is too long: after its last blank, else at the limit."""
    blank = text.rfind(" ", 0, LONGEST_TEXT) + 1
    return blank if blank else LONGEST_TEXT


def _lines(parts: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    return ((number, part.removesuffix("\n")) for number, part in parts)


def _paragraphs(parts: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    first, kept, size = 1, list[str](), 0
    for number, part in parts:
        ends = part.isspace()
        if kept and (ends or size + len(part) > LONGEST_TEXT):
            yield first, "".join(kept).removesuffix("\n")
            kept, size = [], 0
        if not ends:
            first = first if kept else number
            kept.append(part)
            size += len(part)
    yield first, "".join(kept).removesuffix("\n")


def _chunks(parts: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The text in rows of up to `LONGEST_TEXT` characters; from half of it on, one ends where a blank line ends."""
    first, kept, size = 1, list[str](), 0
    for number, part in parts:
        if kept and size + len(part) > LONGEST_TEXT:
            yield first, "".join(kept)
            kept, size = [], 0
        first = first if kept else number
        kept.append(part)
        size += len(part)
        if size >= LONGEST_TEXT // 2 and part.isspace():
            yield first, "".join(kept)
            kept, size = [], 0
    yield first, "".join(kept)
