"""Files of conversations: csv, json, jsonl and parquet, plain or packed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from utils.data.conversations.layouts import find_layout
from utils.data.read.columns import KNOWN_NAMES
from utils.data.read.files import find_files, format_of
from utils.data.read.records import read_tables
from utils.data.read.rows import BadLines, ReadOptions
from utils.errors import DataError


@dataclass(frozen=True)
class ConversationFiles:
    """The records of files.

    Attributes:
        records: one dict a row; validation: those of files that are named so, None where there are none.
        source: what they are, for the report.
        notes: what the user should know.
    """

    records: list[dict[str, Any]]
    validation: list[dict[str, Any]] | None
    source: str
    notes: list[str] = field(default_factory=list)


def holds_conversations(path: str | os.PathLike[str], layout: str | None = None) -> bool:
    """Whether the first rows of the first file at `path` are conversations, and no table with a column of texts.

    Raises:
        DataError: several layouts fit; names them.
    """
    file = find_files(path).files[0]
    if format_of(file) == "txt":
        return False
    options = ReadOptions()
    first = next((table for _, table in read_tables([file], options, BadLines("skip"))), None)
    if first is None:
        return False
    rows = first.slice(0, 100).to_pylist()
    has_texts = any(isinstance(rows[0].get(name), str) for name in KNOWN_NAMES)
    return layout is not None or (not has_texts and find_layout(rows) is not None)


def load_conversation_files(path: str | os.PathLike[str], *, with_validation: bool = True) -> ConversationFiles:
    """The rows of a file, a folder or a pattern of paths, held in memory.

    Raises:
        DataNotFoundError, DataError: what is wrong, with path:line.
    """
    found = find_files(path)
    options = ReadOptions()
    records = _records(found.files, options)
    if not records:
        raise DataError(f"{os.fspath(path)}: holds no rows. Give a file with conversations in it.")
    validation = _records(found.validation, options) if with_validation and found.validation else None
    notes = list(found.notes)
    if validation is not None:
        notes.append(f"Validation is the files that are named so (files: {len(found.validation):,}).")
    counted = "" if len(found.files) == 1 else f", {len(found.files):,} files"
    return ConversationFiles(records, validation, f"{os.fspath(path)}{counted}", notes)


def _records(files: Any, options: ReadOptions) -> list[dict[str, Any]]:
    bad = BadLines(options.on_bad_line)
    return [_without_nulls(row) for _, table in read_tables(files, options, bad) for row in table.to_pylist()]


def _without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without columns that only other rows have."""
    return {name: value for name, value in row.items() if value is not None}
