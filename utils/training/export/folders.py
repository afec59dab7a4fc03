"""Folders that appear complete or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import ExportError
from utils.storage import free_bytes, host_name, process_is_alive, sync_folder
from utils.training.export.manifest import MARKER, record_files
from utils.training.export.stages import stage

if TYPE_CHECKING:
    from torch import nn

_STAGING = re.compile(r"^\.(?P<name>.+)\.(?P<host>[^.]*)\.(?P<pid>\d+)\.staging$")


@contextlib.contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A new, empty folder beside `target`, which takes its name when the block ends without an error.

    An export that has the name already is replaced: it is renamed away, and removed only when the new one is in place.
    A crash between the two renames leaves it as `.<name>.previous`; the next call puts it back before anything else.

    Raises:
        ExportError: `target` is something that no export made; it is left alone.
        OSError: the folder cannot be made or renamed. `target` is then what it was.
    """
    stage("writing")
    previous = target.with_name(f".{target.name}.previous")
    made_parent = not target.parent.exists()
    target.parent.mkdir(parents=True, exist_ok=True)
    _recover(target, previous)
    _refuse_foreign(target)
    staging = target.with_name(f".{target.name}.{host_name()}.{os.getpid()}.staging")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        stage("storing the files")
        record_files(staging)
        _sync(staging)
        replaced = target.exists()
        if replaced:
            os.rename(target, previous)
        try:
            os.rename(staging, target)
        except OSError:
            if replaced:
                os.rename(previous, target)
            raise
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        if made_parent:
            with contextlib.suppress(OSError):  # not empty: somebody else's files are in it
                target.parent.rmdir()
        raise
    sync_folder(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def remove_stale_staging(parent: Path) -> None:
    """Remove what exports that were killed left in `parent`: staging folders of dead processes of this machine."""
    for entry in parent.iterdir():
        match = _STAGING.match(entry.name)
        if match and match["host"] == host_name() and not process_is_alive(int(match["pid"])):
            shutil.rmtree(entry, ignore_errors=True)


def check_space(folder: Path, target: Path, model: nn.Module) -> None:
    """Raise `ExportError` when the disk of `folder` has less than twice the model's bytes free: file and a copy to check."""
    needed = 2 * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if free_bytes(folder) < needed:
        raise ExportError(
            f"{target}: not enough disk space; {needed:,} bytes are needed and {free_bytes(folder):,} are free. Free some "
            "space, or choose another output_dir."
        )


def size_of(folder: Path) -> int:
    """Bytes of all files in `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _recover(target: Path, previous: Path) -> None:
    """Undo what a crash left: an export under its second name, staging folders of dead processes of this machine."""
    if previous.exists():
        if target.exists():
            shutil.rmtree(previous)
        else:
            os.rename(previous, target)
    for entry in target.parent.iterdir():
        match = _STAGING.match(entry.name)
        if (
            match
            and match["name"] == target.name
            and match["host"] == host_name()
            and not process_is_alive(int(match["pid"]))
        ):
            shutil.rmtree(entry, ignore_errors=True)


def _refuse_foreign(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ExportError(f"{target} exists and is no folder; choose another output_dir.")
    if target.exists() and any(target.iterdir()) and not (target / MARKER).is_file():
        raise ExportError(
            f"{target} holds files that are no export of Trainbook; choose another output_dir or an empty folder."
        )


def _sync(folder: Path) -> None:
    """Make the content of every file in `folder` durable, so that the rename cannot outlive it."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)
