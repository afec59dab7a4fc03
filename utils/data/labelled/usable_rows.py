"""The rows of a table that can be used for a task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from utils.data.labelled.labels import is_list, label_problem
from utils.data.labelled.table import Table, is_missing
from utils.data.read.task_columns import Columns
from utils.errors import DataError
from utils.schema import shown

#: What pandas writes or reads for a missing value (`read_csv`, na_values), the empty text left out, which is no label.
MISSING_WORDS = (
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN",
    "None", "n/a", "nan", "null",
)  # fmt: skip
# Rows that are read at once.
_CHUNK = 1000
# Rows that a message names of each kind.
_NAMED = 5


@dataclass(frozen=True)
class Part:
    """Some rows of a table.

    Attributes:
        rows: their numbers in the table, int64.
        skipped: how many rows were skipped because they cannot be used.
        notes: what the report should say.
    """

    table: Table
    columns: Columns
    rows: np.ndarray
    skipped: int = 0
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, places: np.ndarray) -> Part:
        """Select the rows at `places` of this part."""
        return replace(self, rows=self.rows[places])

    def chunks(self) -> Iterator[tuple[slice, list[Any], list[Any] | None]]:
        """(places, texts or lists of words, second texts) of a thousand rows at a time."""
        for start in range(0, len(self.rows), _CHUNK):
            place = slice(start, min(start + _CHUNK, len(self.rows)))
            pair = self.columns.pair
            yield place, self._read(self.columns.text, place), None if pair is None else self._read(pair, place)

    def labels(self, place: slice = slice(None)) -> list[Any]:
        """The labels, tags or target texts."""
        return [] if self.columns.label is None else self._read(self.columns.label, place)

    def texts(self) -> list[str]:
        """Every text there is in the inputs: first and second ones, words joined by spaces."""
        found: list[str] = []
        for _, texts, pairs in self.chunks():
            found += [" ".join(text) if is_list(text) else text for text in texts] + (pairs or [])
        return found

    def _read(self, name: str, place: slice) -> list[Any]:
        return self.table.read(name, self.rows[place].tolist())


def usable_rows(table: Table, columns: Columns, task_type: str, on_bad_row: str, argument: str) -> Part:
    """The rows of `table` that have all that the task needs.

    Raises:
        DataError: rows that have not, when `on_bad_row` is "error"; names them. Or no row is left.
    """
    everything = Part(table, columns, np.arange(table.num_rows))
    bad: dict[str, list[int]] = {}
    doubtful: dict[str, list[int]] = {}
    for place, texts, pairs in everything.chunks():
        second = texts if pairs is None else pairs
        labels = everything.labels(place) if columns.label is not None else texts
        for row, (text, pair, label) in enumerate(zip(texts, second, labels, strict=True), place.start):
            problem = _problem(text, pair, label if columns.label is not None else None, columns, task_type)
            if problem:
                bad.setdefault(problem, []).append(row)
            elif task_type == "text_classification" and isinstance(label, str) and label.strip() in MISSING_WORDS:
                doubtful.setdefault(label, []).append(row)
    count = sum(map(len, bad.values()))
    said = "; ".join(f"{len(rows):,} with {problem} ({_listed(rows)})" for problem, rows in bad.items())
    if count and on_bad_row == "error":
        raise DataError(
            f"{count:,} of the {table.num_rows:,} rows of {argument} cannot be used: {said}. Rows count from 0. Repair them, "
            'or pass over them: on_bad_row="skip".'
        )
    if count == table.num_rows:
        raise DataError(f"none of the {count:,} rows of {argument} can be used: {said}.")
    notes = [_doubtful_note(word, rows) for word, rows in doubtful.items()]
    if not count:
        return replace(everything, notes=notes)
    rows = np.setdiff1d(everything.rows, [row for rows in bad.values() for row in rows])
    return Part(table, columns, rows, count, [f"Passed over: {said}. Rows count from 0.", *notes])


def _doubtful_note(word: str, rows: list[int]) -> str:
    several = len(rows) > 1
    return (
        f"{len(rows):,} label{'s are' if several else ' is'} {shown(word)} ({_listed(rows)}, counted from 0), which often "
        "stands for a missing value: here it is a class of its own. Where the label is missing, empty the cell: rows without a "
        "label are left out."
    )


def _problem(text: Any, pair: Any, label: Any, columns: Columns, task_type: str) -> str | None:
    """Explain why a row cannot be used, or None."""
    problem = input_problem(text, task_type) or (None if columns.pair is None else input_problem(pair, task_type))
    if problem or columns.label is None:
        return problem
    problem = label_problem(label, task_type)
    if not problem and task_type == "token_classification" and len(label) != len(text):
        return "another number of tags than of words"
    return problem or (_text_problem(label) if task_type == "seq2seq" else None)


def input_problem(text: Any, task_type: str) -> str | None:
    """Explain why a text, or the words of one for token classification, cannot be used, or None."""
    return _words_problem(text) if task_type == "token_classification" else _text_problem(text)


def _text_problem(text: Any) -> str | None:
    if is_missing(text):
        return "no text"
    if not isinstance(text, str):
        return f"a {type(text).__name__} for a text"
    if not text or text.isspace():
        return "no text"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "half of a character (a lone surrogate) in the text"
    return None


def _words_problem(words: Any) -> str | None:
    if is_missing(words) or (is_list(words) and len(words) == 0):
        return "no words"
    if not is_list(words) or not all(isinstance(word, str) for word in words):
        return "a text that is no list of words"
    return next((problem for word in words if (problem := _text_problem(word))), None)


def _listed(rows: list[int]) -> str:
    named = ", ".join(f"{row:,}" for row in rows[:_NAMED])
    return f"row{'s' if len(rows) > 1 else ''} {named}" + (
        f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
    )
