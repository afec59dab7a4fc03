"""Labels that have nothing to do with inputs whose own structure shows the classes.

That a simple classifier finds nothing proves little: parity, noise and weak signals look the same. It is reported only where
the inputs fall into as many clear clusters as there are classes, of the classes' sizes, and labels are independent
of the clusters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from utils.data.quality.inspection.finding import DataFinding
from utils.data.quality.inspection.sampling import Sample

_MOST_ROWS, _MOST_FEATURES = 1000, 256
_FEWEST_PER_CLASS, _MOST_CLASSES = 15, 30
# Share of rows whose nearest neighbour is in their own cluster: a random cut through one cloud leaves less.
_CLEAR = 0.95
# Distance of a row to its own centre relative to the second nearest, mean over rows.
_COMPACT = 0.7
# Largest total variation distance between cluster sizes and class sizes, both sorted.
_SIZES = 0.1
# Accuracy of the nearest neighbour's label above chance that shows a relation, in standard deviations.
_RELATED = 3.0


def shuffled_labels(sample: Sample) -> Iterator[DataFinding]:
    """The finding, where it can be shown."""
    # Tables of few or binary features fall into clear groups whatever their labels are.
    if sample.labels is None or sample.inputs.ndim < 3 or sample.label_kind() != "classes":
        return
    chosen = np.linspace(0, len(sample) - 1, num=min(len(sample), _MOST_ROWS)).astype(np.int64)
    rows = sample.inputs.reshape(len(sample), -1)[chosen].astype(np.float64)
    labels = sample.labels[chosen].astype(np.int64)
    classes, label_N, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if not 3 <= len(classes) <= _MOST_CLASSES or counts.min() < _FEWEST_PER_CLASS or not np.isfinite(rows).all():
        return
    spread = rows.std(axis=0)
    rows = rows[:, spread > 0]
    if rows.shape[1] < 2:
        return
    rows = (rows - rows.mean(axis=0)) / (spread[spread > 0] if sample.inputs.ndim == 2 else spread.mean())
    if rows.shape[1] > _MOST_FEATURES:  # distances survive a random projection (Johnson & Lindenstrauss 1984)
        rows = rows @ np.random.default_rng(0).normal(size=(rows.shape[1], _MOST_FEATURES)) / math.sqrt(_MOST_FEATURES)
    squares = _distances(rows, rows)
    np.fill_diagonal(squares, np.inf)
    neighbour = squares.argmin(axis=1)
    shares = counts / counts.sum()
    chance = float((shares**2).sum())
    agreement = float((label_N == label_N[neighbour]).mean())
    if agreement > chance + _RELATED * math.sqrt(chance * (1 - chance) / len(rows)):
        return
    cluster_N, compact = _clusters(rows, len(classes))
    clear = float((cluster_N == cluster_N[neighbour]).mean())
    sizes = np.sort(np.bincount(cluster_N, minlength=len(classes)) / len(rows))
    unlike = float(np.abs(sizes - np.sort(shares)).sum() / 2)
    if clear < _CLEAR or compact > _COMPACT or unlike > _SIZES or _depends(cluster_N, label_N, len(classes)):
        return
    yield DataFinding(
        "labels", "shuffled", "warn",
        f"Labels look shuffled against the inputs: the inputs form {len(classes)} clear groups, but labels are independent of "
        f"them: an example's nearest neighbour has its label in {agreement:.1%} of the examples, by chance in {chance:.1%}.",
        "Check that inputs and labels are in the same order; shuffle both with one permutation.",
        {"neighbour_agreement": agreement, "chance": chance, "rows_in_clear_groups": clear},
        {"neighbour_agreement": chance, "rows_in_clear_groups": _CLEAR},
    )  # fmt: skip


def _distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    squares = (first**2).sum(axis=1)[:, None] - 2 * first @ second.T + (second**2).sum(axis=1)[None]
    return np.asarray(np.maximum(squares, 0.0))


def _clusters(rows: np.ndarray, count: int, passes: int = 20, starts: int = 4) -> tuple[np.ndarray, float]:
    """k-means with k-means++ starts (Arthur & Vassilvitskii 2007): the best of a few, and how compact it is, from 0 to 1."""
    generator, best = np.random.default_rng(0), (math.inf, np.zeros(len(rows), np.int64), 1.0)
    for _ in range(starts):
        centres = rows[generator.integers(len(rows))][None]
        while len(centres) < count:
            weight = _distances(rows, centres).min(axis=1)
            weight = weight / weight.sum() if weight.sum() > 0 else None
            centres = np.concatenate([centres, rows[generator.choice(len(rows), p=weight)][None]])
        for _ in range(passes):
            cluster_N = _distances(rows, centres).argmin(axis=1)
            centres = np.stack([
                rows[cluster_N == k].mean(axis=0) if (cluster_N == k).any() else centres[k] for k in range(count)
            ])  # fmt: skip
        nearest = np.sort(_distances(rows, centres), axis=1)
        inertia = float(nearest[:, 0].sum())
        if inertia < best[0]:
            compact = float(np.sqrt(nearest[:, 0] / np.maximum(nearest[:, 1], 1e-12)).mean())
            best = (inertia, _distances(rows, centres).argmin(axis=1), compact)
    return best[1], best[2]


def _depends(cluster_N: np.ndarray, label_N: np.ndarray, count: int) -> bool:
    """Pearson's chi-squared test of independence at about 1 % (Wilson & Hilferty's normal approximation, 1931)."""
    table = np.bincount(cluster_N * count + label_N, minlength=count * count).reshape(count, count).astype(np.float64)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / table.sum()
    statistic = float((np.square(table - expected) / np.maximum(expected, 1e-9)).sum())
    freedom = (count - 1) ** 2
    normal = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return bool(normal > 2.33)
