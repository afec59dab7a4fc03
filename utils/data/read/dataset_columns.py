"""The text column of a dataset of the `datasets` library: which it is, and its texts row by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from utils.data.read.columns import one_text, text_column_of

if TYPE_CHECKING:
    import pyarrow as pa

#: Rows that are read from a dataset at a time.
ROWS_AT_ONCE = 1000


def schema_of(rows: Any) -> pa.Schema:
    """The columns of a `datasets.Dataset`, or of an IterableDataset, whose first rows are read if its columns are unknown."""
    features = rows.features or rows._resolve_features().features
    schema: pa.Schema = features.arrow_schema
    return schema.remove_metadata()


def text_column_of_rows(rows: Any, wanted: str | None, name: str) -> str:
    """Choose the text column of a dataset by the rules of `text_column_of`, with its first row as the example.

    Args:
        rows: a `datasets.Dataset` or IterableDataset.
        wanted: a column; by default it is chosen by name and type.
        name: of the dataset, for messages.
    Raises:
        As `text_column_of`.
    """
    return text_column_of(schema_of(rows), wanted, name, next(iter(rows.take(1)), {}))


def texts_in(rows: Any, column: str) -> Iterator[str]:
    """The texts of a column in the dataset's order; lists of texts joined by line ends, "" for null."""
    batches: Iterable[Mapping[str, Sequence[Any]]] = rows.select_columns([column]).iter(batch_size=ROWS_AT_ONCE)
    for batch in batches:
        yield from map(one_text, batch[column])
