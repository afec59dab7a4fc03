"""Statistics of targets that are no classes: numbers, and target texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from utils.data.encoded import EncodedExamples, Ragged
from utils.data.labelled.targets import Targets


def target_statistics(
    targets: Sequence[Targets], encoded: Sequence[EncodedExamples], max_target_length: int
) -> str | None:
    """Statistics of the targets of all parts in words; None where they are classes or tags.

    Args:
        targets, encoded: of each part, training and validation.
        max_target_length: tokens at which target texts are cut.
    """
    if targets[0].values is not None:
        return _number_statistics(targets)
    columns = [part.columns.get("labels") for part in encoded if len(part)]
    lengths = np.concatenate([column.lengths() for column in columns if isinstance(column, Ragged)])
    return f"median {int(np.median(lengths)):,} tokens, longest {int(lengths.max()):,}, limit {max_target_length:,}"


def _number_statistics(parts: Sequence[Targets]) -> str | None:
    """Range, mean, standard deviation and outliers of regression targets; None where there are no numbers.

    Outliers are further than three interquartile ranges from the quartiles (Tukey 1977, "far out").
    """
    values = [part.values for part in parts if isinstance(part.values, np.ndarray) and len(part.values)]
    if parts[0].classes is not None or not values:
        return None
    numbers = np.concatenate(values).astype(np.float64).reshape(sum(map(len, values)), -1)
    lines = []
    for place, column in enumerate(numbers.T, start=1):
        low, high = np.percentile(column, (25, 75))
        far = int(((column < low - 3 * (high - low)) | (column > high + 3 * (high - low))).sum())
        outliers = f"{far:,} outlier{'' if far == 1 else 's'}" if far else "no outliers"
        name = f"target {place}: " if numbers.shape[1] > 1 else ""
        lines.append(
            f"{name}{column.min():.4g} to {column.max():.4g}, mean {column.mean():.4g}, "
            f"standard deviation {column.std():.4g}, {outliers}"
        )
    return "\n".join(lines)
