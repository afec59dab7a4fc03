"""Convert labels as people write them to what a model learns: classes, several classes, tags, or regression targets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.data.labelled.table import is_missing
from utils.data.read.rows import listed
from utils.errors import DataError
from utils.schema import shown


@dataclass(frozen=True)
class Classes:
    """The classes of a task, in the order of their numbers.

    Attributes:
        values: each class as the labels have it: names, or whole numbers.
        names: what to call them.
    """

    values: tuple[Any, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.values)

    def numbers(self) -> dict[Any, int]:
        """Label -> class number."""
        return {value: number for number, value in enumerate(self.values)}


def plain(label: Any) -> Any:
    """A label as a plain value: numpy's as Python's, 1.0 as 1."""
    label = label.item() if isinstance(label, np.generic) else label
    return int(label) if isinstance(label, float) and label.is_integer() else label


def is_list(label: Any) -> bool:
    """Whether a label is several."""
    return isinstance(label, (list, tuple, set, frozenset, np.ndarray))


def find_classes(labels: Iterable[Any], names: Sequence[Any] | None, num_classes: int | None) -> Classes:
    """The classes among `labels` (which are `plain`).

    Args:
        names: the classes in their order, where it is known; labels are then these names or their numbers. Where the names
            are whole numbers themselves, labels are these.
        num_classes: how many there are, where it is known.
    Returns:
        Given names as they are. Whole numbers that run from 0 without a gap, or below `num_classes`, stay as they are. Else
        the labels, sorted: the same labels give the same numbers.
    Raises:
        DataError: labels that are no classes, of two kinds, none of the given ones, or more than `num_classes`.
    """
    found = set(labels)
    if odd := [label for label in found if not isinstance(label, (str, int))]:
        raise DataError(
            f"{shown(odd[0])} is no class: classes are names or whole numbers. To predict numbers use task_type='regression'."
        )
    if names is not None:
        return _given_classes(found, list(names))
    kinds = {str if isinstance(label, str) else int for label in found}
    if len(kinds) > 1:
        examples = [next(label for label in found if isinstance(label, kind)) for kind in (str, int)]
        raise DataError(
            f"some labels are names and some are numbers, such as {shown(examples[0])} and {shown(examples[1])}."
        )
    values = sorted(found)
    if kinds == {int} and bool not in map(type, found) and values[0] >= 0:
        count = num_classes or values[-1] + 1
        if values[-1] < count and (num_classes is not None or len(values) == count):
            values = list(range(count))
    if num_classes is not None and len(values) > num_classes:
        raise DataError(
            f"the labels are {len(values):,} different ones, but num_classes={num_classes:,}: "
            f"{listed(values[:12])}. Set num_classes={len(values)}, or leave it out."
        )
    return Classes(tuple(values), tuple(map(str, values)))


def _given_classes(found: set[Any], names: list[Any]) -> Classes:
    # The classes are whole numbers: with gaps, or from 1 on.
    if names and not any(isinstance(name, str) for name in names):
        if unknown := sorted(found - set(names), key=str):
            raise DataError(
                f"the label {shown(unknown[0])} is not one of the {len(names):,} classes: {_first_of(names)}."
            )
        return Classes(tuple(names), tuple(map(str, names)))
    numbers = {label for label in found if not isinstance(label, str)}
    unknown = sorted(found - numbers - set(names)) or sorted(n for n in numbers if not 0 <= n < len(names))
    if unknown:
        raise DataError(f"the label {shown(unknown[0])} is not one of the {len(names):,} classes: {_first_of(names)}.")
    if numbers and len(numbers) < len(found):
        raise DataError("some labels are names of classes and some are numbers.")
    return Classes(tuple(range(len(names))) if numbers else tuple(names), tuple(names))


def _first_of(names: list[Any]) -> str:
    return listed(names[:12]) + (", …" if len(names) > 12 else "")


def class_numbers(labels: Sequence[Any], classes: Classes) -> np.ndarray:
    """One class each: int64 (N,)."""
    numbers = classes.numbers()
    return np.array([numbers[label] for label in labels], dtype=np.int64)


def are_vectors(labels: Sequence[Sequence[Any]], num_classes: int | None) -> bool:
    """Whether lists of labels are vectors with one 0 or 1 for each class, and not lists of classes."""
    lengths = {len(label) for label in labels}
    if len(lengths) != 1 or lengths & {0, 1} or (num_classes is not None and lengths != {num_classes}):
        return False
    return all(entry in (0, 1) and not isinstance(entry, str) for label in labels for entry in label)


def class_vectors(labels: Sequence[Sequence[Any]], classes: Classes) -> np.ndarray:
    """Any number of classes each, as lists of classes: uint8 (N, C), 1 where an example has the class."""
    numbers = classes.numbers()
    vectors = np.zeros((len(labels), len(classes)), dtype=np.uint8)
    for row, label in enumerate(labels):
        vectors[row, [numbers[entry] for entry in label]] = 1
    return vectors


def measures(labels: Sequence[Any]) -> np.ndarray:
    """Numbers: float32 (N,), or (N, K) where each label is a list of K.

    Raises:
        DataError: some labels have another length than others.
    """
    lengths = {len(label) if is_list(label) else -1 for label in labels}
    if len(lengths) > 1:
        raise DataError("the labels of a regression have different lengths; every example needs as many numbers.")
    return np.array(
        [[float(n) for n in label] if is_list(label) else float(label) for label in labels], dtype=np.float32
    )


def label_problem(label: Any, task_type: str) -> str | None:
    """Explain why a label cannot be used, or None."""
    if is_missing(label) or (isinstance(label, str) and not label.strip()):
        return "no label"
    entries = list(label) if is_list(label) else [label]
    if any(is_missing(entry) for entry in entries):
        return "no label"
    if task_type == "regression" and not (entries and all(map(_is_number, entries))):
        return "a label that is no number"
    if task_type == "token_classification" and not is_list(label):
        return "no list of tags"
    if task_type == "seq2seq" and not isinstance(label, str):
        return f"a {type(label).__name__} for a target text"
    return None


def _is_number(entry: Any) -> bool:
    if isinstance(entry, bool):
        return False
    try:
        return math.isfinite(float(entry))
    except (TypeError, ValueError):
        return False
