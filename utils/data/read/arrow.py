"""Rows of any kind -> Arrow tables with one type a column, and from those one file that is mapped into memory.

A column's type is what its first values are. It may widen: whole numbers become fractions, an empty column becomes what
its first value is, an object gains entries. Values of another kind are bad lines.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from utils.data.read.rows import BadLines, Row, excerpt, listed, quoted
from utils.data.read.task_columns import TEXT_NAMES
from utils.errors import DataError
from utils.schema import nearest

if TYPE_CHECKING:
    import pyarrow as pa

# A batch ends after this many rows or characters, whichever is first: Arrow's texts are limited to 2 GiB a batch.
_ROWS_AT_ONCE = 1000
_CHARACTERS_AT_ONCE = 1 << 23

#: Marks the schema of a table whose numbers are written as texts, as in a .csv: their columns become numbers.
WRITTEN: Mapping[bytes, bytes] = {b"trainbook": b"numbers written as texts"}
_WHOLE = r"^(0|-?[1-9][0-9]{0,17})?$"
_FRACTION = r"^(-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?)?$"
# Numbers of up to this many characters keep their value in a double, which holds any 15 digits.
_CHARACTERS_KEPT = 15


def tables_of(rows: Iterable[Row], file: object, bad: BadLines, required: Sequence[str] = ()) -> Iterator[pa.Table]:
    """Rows in batches, as tables.

    Args:
        file: what they are from, for messages.
        required: columns that every row must have, with a text or null in it.
    Raises:
        DataError: a row without a required column, or with a value of another kind than the rows before, unless `bad`
            skips it; gives path:line.
    """
    import pyarrow as pa

    known: dict[str, pa.DataType] = {}
    for batch in _batches(rows):
        good = [row for row in batch if _has_required(row, required, file, bad)]
        names = list(dict.fromkeys([*known, *(name for row in good for name in row.values)]))
        for name in names:
            good = _of_one_kind(good, name, known, file, bad)
        if good:
            columns = {name: _array([row.values.get(name) for row in good], known.get(name)) for name in names}
            yield pa.table(columns)


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += sum(len(value) for value in row.values.values() if isinstance(value, str))
        if len(batch) >= _ROWS_AT_ONCE or characters >= _CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _has_required(row: Row, required: Sequence[str], file: object, bad: BadLines) -> bool:
    for name in required:
        if name not in row.values:
            guess = nearest(name, list(row.values))
            hint = f", of which {excerpt(guess)} is the nearest" if guess else ""
            there = excerpt(", ".join(row.values))
            bad.meet(f"{file}:{row.line}: the row has no {excerpt(name)}; it has {there}{hint}.")
            return False
    return True


def _of_one_kind(rows: list[Row], name: str, known: dict[str, pa.DataType], file: object, bad: BadLines) -> list[Row]:
    """The rows whose value in a column fits to those before; `known` learns the column's type."""
    while True:
        values = [row.values.get(name) for row in rows]
        found = _common_type(values, known.get(name))
        if found is not None:
            known[name] = found
            return rows
        place = _first_misfit(values, known.get(name))
        value, line = values[place], rows[place].line
        bad.meet(f"{file}:{line}: {excerpt(name)} is {quoted(value)}, {_why(value, known.get(name), values[:place])}.")
        rows = rows[:place] + rows[place + 1 :]


def _common_type(values: Sequence[Any], known: pa.DataType | None) -> pa.DataType | None:
    """The type that holds `values` and what a column held so far, or None."""
    import pyarrow as pa

    try:
        found = pa.array(values).type
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return None
    return found if known is None else wider(known, found)


