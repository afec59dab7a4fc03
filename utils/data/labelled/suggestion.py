"""The task that the columns of a table suggest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from utils.data.labelled.labels import is_list
from utils.data.labelled.table import is_missing
from utils.data.read.task_columns import Columns, find_columns
from utils.errors import DataError

# With more distinct whole numbers than this in the first rows, a column holds amounts and not classes.
_MOST_CLASSES = 20


@dataclass(frozen=True)
class Suggestion:
    """A task, and why its columns suggest it.

    Attributes:
        task: "causal_lm" where nothing suggests another; reason: a sentence, "" for that.
    """

    task: str = "causal_lm"
    reason: str = ""


def suggest_task(rows: Sequence[Mapping[str, Any]], *, is_conversation: bool = False) -> Suggestion:
    """Suggest a task from the first rows of a table: from their types, and from names that are common for columns.

    Args:
        is_conversation: whether the rows can be read as conversations, which causal language modelling learns.
    """
    example = {
        name: next((row[name] for row in rows if not is_missing(row.get(name))), None)
        for name in (rows[0] if rows else ())
    }
    if (found := _columns("token_classification", example)) and _is_tagged(rows, found):
        return Suggestion("token_classification", f"{found.label} has a tag for each word of {found.text}")
    if is_conversation:
        return Suggestion()
    if (found := _columns("text_classification", example)) and isinstance(example[found.text], str):
        values = _labels(rows, found)
        if _are_amounts(values):
            return Suggestion("regression", f"{found.label} holds numbers, and {found.text} holds texts")
        if _are_classes(values):
            return Suggestion(
                "text_classification",
                f"{found.label} holds {len(set(values))} different labels, and {found.text} holds texts",
            )
    if (found := _columns("seq2seq", example)) and all(
        isinstance(example[name], str) for name in (found.text, found.label or found.text)
    ):
        return Suggestion("seq2seq", f"{found.text} and {found.label} are a text and the text to write for it")
    if (found := _columns("regression", example)) and isinstance(example[found.text], str):
        values = _labels(rows, found)
        if _are_amounts(values):
            return Suggestion("regression", f"{found.label} holds numbers, and {found.text} holds texts")
    return Suggestion()


def _columns(task: str, example: Mapping[str, Any]) -> Columns | None:
    try:
        return find_columns(task, example)
    except DataError:
        return None


def _labels(rows: Sequence[Mapping[str, Any]], columns: Columns) -> list[Any]:
    """The labels of the rows that have one: an empty cell of a CSV file is an empty text, and no class."""
    found = [row.get(columns.label) for row in rows] if columns.label else []
    return [value for value in found if not is_missing(value) and not (isinstance(value, str) and not value.strip())]


def _is_tagged(rows: Sequence[Mapping[str, Any]], columns: Columns) -> bool:
    pairs = [(row.get(columns.text), row.get(columns.label or "")) for row in rows]
    return all(is_list(words) and is_list(tags) and len(words) == len(tags) for words, tags in pairs if words and tags)


def _are_amounts(values: Sequence[Any]) -> bool:
    """Whether labels are numbers and not classes: fractions, or many different whole numbers."""
    if not values or not all(isinstance(value, Real) and not isinstance(value, bool) for value in values):
        return False
    return any(not float(value).is_integer() for value in values) or len(set(values)) > _MOST_CLASSES


def _are_classes(values: Sequence[Any]) -> bool:
    """Whether labels repeat, as classes do."""
    if not values or not all(isinstance(value, (str, int)) for value in values):
        return False
    return 2 <= len(set(values)) <= max(2, len(values) // 2)
