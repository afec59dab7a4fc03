"""Bytes -> text in pieces: encodings, line ends, byte-order marks, gzip. Other bytes are refused with their position."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from utils.errors import ConfigError, DataError

# First bytes of files that are often given by mistake.
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
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

#: Bytes that are read at once.
CHUNK_BYTES = 1 << 20
#: Characters that one record, and one line that cannot be cut, may have: 32 Mi. More is a file of another kind, or a quote
#: that nobody closed, and would fill the memory.
LONGEST_RECORD = 1 << 25

_GZIP = b"\x1f\x8b"


class TextPieces:
    """The text of one file, piece by piece: line ends as "\\n", no byte-order mark. Memory: a few pieces.

    A file that begins as a gzip archive does is unpacked on the way, whatever its name.

    Args:
        file: a regular file (`existing_file`).
        encoding: any text encoding that Python knows; strict, so a byte that does not fit is an error.
    Attributes:
        had_bom: whether the file began with a byte-order mark; known once the first piece is there.
    Raises:
        ConfigError: an unknown encoding; at once.
        DataError: while it is read: empty, binary, not in this encoding, a damaged archive; gives the byte's offset, or
            path:line:column.
    """

    def __init__(self, file: Path, encoding: str = "utf-8") -> None:
        self.file, self.codec = file, _text_codec(encoding)
        self.had_bom = False
        self._wide = self.codec.startswith(("utf-16", "utf-32"))
        self._line, self._column = 1, 1  # the place of the next character

    def __iter__(self) -> Iterator[str]:
        self._line, self._column = 1, 1
        try:
            with opened(self.file) as stream:
                yield from self._decoded(stream)
        except (OSError, EOFError, zlib.error) as error:
            reason = str(getattr(error, "strerror", None) or error).rstrip(".")
            raise DataError(f"{self.file}: cannot be read: {reason}.") from error

    def _decoded(self, stream: IO[bytes] | gzip.GzipFile) -> Iterator[str]:
        decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(self.codec)(), translate=True)
        head, offset = b"", 0
        while True:
            raw = stream.read(CHUNK_BYTES)
            head = head or raw
            if not head:
                raise DataError(f"{self.file}: is empty (0 bytes). Give a file with text in it.")
            if not self._wide:
                _refuse_binary(raw, self.file, head, offset)
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                raise DataError(self._not_decodable(decoder, head, error)) from error
            if offset == 0:
                marks = tuple(mark for mark, _ in _WIDE_MARKS)
                self.had_bom = text.startswith("\ufeff") or (self._wide and head.startswith(marks))
                text = text.removeprefix("\ufeff")
            offset += len(raw)
            if text:
                yield text
                self._advance(text)
            if not raw:
                return

    def _advance(self, text: str) -> None:
        last = text.rfind("\n")
        self._line += text.count("\n")
        self._column = self._column + len(text) if last < 0 else len(text) - last

    def _not_decodable(self, decoder: io.IncrementalNewlineDecoder, head: bytes, error: UnicodeDecodeError) -> str:
        """Error message for a byte that does not decode: its position, or the actual kind of file."""
        kind = _signature(head)
        if kind is not None:
            return f"{self.file}: is not a text file. It looks like {kind}. Give a plain text file in UTF-8."
        # In wide encodings the part before the bad unit still decodes; errors="ignore" drops half a unit at its end.
        before = error.object[: error.start].decode(_of_same_order(self.codec, head), errors="ignore")
        first = (self._line, self._column) == (1, 1)
        before = "\r" * (decoder.getstate()[1] & 1) + (before.removeprefix("\ufeff") if first else before)
        self._advance(before.replace("\r\n", "\n").replace("\r", "\n"))
        advice = 'Save the file as UTF-8, or name its own encoding, for example encoding="latin-1".'
        return (
            f"{self.file}:{self._line}:{self._column}: byte 0x{error.object[error.start]:02x} is not valid "
            f"{self.codec.upper()} ({error.reason}). {advice}"
        )


def opened(file: Path) -> IO[bytes] | gzip.GzipFile:
    """The bytes of a file, those inside it when it is a gzip archive."""
    stream = file.open("rb")
    start = stream.read(len(_GZIP))
    stream.seek(0)
    if start != _GZIP:
        return stream
    stream.close()
    return gzip.open(file, "rb")


def lines_of(pieces: Iterable[str], file: Path, most: int = LONGEST_RECORD) -> Iterator[str]:
    """The lines of a text, each with its "\\n"; only the last may lack it. Raises DataError for one of more than `most`
    characters."""
    parts: list[str] = []
    size, number = 0, 1
    for piece in pieces:
        first, *others = piece.split("\n")
        parts.append(first)
        size += len(first)
        if others:
            yield "".join(parts) + "\n"
            for line in others[:-1]:
                yield line + "\n"
            number += len(others)
            parts, size = [others[-1]], len(others[-1])
        if size > most:
            raise DataError(
                f"{file}:{number}: the line has more than {most:,} characters, too many for one record. Is it a file of "
                "records with one a line? A plain text may have lines of any length: name it .txt."
            )
    if size:
        yield "".join(parts)


def _text_codec(encoding: str) -> str:
    """Python's own name of a text encoding. Raises ConfigError for an unknown name."""
    try:
        codec = codecs.lookup(encoding).name
        "".encode(codec)  # hex, base64, … are codecs too, but not of text
        codecs.getincrementaldecoder(codec)
    except (LookupError, ValueError, TypeError) as error:
        raise ConfigError(
            f'got encoding={encoding!r}, which is no text encoding; use "utf-8", "utf-16" or "latin-1".'
        ) from error
    return codec


def _refuse_binary(raw: bytes, file: Path, head: bytes, offset: int) -> None:
    """Raise DataError when `raw`, from `offset` of the file on, holds bytes that are not text. `head`: the file's beginning."""
    for mark, name in _WIDE_MARKS:
        if head.startswith(mark):
            raise DataError(
                f"{file}: is in {name.upper()} (it begins with that byte-order mark), not UTF-8. Save it as UTF-8, "
                f'or name its encoding: encoding="{name}".'
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


def _of_same_order(codec: str, head: bytes) -> str:
    """The codec for a part of a file whose byte-order mark, if it has one, may be far before it."""
    if codec in ("utf-16", "utf-32"):
        big = head.startswith((codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE))
        return f"{codec}-{'be' if big else 'le'}"
    return codec