def wider(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """The type that holds values of both; None without such a type, as for texts and numbers."""
    import pyarrow as pa

    if first.equals(second):
        return first
    schemas = [pa.schema([("column", kind)]) for kind in (first, second)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None


def _first_misfit(values: Sequence[Any], known: pa.DataType | None) -> int:
    """Index of the first value that does not fit those before it: the shortest prefix without a common type."""
    low, high = 0, len(values)
    while low + 1 < high:
        middle = (low + high) // 2
        if _common_type(values[:middle], known) is None:
            high = middle
        else:
            low = middle
    return high - 1


def _why(value: Any, known: pa.DataType | None, before: Sequence[Any]) -> str:
    own = _common_type([value], None)
    if own is None:
        return (
            "which no column can hold (values of several kinds in one list, a number of more than 64 bits, or half of a "
            "character)"
        )
    kind = known if known is not None else _common_type(before, None)
    return f"{_in_words(own)}, and {_in_words(kind)} in the rows before"


def _in_words(kind: pa.DataType | None) -> str:
    words = {"string": "a text", "int64": "a number", "double": "a number", "bool": "true or false", "null": "nothing"}
    return words.get(str(kind)) or listed([kind])


def _array(values: Sequence[Any], kind: pa.DataType | None) -> pa.Array:
    import pyarrow as pa

    return pa.array(values, type=kind)


class TableFile:
    """Collects tables, whose columns and types may differ as `wider` allows, for one file.

    Args:
        folder: where the collected tables wait, in a file without a name that goes with the process.
        texts: columns that stay texts, whatever is written in them.
    """

    def __init__(self, folder: Path, texts: Sequence[str] = ()) -> None:
        self._folder = folder
        self._parts: list[tuple[IO[bytes], Any]] = []
        self._types: dict[str, pa.DataType] = {}
        self._numbers = WrittenNumbers(texts)
        self._writer: Any = None  # of the last part

    def add(self, table: pa.Table, source: object) -> None:
        """Raises DataError when a column is of another kind than in the tables before; `source` names this one."""
        for field in table.schema:
            kind = self._types.get(field.name)
            merged = field.type if kind is None else wider(kind, field.type)
            if merged is None:
                raise DataError(
                    f"{source}: the column {excerpt(field.name)} holds {_in_words(field.type)}, and {_in_words(kind)} in the "
                    "files before. Load them one by one, or make the columns alike."
                )
            self._types[field.name] = merged
        self._numbers.look(table)
        plain = table.replace_schema_metadata()
        if not self._parts or not self._parts[-1][1].equals(plain.schema):
            self._begin(plain.schema)
        self._writer.write_table(plain)

    def write(self, file: IO[bytes], metadata: Mapping[bytes, bytes] | None = None) -> None:
        """Write everything as one Arrow stream, which `datasets` maps into memory; `metadata` goes into its schema."""
        import pyarrow as pa

        if self._parts:
            self._writer.close()
        kinds = {name: self._numbers.type_of(name) or _stored(kind) for name, kind in self._types.items()}
        schema = pa.schema(kinds, metadata=metadata)
        with pa.ipc.new_stream(file, schema) as stream:
            for part, _ in self._parts:
                part.seek(0)
                for batch in pa.ipc.open_stream(part):
                    stream.write_table(_cast(pa.Table.from_batches([batch]), schema))

    def close(self) -> None:
        """Let go of what was collected."""
        for part, _ in self._parts:
            part.close()
        self._parts.clear()

    def _begin(self, schema: pa.Schema) -> None:
        import pyarrow as pa

        if self._parts:
            self._writer.close()
        part = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - read again by write, closed by close
        self._parts.append((part, schema))
        self._writer = pa.ipc.new_stream(part, schema)


class WrittenNumbers:
    """Columns of `WRITTEN` tables that can be read as numbers without losing a digit.

    Leading zeros, as in 007, and numbers with more digits than a double holds stay text. In a column whose name is commonly
    that of a text (`TEXT_NAMES`), numbers must also be written as Python writes them: 0.50 stays text, because 0.5 is another
    target text.
    """

    def __init__(self, texts: Sequence[str] = (), *, keep_digits: bool = True) -> None:
        self._texts, self._keep_digits = texts, keep_digits
        self._patterns: dict[str, str | None] = {}  # column -> the narrowest that all its values match; None: a text
        self._longest_whole: dict[str, int] = {}  # column -> characters of its longest whole number

    def look(self, table: pa.Table) -> None:
        """Take the types of a table into account. Columns without any value have none."""
        import pyarrow as pa
        import pyarrow.compute as pc

        written = (table.schema.metadata or {}).items() >= WRITTEN.items()
        for name in table.column_names:
            column = table[name]
            if not written or name in self._texts or column.type != pa.string():
                self._patterns[name] = None
            elif pc.any(pc.not_equal(column, "")).as_py():
                self._patterns[name] = self._pattern(name, column)

    def _pattern(self, name: str, column: pa.ChunkedArray) -> str | None:
        import pyarrow.compute as pc

        before = self._patterns.get(name)
        pattern = _narrowest(column, self._patterns.get(name, _WHOLE))
        if pattern == _WHOLE:
            self._longest_whole[name] = max(self._longest_whole.get(name, 0), pc.max(pc.utf8_length(column)).as_py())
        if pattern != _FRACTION or not self._keep_digits:
            return pattern
        as_written = name.casefold() in TEXT_NAMES
        # Whole numbers of the tables before become doubles, too.
        widened = before == _WHOLE and (as_written or self._longest_whole[name] > _CHARACTERS_KEPT)
        return None if widened or _loses_digits(column, as_written) else pattern

    def type_of(self, name: str) -> pa.DataType | None:
        """The type of a column of numbers; None for others."""
        import pyarrow as pa

        pattern = self._patterns.get(name)
        return None if pattern is None else {_WHOLE: pa.int64(), _FRACTION: pa.float64()}[pattern]


def settled_schema(table: pa.Table) -> pa.Schema:
    """The columns of the file if `table` were all that goes into it; a column of numbers does not become text."""
    import pyarrow as pa

    numbers = WrittenNumbers(keep_digits=False)
    numbers.look(table)
    return pa.schema({field.name: numbers.type_of(field.name) or _stored(field.type) for field in table.schema})


def _narrowest(column: pa.ChunkedArray, pattern: str | None) -> str | None:
    """The narrowest pattern of numbers, from `pattern` on, that every text of a column matches; None: none does."""
    import pyarrow.compute as pc

    candidates = {_WHOLE: (_WHOLE, _FRACTION), _FRACTION: (_FRACTION,), None: ()}[pattern]
    return next((one for one in candidates if pc.all(pc.match_substring_regex(column, one)).as_py()), None)


def _loses_digits(column: pa.ChunkedArray, as_written: bool) -> bool:
    """Whether some of a column's numbers are other numbers as doubles, or with `as_written` are written in another way."""
    import pyarrow.compute as pc

    if as_written:
        return any(text and repr(float(text)) != text for text in column.to_pylist())
    doubtful = pc.or_(pc.greater(pc.utf8_length(column), _CHARACTERS_KEPT), pc.match_substring_regex(column, "[eE]"))
    return not all(_keeps_value(text) for text in column.filter(doubtful).to_pylist())


def _keeps_value(text: str) -> bool:
    """Whether a number written as text is the same number as a double, which is written with at most 17 digits."""
    number = float(text)
    return math.isfinite(number) and Decimal(repr(number)) == Decimal(text)


def _stored(kind: pa.DataType) -> pa.DataType:
    """The type of a column in the file; text for a column without any value."""
    import pyarrow as pa

    return pa.string() if pa.types.is_null(kind) else kind


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with the columns and types of `schema`; what it lacks is null, and so is an empty text as a number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table[field.name]
        if column.type == pa.string() and field.type != pa.string():
            column = pc.if_else(pc.equal(column, ""), None, column)
        columns.append(column.cast(field.type))
    return pa.table(columns, schema=schema)
