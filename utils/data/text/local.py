"""Local files -> documents to train on."""

from __future__ import annotations

import os
from pathlib import Path

from utils.data.read.cache import TableCache
from utils.data.read.file_tables import table_of_files
from utils.data.read.files import find_files, format_of
from utils.data.read.load_report import LoadReport
from utils.data.read.rows import ReadOptions
from utils.data.read.stored_texts import HELD_BYTES, held_or_stored
from utils.data.read.text_file import read_text_file
from utils.data.text.hub import LoadedTexts

# A text up to this size is one document. Half of `HELD_BYTES`: a character may take two bytes in memory.
_WHOLE_BYTES = HELD_BYTES // 2
# Kinds of files whose text is markup or data as much as it is language.
_MARKUP = (".xml", ".html", ".htm", ".ipynb")


def load_local_texts(
    path: str | os.PathLike[str],
    text_column: str | None = None,
    *,
    with_validation: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
) -> LoadedTexts:
    """The texts of a file, a folder or a pattern of paths.

    - One plain text of up to 32 MB: one document.
    - A larger one, or several: one document a file, cut at blank lines above 1 Mi characters.
    - csv, tsv, json, jsonl, parquet: one document a row.

    The last two are kept in a table on disk, and are memory-mapped from it above 64 MB.

    Args:
        text_column: of the tables; by default chosen by `text_column_of`.
        with_validation: also read the files of a folder whose names say that they are for validation.
        cache_dir: see `TableCache`.
    Raises:
        DataNotFoundError, DataError: no such file, or it cannot be read; says path:line.
    """
    found = find_files(path)
    file = found.files[0]
    if len(found.files) == 1 and not found.validation and _is_small_text(file):
        return _one_document(file)
    cache, options = TableCache(cache_dir), ReadOptions(text_unit="file")
    rows, report = table_of_files(found.files, cache, source=os.fspath(path), text_column=text_column, options=options)
    documents, notes = held_or_stored(rows, report.text_column), [*found.notes, *_notes(report)]
    validation = None
    if with_validation and found.validation:
        own, own_report = table_of_files(
            found.validation, cache, source=os.fspath(path), text_column=report.text_column, options=options
        )
        validation = held_or_stored(own, own_report.text_column)
        notes.append(f"Validation is the files that are named so (files: {len(found.validation):,}).")
    counted = "" if len(found.files) == 1 else f", {len(found.files):,} files"
    column = "" if report.text_column == "text" else f", column {report.text_column}"
    return LoadedTexts(documents, validation, f"{os.fspath(path)}{counted}{column}", notes)


def _is_small_text(file: Path) -> bool:
    return format_of(file) == "txt" and file.suffix.lower() != ".gz" and file.stat().st_size <= _WHOLE_BYTES


def _one_document(file: Path) -> LoadedTexts:
    document = read_text_file(file)
    notes = []
    if document.num_blank_lines:
        notes.append(f"{document.num_blank_lines:,} of {document.num_lines:,} lines are blank; they are kept.")
    if document.had_bom:
        notes.append("The file's byte-order mark was removed.")
    suffix = file.suffix.lower()
    if suffix in _MARKUP:
        notes.append(f"The {suffix} file was read as plain text, with everything that is in it.")
    return LoadedTexts([document.text], None, str(file), notes)


def _notes(report: LoadReport) -> list[str]:
    return [report.sentence] if report.sentence else []
