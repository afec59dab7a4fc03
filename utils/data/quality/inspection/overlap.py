"""Rows that repeat: within training, and between training and validation; labels that contradict or leak."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from utils.data.quality.inspection.finding import CHANCE, DataFinding, listed, tail_bound
from utils.data.quality.inspection.sampling import NO_TOKEN, Sample

#: Share of rows that repeat earlier ones, above which most of training is repetition.
REPEATED = 0.5
# Validation rows that may be in training: beyond it in every case, where rows cannot repeat by chance.
_LEAKED = 0.01
# Share of rows with equal inputs whose labels contradict each other.
_CONTRADICTING = 0.2
_FEWEST_ROWS = 16
_DISTINCT_VALUES = 20


def overlap_findings(train: Sample, validation: Sample | None) -> Iterator[DataFinding]:
    """Findings about repeated rows.

    Whether rows repeat by chance is measured, not assumed: of one distribution, a validation row is found in training as often
    as a training row is found among the other ones. Tables of few categories pass, copied rows do not.
    """
    rows_N = row_keys(train)
    if len(rows_N) < _FEWEST_ROWS:
        return
    unique, first, counts = np.unique(rows_N, return_index=True, return_counts=True)
    repeats = (len(rows_N) - len(unique)) / len(rows_N)
    matched = int(counts[counts > 1].sum())
    rich = _is_rich(train.inputs.reshape(len(train), -1)[_kept(train)][first], train)
    shared = num_validation = 0
    if validation is not None and train.inputs.dtype == validation.inputs.dtype and len(validation):
        keys_M = row_keys(validation)
        num_validation = len(keys_M)
        where = np.flatnonzero(np.isin(keys_M, unique))
        shared = len(where)
        yield from _leak(where, num_validation, matched, len(rows_N), rich)
    elsewhere = num_validation - shared  # validation rows that training does not hold
    new_rows = (
        num_validation >= _FEWEST_ROWS and tail_bound(elsewhere, num_validation, 1 - matched / len(rows_N)) < CHANCE
    )
    unknown = validation is None and train.holds_tokens
    if repeats > REPEATED and (rich or new_rows or unknown):
        yield DataFinding(
            "exact duplicates", "duplicates", "warn" if unknown else "fail",
            f"Most examples repeat earlier ones: {repeats:.0%} of {len(rows_N):,} examples are copies, {len(unique):,} are "
            "different.",
            "Remove the copies before splitting; the model memorises the few different examples.",
            {"duplicate_share": repeats, "different_rows": len(unique)}, {"duplicate_share": REPEATED},
        )  # fmt: skip
    if rich:
        yield from _contradictions(train, rows_N)


def label_leaks(sample: Sample) -> Iterator[DataFinding]:
    """A feature that is the label: equal to it, or one value for each class, where the other features are not."""
    if sample.inputs.ndim != 2 or sample.holds_tokens or sample.labels is None or sample.labels.ndim != 1:
        return
    if len(sample) < 30 or sample.inputs.shape[1] < 2:
        return
    labels, table = sample.labels, sample.inputs
    known = np.isfinite(labels) & (labels != -100)
    labels, table = labels[known], table[known]
    classes, numbers = np.unique(labels, return_inverse=True)
    if len(classes) < 2 or not np.isfinite(table).all():
        return
    same = [column for column in range(table.shape[1]) if _is_label(table[:, column], labels, numbers, len(classes))]
    varying = int((table != table[0]).any(axis=0).sum())
    # Where the inputs as a whole are the label (a code of it), that is the task.
    if not same or len(same) > max(1, varying // 10) or varying <= len(same):
        return
    yield DataFinding(
        "leakage", "label in features", "fail",
        f"Column {listed(np.array(same))} determines the label: it equals it, or has exactly one value for each, in all "
        f"{len(labels):,} examples.",
        "Remove the column, unless it is known when the model is used.",
        {"columns": same}, {"rows_that_differ": 0},
    )  # fmt: skip


def row_keys(sample: Sample) -> np.ndarray:
    """One key for each row with more than one value, equal for equal inputs."""
    rows = np.ascontiguousarray(sample.inputs.reshape(len(sample), -1)[_kept(sample)])
    if rows.dtype.kind == "f":
        rows = rows + np.float32(0.0)  # no negative zero
    else:
        # Rows of tokens of two parts are filled up to different lengths.
        lengths = (rows != NO_TOKEN).sum(axis=1)
        return np.array([row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)], dtype=object)
    return np.array([row.tobytes() for row in rows], dtype=object)


def _kept(sample: Sample) -> np.ndarray:
    """Rows that are not blank: blank images and rows of padding repeat in sound data."""
    rows = sample.inputs.reshape(len(sample), -1)
    return np.ones(len(rows), dtype=bool) if rows.shape[1] < 3 else (rows != rows[:, :1]).any(axis=1)


def _is_rich(unique_rows: np.ndarray, sample: Sample) -> bool:
    """Whether two rows cannot be equal by chance: images, or tables with at least two columns of measured numbers."""
    if sample.holds_tokens or len(unique_rows) < 3:
        return False
    if sample.inputs.ndim > 2:
        return len(np.unique(unique_rows[:200])) > _DISTINCT_VALUES
    if len(unique_rows) < 5 or len(np.unique(unique_rows[:200])) <= _DISTINCT_VALUES:
        return False
    measured = 0
    for column in unique_rows.T[:256]:
        thousandths = column.astype(np.float64) * 1000
        unround = float((np.abs(thousandths - np.round(thousandths)) > 1e-3).mean()) > 0.5
        measured += unround and len(np.unique(column)) > len(unique_rows) / 2
    return measured >= 2


def _leak(where: np.ndarray, num_validation: int, matched: int, num_rows: int, rich: bool) -> Iterator[DataFinding]:
    """Validation rows at `where` are in training, of which `matched` rows are there more than once."""
    if not len(where):
        return
    share, usual = len(where) / num_validation, (matched + 1) / (num_rows + 2)
    by_chance = tail_bound(len(where), num_validation, usual)
    copied = rich and (share > _LEAKED or matched == 0)
    if not copied and (by_chance > CHANCE or share - usual < _LEAKED):
        return
    yield DataFinding(
        "leakage", "validation rows in training", "fail" if share > _LEAKED else "warn",
        f"{len(where):,} of {num_validation:,} validation examples ({share:.1%}) are in training too.",
        "The validation loss flatters the model: remove duplicates before splitting (validation examples "
        f"{listed(where)}).",
        {"share": share, "usual_share": usual if not rich else 0.0}, {"share": _LEAKED, "chance": CHANCE},
    )  # fmt: skip


def _contradictions(sample: Sample, keys_N: np.ndarray) -> Iterator[DataFinding]:
    labels = sample.labels
    if labels is None or sample.label_kind() != "classes":
        return
    labels = labels[_kept(sample)]
    _, group_N, counts = np.unique(keys_N, return_inverse=True, return_counts=True)
    repeated = counts[group_N] > 1
    if repeated.sum() < _FEWEST_ROWS:
        return
    pairs = np.unique(np.stack([group_N, labels.astype(np.int64)]), axis=1)[0]
    contradicting = np.isin(group_N, np.flatnonzero(np.bincount(pairs, minlength=len(counts)) > 1))
    share = float(contradicting[repeated].mean())
    if share <= _CONTRADICTING:
        return
    yield DataFinding(
        "labels", "contradictions", "warn",
        f"{int(contradicting.sum()):,} examples have the same inputs as another example and another label ({share:.0%} of the "
        "examples that repeat).",
        "Check that inputs and labels are in the same order, and who labelled these examples.",
        {"contradicting_rows": int(contradicting.sum()), "share": share}, {"share": _CONTRADICTING},
    )  # fmt: skip


def _is_label(column: np.ndarray, labels: np.ndarray, numbers: np.ndarray, num_classes: int) -> bool:
    """Whether a column equals the labels, is a linear function of them, or has one value for each class."""
    if bool((column == column[0]).all()):
        return False
    if num_classes > len(labels) // 2:  # numbers
        correlation = np.corrcoef(column.astype(np.float64), labels.astype(np.float64))[0, 1]
        return bool(abs(correlation) > 1 - 1e-9)
    values, coded = np.unique(column, return_inverse=True)
    return len(values) == num_classes and len(np.unique(coded * num_classes + numbers)) == num_classes
