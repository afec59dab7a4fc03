"""Resolve a path, folder, glob pattern or list of them to files, and the format of each."""

from __future__ import annotations

import glob
import itertools
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.data.read.text_file import existing_file
from utils.errors import DataError, DataNotFoundError, DataTypeError
from utils.schema import shown

#: Endings of names, and what the files hold. Others are read as plain text when they are named, and left out of folders.
FORMAT_OF_SUFFIX: dict[str, str] = {
    ".txt": "txt", ".text": "txt", ".md": "txt",
    ".csv": "csv", ".tsv": "tsv", ".tab": "tsv",
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet", ".pq": "parquet",
    ".conll": "conll", ".conllu": "conll", ".bio": "conll", ".iob": "conll", ".iob2": "conll",
}  # fmt: skip

# What file names call the parts of a dataset.
_SPLIT_NAMES = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
# Entries of a folder that are looked at for a first word about it.
_LOOKED_AT = 1000
_DOCUMENTATION = ("readme", "license", "dataset_infos", "dataset_info")


@dataclass(frozen=True)
class DataFiles:
    """The files of a dataset.

    Attributes:
        files: what to train on, in the order of their names.
        validation: those whose names say that they are for validation.
        notes: what was left out, a sentence each.
    """

    files: tuple[Path, ...]
    validation: tuple[Path, ...] = ()
    notes: list[str] = field(default_factory=list)


