"""Files of records -> Arrow tables, batch by batch. One function a format; this module knows which is for which file."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from utils.data.read.arrow import WRITTEN, tables_of
from utils.data.read.conll import conll_rows, looks_tagged
from utils.data.read.csv import csv_rows
from utils.data.read.decoding import TextPieces, opened
from utils.data.read.files import format_of
from utils.data.read.json import json_rows, jsonl_rows
from utils.data.read.rows import BadLines, ReadOptions, Row, excerpt, listed
from utils.data.read.txt import text_rows
from utils.errors import DataError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_AT_ONCE = 1000


def read_tables(
    files: Iterable[Path], options: ReadOptions, bad: BadLines, required: Sequence[str] = ()
) -> Iterator[tuple[Path, pa.Table]]:
    """The rows of files, in order, as tables of about a thousand rows, each with the file it is from.

    Args:
        files: regular files (`find_files`).
        required: columns that every row must have.
        bad: raises for what is no record, or counts it.
    Raises:
        DataError: a file that cannot be read; gives path:line, and the column where it is known.
    Memory: a few batches, however large the files are.
    """
    for file in files:
        file_format = options.file_format or format_of(file)
        if file_format == "parquet":
            tables = _parquet_tables(file, required)
        else:
            tables = tables_of(_rows(file, file_format, options, bad), file, bad, required)
            if file_format in ("csv", "tsv"):
                tables = (table.replace_schema_metadata(WRITTEN) for table in tables)
        for table in tables:
            yield file, table


def numbered_rows(file: Path, options: ReadOptions, bad: BadLines) -> Iterator[Row]:
    """The rows of one file, each with its line; the rows of a Parquet table are counted from 1. Raises as `read_tables`."""
    file_format = options.file_format or format_of(file)
    if file_format != "parquet":
        return _rows(file, file_format, options, bad)
    rows = (row for table in _parquet_tables(file, ()) for row in table.to_pylist())
    return (Row(number, row) for number, row in enumerate(rows, start=1))


def labelled_format(file: Path) -> str:
    """Format of a file whose rows have labels: as `format_of`, and "conll" for a plain text of words with BIO tags."""
    named = format_of(file)
    return "conll" if named == "txt" and looks_tagged(file) else named


def _rows(file: Path, file_format: str, options: ReadOptions, bad: BadLines) -> Iterator[Row]:
    pieces = TextPieces(file, options.encoding)
    if file_format == "txt":
        return text_rows(pieces, options.text_unit)
    if file_format == "jsonl":
        return jsonl_rows(pieces, file, bad)
    if file_format == "json":
        return json_rows(pieces, file, bad)
    if file_format == "conll":
        return conll_rows(pieces, file, bad)
    return csv_rows(pieces, file, options, bad, tabs=file_format == "tsv")


def _parquet_tables(file: Path, required: Sequence[str]) -> Iterator[pa.Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _seekable(file) as stream:
        try:
            table_file = pq.ParquetFile(stream)
            _check_columns(table_file.schema_arrow, required, file)
            for batch in table_file.iter_batches(batch_size=_ROWS_AT_ONCE):
                yield _plain(pa.Table.from_batches([batch]))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: cannot be read as Parquet: {first_line(error)}.") from error


@contextlib.contextmanager
def _seekable(file: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file; those of a gzip archive unpacked into a temporary file, for a table's end is read first."""
    try:
        with opened(file) as stream:
            if not isinstance(stream, gzip.GzipFile):
                yield stream
                return
            with tempfile.TemporaryFile() as unpacked:
                shutil.copyfileobj(stream, unpacked)
                unpacked.seek(0)
                yield unpacked
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _check_columns(schema: pa.Schema, required: Sequence[str], file: Path) -> None:
    missing = [name for name in required if name not in schema.names]
    if missing:
        raise DataError(f"{file}: has no column {excerpt(missing[0])}; its columns are {listed(schema.names)}.")


def _plain(table: pa.Table) -> pa.Table:
    """A table without dictionary-encoded columns and foreign metadata, as every reader gives it."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for name in table.column_names:
        column = table[name]
        kind = column.type
        columns[name] = column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column
    return pa.table(columns)
