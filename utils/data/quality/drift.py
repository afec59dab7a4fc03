"""Distances between the distributions of two datasets: 0 for the same, 1 for nothing in common."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.data.quality.texts import TextProfile


@dataclass(frozen=True)
class Drift:
    """Distances between two datasets; each is a Jensen-Shannon distance (see `js_distance`), 0 to 1.

    Attributes:
        lengths: of the rows' lengths (tokens where both were measured in tokens, else characters), in steps of a quarter of
            an octave; length_unit: "tokens" or "characters".
        words: of how often words occur, with all words of one hash class (of 1,024) together.
        characters: of how often characters occur.
        labels: of the labels; None unless both have them. A label that one of them lacks counts in full.
    """

    lengths: float
    length_unit: str
    words: float
    characters: float
    labels: float | None

    def distances(self) -> dict[str, float]:
        """Measured distances by name."""
        found = {"lengths": self.lengths, "words": self.words, "characters": self.characters}
        return found if self.labels is None else {**found, "labels": self.labels}


def measure_drift(reference: TextProfile, current: TextProfile) -> Drift:
    """Compare all rows of two datasets."""
    first, second, unit = reference.lengths, current.lengths, "characters"
    if reference.token_lengths is not None and current.token_lengths is not None:
        first, second, unit = reference.token_lengths, current.token_lengths, "tokens"
    labels = None
    if reference.labels is not None and current.labels is not None:
        labels = _distance_of_counts(reference.labels, current.labels)
    return Drift(
        lengths=js_distance(*_length_counts(first, second)),
        length_unit=unit,
        words=js_distance(reference.word_counts, current.word_counts),
        characters=_distance_of_counts(reference.characters, current.characters),
        labels=labels,
    )


def js_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Jensen-Shannon distance of two histograms over the same classes: 0 for equal shares, 1 for nothing in common.

    The square root of the divergence in bits (Lin 1991, doi 10.1109/18.61115; a metric: Endres and Schindelin 2003). Samples
    of one distribution differ by chance: what that comes to for n and m counts in K classes in use, on average
    (K - 1) / (8 ln 2) * (1/n + 1/m) bits (from the divergence's second-order expansion), is subtracted first. Two empty
    histograms are equal; an empty one has nothing in common with another.

    Args:
        first, second: counts, shape (C,).
    """
    totals = float(first.sum()), float(second.sum())
    if 0.0 in totals:
        return 0.0 if totals[0] == totals[1] else 1.0
    p_C, q_C = first / totals[0], second / totals[1]
    middle_C = (p_C + q_C) / 2
    bits = 0.0
    for part_C in (p_C, q_C):
        there = part_C > 0
        bits += 0.5 * float((part_C[there] * np.log2(part_C[there] / middle_C[there])).sum())
    # Nothing in common is no matter of chance: of what could be shared, the part that is tells how much chance there is.
    by_chance = (np.count_nonzero(middle_C) - 1) / (8 * np.log(2)) * (1 / totals[0] + 1 / totals[1])
    bits -= by_chance * max(0.0, 1.0 - bits)
    return float(np.sqrt(min(max(bits, 0.0), 1.0)))


def _length_counts(first_N: np.ndarray, second_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count rows by length in each quarter of an octave. Empty rows are a class of their own."""
    classes = [
        np.where(lengths_N > 0, 1 + np.round(4 * np.log2(np.maximum(lengths_N, 1))), 0).astype(np.int64)
        for lengths_N in (first_N, second_N)
    ]
    size = max((int(numbers.max()) for numbers in classes if len(numbers)), default=0) + 1
    return np.bincount(classes[0], minlength=size), np.bincount(classes[1], minlength=size)


def _distance_of_counts(first: Counter[Any], second: Counter[Any]) -> float:
    keys = list(dict.fromkeys([*first, *second]))
    return js_distance(np.array([first.get(key, 0) for key in keys]), np.array([second.get(key, 0) for key in keys]))
