"""Findings about regression targets: their scale, and values that no loss can be computed from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from utils.data.quality.inspection.finding import DataFinding, listed
from utils.data.quality.inspection.shift import shifted_columns

#: Mean or standard deviation beyond which a head does not reach the targets. The outputs of a freshly initialised layer over
#: normalised activations are about 1 (Glorot & Bengio 2010), and Adam moves a weight by at most the learning rate a step.
FAR = 1000.0
_FEWEST_ROWS = 8


def target_findings(
    labels: np.ndarray, *, validation: np.ndarray | None, outputs: np.ndarray | None = None
) -> Iterator[DataFinding]:
    """Findings about regression targets (n,) or (n, K); NaN is an unknown target.

    Args:
        validation: the same of the validation part.
        outputs: what the model answers for some of the rows, where there is a model to ask.
    """
    targets_NK = labels.reshape(len(labels), -1).astype(np.float64)
    if np.isinf(targets_NK).any():
        rows = np.flatnonzero(np.isinf(targets_NK).any(axis=1))
        yield DataFinding(
            "targets", "not finite", "fail", f"{len(rows):,} targets are infinite (sampled examples {listed(rows)}).",
            "Remove these examples or mend them; NaN marks a target that is not known.", {"rows": len(rows)}, {"rows": 0},
        )  # fmt: skip
        return
    known = ~np.isnan(targets_NK)
    if not known.any():
        yield DataFinding(
            "targets", "not finite", "fail", "Every target is NaN: nothing is scored.", "Check the label column.",
            {"known_targets": 0}, {"known_targets": 1},
        )  # fmt: skip
        return
    values = targets_NK[known]
    if len(values) >= _FEWEST_ROWS and bool((values == values[0]).all()):
        yield DataFinding(
            "targets", "constant", "fail", f"All {len(values):,} targets are {values[0]:.6g}: there is nothing to learn.",
            "Check the label column.", {"different_targets": 1}, {"different_targets": 2},
        )  # fmt: skip
        return
    yield from _scale(targets_NK, outputs)
    if outputs is not None:
        yield from _one_sided(values, outputs)
    if validation is not None and len(validation):
        yield from _between_parts(targets_NK, validation.reshape(len(validation), -1).astype(np.float64))


def _scale(targets_NK: np.ndarray, outputs: np.ndarray | None) -> Iterator[DataFinding]:
    mean_K, std_K = np.nanmean(targets_NK, axis=0), np.nanstd(targets_NK, axis=0)
    size_K = np.maximum(np.abs(mean_K), std_K)
    worst = int(np.argmax(size_K))
    if size_K[worst] <= FAR:
        return
    if outputs is not None and _size(outputs) > size_K[worst] / 100:
        return  # the model rescales its outputs itself
    yield DataFinding(
        "targets", "scale", "warn",
        f"Targets are far from the scale of a model's outputs: mean {mean_K[worst]:,.4g}, standard deviation "
        f"{std_K[worst]:,.4g}, where an untrained output layer gives about 1.",
        "Standardise the targets, (y - mean) / std of the training part, and undo it for predictions.",
        {"mean": float(mean_K[worst]), "std": float(std_K[worst])},
        {"largest_mean_or_std": FAR, "source": "outputs of an initialised layer are about 1 (Glorot & Bengio 2010)"},
    )  # fmt: skip


def _size(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(np.square(finite, dtype=np.float64)))) if finite.size else 0.0


def _one_sided(values: np.ndarray, outputs: np.ndarray) -> Iterator[DataFinding]:
    """Targets below zero where the outputs never are; `outputs` are those for enlarged and negated inputs too."""
    below = float((values < 0).mean())
    lowest, highest = float(outputs.min()), float(outputs.max())
    if below < 0.01 or lowest < 0 or highest == lowest:
        return
    bounded = highest <= 1.0 + 1e-6
    yield DataFinding(
        "targets", "one-sided outputs", "fail",
        f"{below:.1%} of the targets are below zero, and the model's outputs never are (smallest {lowest:.3g}"
        + (f", largest {highest:.3g}: they look like a sigmoid's)." if bounded else ": they look like a ReLU's)."),
        "Remove the activation after the output layer.", {"targets_below_zero": below, "smallest_output": lowest},
        {"targets_below_zero": 0.01}, in_training=False,
    )  # fmt: skip


def _between_parts(train_NK: np.ndarray, validation_MK: np.ndarray) -> Iterator[DataFinding]:
    if train_NK.shape[1] != validation_MK.shape[1] or np.isnan(train_NK).any() or np.isnan(validation_MK).any():
        return
    found = shifted_columns(train_NK, validation_MK)
    if found is None:
        return
    measured: dict[str, Any] = dict(found.measured)
    yield DataFinding(
        "validation", f"target {found.cause}", "warn", f"Validation targets {found.what}.",
        "Apply the same transformation to the targets of both parts; shuffle before splitting.", measured, found.thresholds,
    )  # fmt: skip
