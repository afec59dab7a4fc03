"""Any holder of texts -> texts: a list, a column, a dataset of the `datasets` library, an iterator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.data.read.rows import listed
from utils.errors import DataError, DataTypeError
from utils.schema import nearest


@dataclass(frozen=True)
class TextCounts:
    """Counts of the texts that `checked_texts` yielded."""

    num_texts: int
    num_characters: int
    num_empty: int


def texts_of(dataset: Any, text_column: str | None = None) -> Iterable[str]:
    """The texts of `dataset`, lazily where possible.

    Args:
        dataset: texts in a list or any other sequence or iterator; a dataset of the `datasets` library, or another with
            `column_names`; datasets by split, of which "train" is taken; a DataFrame or a column of one; rows that are dicts.
        text_column: which column; None: "text", or else the only column of texts.
    Raises:
        DataTypeError: something else; DataError: no such column, or several.
    """
    if isinstance(dataset, Mapping) and "train" in dataset:
        dataset = dataset["train"]
    if isinstance(dataset, Mapping):
        parts = ", ".join(map(str, list(dataset)[:10])) or "nothing"
        raise DataTypeError(
            f"Expected texts; got a {type(dataset).__name__} of {parts}. Give what holds the texts of these."
        )
    if isinstance(dataset, (str, bytes)) or not isinstance(dataset, Iterable):
        raise DataTypeError(
            f"Expected a list of texts, a dataset or an iterator; got a {type(dataset).__name__}. "
            "One text is given as [text]; a file's is read by utils.data.read_text_file."
        )
    if hasattr(
        dataset, "iloc"
    ):  # pandas: its own iteration gives a table's column names, its index looks up row labels
        return _texts_of_frame(dataset, text_column)
    names = getattr(dataset, "column_names", None)
    if isinstance(names, list) and names:
        features = getattr(dataset, "features", None) or {}
        texts = [name for name in names if getattr(features.get(name), "dtype", None) in ("string", "large_string")]
        return _Column(dataset, _column(names, texts, text_column))
    if isinstance(dataset, Sequence) and dataset and isinstance(dataset[0], Mapping):
        return _texts_of_rows(dataset, text_column)
    return dataset


def _texts_of_frame(frame: Any, text_column: str | None) -> list[str]:
    """The texts of a DataFrame or a Series; "" where a row has no text."""
    if hasattr(frame, "columns"):
        names = list(map(str, frame.columns))
        texts = [
            name for name, kind in zip(names, frame.dtypes, strict=True) if str(kind) in ("object", "str", "string")
        ]
        frame = frame.iloc[:, names.index(_column(names, texts, text_column))]
    missing = frame.isna().tolist()
    return ["" if empty else value for value, empty in zip(frame.tolist(), missing, strict=True)]


def _texts_of_rows(rows: Sequence[Mapping[str, Any]], text_column: str | None) -> list[str]:
    """A value of each row; "" where a row has none."""
    first = rows[0]
    name = _column(list(first), [name for name, value in first.items() if isinstance(value, str)], text_column)
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataTypeError(
                f"row {number} is of type {type(row).__name__}, and row 0 is a dict; give one kind of rows."
            )
    values = [row.get(name) for row in rows]
    # NaN is how tables write that there is nothing.
    return ["" if value is None or (isinstance(value, float) and value != value) else value for value in values]


def as_sequence(texts: Iterable[str]) -> Sequence[str]:
    """`texts` where it can be read more than once, else a list of what it gives."""
    if isinstance(texts, Sequence) or (hasattr(texts, "__len__") and hasattr(texts, "__getitem__")):
        return texts  # type: ignore[return-value]  # a lazy column is no Sequence by name
    return list(texts)


def checked_texts(texts: Iterable[str], what: str = "text") -> Iterator[str]:
    """The texts as they come.

    Args:
        what: how a message calls one of them.
    Raises:
        DataTypeError: one is no text, with its number; DataError: one holds half of a character (a lone surrogate).
    """
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataTypeError(f"{what} {number} is of type {type(text).__name__}, not str; give a list of texts.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{what} {number}, character {error.start}: {text[error.start]!r} is half of a character (a lone "
                'surrogate) and no text. Read the file without errors="surrogateescape".'
            ) from error
        yield text


def count_texts(texts: Iterable[str]) -> TextCounts:
    """Read and check all texts once. Raises as `checked_texts`, and DataError when none has a visible character."""
    num_texts = num_characters = num_empty = 0
    for text in checked_texts(texts):
        num_texts += 1
        num_characters += len(text)
        num_empty += not text or text.isspace()
    if num_empty == num_texts:
        raise DataError(f"none of the {num_texts:,} texts holds any text: there is nothing to learn from.")
    return TextCounts(num_texts, num_characters, num_empty)


class _Column(Sequence[str]):
    """A column of a dataset, read row by row; "" where a row has no text."""

    def __init__(self, dataset: Any, name: str) -> None:
        self._rows = dataset.select_columns([name]) if hasattr(dataset, "select_columns") else dataset
        self._name = name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: Any) -> Any:
        values = self._rows[number][self._name]
        return [value or "" for value in values] if isinstance(number, slice) else values or ""

    def __iter__(self) -> Iterator[str]:
        if not hasattr(self._rows, "iter"):
            yield from (row[self._name] or "" for row in self._rows)
            return
        for rows in self._rows.iter(batch_size=1000):
            yield from (value or "" for value in rows[self._name])


def _column(names: Sequence[str], texts: Sequence[str], wanted: str | None) -> str:
    """The column that is `wanted`, else "text", else the only one of `texts`, those that hold text."""
    if wanted is not None and wanted in names:
        return wanted
    if wanted is None and "text" in names:
        return "text"
    if wanted is None and len(texts) == 1:
        return texts[0]
    guess = nearest(wanted, names) if wanted else None
    hint = f" Did you mean {guess!r}?" if guess else ""
    problem = f"there is no column {wanted!r}" if wanted else "no column is the only one with text"
    raise DataError(f"{problem}; say which with text_column: {listed(names)}.{hint}")
