"""Manifest of an export: its files with sizes and SHA-256, recorded when it is written, compared when it is checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.errors import ExportError
from utils.storage import write_json, write_text

#: The file by which an export is recognised: only folders that hold it are ever replaced.
MARKER = "trainbook_export.json"

#: The file of a bundle that names its other files.
BUNDLE_RECORD = "metadata.json"


@dataclass(frozen=True)
class Differences:
    """Differences between a folder and its manifest; names are relative to it.

    Attributes:
        missing: recorded files that are not there; altered: files with other content; unknown: files not recorded.
    """

    missing: tuple[str, ...]
    altered: tuple[str, ...]
    unknown: tuple[str, ...]


def record_files(folder: Path) -> None:
    """Add every file of `folder` with its size and SHA-256 to the export's marker; nothing where there is no marker."""
    marker = folder / MARKER
    if marker.is_file():
        record = json.loads(marker.read_text(encoding="utf-8"))
        write_json(marker, {**record, "files": _described(folder)})


def add_file(folder: Path, name: str, text: str) -> None:
    """Write one more text file into an export, and record it. A crash in between leaves a file that is not recorded."""
    write_text(folder / name, text)
    marker = folder / MARKER
    record = json.loads(marker.read_text(encoding="utf-8"))
    files = {**record.get("files", {}), name: _description(folder / name)}
    write_json(marker, {**record, "files": dict(sorted(files.items()))})


def recorded_files(folder: Path) -> Mapping[str, Mapping[str, Any]] | None:
    """{name: {"sha256", "bytes"}} as an export's marker or a bundle's metadata has it; None where nothing is recorded.

    Raises:
        ExportError: the marker cannot be read.
    """
    marker = next((folder / name for name in (MARKER, BUNDLE_RECORD) if (folder / name).is_file()), None)
    if marker is None:
        return None
    try:
        files = json.loads(marker.read_text(encoding="utf-8")).get("files")
    except (ValueError, AttributeError) as error:
        raise ExportError(f"{marker} is damaged: {error}. Export the model again.") from error
    return files if isinstance(files, Mapping) else None


def differences(folder: Path, recorded: Mapping[str, Mapping[str, Any]]) -> Differences:
    """Compare the files of `folder` with their record. Reads all of them."""
    there = _names(folder)
    missing = [name for name in recorded if name not in there]
    altered = [
        name
        for name, known in recorded.items()
        if name in there
        and ((folder / name).stat().st_size != known.get("bytes") or sha256(folder / name) != known.get("sha256"))
    ]
    unknown = [name for name in there if name not in recorded]
    return Differences(tuple(missing), tuple(altered), tuple(unknown))


def sha256(file: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _described(folder: Path) -> dict[str, dict[str, Any]]:
    return {name: _description(folder / name) for name in _names(folder)}


def _description(file: Path) -> dict[str, Any]:
    return {"sha256": sha256(file), "bytes": file.stat().st_size}


def _names(folder: Path) -> list[str]:
    """Every file but the marker and what the checker itself writes, relative to `folder`, sorted."""
    own = (MARKER, BUNDLE_RECORD, "health_report.json", "health_report.md")
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name not in own
    )
