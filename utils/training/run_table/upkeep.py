"""What people add to a run's folder (tags, notes, the archived mark), and deleting one. All of it lives in the folder itself.

An archived run stays where it is, so that everything that refers to its folder remains valid: registered models, lineage,
trackers and jobs. It carries a mark, the file archived.json, and lists leave it out unless they are asked for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from utils.errors import ConfigError, DataNotFoundError, FileWriteError, RunLockedError, RunNotFoundError
from utils.schema import shown
from utils.scrubbing import scrub
from utils.storage import FolderLock, absolute_path, write_json, write_text
from utils.training.config_files import read_config_file
from utils.training.run_state import read_state, run_status

TAGS_FILE, NOTES_FILE, ARCHIVED_FILE = "tags.json", "notes.txt", "archived.json"

# A folder under this name is being deleted. No run is called so: a run's name begins with a letter or a digit.
_DELETED = ".deleted"


@dataclass(frozen=True)
class DeletedRun:
    """What was deleted.

    Attributes:
        path: where the run was; size_bytes: of its files.
        left: the folder of its checkpoints, where `checkpoint_dir` put them outside the run; it was not touched.
    """

    path: Path
    size_bytes: int
    left: Path | None = None


def read_notes(path: Path) -> str | None:
    """The notes that were written about the run in `path`, or None if they do not exist or cannot be read."""
    try:
        return (path / NOTES_FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def read_tags(path: Path) -> list[str]:
    """The tags of the run in `path`."""
    try:
        tags = json.loads((path / TAGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []


def write_tags(path: Path, tags: Iterable[str]) -> None:
    """Replace the tags of the run in `path`. Raises `FileWriteError`."""
    kept = sorted({scrub(tag) for tag in tags})
    _write(path / TAGS_FILE, lambda file: write_json(file, kept))


def write_notes(path: Path, notes: str) -> None:
    """Replace the notes of the run in `path`; they may be written while it trains. Raises `FileWriteError`."""
    _write(path / NOTES_FILE, lambda file: write_text(file, scrub(notes.strip())))


def is_archived(path: Path) -> bool:
    """Whether the run in `path` carries the archived mark."""
    return (path / ARCHIVED_FILE).is_file()


def set_archived(path: Path, archived: bool) -> None:
    """Give the run in `path` the archived mark, or take it away.

    Raises:
        RunLockedError: it is to be archived and is under way. FileWriteError: the mark cannot be written.
    """
    if not archived:
        _write(path / ARCHIVED_FILE, lambda file: file.unlink(missing_ok=True))
        return
    check_not_under_way(path, "archived")
    _write(path / ARCHIVED_FILE, lambda file: write_json(file, {"archived_at": time.time()}))


def check_not_under_way(path: Path, what: str) -> None:
    """Raise `RunLockedError` when the run in `path` is under way, so that it cannot be `what` now."""
    if run_status(path, read_state(path) or {}) == "running":
        raise RunLockedError(f"run {path.name!r} is under way and cannot be {what}; stop it first.")


def size_bytes(path: Path) -> int:
    """Bytes of the files in the folder `path`; what symbolic links point to is not counted."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):  # it may be gone meanwhile: a checkpoint that was replaced
                total += Path(folder, name).lstat().st_size
    return total


def run_folder_to_delete(folder: Path, name: str) -> Path:
    """The run `name` directly in `folder`, after everything that speaks against deleting it was ruled out.

    Raises:
        ConfigError: the name leads out of `folder`, or is a symbolic link; RunNotFoundError: no run of this name;
        RunLockedError: the run is under way.
    """
    if Path(name).name != name or name in ("", ".", ".."):
        raise ConfigError(
            f"got {shown(name)}; a run to be deleted is named by its folder's name in {folder}, not by a path."
        )
    path = absolute_path(folder) / name
    if path.is_symlink():
        raise ConfigError(
            f"{path} is a symbolic link to {path.readlink()}; runs are deleted where they are. Remove the link by hand."
        )
    if not path.is_dir() or read_state(path) is None:
        raise RunNotFoundError(f"{path} is no run's folder; nothing was deleted.")
    check_not_under_way(path, "deleted")
    return path


def delete_run(folder: Path, name: str) -> DeletedRun:
    """Delete the run `name`, a folder directly in `folder`, for good.

    Its lock is held while the folder is renamed, so that no training can begin in it, and links in it are removed, not
    followed.

    Raises:
        ConfigError, RunNotFoundError, RunLockedError: as `run_folder_to_delete`; nothing was deleted.
        FileWriteError: files could not be removed; says where the rest is.
    """
    path = run_folder_to_delete(folder, name)
    found = DeletedRun(path, size_bytes(path), _checkpoints_elsewhere(path))
    doomed = path.with_name(f"{_DELETED}-{name}-{os.getpid()}-{time.time_ns()}")
    with FolderLock(path / "lock").held():
        _write(path, lambda run: os.replace(run, doomed))
    try:
        shutil.rmtree(doomed)
    except OSError as error:
        raise FileWriteError(
            f"run {name!r} could not be deleted completely: {error.strerror or error}. What is left is in {doomed}."
        ) from error
    return found


def _checkpoints_elsewhere(path: Path) -> Path | None:
    try:
        training = read_config_file(path / "config.yaml").get("training")
    except (ConfigError, DataNotFoundError):
        return None
    given = training.get("checkpoint_dir") if isinstance(training, dict) else None
    return Path(given) if isinstance(given, str) and given else None


def _write(path: Path, change: Callable[[Path], object]) -> None:
    try:
        change(path)
    except OSError as error:
        raise FileWriteError(
            f"{path} cannot be changed: {error.strerror or error}. Check the folder's permissions."
        ) from error
