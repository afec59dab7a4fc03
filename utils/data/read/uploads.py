"""Files that came through the browser: kept under a safe name, never over another file."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from utils.errors import DataError
from utils.storage import absolute_path, atomic_write, free_bytes

#: Where uploads are kept, in the current folder.
UPLOADS = "uploads"

# Bytes of a name that every common filesystem takes, with room for a number.
_LONGEST_NAME = 100
_RESERVED_ON_WINDOWS = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


@dataclass(frozen=True)
class Upload:
    """A kept file.

    Attributes:
        path: where it is, absolute.
        size_bytes: its size.
        is_new: False when the very same file was there already.
    """

    path: Path
    size_bytes: int
    is_new: bool

    @property
    def sentence(self) -> str:
        """Outcome of the upload in a sentence."""
        size = f"{self.size_bytes / 1e6:,.1f} MB" if self.size_bytes >= 100_000 else f"{self.size_bytes:,} bytes"
        here = Path.cwd()
        path = self.path.relative_to(here) if self.path.is_relative_to(here) else self.path
        return f"{'Saved as' if self.is_new else 'Already there:'} {path} ({size})."


def save_upload(name: str, content: bytes, folder: str | Path = UPLOADS) -> Upload:
    """Keep an uploaded file.

    Args:
        name: as the browser gave it; only its last part counts, made safe by `safe_name`.
        content: its bytes. The same bytes under the same name are kept once; others get a number.
        folder: made if it does not exist.
    Raises:
        DataError: the file is empty, or it cannot be written; says why.
    """
    if not content:
        raise DataError(f"{name!r} is empty (0 bytes). Upload a file with text in it.")
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if len(content) > free_bytes(folder):
            raise DataError(f"{name!r} has {len(content):,} bytes, more than is free in {folder}. Free some space.")
        path = _free_path(folder / safe_name(name), content)
        is_new = not path.exists()
        if is_new:
            atomic_write(path, lambda file: file.write(content))
    except OSError as error:
        raise DataError(f"{name!r} cannot be kept in {folder}: {error.strerror or error}.") from error
    return Upload(absolute_path(path), len(content), is_new)


def safe_name(name: str) -> str:
    """The last part of `name` as the name of an ordinary file on every system: no path, control character or leading
    dot, at most 100 bytes; the extension is kept."""
    last = unicodedata.normalize("NFC", name).replace("\\", "/").rpartition("/")[2]
    clean = "".join("_" if c in '<>:"|?*' or not c.isprintable() else c for c in last).strip(" .")
    stem, suffix = Path(clean).stem, Path(clean).suffix
    room = _LONGEST_NAME - len(suffix.encode())
    if room < 1:
        stem, suffix, room = clean, "", _LONGEST_NAME
    clean = stem.encode()[:room].decode(errors="ignore") + suffix
    if not clean:
        return "upload.txt"
    return f"file-{clean}" if _RESERVED_ON_WINDOWS.fullmatch(clean) else clean


def _free_path(path: Path, content: bytes) -> Path:
    """`path`, or with a number where another file has its name."""
    candidate, number = path, 1
    while candidate.exists() and not _holds(candidate, content):
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content
