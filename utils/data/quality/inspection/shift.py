"""Whether validation inputs are distributed as the training inputs are, relative to the training part's own spread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.data.quality.inspection.finding import CHANCE, DataFinding, ks_chance, ks_distances, listed, lowest_share
from utils.data.quality.inspection.sampling import NO_TOKEN, Sample

#: Fewest rows of each part that are compared.
FEWEST = 16
# A column whose spread differs by this factor has another scale. Of pixels, all together: ImageNet's normalisation changes
# their spread by 4.4, MNIST's by 3.2, random halves of one dataset by a few per cent.
_SCALE, _PIXEL_SCALE = 5.0, 2.5
# Share of validation rows beyond the training range, widened by a tenth; of one distribution it is 2 / (n + 1) (order
# statistics of n rows).
_OUTSIDE = 0.5
# Kolmogorov-Smirnov distance of another distribution; normal distributions of one spread have it 1.35 spreads apart.
_DISTANCE = 0.5
# Share of validation tokens that training never shows.
_UNSEEN_TOKENS = 0.3


@dataclass(frozen=True)
class Shift:
    """Difference between columns: the cause "scale", "range" or "distribution", and a description."""

    cause: str
    what: str
    measured: Mapping[str, Any]
    thresholds: Mapping[str, Any]


def shift_findings(train: Sample, validation: Sample) -> Iterator[DataFinding]:
    """Findings about the inputs of both parts."""
    if min(len(train), len(validation)) < FEWEST or train.holds_tokens != validation.holds_tokens:
        return
    if train.holds_tokens:
        yield from _unseen_tokens(train, validation)
        return
    if train.inputs.shape[1:] != validation.inputs.shape[1:] and train.inputs.ndim != 4:
        return
    if not (np.isfinite(train.inputs).all() and np.isfinite(validation.inputs).all()):
        return
    first, second = (_rows_of(sample) for sample in (train, validation))
    if first.shape[1] != second.shape[1]:
        return
    found = _pixel_scale(train, validation) if train.inputs.ndim > 2 else shifted_columns(first, second)
    if found is None and train.inputs.ndim > 2:
        found = _outside(first, second)
    if found is None:
        return
    yield DataFinding(
        "validation", found.cause, "warn", f"Validation inputs {found.what}.", _REMEDIES[found.cause], found.measured,
        found.thresholds,
    )  # fmt: skip


_REMEDIES = {
    "scale": "Apply the training part's normalisation to validation too.",
    "range": "Validation asks for extrapolation: shuffle before splitting, or train on the whole range.",
    "distribution": "Draw both parts from one distribution (shuffle before splitting), or expect a validation loss that says "
    "little about training.",
}


def shifted_columns(train_NF: np.ndarray, validation_MF: np.ndarray) -> Shift | None:
    """The way in which columns of a table differ most plainly; None where they do not.

    Quantiles are used, so that single outliers do not count, and every test allows for the number of columns (Bonferroni).
    """
    if min(len(train_NF), len(validation_MF)) < FEWEST:
        return None
    num_columns = train_NF.shape[1]
    distances = ks_distances(train_NF, validation_MF)
    differs = np.array([
        num_columns * ks_chance(float(distance), len(train_NF), len(validation_MF)) < CHANCE for distance in distances
    ])  # fmt: skip
    if not differs.any():
        return None
    spreads = [np.subtract(*np.quantile(part, (0.95, 0.05), axis=0)) for part in (train_NF, validation_MF)]
    both = (spreads[0] > 0) & (spreads[1] > 0) & differs
    ratio = np.divide(spreads[1], spreads[0], out=np.ones(num_columns), where=both)
    factor = np.maximum(ratio, 1 / ratio)
    worst = int(factor.argmax())
    if factor[worst] > _SCALE:
        columns = np.flatnonzero(factor > _SCALE)
        return Shift(
            "scale",
            f"have another scale than those of training: the spread of column {worst} is {spreads[1][worst]:.4g} (training: "
            f"{spreads[0][worst]:.4g}), {len(columns)} of {num_columns} columns differ so",
            {"ratio": float(ratio[worst]), "columns": columns.tolist()}, {"factor": _SCALE},
        )  # fmt: skip
    outside = _outside(train_NF, validation_MF)
    if outside is not None:
        return outside
    worst = int(distances.argmax())
    if distances[worst] <= _DISTANCE:
        return None
    columns = np.flatnonzero((distances > _DISTANCE) & differs)
    return Shift(
        "distribution",
        f"have another distribution than those of training: Kolmogorov-Smirnov distance {distances[worst]:.2f} in column "
        f"{worst} (median {np.median(validation_MF[:, worst]):.4g}, training {np.median(train_NF[:, worst]):.4g}), "
        f"{len(columns)} of {num_columns} columns differ so",
        {"ks_distance": float(distances[worst]), "columns": columns.tolist()},
        {"ks_distance": _DISTANCE, "chance": CHANCE, "source": "Massart 1990, Bonferroni"},
    )  # fmt: skip


def _outside(train_NF: np.ndarray, validation_MF: np.ndarray) -> Shift | None:
    low, high = train_NF.min(axis=0), train_NF.max(axis=0)
    margin = 0.1 * (high - low)
    beyond = (validation_MF < low - margin) | (validation_MF > high + margin)
    shares = beyond.mean(axis=0)
    worst = int(shares.argmax())
    constant = high[worst] == low[worst]
    if (
        lowest_share(int(beyond[:, worst].sum()), len(beyond)) <= (0.1 if constant else _OUTSIDE / 2)
        or shares[worst] <= _OUTSIDE
    ):
        return None
    return Shift(
        "range",
        f"lie outside the range of training: {shares[worst]:.0%} of the examples in column {worst}, where training has "
        f"{low[worst]:.4g} to {high[worst]:.4g} and validation {validation_MF[:, worst].min():.4g} to "
        f"{validation_MF[:, worst].max():.4g}",
        {"share_outside": float(shares[worst]), "column": worst},
        {"share_outside": _OUTSIDE, "source": f"examples of one distribution: {2 / (len(train_NF) + 1):.2g}"},
    )  # fmt: skip


def _rows_of(sample: Sample) -> np.ndarray:
    """Features as they are; of larger inputs the mean of each row, which augmentation leaves about where it is."""
    if sample.inputs.ndim <= 2:
        return sample.inputs.reshape(len(sample), -1)
    return np.asarray(sample.inputs.reshape(len(sample), -1).mean(axis=1, dtype=np.float64))[:, None]


def _pixel_scale(train: Sample, validation: Sample) -> Shift | None:
    spreads = [float(sample.inputs.std(dtype=np.float64)) for sample in (train, validation)]
    ends = [(float(sample.inputs.min()), float(sample.inputs.max())) for sample in (train, validation)]
    if min(spreads) == 0 or max(spreads) / min(spreads) <= _PIXEL_SCALE:
        return None
    return Shift(
        "scale",
        f"have another scale than those of training: {ends[1][0]:.3g} to {ends[1][1]:.3g} with standard deviation "
        f"{spreads[1]:.3g} (training: {ends[0][0]:.3g} to {ends[0][1]:.3g}, {spreads[0]:.3g})",
        {"std": spreads[1], "training_std": spreads[0]},
        {"factor": _PIXEL_SCALE, "source": "ImageNet's normalisation changes the spread by 4.4"},
    )  # fmt: skip


def _unseen_tokens(train: Sample, validation: Sample) -> Iterator[DataFinding]:
    """Tokens that training never shows, against those of its own second half that its first half never shows."""
    known = [sample.inputs[sample.inputs != NO_TOKEN] for sample in (train, validation)]
    if min(map(len, known)) < 200:
        return
    half = len(known[0]) // 2
    usual = float((~np.isin(known[0][half:], known[0][:half])).mean())
    new = ~np.isin(known[1], known[0])
    share = float(new.mean())
    if share <= max(_UNSEEN_TOKENS, 3 * usual):
        return
    yield DataFinding(
        "validation", "unseen tokens", "warn",
        f"{share:.0%} of the validation tokens have ids that training never shows ({usual:.1%} within training).",
        "Encode both parts with the same tokenizer, and draw them from the same texts.",
        {"unseen_share": share, "usual_share": usual, "examples": listed(np.unique(known[1][new]))},
        {"unseen_share": _UNSEEN_TOKENS},
    )  # fmt: skip
