"""One interface to the kinds of labelled data that users pass: a table whose columns can be read for any rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import numpy as np

from utils.data.read.rows import listed
from utils.errors import DataError, DataTypeError
from utils.schema import shown

_KINDS = "a Hugging Face Dataset, a DataFrame, a list of dicts, a dict of columns, or (texts, labels)"


@dataclass(frozen=True)
class Table:
    """Rows and columns.

    Attributes:
        names: the columns, in order.
        num_rows: rows are numbered from 0.
        read: (column, rows) -> their values.
        class_names: of columns that say themselves what their numbers mean.
    """

    names: list[str]
    num_rows: int
    read: Callable[[str, Sequence[int]], list[Any]]
    class_names: Mapping[str, list[str]] = field(default_factory=dict)

    def with_texts(self, columns: Collection[str], exact: Collection[str]) -> Table:
        """The same table, whose whole numbers in `columns` are read as their digits.

        Args:
            exact: of these columns, also fractions: their names keep them from having lost digits on the way (`TEXT_NAMES`).
        """

        def read(name: str, rows: Sequence[int]) -> list[Any]:
            values = self.read(name, rows)
            if name not in columns:
                return values
            kinds = (Integral, float, np.floating) if name in exact else (Integral,)
            return [_digits(value) if _is_number(value, kinds) else value for value in values]

        return replace(self, read=read)

    def example(self, most: int = 100) -> dict[str, Any]:
        """One value of each column, the first within `most` rows that is not missing."""
        rows = range(min(most, self.num_rows))
        values = {name: self.read(name, rows) for name in self.names}
        return {
            name: next((value for value in column if not is_missing(value)), None) for name, column in values.items()
        }


def as_table(records: Any, task_type: str, argument: str = "records") -> Table:
    """`records` as a table.

    Args:
        records: a Hugging Face Dataset, a DataFrame, a list of dicts, a dict of columns, (texts, labels), a list of pairs
            (text, label), or a list of texts. Nothing is copied.
        task_type: names the columns where they have no names.
        argument: its name in messages.
    Raises:
        DataTypeError: something else; says what was got.
        DataError: no rows, or columns of different lengths.
    """
    if hasattr(records, "column_names") and hasattr(records, "features"):
        table = _of_dataset(records, argument)
    elif hasattr(records, "iloc") and hasattr(records, "columns"):
        table = _of_frame(records)
    elif isinstance(records, Mapping):
        _refuse_parts(records, argument)
        table = _of_columns(_checked_columns(records, argument))
    elif isinstance(records, tuple) and len(records) == 2 and all(map(_is_column, records)):
        table = _of_columns(_checked_columns(_named_columns(*records, task_type), argument))
    elif isinstance(records, (list, tuple)):
        table = _of_rows(records, task_type, argument)
    else:
        raise DataTypeError(f"Expected {argument} to be {_KINDS}; got a {type(records).__name__}.")
    if table.num_rows == 0:
        raise DataError(f"{argument} holds no rows.")
    return table


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, NaN or pandas' NA."""
    return (
        value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)
    )


def _is_number(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, (bool, np.bool_)) and not is_missing(value)


def _digits(number: Any) -> str:
    """A number as Python writes it."""
    return str(number.item() if isinstance(number, np.generic) else number)


def _of_dataset(dataset: Any, argument: str) -> Table:
    if not hasattr(dataset, "__len__"):
        raise DataTypeError(
            f"{argument} is a stream ({type(dataset).__name__}), whose rows have no numbers. Load it whole."
        )
    plain = dataset.with_format(None)
    features = {name: getattr(feature, "feature", feature) for name, feature in dataset.features.items()}
    return Table(
        list(dataset.column_names),
        len(dataset),
        lambda name, rows: list(plain.select_columns([name])[list(rows)][name]),
        {name: list(names) for name, feature in features.items() if (names := getattr(feature, "names", None))},
    )


def _refuse_parts(records: Mapping[Any, Any], argument: str) -> None:
    """Raises when these are several datasets by name, as a DatasetDict has them."""
    if records and all(hasattr(part, "column_names") for part in records.values()):
        raise DataTypeError(
            f"{argument} has the parts {listed(records)}. Give one of them, and another as validation: "
            'prepare_examples(data["train"], ..., validation=data["validation"]).'
        )


def _of_frame(frame: Any) -> Table:
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        raise DataError(f"two columns of the table have the same name: {listed(names)}.")
    place = {name: number for number, name in enumerate(names)}
    return Table(names, len(frame), lambda name, rows: list(frame.iloc[list(rows), place[name]].tolist()))


def _of_columns(columns: Mapping[str, Sequence[Any]]) -> Table:
    length = len(next(iter(columns.values()), ()))
    return Table(list(columns), length, lambda name, rows: [columns[name][row] for row in rows])


def _of_rows(rows: Sequence[Any], task_type: str, argument: str) -> Table:
    """A list of dicts, of pairs or of texts."""
    if all(isinstance(row, str) for row in rows):
        return _of_columns({"text": rows})
    if all(isinstance(row, tuple) and len(row) == 2 for row in rows):
        return _of_columns(_named_columns([row[0] for row in rows], [row[1] for row in rows], task_type))
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataTypeError(
                f"Expected {argument} to be {_KINDS}; got a list whose row {number} is a {type(row).__name__}."
            )
    keys = {str(name): name for row in rows for name in row}
    return Table(list(keys), len(rows), lambda name, chosen: [rows[i].get(keys[name]) for i in chosen])


def _is_column(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, (str, bytes, Mapping))


def _named_columns(texts: Any, labels: Any, task_type: str) -> dict[str, Any]:
    """Columns with the usual names of the task."""
    if task_type == "seq2seq":
        return {"source": texts, "target": labels}
    if task_type == "token_classification":
        return {"tokens": texts, "tags": labels}
    if len(texts) and all(isinstance(text, (tuple, list)) and len(text) == 2 for text in texts):
        return {"text": [text[0] for text in texts], "text_pair": [text[1] for text in texts], "label": labels}
    return {"text": texts, "label": labels}


def _checked_columns(columns: Mapping[Any, Any], argument: str) -> dict[str, Any]:
    wrong = [name for name, values in columns.items() if not _is_column(values)]
    if wrong:
        raise DataTypeError(
            f"Expected {argument} to be {_KINDS}; got a dict whose {shown(wrong[0])} is no list of values."
        )
    lengths = {str(name): len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"the columns of {argument} have different lengths: "
            f"{listed(f'{name} {length:,}' for name, length in lengths.items())}."
        )
    return {str(name): values for name, values in columns.items()}
