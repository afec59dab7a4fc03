"""Findings about labels that are classes: one a row, or a yes or no for each of several."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from utils.data.batch import IGNORED
from utils.data.quality.inspection.finding import CHANCE, DataFinding, listed, lowest_share

#: Share of the most frequent class above which accuracy hardly says anything. Google's "Machine Learning Crash Course" calls a
#: minority of less than 20 % a moderate imbalance; training reports from 90 % on.
MAJORITY, MAJORITY_IN_TRAINING = 0.8, 0.9
#: Rows from which on one and the same label is no coincidence.
_FEWEST_ROWS = 8
#: A class is missing or differs only where its share of the other part is at least this.
_LEAST_SHARE = 0.05
#: Total variation distance of class shares beyond which validation measures another task.
_FAR_APART = 0.5


def class_findings(
    labels_N: np.ndarray, *, num_classes: int | None, validation_M: np.ndarray | None, majority: float = MAJORITY
) -> Iterator[DataFinding]:
    """Findings about one class a row.

    Args:
        labels_N: classes as whole numbers, names or 0.0 and 1.0, in the order of the dataset; -100 is no label.
        num_classes: C, how many the model scores; None: not known, as for names.
        validation_M: the same of the validation part.
    """
    labels_N = _known(labels_N)
    validation_M = None if validation_M is None else _known(validation_M)
    if not len(labels_N):
        return
    classes, counts = np.unique(labels_N, return_counts=True)
    numbered = labels_N.dtype.kind in "iu"
    if numbered:
        yield from _out_of_range(classes, num_classes)
    if len(classes) == 1:
        if len(labels_N) >= _FEWEST_ROWS:
            yield DataFinding(
                "labels", "constant", "fail", f"All {len(labels_N):,} labels are {classes[0]}: there is nothing to learn.",
                "Check the label column, and that the examples of the other classes were loaded.",
                {"classes": 1}, {"fewest_classes": 2},
            )  # fmt: skip
    else:
        yield from _imbalance(classes, counts, majority)
    if numbered and num_classes is not None and not _counted_from_one(classes, num_classes):
        yield from _missing(classes, len(labels_N), num_classes)
    if validation_M is None or not len(validation_M):
        yield from _blocks(labels_N, counts)
    else:
        yield from _between_parts(labels_N, validation_M)


def flag_findings(labels_NK: np.ndarray, *, validation_MK: np.ndarray | None) -> Iterator[DataFinding]:
    """Findings about a yes or no for each of K classes."""
    shares_K = np.nanmean(np.where(labels_NK == IGNORED, np.nan, labels_NK), axis=0)
    never = np.flatnonzero(shares_K == 0)
    if len(labels_NK) >= _FEWEST_ROWS and len(never) == len(shares_K):
        yield DataFinding(
            "labels", "constant", "fail", f"None of the {len(labels_NK):,} examples has any class: all flags are 0.",
            "Check the label columns.", {"classes_seen": 0}, {"fewest_classes": 1},
        )  # fmt: skip
    if validation_MK is None or validation_MK.shape[1:] != labels_NK.shape[1:] or not len(validation_MK):
        return
    unseen = never[np.nan_to_num(validation_MK[:, never]).max(axis=0) > 0] if len(never) else never
    if len(unseen):
        yield _unseen_classes(unseen, len(labels_NK))


def _known(labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind == "f":
        known = labels[np.isfinite(labels) & (labels != IGNORED)]
        return np.asarray(known.astype(np.int64) if bool((known == np.round(known)).all()) else known)
    return np.asarray(labels[labels != IGNORED]) if labels.dtype.kind in "iu" else labels


def _counted_from_one(classes: np.ndarray, num_classes: int) -> bool:
    return bool(classes[0] >= 1 and classes[-1] == num_classes)


def _out_of_range(classes: np.ndarray, num_classes: int | None) -> Iterator[DataFinding]:
    least, largest = int(classes[0]), int(classes[-1])
    measured = {"smallest_label": least, "largest_label": largest}
    contiguous = len(classes) == largest - least + 1
    if num_classes is not None and _counted_from_one(classes, num_classes):
        yield DataFinding(
            "labels", "counted from 1", "fail",
            f"Label {largest} is outside 0 to {num_classes - 1}: labels run from {least} to {largest}.",
            "Number the classes from 0: labels - 1.", measured, {"largest_label": num_classes - 1}, in_training=False,
        )  # fmt: skip
    elif num_classes is not None and (least < 0 or largest >= num_classes):
        outside = classes[(classes < 0) | (classes >= num_classes)]
        yield DataFinding(
            "labels", "out of range", "fail",
            f"Labels {listed(outside)} are outside 0 to {num_classes - 1}: the model has {num_classes} scores.",
            f"Number the classes from 0, give the model more outputs, or use {IGNORED} for examples without a label.",
            measured, {"largest_label": num_classes - 1}, in_training=False,
        )  # fmt: skip
    elif num_classes is None and least < 0:
        yield DataFinding(
            "labels", "out of range", "fail", f"Labels {listed(classes[classes < 0])} are below 0.",
            f"Number the classes from 0; only {IGNORED} marks examples without a label.", measured, {"smallest_label": 0},
        )  # fmt: skip
    elif num_classes is None and least == 1 and len(classes) > 1 and contiguous:
        yield DataFinding(
            "labels", "counted from 1", "warn",
            f"Labels run from 1 to {largest} and class 0 never occurs: a model with {largest} scores has classes 0 to "
            f"{largest - 1}.",
            "Number the classes from 0: labels - 1.", measured, {"smallest_label": 0}, in_training=False,
        )  # fmt: skip


def _imbalance(classes: np.ndarray, counts: np.ndarray, majority: float) -> Iterator[DataFinding]:
    most, total = int(counts.max()), int(counts.sum())
    if lowest_share(most, total) <= majority:
        return
    label, share = classes[counts.argmax()], most / total
    yield DataFinding(
        "labels", "imbalance", "warn",
        f"The classes are imbalanced: {share:.1%} of {total:,} examples have label {label}, so always predicting it has "
        f"an accuracy of {share:.1%}.",
        "Judge by f1_macro (monitor='val/f1_macro', mode='max'), and weight the loss by class or resample.",
        {"majority_share": share}, {"majority_share": majority},
    )  # fmt: skip


def _missing(classes: np.ndarray, num_rows: int, num_classes: int) -> Iterator[DataFinding]:
    """Classes that a model scores and no row has, where chance does not explain it."""
    missing = np.setdiff1d(np.arange(num_classes), classes)
    # A class with a fifth of its even share would be missed with this probability.
    chance = num_classes * math.exp(-num_rows / (5 * num_classes))
    if not len(missing) or len(classes) < 2 or classes[0] < 0 or classes[-1] >= num_classes or chance > CHANCE:
        return
    from_one = classes[0] == 1 and len(missing) == 1
    yield DataFinding(
        "labels", "missing classes", "warn",
        f"{len(missing)} of the model's {num_classes} classes never occur in {num_rows:,} training examples: "
        f"{listed(missing)}.",
        "Are labels counted from 1? Number them from 0." if from_one else
        "Check that all examples were loaded, or give the model one output for each class.",
        {"missing_classes": missing.tolist()}, {"classes": num_classes}, in_training=False,
    )  # fmt: skip


def _blocks(labels_N: np.ndarray, counts: np.ndarray) -> Iterator[DataFinding]:
    """Rows sorted by class, which only matters where they are still to be split.

    Runs of equal labels are compared with those of a random order (Wald & Wolfowitz 1940): E = n (1 - sum of squared shares).
    """
    total = len(labels_N)
    if len(counts) < 2 or total < 20:
        return
    changes = int((labels_N[1:] != labels_N[:-1]).sum())
    differing = 1 - float(((counts / total) ** 2).sum())
    expected = (total - 1) * differing
    deviation = math.sqrt(max(1e-9, (total - 1) * differing * (1 - differing)))
    if changes > expected / 4 or expected - changes < 6 * deviation:
        return
    yield DataFinding(
        "labels", "sorted", "warn",
        f"The examples are in blocks of one class: the label changes {changes:,} times from example to example, in random "
        f"order it would {expected:,.0f} times.",
        "Shuffle the examples before splitting off validation data; training itself shuffles.",
        {"label_changes": changes, "expected_changes": expected}, {"largest_share_of_expected": 0.25}, in_training=False,
    )  # fmt: skip


def _between_parts(labels_N: np.ndarray, validation_M: np.ndarray) -> Iterator[DataFinding]:
    classes = np.unique(np.concatenate([labels_N, validation_M]))
    train_C, validation_C = (_counts(part, classes) for part in (labels_N, validation_M))
    train_share, validation_share = train_C / train_C.sum(), validation_C / validation_C.sum()
    # A class with this share of validation would be missing among so many training rows only by chance.
    unseen = (train_C == 0) & (validation_C > 0) & ((1 - validation_share) ** len(labels_N) < CHANCE)
    unseen |= (train_C == 0) & (validation_C >= 2) & (len(labels_N) >= 10 * len(classes))
    if unseen.any():
        yield _unseen_classes(classes[unseen], len(labels_N))
        return
    absent = (validation_C == 0) & (train_share >= _LEAST_SHARE)
    absent &= (1 - train_share) ** len(validation_M) < 1e-4
    distance = float(np.abs(train_share - validation_share).sum() / 2)
    measured: dict[str, Any] = {"distance": distance, "missing_in_validation": classes[absent].tolist()}
    if absent.any():
        yield DataFinding(
            "labels", "validation classes", "warn",
            f"Validation has other classes than training: none of its {len(validation_M):,} examples has label "
            f"{listed(classes[absent])}, which {train_share[absent].sum():.1%} of the training examples have.",
            "Shuffle the examples before splitting, or split each class in the same proportion.",
            measured, {"chance": 1e-4},
        )  # fmt: skip
    elif distance > _FAR_APART and min(len(labels_N), len(validation_M)) >= 20:
        yield DataFinding(
            "labels", "validation classes", "warn",
            f"Classes are distributed differently in validation: total variation distance {distance:.2f} from training (0: the "
            "same, 1: nothing in common).",
            "Shuffle the examples before splitting, or judge by a metric that does not depend on class shares.",
            measured, {"distance": _FAR_APART},
        )  # fmt: skip


def _unseen_classes(classes: np.ndarray, num_rows: int) -> DataFinding:
    return DataFinding(
        "labels", "validation classes", "fail",
        f"Validation has other classes than training: label {listed(classes)} occurs in none of {num_rows:,} training "
        "examples.",
        "Shuffle the examples before splitting, or split each class in the same proportion.",
        {"unseen_in_training": classes.tolist()}, {"unseen_in_training": 0},
    )  # fmt: skip


def _counts(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(classes, labels), minlength=len(classes)).astype(np.float64)
