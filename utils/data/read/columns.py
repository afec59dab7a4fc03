"""Choose the text column of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from utils.data.read.rows import cut, excerpt, listed, quoted
from utils.errors import ConfigError, DataError
from utils.schema import nearest, shown

if TYPE_CHECKING:
    import pyarrow as pa

#: Names that mean the text wherever several columns hold texts, the first that is there.
KNOWN_NAMES = ("text", "content", "document", "sentence", "article", "paragraph")

# Columns that a message describes, and characters of a name or type in it.
_LISTED_COLUMNS, _NAME_WIDTH = 20, 40


def text_column_of(schema: pa.Schema, wanted: str | None, name: str, example: Mapping[str, Any] | None = None) -> str:
    """The column to read: `wanted`, else one with a known name, else the only one of texts.

    Args:
        schema: the table's columns.
        wanted: a column of texts, or of lists of texts; None: to be found.
        name: what the table is, for messages.
        example: the first row, for messages.
    Raises:
        ConfigError: `wanted` is no name.
        DataError: no such column, or several; lists the columns with their types and examples, and says what to give.
    """
    if wanted is not None and not isinstance(wanted, str):
        raise ConfigError(f"text_column: got {shown(wanted)}; must be the name of a column, or None.")
    columns = listed(schema.names)
    texts = [field.name for field in schema if is_text(field.type)]
    readable = [field.name for field in schema if is_text(field.type) or is_text_list(field.type)]
    listing = _listing(schema, example or {})
    if wanted is not None and wanted in readable:
        return wanted
    if wanted is not None:
        guess = nearest(wanted, readable)
        hint = f" Did you mean {excerpt(guess)}?" if guess else ""
        what = "holds no text" if wanted in schema.names else f"is not there; the columns of {name} are {columns}"
        raise DataError(
            f"text_column: {excerpt(wanted)} {what}; with text: {listed(readable) or 'none'}.{hint}{listing}"
        )
    if known := next((column for column in KNOWN_NAMES if column in texts), None):
        return known
    if len(texts) == 1:
        return str(texts[0])
    if readable:
        raise DataError(
            f"{name} has no single column of text; say which with text_column: {listed(readable)}. (All columns: "
            f"{columns}.){listing}"
        )
    raise DataError(
        f"{name} has no column of text; its columns are {columns or 'none'}. Use a dataset with a column of texts, or one "
        f"of conversations.{listing}"
    )


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts."""
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_text_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists of texts."""
    import pyarrow as pa

    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(check(kind) for check in lists) and is_text(kind.value_type)


def one_text(value: Any) -> str:
    """The text of a value of a readable column: lists are joined by line ends, null is ""."""
    return value if isinstance(value, str) else "\n".join(part for part in value or () if part)


def _listing(schema: pa.Schema, example: Mapping[str, Any]) -> str:
    """The first columns, a line each: name, type, first value."""
    if not example:
        return ""
    columns = [
        (cut(field.name, _NAME_WIDTH), cut(str(field.type), _NAME_WIDTH), quoted(example[field.name]))
        for _, field in zip(range(_LISTED_COLUMNS), schema, strict=False)
    ]
    width = max((len(name) for name, _, _ in columns), default=0)
    rows = [f"\n  {name:<{width}}  {kind}  {value}" for name, kind, value in columns]
    more = len(schema.names) - len(columns)
    return "".join(rows) + (f"\n  and {more:,} more" if more else "")
