"""Nothing in a bundle names the machine or the user that made it."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils import HOME

# An absolute path of at least two parts, of Linux, macOS or Windows.
_PATH = re.compile(r"(?<![\w/:.])(?:/[^\s/'\",;:()<>|]+){2,}/?|\b[A-Za-z]:\\[^\s'\",;()<>|]+")
# Source positions of a TorchScript module: they quote the paths of the files it was traced from, and nothing reads them back.
_DEBUG = ".debug_pkl"
_CHUNK = 1 << 20
_LONGEST_NAME = 4096


def portable(value: Any) -> Any:
    """A copy of plain values in which every path of this machine is its last part only.

    A text that looks like a path and leads nowhere here, such as a label "/m/01g317", stays.
    """
    if isinstance(value, str):
        return _PATH.sub(_last_part, value)
    if isinstance(value, Mapping):
        return {name: portable(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(entry) for entry in value]
    return value


def _last_part(match: re.Match[str]) -> str:
    text = match[0]
    if "\\" in text:
        return text.rstrip("\\").rpartition("\\")[2]
    path = Path(text)
    return path.name if Path(*path.parts[:3]).exists() or text.startswith(_local_folders()) else text


def _local_folders() -> tuple[str, ...]:
    """Folders that paths of this machine begin with, each with a slash at its end."""
    folders = {
        Path.home(),
        Path.cwd(),
        HOME,
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path(tempfile.gettempdir()).resolve(),
    }
    # Of one part, such as /usr or /tmp, they say nothing about anybody, and vocabularies have them as tokens.
    return tuple(f"{folder}/" for folder in folders if len(folder.parts) > 2 or folder == Path.home() != Path("/"))


def names_this_machine(file: Path) -> str | None:
    """The first folder of this machine that the content of `file` names; else None."""
    wanted = [os.fsencode(folder) for folder in _local_folders()]
    found = _first_in(file, wanted)
    if found is None and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            packed = [one for one in archive.infolist() if one.compress_type != zipfile.ZIP_STORED]
            found = next((name for one in packed for name in wanted if name in archive.read(one)), None)
    return None if found is None else os.fsdecode(found)


def _first_in(file: Path, wanted: list[bytes]) -> bytes | None:
    """The first of `wanted` that the file holds; read in pieces that overlap by the longest name."""
    with open(file, "rb") as opened:
        kept = b""
        while piece := opened.read(_CHUNK):
            text = kept + piece
            for name in wanted:
                if name in text:
                    return name
            kept = text[-_LONGEST_NAME:]
    return None


def without_debug_records(folder: Path) -> None:
    """Rewrite the TorchScript files of `folder` without the source positions in them."""
    import torch

    for file in folder.glob("*.pt"):
        reader = torch._C.PyTorchFileReader(str(file))
        names: list[str] = reader.get_all_records()
        if not any(name.endswith(_DEBUG) for name in names):
            continue
        rewritten = file.with_suffix(".rewritten")
        writer = torch._C.PyTorchFileWriter(str(rewritten))
        own = {"version", ".data/serialization_id", "byteorder"}  # which every writer makes itself
        for name in names:
            if not name.endswith(_DEBUG) and name not in own:
                content = reader.get_record(name)
                writer.write_record(name, content, len(content))
        writer.write_end_of_file()
        rewritten.replace(file)
