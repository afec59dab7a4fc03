"""The labels of a whole dataset as numbers, with what can be said about them: balance, baselines, notes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from utils.data.labelled.labels import (
    Classes,
    are_vectors,
    class_numbers,
    class_vectors,
    find_classes,
    is_list,
    measures,
    plain,
)
from utils.data.read.rows import listed
from utils.errors import DataError
from utils.schema import shown


@dataclass(frozen=True)
class Targets:
    """Targets of all examples.

    Attributes:
        values: class numbers int64 (N,); 0 or 1 for each class uint8 (N, C); numbers float32 (N,) or (N, K); or, for words,
            a list with the class numbers of each example's words. Target texts are not here: None.
        classes: the classes, or None.
    """

    values: np.ndarray | list[list[int]] | None
    classes: Classes | None = None

    def at(self, places: np.ndarray) -> Targets:
        """Select the targets of some examples."""
        if self.values is None:
            return self
        chosen = self.values[places] if isinstance(self.values, np.ndarray) else [self.values[i] for i in places]
        return replace(self, values=chosen)

    @property
    def several(self) -> bool:
        """Whether an example may have several classes."""
        return self.classes is not None and isinstance(self.values, np.ndarray) and self.values.ndim == 2

    def strata(self, count: int) -> np.ndarray:
        """Keys to stratify a split by, (count,): the class, the set of classes, or the (first) number."""
        if not isinstance(self.values, np.ndarray):
            return np.zeros(count, dtype=np.int64)
        if self.several:
            _, sets = np.unique(self.values, axis=0, return_inverse=True)
            return np.asarray(sets.reshape(-1), dtype=np.int64)
        return self.values if self.values.ndim == 1 else np.ascontiguousarray(self.values[:, 0])

    def counts(self) -> np.ndarray:
        """Count the examples of each class, int64 (C,)."""
        assert self.classes is not None
        if self.values is None or len(self.values) == 0:
            return np.zeros(len(self.classes), dtype=np.int64)
        if self.several:
            sums: np.ndarray = np.asarray(self.values).sum(axis=0, dtype=np.int64)
            return sums
        flat = (
            self.values if isinstance(self.values, np.ndarray) else np.concatenate(list(map(np.asarray, self.values)))
        )
        return np.bincount(flat.astype(np.int64), minlength=len(self.classes))


def read_targets(
    parts: Sequence[Sequence[Any]], task_type: str, names: Sequence[Any] | None, num_classes: int | None
) -> tuple[list[Targets], list[str]]:
    """The targets of each part, and notes on how its labels were read. The classes are those of all parts together.

    Args:
        parts: the labels of each part, none of them missing; empty lists for target texts.
        names: the classes in their order, where it is known.
        num_classes: how many there are, where it is known.
    Raises:
        DataError: labels that are no classes, of two kinds, or only one class.
    """
    if task_type == "seq2seq":
        return [Targets(None) for _ in parts], []
    if task_type == "regression":
        return [Targets(measures(part)) for part in parts], []
    if task_type == "token_classification":
        tags = [[[plain(tag) for tag in row] for row in part] for part in parts]
        classes = find_classes((tag for part in tags for row in part for tag in row), names, num_classes)
        numbers = classes.numbers()
        return [Targets([[numbers[tag] for tag in row] for row in part], classes) for part in tags], []
    if is_list(parts[0][0]):
        return _several_classes(parts, names, num_classes)
    labels = [[plain(label) for label in part] for part in parts]
    _refuse_mixed(label for part in labels for label in part)
    classes = find_classes((label for part in labels for label in part), names, num_classes)
    _refuse_one_class(classes)
    return [Targets(class_numbers(part, classes), classes) for part in labels], []


def balance(train: Targets, validation: Targets) -> dict[str, tuple[int, int]]:
    """Class -> how often it occurs in training and in validation; empty without classes."""
    if train.classes is None:
        return {}
    pairs = zip(train.counts().tolist(), validation.counts().tolist(), strict=True)
    return {name: (first, second) for name, (first, second) in zip(train.classes.names, pairs, strict=True)}


def baseline(train: Targets, validation: Targets) -> str | None:
    """Score on validation data of the best constant prediction, chosen on training data, or None."""
    if train.values is None or validation.values is None or len(validation.values) == 0:
        return None
    if train.classes is None:
        mean = np.asarray(train.values, dtype=np.float64).mean(axis=0)
        errors = np.asarray(validation.values, dtype=np.float64) - mean
        return f"mean squared error {np.square(errors).mean():.4g} for always the mean of training"
    if train.several:
        usual = np.asarray(train.values).mean(axis=0) > 0.5
        right = (np.asarray(validation.values) == usual).all(axis=1).mean()
        return f"{right:.1%} exactly right for always the classes that more than half of the examples have"
    most = int(train.counts().argmax())
    share = validation.counts()[most] / max(1, validation.counts().sum())
    return f"{share:.1%} right for always {shown(train.classes.names[most])}, the most frequent class"


def _several_classes(
    parts: Sequence[Sequence[Any]], names: Sequence[Any] | None, num_classes: int | None
) -> tuple[list[Targets], list[str]]:
    """Labels that are lists: of classes, or vectors."""
    single = [label for part in parts for label in part if not is_list(label)]
    if single:
        raise DataError(
            f"some labels are lists and some are not, such as {shown(single[0])}; give a list for every example."
        )
    labels = [[[plain(entry) for entry in label] for label in part] for part in parts]
    everything = [label for part in labels for label in part]
    known = len(names) if names is not None else num_classes
    if are_vectors(everything, known):
        classes = find_classes(range(len(everything[0])), names, len(everything[0]))
        vectors = [np.array(part, dtype=np.uint8) for part in labels]
        return [Targets(part, classes) for part in vectors], [
            f"Labels are vectors of {len(classes)} zeros and ones: an example may have several classes."
        ]
    classes = find_classes((entry for label in everything for entry in label), names, num_classes)
    _refuse_one_class(classes, least=1)
    return [Targets(class_vectors(part, classes), classes) for part in labels], [
        "Labels are lists of classes: an example may have several, or none."
    ]


def _refuse_mixed(labels: Iterable[Any]) -> None:
    odd = next((label for label in labels if is_list(label)), None)
    if odd is not None:
        raise DataError(
            f"some labels are lists and some are not, such as {shown(odd)}; give a list for every example, or for none."
        )


def _refuse_one_class(classes: Classes, least: int = 2) -> None:
    if len(classes) < least:
        raise DataError(
            f"every label is {listed(classes.names) or 'an empty list'}: there is nothing to tell apart. "
            "Give examples of at least two classes."
        )
