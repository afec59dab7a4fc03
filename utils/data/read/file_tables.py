"""Data files -> a dataset that is mapped into memory: read once, then taken from the cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.data.read.arrow import TableFile, settled_schema
from utils.data.read.cache import TableCache, key_of
from utils.data.read.columns import text_column_of
from utils.data.read.load_report import LoadReport
from utils.data.read.records import read_tables
from utils.data.read.rows import BadLines, ReadOptions
from utils.data.read.text_rules import TextFilter, TextRules
from utils.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa


def table_of_files(
    files: Sequence[Path],
    cache: TableCache,
    *,
    source: str,
    text_column: str | None = None,
    options: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    rules: TextRules = TextRules(),  # noqa: B008 - frozen
) -> tuple[Any, LoadReport]:
    """The rows of files as one `datasets.Dataset` on disk, and what became of them.

    Args:
        files: of any of the formats, which may differ; every one must have the text column.
        source: what they are, for the report and messages.
        text_column: None: found by `text_column_of` in the first rows.
    Raises:
        DataError: a file that cannot be read, gives path:line; or nothing is left.
    Memory: a few batches of rows.
    """
    column = _column_of(files, options, text_column, source)
    settings = {"column": column, "options": dataclasses.asdict(options), "rules": dataclasses.asdict(rules)}
    bad = BadLines(options.on_bad_line)
    report = LoadReport(source, column)
    # Only now, so that of a found table nothing is read.
    tables = read_tables(files, options, bad, required=(column,))
    return kept_table(tables, cache, key_of(files, settings), report, rules, bad)


def kept_table(
    tables: Iterable[tuple[object, pa.Table]],
    cache: TableCache,
    key: str,
    report: LoadReport,
    rules: TextRules,
    bad: BadLines,
    metadata: Mapping[bytes, bytes] | None = None,
) -> tuple[Any, LoadReport]:
    """The table that the cache has under `key`, else the rows of `tables` that `rules` keep, written there.

    Args:
        tables: each with what it is from; none is asked for when the cache has the table.
        report: is filled in.
        bad: which lines were no records, for the report.
        metadata: of the table's schema.
    """
    import datasets  # type: ignore[import-untyped]

    found = cache.find(key)
    if found is not None:
        table, kept = found
        return datasets.Dataset.from_file(str(table)), kept
    texts = TextFilter(rules, report)
    file = TableFile(cache.folder, texts=(report.text_column,))
    try:
        for source, part in tables:
            file.add(texts.table(part), source)
        report.num_bad_lines, report.bad_lines = bad.count, bad.messages
        texts.check()
        path = cache.put(key, lambda stream: file.write(stream, metadata), report)
    finally:
        file.close()
        texts.close()
    return datasets.Dataset.from_file(str(path)), report


def _column_of(files: Sequence[Path], options: ReadOptions, wanted: str | None, source: str) -> str:
    """The text column, from the first rows. Lines that are bad are not counted here."""
    _, first = next(_first_rows(files, options), (None, None))
    if first is None:
        raise DataError(f"{source}: holds no rows. Give a file with text in it.")
    example = first.slice(0, 1).to_pylist()[0]
    schema = first.schema if wanted in first.column_names else settled_schema(first)
    return text_column_of(schema, wanted, source, example)


def _first_rows(files: Sequence[Path], options: ReadOptions) -> Iterator[tuple[Path, pa.Table]]:
    return read_tables(files, options, BadLines(options.on_bad_line))
