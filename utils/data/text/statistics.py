"""Lengths of the texts of a dataset, counted while it is read once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from utils.data.read.dataset_columns import schema_of, text_column_of_rows, texts_in
from utils.errors import DataError, DataTypeError
from utils.schema import shown

_PERCENTILES = {"p05_chars": 5, "p25_chars": 25, "median_chars": 50, "p75_chars": 75, "p95_chars": 95, "p99_chars": 99}


def text_statistics(dataset: Any, text_column: str | None = None) -> dict[str, Any]:
    """Number and lengths of texts.

    Args:
        dataset: a `datasets.Dataset` or IterableDataset, which is read once, or a list of texts.
        text_column: of a dataset; by default chosen by `text_column_of`.
    Returns:
        num_samples, total_chars, total_words (runs without white space), avg_chars, avg_words, min_chars, max_chars;
        p05_chars, p25_chars, median_chars, p75_chars, p95_chars, p99_chars, exact, by the nearest rank; text_column, and
        other_columns as {name: type}.
    Raises:
        DataError: no texts in it. DataTypeError: no dataset.
    Memory: one count for each length that occurs. Texts of k different lengths have k^2 / 2 characters at least, so a
        terabyte of text has 1.4 million of them at most.
    """
    lengths: Counter[int] = Counter()
    words = 0
    for text in iter_texts(dataset, text_column):
        lengths[len(text)] += 1
        words += len(text.split())
    count = lengths.total()
    if not count:
        raise DataError("the dataset holds no texts, so there is nothing to count.")
    characters = sum(length * times for length, times in lengths.items())
    column, others = _columns(dataset, text_column)
    return {
        "num_samples": count,
        "total_chars": characters,
        "total_words": words,
        "avg_chars": characters / count,
        "avg_words": words / count,
        "min_chars": min(lengths),
        "max_chars": max(lengths),
        **percentiles(lengths, _PERCENTILES),
        "text_column": column,
        "other_columns": others,
    }


def percentiles(counts: Mapping[int, int], wanted: Mapping[str, float]) -> dict[str, int]:
    """Percentiles by the nearest rank: the smallest value that at least so many percent of all do not exceed.

    Args:
        counts: value -> how often it occurs; not empty.
        wanted: name -> percent.
    """
    total = sum(counts.values())
    found = {}
    for name, percent in wanted.items():
        rank, passed = max(1, math.ceil(percent / 100 * total)), 0
        for value in sorted(counts):
            passed += counts[value]
            if passed >= rank:
                found[name] = value
                break
    return found


def iter_texts(dataset: Any, text_column: str | None = None) -> Iterator[str]:
    """The texts of a dataset, one after the other. Raises as `text_statistics` does."""
    if isinstance(dataset, (list, tuple)):
        for text in dataset:
            if not isinstance(text, str):
                raise DataTypeError(f"got {shown(text)} in the list of texts; every item must be a text.")
            yield text
        return
    column, _ = _columns(dataset, text_column)
    assert column is not None  # it is None for lists only
    yield from texts_in(dataset, column)


def _columns(dataset: Any, wanted: str | None) -> tuple[str | None, dict[str, str]]:
    """The column of texts, and the types of the others."""
    if isinstance(dataset, (list, tuple)):
        return None, {}
    if not hasattr(dataset, "select_columns"):
        raise DataTypeError(f"got {shown(dataset)}; give a datasets.Dataset or a list of texts.")
    column = text_column_of_rows(dataset, wanted, "the dataset")
    return column, {field.name: str(field.type) for field in schema_of(dataset) if field.name != column}
