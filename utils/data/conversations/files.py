"""Files of conversations: csv, json, jsonl and parquet, plain or packed."""

from __future__ import annotations

import os

from utils.data.file_records import FileRecords as ConversationFiles
from utils.data.file_records import load_records as load_conversation_files
from utils.data.file_records import recognise
from utils.errors import DataError

__all__ = ["ConversationFiles", "holds_conversations", "load_conversation_files"]


def holds_conversations(path: str | os.PathLike[str], layout: str | None = None) -> bool:
    """Whether the first rows of the first file at `path` are conversations, and no table with a column of texts.

    Args:
        layout: the layout that somebody chose; then a column of texts does not count.
    Raises:
        DataError: several layouts fit; names them.
    """
    found = recognise(path)
    if layout is not None:
        return bool(found.columns)
    if found.has_texts or not found.layouts:
        return False
    if len(found.layouts) > 1:
        raise DataError(
            f"{os.fspath(path)}: the records can be read as {' or '.join(found.descriptions)}; say which with "
            f"conversation_layout or layout: {' or '.join(map(repr, found.layouts))}."
        )
    return True