def find_files(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> DataFiles:
    """The files of a path, a folder (with those in it), a pattern such as "data/*.jsonl", or several of these.

    In a folder or pattern, names that say train, validation or test (as a word of a file's name, or of a folder's in it)
    divide the files, when one says train: the others of them are not trained on.

    Raises:
        DataNotFoundError, DataError: nothing is there, or no file of a known kind; says what is there instead.
    """
    if isinstance(source, (str, os.PathLike)):
        return _files_of(os.fspath(source))
    if not isinstance(source, (list, tuple)) or not all(isinstance(part, (str, os.PathLike)) for part in source):
        raise DataTypeError(f"got {shown(source)} as files; give a path, a pattern of paths, or a list of these.")
    if not source:
        raise DataError("got an empty list of files; give at least one.")
    found = [_files_of(os.fspath(part)) for part in source]
    files = tuple(dict.fromkeys(file for part in found for file in part.files))
    validation = tuple(dict.fromkeys(file for part in found for file in part.validation))
    return DataFiles(files, validation, [note for part in found for note in part.notes])


def path_problem(path: str) -> str | None:
    """Explain why no data can be read from a path, folder or pattern, as far as it shows without reading, or None."""
    try:
        if is_pattern(os.path.expanduser(path)):
            found = next(glob.iglob(os.path.expanduser(path), recursive=True), None)
            return None if found else f"{path}: no file matches this pattern (from {Path.cwd()})."
        place = _folder(path) or existing_file(path)
    except (DataError, ValueError) as error:
        return str(error)
    if place.is_dir() and not any(_is_data(entry, place) for entry in itertools.islice(place.rglob("*"), _LOOKED_AT)):
        return f"{place}: the folder holds no data files that show at once ({', '.join(FORMAT_OF_SUFFIX)})."
    if not os.access(place, os.R_OK):
        return f"{place}: may not be read by this user; change its permissions or copy it."
    if place.is_file() and place.stat().st_size == 0:
        return f"{place}: is empty; give a file with text in it."
    return None


def files_to_choose(
    folder: str | os.PathLike[str], most: int = 50, seconds: float = 0.2, clock: Callable[[], float] = time.monotonic
) -> list[str]:
    """Data files in `folder` and in the folders directly in it, for a list of suggestions, those of the folder first.

    Only names are read. What is hidden, documentation, and lists of requirements are left out.

    Args:
        most: names that are returned at most.
        seconds: after which no other folder is read: on a network drive each takes a while.
        clock: gives the time in seconds.
    Returns:
        Paths relative to `folder`; [] where it cannot be read.
    """
    began, root = clock(), Path(folder)
    found: list[Path] = []
    folders = [root]
    for place in folders:
        if len(found) >= most or clock() - began > seconds:
            break
        try:
            with os.scandir(place) as entries:
                listed = sorted(itertools.islice(entries, _LOOKED_AT), key=lambda entry: entry.name)
            found += [Path(entry.path) for entry in listed if _is_suggested(Path(entry.path), root)]
            folders += [Path(entry.path) for entry in listed if place == root and _may_hold_data(entry)]
        except OSError:  # it is not there, or not for this user: then it has nothing to suggest
            continue
    return [path.relative_to(root).as_posix() for path in found[:most]]


def _is_suggested(path: Path, root: Path) -> bool:
    named_otherwise = _suffix(path) == ".md" or path.name.startswith(("requirements", "constraints"))
    return not named_otherwise and _is_data(path, root)


def _may_hold_data(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith((".", "_")) and not entry.name.endswith(".egg-info") and entry.is_dir()


def format_of(file: Path) -> str:
    """Format of a file by its suffix, ".gz" ignored; "txt" where the name does not tell."""
    return FORMAT_OF_SUFFIX.get(_suffix(file), "txt")


def is_saved_dataset(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is what `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""
    return any(os.path.isfile(os.path.join(folder, marker)) for marker in ("state.json", "dataset_dict.json"))


def is_pattern(name: str) -> bool:
    """Whether `name` is a pattern of paths and no path that exists."""
    return glob.has_magic(name) and not os.path.lexists(name)


def _suffix(file: Path) -> str:
    name = file.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def _files_of(name: str) -> DataFiles:
    if name and "\0" not in name and is_pattern(os.path.expanduser(name)):
        matches = sorted(Path(match) for match in glob.iglob(os.path.expanduser(name), recursive=True))
        files = [match for match in matches if match.is_file()]
        if not files:
            raise DataNotFoundError(f"{name}: no file matches this pattern (from {Path.cwd()}).")
        return _by_split(files, name, _fixed_part(os.path.expanduser(name)))
    folder = _folder(name)
    if folder is None:
        return DataFiles((existing_file(name),))
    if is_saved_dataset(folder):
        raise DataError(
            f"{folder}: is a dataset that the datasets library saved, not a folder of data files. Give it as dataset_name, "
            "or use load_huggingface(folder)."
        )
    files = sorted(path for path in folder.rglob("*") if _is_data(path, folder))
    others = sum(path.is_file() and not _is_data(path, folder) for path in folder.rglob("*"))
    kinds = ", ".join(FORMAT_OF_SUFFIX)
    if not files:
        there = f"{others} files of other kinds" if others else "no files at all"
        raise DataError(f"{folder}: the folder holds no data files ({kinds}, each also with .gz), but {there}.")
    found = _by_split(files, folder, folder)
    if others:
        found.notes.append(f"{others} other files in {folder} were left out: no data by their names, or hidden.")
    return found


def _folder(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if name and path.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long, no home folder, a NUL: existing_file says so
        return None


def _is_data(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    documents = path.stem.lower() in _DOCUMENTATION
    return not hidden and not documents and _suffix(path) in FORMAT_OF_SUFFIX and path.is_file()


def _by_split(found: Sequence[Path], where: object, root: Path) -> DataFiles:
    """Files divided by what their names, and those of folders below `root`, say."""
    files = [file for file in found if file.stat().st_size] or found
    notes = [f"{len(found) - len(files)} empty files of {where} were skipped."] if len(files) < len(found) else []
    parts: dict[str | None, list[Path]] = {}
    for file in files:
        parts.setdefault(_split_of(file.relative_to(root)), []).append(file)
    if "train" not in parts:
        return DataFiles(tuple(files), notes=notes)
    notes += [
        f"{len(part)} files of {where} are not for training by their names ({_named(part)})."
        for split, part in parts.items()
        if split in ("test", None)
    ]
    return DataFiles(tuple(parts["train"]), tuple(parts.get("validation", ())), notes)


def _fixed_part(pattern: str) -> Path:
    """The folder before the first part of a pattern that is no plain name."""
    parts = Path(pattern).parts
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), parts))


def _split_of(file: Path) -> str | None:
    """Split that the name of a file, or of a folder above it, stands for."""
    for name in reversed(file.parts):
        words = re.split(r"[^a-z]+", name.lower())
        for split, names in _SPLIT_NAMES.items():
            if any(word in names for word in words):
                return split
    return None


def _named(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files[:3]) + (" …" if len(files) > 3 else "")
