"""A bundle as one file to send, and back. Unpacking writes plain files only, and none outside of its folder."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from utils.errors import ExportError
from utils.storage import absolute_path, atomic_write, free_bytes
from utils.training.export.folders import staged_folder

# A bundle has some dozens of files; a checkpoint in many shards some hundreds.
_MOST_MEMBERS = 10_000
_BLOCK = 1 << 20


def pack_bundle(bundle: str | Path, archive: str | Path | None = None) -> Path:
    """Write a bundle as a zip file, in one step. Returns its absolute path.

    Args:
        bundle: the folder that `create_export_bundle` made.
        archive: the file; default: the bundle's name with .zip, beside it.
    Raises:
        ExportError: this is no bundle, or the file cannot be written.
    """
    bundle = absolute_path(bundle)
    if not (bundle / "metadata.json").is_file():
        raise ExportError(f"{bundle} is no export bundle: it has no metadata.json")
    target = absolute_path(archive) if archive is not None else bundle.with_name(f"{bundle.name}.zip")

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
            for path in sorted(bundle.rglob("*")):
                if path.is_file():
                    packed.write(path, f"{bundle.name}/{path.relative_to(bundle).as_posix()}")

    try:
        return atomic_write(target, write)
    except OSError as error:
        raise ExportError(f"{target} could not be written: {error.strerror or error}. Free some space.") from error


@dataclass(frozen=True)
class _Member:
    """A plain file in an archive: its name, the bytes that it claims to have, and how it is read."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def unpack_bundle(archive: str | Path, folder: str | Path, max_bytes: int | None = None) -> Path:
    """Unpack a bundle that `pack_bundle` or another program packed (.zip, .tar, .tar.gz) as `folder`.

    Every member is checked before the first byte is written: names that leave the folder, links, devices, names that a file
    system without upper and lower case takes for one, too many members, and more bytes than allowed are refused. The folder
    appears complete or not at all.

    Args:
        archive: the file.
        folder: the bundle's folder; must not exist, or be empty.
        max_bytes: of all files together; None: half of what is free on the disk.
    Returns:
        `folder`, absolute.
    Raises:
        ExportError: the archive is damaged, hostile or no bundle, or the disk is full.
    """
    archive, target = absolute_path(archive), absolute_path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ExportError(f"{target} exists already; choose another folder")
    try:
        with _members(archive) as members, staged_folder(target) as staging:
            allowed = free_bytes(staging) // 2 if max_bytes is None else max_bytes
            for name, member in _checked(members, allowed).items():
                path = staging / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with member.open() as source, open(path, "xb") as file:
                    _copy(source, file, member)
            if not (staging / "metadata.json").is_file():
                raise ExportError(f"{archive.name} is no export bundle: it has no metadata.json")
    except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, NotImplementedError, RuntimeError) as error:
        # RuntimeError: an encrypted zip file; NotImplementedError: an unknown compression.
        if isinstance(error, ExportError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise ExportError(f"{archive.name} could not be unpacked: {reason}. Nothing was written.") from error
    return target


@contextmanager
def _members(archive: Path) -> Iterator[list[_Member]]:
    """The archive's files. Raises ExportError for what is neither file nor folder."""
    members: list[_Member] = []
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            if len(packed.infolist()) > _MOST_MEMBERS:
                raise ExportError(f"{archive.name} has {len(packed.infolist()):,} members; at most {_MOST_MEMBERS:,}")
            for info in packed.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise ExportError(f"{archive.name}: {info.filename!r} is a link or a device, which is not unpacked")
                if not info.is_dir():
                    members.append(_Member(info.filename, info.file_size, partial(packed.open, info)))
            yield members
        return
    with tarfile.open(archive) as tape:
        for number, entry in enumerate(tape, 1):
            if number > _MOST_MEMBERS:
                raise ExportError(f"{archive.name} has more than {_MOST_MEMBERS:,} members")
            if not entry.isfile() and not entry.isdir():
                raise ExportError(f"{archive.name}: {entry.name!r} is a link or a device, which is not unpacked")
            if entry.isfile():
                members.append(_Member(entry.name, entry.size, partial(_opened, tape, entry)))
        yield members


def _opened(tape: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    content = tape.extractfile(entry)
    assert content is not None  # only plain files are opened
    return content


def _checked(members: list[_Member], allowed: int) -> dict[str, _Member]:
    """{name in the folder: member}, without a folder that holds all of them. Raises ExportError before anything is written."""
    total = sum(member.size for member in members)
    if total > allowed:
        raise ExportError(f"the archive unpacks to {total:,} bytes; at most {allowed:,} are allowed")
    parts = {member.name: _safe_parts(member.name) for member in members}
    tops = {path[0] for path in parts.values()}
    inside = len(tops) == 1 and all(len(path) > 1 for path in parts.values())
    found: dict[str, _Member] = {}
    seen: dict[str, str] = {}
    for member in members:
        name = "/".join(parts[member.name][1:] if inside else parts[member.name])
        if (before := seen.setdefault(name.casefold(), name)) != name or name in found:
            raise ExportError(f"the archive holds {before!r} and {name!r}, which are one file on some systems")
        found[name] = member
    return found


def _safe_parts(name: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    odd = "\\" in name or ":" in name or not name.isprintable()
    if odd or path.is_absolute() or ".." in path.parts or not path.parts:
        raise ExportError(f"the archive holds {name!r}, a name that could leave the folder or that some systems lack")
    return path.parts


def _copy(source: IO[bytes], file: IO[bytes], member: _Member) -> None:
    """Copy as many bytes as the member claims, which were counted; one more is a lie."""
    shutil.copyfileobj(_Limited(source, member), file, _BLOCK)


class _Limited:
    """A file that ends with an error after the bytes that its archive claims."""

    def __init__(self, source: IO[bytes], member: _Member) -> None:
        self._source, self._member, self._left = source, member, member.size

    def read(self, size: int = -1, /) -> bytes:
        """Read like a file."""
        data = self._source.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ExportError(f"{self._member.name!r} is longer than its archive says; nothing was unpacked")
        return data
