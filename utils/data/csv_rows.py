"""Comma- and tab-separated files -> rows of texts, each with the physical line it begins on."""

from __future__ import annotations

import contextlib
import csv
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from utils.data.decoding import LONGEST_RECORD, lines_of
from utils.data.rows import BadLines, ReadOptions, Row, excerpt
from utils.errors import DataError

_DELIMITERS = ",;\t|"
_READ_AT_ONCE = 500


def csv_rows(pieces: Iterable[str], file: Path, options: ReadOptions, bad: BadLines, *, tabs: bool) -> Iterator[Row]:
    """The rows below the header, every value a text. Blank lines are passed over; line ends in quotes are "\\n".

    Args:
        tabs: whether it is a .tsv file, whose fields tabs separate unless `options.delimiter` says otherwise.
    Raises:
        DataError: no header, columns of the same name, a quote that is not closed; a row with more or fewer fields than the
            header, unless `bad` skips it.
    """
    lines = lines_of(pieces, file)
    header_line = next(lines, "")
    delimiter = options.delimiter or ("\t" if tabs else _shown_delimiter(header_line))
    reader = csv.reader(
        itertools.chain([header_line], lines),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if options.quotes else csv.QUOTE_NONE,
        strict=True,
    )
    records = _records(reader, file)
    _, first = next(records, (1, []))
    names = _names(first, file)
    for line, fields in records:
        if len(fields) == len(names):
            yield Row(line, dict(zip(names, fields, strict=True)))
        elif fields:
            bad.meet(_ragged(file, line, fields, names, delimiter))


def _records(reader: Any, file: Path) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line it begins on. The module's limit for a field is raised only while it reads."""
    while True:
        taken, error = _some_records(reader)
        yield from taken
        if error is not None:
            raise DataError(_unreadable(file, *error)) from error[1]
        if not taken:
            return


def _some_records(reader: Any) -> tuple[list[tuple[int, list[str]]], tuple[int, csv.Error] | None]:
    """The next records, and the error that stopped them with its record's line."""
    taken: list[tuple[int, list[str]]] = []
    with _long_fields():
        for _ in range(_READ_AT_ONCE):
            begins = reader.line_num + 1
            try:
                taken.append((begins, next(reader)))
            except StopIteration:
                break
            except csv.Error as error:
                return taken, (begins, error)
    return taken, None


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    before = csv.field_size_limit(LONGEST_RECORD)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _shown_delimiter(header: str) -> str:
    """What the header line separates its columns with; a comma where it has one or shows nothing else."""
    counts = {sign: header.count(sign) for sign in _DELIMITERS}
    return "," if counts[","] else max(_DELIMITERS, key=lambda sign: counts[sign])


def _names(header: Sequence[str], file: Path) -> list[str]:
    """The names of the columns. One that is empty, as pandas writes for an index, is named by its place."""
    names = [name.strip() or f"column {place}" for place, name in enumerate(header, start=1)]
    if not names or (len(names) == 1 and not header[0].strip()):
        raise DataError(f"{file}:1: the first line is blank; it must name the columns, such as: text,label")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"{file}:1: the header names {', '.join(map(repr, twice))} more than once; its columns are "
            f"{excerpt(', '.join(names))}. Give each column a name of its own."
        )
    return names


def _ragged(file: Path, line: int, fields: Sequence[str], names: Sequence[str], delimiter: str) -> str:
    counted = f"{len(fields)} field{'' if len(fields) == 1 else 's'}"
    return (
        f"{file}:{line}: the row has {counted}, the header {len(names)} ({excerpt(', '.join(names))}): "
        f"{excerpt(delimiter.join(fields))}. Put a field that holds {delimiter!r} in quotes."
    )


def _unreadable(file: Path, line: int, error: csv.Error) -> str:
    if "unexpected end of data" in str(error) or "field larger than field limit" in str(error):
        return (
            f"{file}:{line}: a quote is opened in this row and not closed. Close it, write a quote inside quotes twice "
            '(""), or read quotes as characters: quotes=False.'
        )
    return (
        f'{file}:{line}: {error}. Write a quote inside quotes twice (""), or read quotes as characters: quotes=False.'
    )
