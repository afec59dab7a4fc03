"""Findings about inputs that are numbers: tables, images and series."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from utils.data.quality.inspection.finding import DataFinding, listed
from utils.data.quality.inspection.sampling import Sample

# Root mean square of a column (of a table), or of all values (of an image), beyond which inputs are not normalised. Those
# that are have 1; the conditioning of the first layer's gradient grows with the square (LeCun et al., "Efficient BackProp",
# 1998, section 4.3).
_LARGE_COLUMN, _LARGE_PIXELS, _LARGE_PIXEL = 100.0, 10.0, 100.0
# Largest pixel of images that were scaled down once more than they should be; 1/255 is 0.004.
_SMALL_PIXEL = 0.01
# Spread of a column over that of the median column, "orders of magnitude"; and the spread itself from which it dominates.
_RATIO, _DOMINATING = 100.0, 30.0
# The same for columns that are far smaller than the others.
_SMALL_RATIO = 1000.0
# Factor between two groups of rows of which one was not scaled: 255 for pixels.
_GROUP_FACTOR = 20.0
# Share of the smaller group of rows.
_LEAST_GROUP = 0.02
# Share of constant columns that is most of a table, and of values other than zero in its other columns for it not to be sparse.
_MOSTLY, _DENSE = 0.5, 0.5
_FEWEST_ROWS = 16
_MANY_WHOLE = 32


def input_findings(sample: Sample, normalises: Callable[[], bool] = lambda: False) -> Iterator[DataFinding]:
    """Findings about inputs of one part.

    Args:
        normalises: whether the model brings inputs to a common scale itself; called only where it matters.
    """
    rows = sample.inputs.reshape(len(sample), -1)
    bad = ~np.isfinite(rows)
    if bad.any():
        columns = np.flatnonzero(bad.any(axis=0))
        num_rows = int(bad.any(axis=1).sum())
        yield DataFinding(
            "inputs", "not finite", "fail",
            f"{num_rows:,} of {len(rows):,} examples hold NaN or infinite inputs (columns {listed(columns)}).",
            "Fill in or drop missing values before training; one of them makes every weight NaN.",
            {"rows": num_rows, "columns": columns[:50].tolist()}, {"rows": 0},
        )  # fmt: skip
        return
    if len(rows) >= 8 and bool((rows == rows[0]).all()):
        yield DataFinding(
            "inputs", "constant", "fail", f"All {len(rows):,} examples have the same inputs: nothing distinguishes them.",
            "Check how the inputs are read.", {"different_rows": 1}, {"different_rows": 2},
        )  # fmt: skip
        return
    if len(rows) < _FEWEST_ROWS:
        return
    groups = list(_groups(sample))
    found = groups or list(_scales(sample)) or list(_level(sample))
    if found and not normalises():
        yield from found
    if sample.holds_images:
        yield from _tiny(sample)
    else:
        yield from _constant_columns(sample)


def ids_as_floats(sample: Sample) -> DataFinding | None:
    """The finding for token ids stored as floats, for a model or task that takes ids."""
    if sample.holds_tokens or sample.inputs.ndim != 2:
        return None
    values = sample.inputs[np.isfinite(sample.inputs)]
    if not values.size or bool((values != np.round(values)).any()) or values.min() < 0:
        return None
    return DataFinding(
        "tokens", "ids as floats", "fail",
        f"Token ids are floats (whole numbers from {values.min():.0f} to {values.max():.0f}): token ids must be integers.",
        "Convert them: ids.long().", {"largest_id": float(values.max())}, {"dtype": "int64"},
    )  # fmt: skip


def _level(sample: Sample) -> Iterator[DataFinding]:
    inputs = sample.inputs
    largest = float(np.abs(inputs).max())
    if sample.inputs.ndim == 2:
        rms_F = np.sqrt(np.mean(np.square(inputs, dtype=np.float64), axis=0))
        column = int(rms_F.argmax())
        too_large, size = rms_F[column] > _LARGE_COLUMN, float(rms_F[column])
        threshold = _LARGE_COLUMN
    else:
        size = math.sqrt(float(np.mean(np.square(inputs, dtype=np.float64))))
        too_large, threshold = size > _LARGE_PIXELS and largest > _LARGE_PIXEL, _LARGE_PIXELS
    if not too_large:
        return
    pixels = float(inputs.min()) >= 0 and 200 < largest <= 255
    yield DataFinding(
        "inputs", "not normalised", "warn",
        f"Inputs are not normalised: they reach {largest:,.4g}, with a root mean square of {size:,.4g}"
        + (f" in column {column}." if sample.inputs.ndim == 2 else "."),
        "Divide pixels by 255, and subtract mean and divide by standard deviation of the training part." if pixels else
        "Standardise them: subtract the mean and divide by the standard deviation of the training part, in both parts.",
        {"largest": largest, "rms": size},
        {"rms": threshold, "source": "normalised inputs have 1 (LeCun et al. 1998, Efficient BackProp)"},
    )  # fmt: skip


def _tiny(sample: Sample) -> Iterator[DataFinding]:
    largest = float(np.abs(sample.inputs).max())
    if 0 < largest < _SMALL_PIXEL:
        yield DataFinding(
            "inputs", "not normalised", "warn",
            f"Inputs are tiny: the largest pixel is {largest:.2g}. They may have been divided by 255 twice.",
            "Bring pixels to 0 to 1, or standardise them with mean and standard deviation of the training part.",
            {"largest": largest}, {"largest": _SMALL_PIXEL, "source": "1/255 is what 255 becomes when it is divided twice"},
        )  # fmt: skip


def _scales(sample: Sample) -> Iterator[DataFinding]:
    """Columns, channels or features of a series whose spreads differ by orders of magnitude."""
    table = sample.columns()
    if table.shape[1] < 2:
        return
    spread_F = table.std(axis=0, dtype=np.float64)
    varying = spread_F > 0
    if varying.sum() < 2:
        return
    sparse_F = np.zeros(len(spread_F), dtype=bool)
    for column in np.flatnonzero(varying):
        _, counts = np.unique(table[:4096, column], return_counts=True)
        sparse_F[column] = counts.max() > 0.5 * counts.sum() or len(counts) <= 2
    dense = varying & ~sparse_F
    typical = float(np.median(spread_F[varying])) if varying.sum() > 2 else float(spread_F[varying].min())
    large = np.flatnonzero(varying & (spread_F > max(_DOMINATING, _RATIO * typical)))
    small = np.flatnonzero(dense & (spread_F * _SMALL_RATIO < typical))
    if not len(large) and not len(small):
        return
    unusual = large if len(large) else small
    example = int(unusual[spread_F[unusual].argmax() if len(large) else spread_F[unusual].argmin()])
    yield DataFinding(
        "inputs", "feature scales", "warn",
        f"Features differ in scale by orders of magnitude: the standard deviation of column {example} is "
        f"{spread_F[example]:,.4g}, of the typical column {typical:,.4g} ({len(unusual)} of {len(spread_F)} columns).",
        "Standardise each column: subtract its mean and divide by its standard deviation, both of the training part.",
        {"columns": unusual[:50].tolist(), "largest_std": float(spread_F.max()), "typical_std": typical},
        {"ratio": _RATIO if len(large) else _SMALL_RATIO, "source": "LeCun et al. 1998, Efficient BackProp"},
    )  # fmt: skip


def _groups(sample: Sample) -> Iterator[DataFinding]:
    """Two groups of rows whose sizes are far apart and nothing in between: one of them was not scaled."""
    rows = np.abs(sample.inputs.reshape(len(sample), -1))
    size_N = np.sort(rows.max(axis=1))
    size_N = size_N[size_N > 0]
    fewest = max(4, math.ceil(_LEAST_GROUP * len(size_N)))
    if rows.shape[1] < 4 or len(size_N) < 2 * fewest:
        return
    gaps = np.diff(np.log(size_N.astype(np.float64)))
    inner = gaps[fewest - 1 : len(gaps) - fewest + 1]
    if not len(inner) or inner.max() < math.log(_GROUP_FACTOR):
        return
    at = fewest - 1 + int(inner.argmax())
    yield DataFinding(
        "inputs", "mixed scales", "warn",
        f"The inputs have two scales: {at + 1:,} examples reach at most {size_N[at]:.4g}, {len(size_N) - at - 1:,} examples "
        f"at least {size_N[at + 1]:.4g}, and none lies in between.",
        "Apply the same normalisation to every example.",
        {"smaller_rows": at + 1, "larger_rows": len(size_N) - at - 1, "factor": float(size_N[at + 1] / size_N[at])},
        {"factor": _GROUP_FACTOR},
    )  # fmt: skip


def _constant_columns(sample: Sample) -> Iterator[DataFinding]:
    """Columns without information. Zeros (pixels of the margin, categories that are absent) and ones (a bias) are usual,
    unless most columns of a table of numbers are so."""
    table = sample.columns()
    constant = (table == table[0]).all(axis=0)
    usual = np.isin(table[0], (0.0, 1.0))
    # Mostly zeros beside columns that hardly are: counts of words and one-hot codes are sparse throughout.
    dense = not constant.all() and float((table[:, ~constant] != 0).mean()) > _DENSE
    unusual = np.flatnonzero(constant if dense and float(constant.mean()) > _MOSTLY else constant & ~usual)
    if len(unusual):
        yield DataFinding(
            "inputs", "constant columns", "warn",
            f"{len(unusual)} of {table.shape[1]} columns are constant (column {listed(unusual)}).",
            "Remove them, or check how they are read: they carry no information.",
            {"columns": unusual[:50].tolist()}, {"different_values": 2}, in_training=False,
        )  # fmt: skip
