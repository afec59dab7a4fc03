"""A text file -> one document. `existing_file` is the step that every reader of files shares.

Files of records (csv, json, parquet, …) and texts that are too long to hold are read by `utils.data.read.records`.
"""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from utils.data.read.decoding import TextPieces
from utils.errors import DataError, DataNotFoundError

_BLANK = re.compile(r"\s*")


@dataclass(frozen=True)
class TextDocument:
    """The text of one file.

    Attributes:
        text: as in the file, with "\\n" as the only line end and without a byte-order mark.
        path: the file.
        num_lines: lines, the last one counted whether or not it has a line end.
        num_blank_lines: lines that are empty or hold only white space.
        had_bom: whether the file began with a byte-order mark.
    """

    text: str
    path: Path
    num_lines: int
    num_blank_lines: int
    had_bom: bool


def read_text_file(path: str | os.PathLike[str], encoding: str = "utf-8") -> TextDocument:
    """The whole of a text file. Only line ends (CRLF and CR become LF) and a byte-order mark (removed) are changed.

    A gzip archive of a text is unpacked on the way.

    Args:
        path: the file; "~" is the home folder.
        encoding: any text encoding that Python knows; strict, so a byte that does not fit is an error.
    Raises:
        DataNotFoundError: no such file; names files with nearly that name.
        DataError: a folder, empty, blank, binary or in another encoding; says where and what to do.
        ConfigError: an unknown encoding.
    Memory: little more than the text itself, however long its lines are.
    """
    file = existing_file(path)
    pieces = TextPieces(file, encoding)
    text = ""
    for piece in pieces:
        text += piece  # a string that nobody else holds grows in place, so the text is never in memory twice
    num_lines = text.count("\n") + (not text.endswith("\n"))
    num_blank = _count_blank_lines(text)
    if num_blank == num_lines:
        raise DataError(
            f"{file}: holds no text, only {_counted(num_blank, 'blank line')}. Give a file with text in it."
        )
    return TextDocument(text, file, num_lines, num_blank, pieces.had_bom)


def existing_file(path: str | os.PathLike[str]) -> Path:
    """`path` as a regular file that exists. Raises DataNotFoundError or DataError that says what is there instead."""
    name = os.fspath(path)
    if not name or "\0" in name:
        raise DataError(f"got {name!r} as the path of a data file; give the path of a text file.")
    try:
        file = Path(name).expanduser()
        if file.is_file():
            return file
        if file.is_dir():
            raise DataError(f"{file}: is a folder, not a file. {_files_in(file)}")
        if file.exists():
            raise DataError(f"{file}: is a device or pipe, not a file. Copy its content to a text file first.")
    except (OSError, RuntimeError) as error:  # a name that is too long; no home folder
        reason = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise DataNotFoundError(f"{name}: cannot be opened: {reason}.") from error
    raise DataNotFoundError(f"{file}: no such file. {_near(file)}")


def _count_blank_lines(text: str) -> int:
    """Lines that are empty or hold only white space; the last one counts whether or not it has a line end."""
    count, start = 0, 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        count += _BLANK.fullmatch(text, start, end) is not None
        start = end + 1
    return count


def _near(file: Path) -> str:
    """Similar file names beside a missing file."""
    folder = file.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if folder != file.parent:
        return f"Its folder does not exist either; the nearest that does is {folder.resolve()}."
    if not folder.is_dir():
        return f"{folder} is a file, not a folder."
    names = sorted(_entries(folder))
    folded = {name.lower(): name for name in reversed(names)}
    matches = [folded[match] for match in difflib.get_close_matches(file.name.lower(), folded, n=3, cutoff=0.7)]
    if matches:
        return f"Did you mean {' or '.join(str(folder / match) for match in matches)}?"
    return _files_in(folder)


def _files_in(folder: Path) -> str:
    names = sorted(name for name in _entries(folder) if not name.startswith(".") and (folder / name).is_file())
    if not names:
        return f"There are no files in {folder.resolve()}."
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"Files in {folder.resolve()}: {', '.join(names[:5])}{more}."


def _entries(folder: Path) -> list[str]:
    """Names in `folder`; none where this user may not look. For hints only."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
