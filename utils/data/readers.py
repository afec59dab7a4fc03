"""Files -> documents. One reader per kind of file; this one reads plain text.

A reader takes a path and returns `TextDocument`s, or raises a `DataError` that says where in the file the problem is.
`existing_file` is the step that every reader shares.
"""

from __future__ import annotations

import codecs
import difflib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

from utils.errors import ConfigError, DataError, DataNotFoundError

# First bytes of files that are often given by mistake.
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "a gzip archive; unpack it first (gunzip)"),
    (b"PK\x03\x04", "a zip archive (also .docx, .xlsx, .npz and .pt files); unpack it or save the text from it"),
    (b"BZh", "a bzip2 archive; unpack it first (bunzip2)"),
    (b"\xfd7zXZ\x00", "an xz archive; unpack it first (unxz)"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it first (unzstd)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document; save its text as a .txt file"),
    (b"\xd0\xcf\x11\xe0", "an old Office document (.doc, .xls); save its text as a .txt file"),
    (b"PAR1", "a Parquet table"),
    (b"ARROW1", "an Arrow table"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x7fELF", "a program (ELF)"),
)

# Byte-order marks; UTF-32's first, because UTF-16's is its beginning.
_WIDE_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip

_CHUNK_BYTES = 1 << 20
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

    Args:
        path: the file; "~" is the home folder.
        encoding: any text encoding that Python knows; strict, so a byte that does not fit is an error.
    Raises:
        DataNotFoundError: no such file; names files with nearly that name.
        DataError: a folder, empty, blank, binary or in another encoding; says where and what to do.
        ConfigError: an unknown encoding.
    Memory: little more than the text itself, however long its lines are.
    """
    file, codec = existing_file(path), _text_codec(encoding)
    try:
        text, had_bom = _streamed(file, codec)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}.") from error
    num_lines = text.count("\n") + (not text.endswith("\n"))
    num_blank = _count_blank_lines(text)
    if num_blank == num_lines:
        raise DataError(
            f"{file}: holds no text, only {_counted(num_blank, 'blank line')}. Give a file with text in it."
        )
    return TextDocument(text, file, num_lines, num_blank, had_bom)


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


def _text_codec(encoding: str) -> str:
    """Python's own name of a text encoding. Raises ConfigError when there is none of that name."""
    try:
        codec = codecs.lookup(encoding).name
        "".encode(codec)  # hex, base64, … are codecs too, but not of text
        codecs.getincrementaldecoder(codec)
    except (LookupError, ValueError) as error:
        raise ConfigError(
            f'got encoding={encoding!r}, which is no text encoding; use "utf-8", "utf-16" or "latin-1".'
        ) from error
    return codec


def _streamed(file: Path, codec: str) -> tuple[str, bool]:
    """The text of a file, line ends as "\\n", and whether it began with a byte-order mark, which is removed.

    Raises:
        DataError: empty, binary, or not in this encoding; gives the byte's offset, or path:line:column.
    """
    wide = codec.startswith(("utf-16", "utf-32"))
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(codec)(), translate=True)
    text, head, offset = "", b"", 0
    with file.open("rb") as stream:
        while True:
            raw = stream.read(_CHUNK_BYTES)
            head = head or raw
            if not head:
                raise DataError(f"{file}: is empty (0 bytes). Give a file with text in it.")
            if not wide:
                _refuse_binary(raw, file, head, offset)
            try:
                # A string that nobody else holds grows in place, so the text is never in memory twice.
                text += decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                raise DataError(_not_decodable(text, decoder, file, codec, head, error)) from error
            if offset == 0:
                marked = text.startswith("\ufeff") or (wide and head.startswith(tuple(mark for mark, _ in _WIDE_MARKS)))
                text = text.removeprefix("\ufeff")
            offset += len(raw)
            if not raw:
                return text, marked


def _count_blank_lines(text: str) -> int:
    """Lines that are empty or hold only white space; the last one counts whether or not it has a line end."""
    count, start = 0, 0
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        count += _BLANK.fullmatch(text, start, end) is not None
        start = end + 1
    return count


def _refuse_binary(raw: bytes, file: Path, head: bytes, offset: int) -> None:
    """Raise DataError when `raw`, from `offset` of the file on, holds what no text does. `head`: the file's beginning."""
    for mark, name in _WIDE_MARKS:
        if head.startswith(mark):
            raise DataError(
                f"{file}: is in {name.upper()} (it begins with that byte-order mark), not UTF-8. Save it as UTF-8, "
                f'or read it with read_text_file(path, encoding="{name}").'
            )
    nul = raw.find(b"\0")
    if nul < 0:
        return
    kind = _signature(head)
    if kind is None and _looks_like_utf16(head):
        kind = "text in UTF-16 without a byte-order mark; save it as UTF-8"
    guess = f" It looks like {kind}." if kind else ""
    raise DataError(f"{file}: is not a text file: byte {offset + nul} is NUL.{guess} Give a plain text file in UTF-8.")


def _looks_like_utf16(raw: bytes) -> bool:
    """Whether every second byte of the beginning is mostly NUL, as in UTF-16 of Western text."""
    start = raw[:1024]
    half = len(start) // 2
    nuls = (start[0::2].count(0), start[1::2].count(0))
    return half > 0 and max(nuls) > 0.8 * half and min(nuls) < 0.2 * half


def _signature(raw: bytes) -> str | None:
    return next((kind for magic, kind in _SIGNATURES if raw.startswith(magic)), None)


def _not_decodable(
    text: str, decoder: io.IncrementalNewlineDecoder, file: Path, codec: str, head: bytes, error: UnicodeDecodeError
) -> str:
    """What to say of a byte that does not decode after `text`: where it is, or what kind of file this is."""
    kind = _signature(head)
    if kind is not None:
        return f"{file}: is not a text file. It looks like {kind}. Give a plain text file in UTF-8."
    # In wide encodings the part before the bad unit still decodes; errors="ignore" drops half a unit at its end.
    before = error.object[: error.start].decode(_of_same_order(codec, head), errors="ignore")
    before = "\r" * (decoder.getstate()[1] & 1) + (before if text else before.removeprefix("\ufeff"))
    before = before.replace("\r\n", "\n").replace("\r", "\n")
    line = text.count("\n") + before.count("\n") + 1
    column = len(before) - before.rfind("\n")
    if "\n" not in before:
        column += len(text) - text.rfind("\n") - 1
    advice = 'Save the file as UTF-8, or name its own encoding, for example read_text_file(path, encoding="latin-1").'
    byte = error.object[error.start]
    return f"{file}:{line}:{column}: byte 0x{byte:02x} is not valid {codec.upper()} ({error.reason}). {advice}"


def _of_same_order(codec: str, head: bytes) -> str:
    """The codec for a part of a file whose byte-order mark, if it has one, may be far before it."""
    if codec in ("utf-16", "utf-32"):
        big = head.startswith((codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
        return f"{codec}-{'be' if big else 'le'}"
    return codec


def _near(file: Path) -> str:
    """What is there instead of a missing file."""
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
