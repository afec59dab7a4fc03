"""DataFinding, and the few statistics that findings are tested with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

#: Probability below which chance is ruled out. Some ten tests are made of each dataset, so a healthy one is reported once in
#: about 100,000 datasets.
CHANCE = 1e-6
#: Normal quantile of `CHANCE`, one-sided.
_QUANTILE = 4.75


@dataclass(frozen=True)
class DataFinding:
    """One problem of a dataset.

    Attributes:
        check: the check that reports it: "inputs", "tokens", "labels", "targets", "exact duplicates", "leakage", "validation".
        cause: short, stable key of the kind of problem.
        verdict: "fail" for what makes training useless or misleading, "warn" for what probably was not intended.
        summary: one sentence with the measured numbers.
        remedy: what to do.
        measured: the numbers, plain values.
        thresholds: what they were compared with, and its source.
        in_training: whether `Trainer.train` reports it as a notice too.
    """

    check: str
    cause: str
    verdict: Literal["warn", "fail"]
    summary: str
    remedy: str
    measured: Mapping[str, Any] = field(default_factory=dict)
    thresholds: Mapping[str, Any] = field(default_factory=dict)
    in_training: bool = True


def lowest_share(count: int, total: int) -> float:
    """Lower confidence limit of a share (Wilson's score interval, 1927), at the level `CHANCE`."""
    if total == 0:
        return 0.0
    share, z = count / total, _QUANTILE
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, (centre - spread) / (1 + z * z / total))


def tail_bound(count: int, total: int, probability: float) -> float:
    """Upper bound on the probability of at least `count` hits in `total` draws (Chernoff 1952): exp(-total * KL)."""
    share = count / total if total else 0.0
    probability = min(max(probability, 1e-12), 1 - 1e-12)
    if share <= probability:
        return 1.0
    divergence = share * math.log(share / probability)
    if share < 1:
        divergence += (1 - share) * math.log((1 - share) / (1 - probability))
    return math.exp(-total * divergence)


def ks_distances(first_NF: np.ndarray, second_MF: np.ndarray) -> np.ndarray:
    """Kolmogorov-Smirnov distance of each column of two tables: float64 (F,), from 0 (the same) to 1 (disjoint)."""
    num_first, num_second = len(first_NF), len(second_MF)
    values = np.concatenate([first_NF, second_MF]).astype(np.float64)
    order = np.argsort(values, axis=0, kind="stable")
    steps = np.where(order < num_first, 1.0 / num_first, -1.0 / num_second)
    gaps = np.abs(np.cumsum(steps, axis=0))
    ranked = np.take_along_axis(values, order, axis=0)
    ends = np.ones(ranked.shape, dtype=bool)  # between equal values the cumulative distributions are not defined yet
    ends[:-1] = ranked[1:] != ranked[:-1]
    return np.asarray(np.where(ends, gaps, 0.0).max(axis=0))


def ks_chance(distance: float, num_first: int, num_second: int) -> float:
    """Upper bound on the probability of a Kolmogorov-Smirnov distance between two samples of one distribution:
    2 exp(-2 D² nm/(n+m)) (Massart 1990, for two samples)."""
    return min(1.0, 2 * math.exp(-2 * distance**2 * num_first * num_second / (num_first + num_second)))


def listed(values: object, most: int = 5) -> str:
    """The first few values, separated by commas."""
    found = [str(value) for value in np.asarray(values).tolist()]
    return ", ".join(found[:most]) + (", …" if len(found) > most else "")
