"""The metrics of GLUE (Wang et al. 2018, arXiv 1804.07461, table 1), from plain sequences of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Metric = Callable[[Sequence[float], Sequence[float]], float]


def accuracy(predicted: Sequence[float], true: Sequence[float]) -> float:
    """Share of predictions that are right, 0 to 1."""
    return float(np.mean(np.asarray(predicted) == np.asarray(true)))


def f1(predicted: Sequence[float], true: Sequence[float]) -> float:
    """2 TP / (2 TP + FP + FN) of class 1; 0 where it is neither true nor predicted."""
    guesses, labels = np.asarray(predicted) == 1, np.asarray(true) == 1
    total = int(guesses.sum() + labels.sum())
    return 2 * int((guesses & labels).sum()) / total if total else 0.0


def matthews(predicted: Sequence[float], true: Sequence[float]) -> float:
    """Matthews correlation coefficient of two classes, -1 to 1; 0 where predictions or labels are all the same."""
    guesses, labels = np.asarray(predicted) == 1, np.asarray(true) == 1
    tp, tn = int((guesses & labels).sum()), int((~guesses & ~labels).sum())
    fp, fn = int((guesses & ~labels).sum()), int((~guesses & labels).sum())
    scale = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(scale) if scale else 0.0


def pearson(predicted: Sequence[float], true: Sequence[float]) -> float:
    """Pearson correlation; NaN where predictions or labels are all the same."""
    x, y = (np.asarray(values, dtype=np.float64) for values in (predicted, true))
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    # Rounding alone makes equal numbers differ.
    if scale <= 1e-12 * max(1.0, float(np.abs(np.asarray(true)).max())):
        return math.nan
    return float(x @ y) / scale


def spearman(predicted: Sequence[float], true: Sequence[float]) -> float:
    """Pearson correlation of the ranks, equal values sharing the mean of their ranks; NaN as for `pearson`."""
    return pearson(_ranks(predicted).tolist(), _ranks(true).tolist())


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, number, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    means: np.ndarray = (ends - (counts - 1) / 2)[number]
    return means
