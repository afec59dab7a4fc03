"""Comma- and tab-separated files -> rows of texts, each with the physical line it begins on."""

from __future__ import annotations

import contextlib
import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from utils.data.read.decoding import LONGEST_RECORD, lines_of
from utils.data.read.rows import BadLines, ReadOptions, Row, excerpt, listed
from utils.errors import DataError

# In order of preference where nothing speaks for one of them.
_DELIMITERS = ",;\t|"
# The first line by which Excel names the delimiter.
_STATED_DELIMITER = re.compile(r'"?sep=(?P<sign>[^"\r\n])"?\s*', re.IGNORECASE)
# Of a file's beginning, what is looked at to guess the delimiter.
_SAMPLE_LINES, _SAMPLE_CHARACTERS = 50, 1 << 16
_READ_AT_ONCE = 500

_Quoting = Literal[0, 3]  # csv.QUOTE_MINIMAL and QUOTE_NONE


def csv_rows(pieces: Iterable[str], file: Path, options: ReadOptions, bad: BadLines, *, tabs: bool) -> Iterator[Row]:
    """The rows below the header, every value a text. Blank lines are skipped; line ends in quotes are "\\n".

    Args:
        tabs: whether it is a .tsv file, whose fields tabs separate unless `options.delimiter` says otherwise.
    Raises:
        DataError: no header, columns of the same name, a quote that is not closed; a row with more or fewer fields than the
            header, unless `bad` skips it.
    """
    lines = lines_of(pieces, file)
    first_line = next(lines, "")
    stated = _STATED_DELIMITER.fullmatch(first_line)
    skipped = 0 if stated is None else 1
    sample = _sample(lines if stated else itertools.chain([first_line], lines))
    quoting: _Quoting = csv.QUOTE_MINIMAL if options.quotes else csv.QUOTE_NONE
    delimiter = (
        options.delimiter or (stated and stated["sign"]) or ("\t" if tabs else _likely_delimiter(sample, quoting))
    )
    reader = csv.reader(itertools.chain(sample, lines), delimiter=delimiter, quoting=quoting, strict=True)
    records = _records(reader, file, skipped)
    header_line, first = next(records, (1 + skipped, []))
    names = _names(first, file, header_line)
    for line, fields in records:
        if len(fields) == len(names):
            yield Row(line, dict(zip(names, fields, strict=True)))
        elif fields:
            bad.meet(_ragged(file, line, fields, names, delimiter))


def _records(reader: Any, file: Path, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line it begins on, `skipped` lines after the reader's. The module's limit for a field is raised only
    while it reads."""
    while True:
        taken, error = _some_records(reader, skipped)
        yield from taken
        if error is not None:
            raise DataError(_unreadable(file, *error)) from error[1]
        if not taken:
            return


def _some_records(reader: Any, skipped: int) -> tuple[list[tuple[int, list[str]]], tuple[int, csv.Error] | None]:
    """The next records, and the error that stopped them with its record's line."""
    taken: list[tuple[int, list[str]]] = []
    with _long_fields():
        for _ in range(_READ_AT_ONCE):
            begins = reader.line_num + 1 + skipped
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


def _sample(lines: Iterator[str]) -> list[str]:
    """The first lines, as many as detecting the delimiter needs."""
    taken: list[str] = []
    characters = 0
    for line in lines:
        taken.append(line)
        characters += len(line)
        if len(taken) >= _SAMPLE_LINES or characters >= _SAMPLE_CHARACTERS:
            break
    return taken


def _likely_delimiter(sample: Sequence[str], quoting: _Quoting) -> str:
    """The sign by which the first rows have as many fields as the header, and more than one.

    Of several such signs it is the one that gives the most columns; where rows are ragged by every sign, the one that fits most
    rows, then the most frequent in the header. A comma where nothing speaks for another.
    """
    counted = {sign: _field_counts(sample, sign, quoting) for sign in _DELIMITERS}
    header = sample[0] if sample else ""

    def evidence(sign: str) -> tuple[float, int, int]:
        columns, *rows = counted[sign] or [0]
        if columns < 2:
            return 0.0, 0, 0
        fitting = sum(count == columns for count in rows) / len(rows) if rows else 1.0
        return fitting, columns, header.count(sign)

    return max(_DELIMITERS, key=evidence)


def _field_counts(sample: Sequence[str], sign: str, quoting: _Quoting) -> list[int]:
    """Fields of each record of a sample, blank ones left out, and the last one, which may be cut off."""
    with _long_fields():
        counts = [len(fields) for fields in csv.reader(sample, delimiter=sign, quoting=quoting) if fields]
    is_cut = len(sample) >= _SAMPLE_LINES or sum(map(len, sample)) >= _SAMPLE_CHARACTERS
    return counts[:-1] if is_cut and len(counts) > 1 else counts


def _names(header: Sequence[str], file: Path, line: int) -> list[str]:
    """The names of the columns. One that is empty, as pandas writes for an index, is named by its place."""
    names = [name.strip() or f"column {place}" for place, name in enumerate(header, start=1)]
    if not names or (len(names) == 1 and not header[0].strip()):
        which = "first" if line == 1 else "header"
        raise DataError(f"{file}:{line}: the {which} line is blank; it must name the columns, such as: text,label")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(
            f"{file}:{line}: the header names {listed(map(excerpt, twice))} more than once; its columns are "
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
