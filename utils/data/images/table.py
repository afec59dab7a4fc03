"""Images that a table lists: paths and labels in a CSV, TSV, JSON or JSONL file."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.data.images.folder import ENDINGS, ImageFolderDataset
from utils.data.images.samples import ImageSamples
from utils.data.labelled.table import is_missing
from utils.data.labelled.usable_rows import MISSING_WORDS
from utils.data.read.records import numbered_rows
from utils.data.read.rows import BadLines, ReadOptions, Row, excerpt, listed
from utils.data.read.task_columns import find_columns
from utils.data.read.text_file import existing_file
from utils.errors import DataError, DataNotFoundError
from utils.schema import shown

log = logging.getLogger("trainbook.data")

# Common names of the column of paths, in lower case, and of the column that divides the rows.
_PATHS = (
    "image", "images", "file_name", "filename", "image_path", "path", "file", "filepath", "file_path", "img", "img_path",
    "image_file",
)  # fmt: skip
_PART = "split"
_PARTS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "dev": "validation", "test": "test",
}  # fmt: skip

# Rows that a message names of each kind.
_NAMED = 5


@dataclass(frozen=True)
class _Listed:
    """An image that a row names: its label as written, and "train", "validation" or "test", or "" without such a column."""

    line: int
    path: Path
    label: str
    part: str


class ImageTableDataset(ImageFolderDataset):
    """Your own images: a table with a row for each, in one column its path, in another its label.

    Paths are relative to the table's folder, with "/" between their parts, and end in .png, .jpg or .jpeg. A column named
    `split` divides the rows (train; val, valid, validation or dev; test, which is for validation where no row is val).
    Otherwise `validation_share` of each class is held back. Images are read, scaled and mirrored as by `ImageFolderDataset`,
    which explains the other arguments. Classes are the labels, sorted; whole numbers by their value.

    Args:
        root: the table, a .csv, .tsv, .json, .jsonl or .parquet file.
        image_column, label_column: where the common names (image, file_name, path, …; label, class, …) do not say it.
        allow_outside: whether paths may be absolute or lead out of the table's folder.
    Raises:
        ConfigError: a size that cannot be, or a column that is not there. DataNotFoundError, DataError: once something is asked
            for; names every kind of problem with the lines of its first rows.
    """

    def __init__(
        self,
        root: str | Path = "./data",
        download: bool = True,
        reapply_transforms: bool = False,
        *,
        keep_transformed: bool = False,
        image_column: str | None = None,
        label_column: str | None = None,
        allow_outside: bool = False,
        input_size: int | tuple[int, int] = 64,
        input_channels: int = 3,
        validation_share: float = 0.1,
    ) -> None:
        self.image_column, self.label_column, self.allow_outside = image_column, label_column, allow_outside
        self._images: list[_Listed] | None = None
        super().__init__(
            root, download, reapply_transforms, keep_transformed=keep_transformed, input_size=input_size,
            input_channels=input_channels, validation_share=validation_share,
        )  # fmt: skip

    @property
    def classes(self) -> list[str]:
        """Names of the classes, sorted; a label is a place in it."""
        if self._classes is None:
            names = {image.label for image in self._listed() if image.part in ("", "train")}
            are_numbers = all(name.lstrip("-").isdecimal() for name in names)
            self._classes = sorted(names, key=int) if are_numbers else sorted(names)
            if len(self._classes) < 2:
                raise DataError(
                    f"{self.root}: every training image has the label {listed(self._classes)}: there is nothing to tell apart. "
                    "List images of at least two classes."
                )
        return self._classes

    def load_data(self) -> tuple[ImageSamples, ImageSamples]:
        images = self._listed()
        parts = Counter(image.part for image in images)
        if "" in parts:
            train, validation = self._split(self._by_class(images))
        else:
            held_back = "validation" if parts["validation"] else "test"
            if not parts["train"] or not parts[held_back]:
                raise DataError(
                    f"{self.root}: the column {_PART!r} has {parts['train']:,} rows for training and {parts[held_back]:,} for "
                    "validation; both need some. Correct it, or rename the column to have a share of each class held back."
                )
            train, validation = (
                self._by_class([image for image in images if image.part == part]) for part in ("train", held_back)
            )
        return self._part(train, training=True), self._part(validation, training=False)

    def _by_class(self, images: Sequence[_Listed]) -> list[list[Path]]:
        files: dict[str, list[Path]] = {name: [] for name in self.classes}
        for image in images:
            if image.label not in files:
                raise DataError(
                    f"{self.root}:{image.line}: has the label {excerpt(image.label)}, and training has only "
                    f"{listed(self.classes)}."
                )
            files[image.label].append(image.path)
        return list(files.values())

    def _listed(self) -> list[_Listed]:
        """The images of the rows, read once. Raises for rows that cannot be used, all kinds of problems at once."""
        if self._images is None:
            if self.root.is_dir():
                raise DataError(f"{self.root}: is a folder. Give the table itself, such as {self.root / 'labels.csv'}.")
            rows = list(numbered_rows(existing_file(self.root), ReadOptions(), BadLines()))
            if not rows:
                raise DataError(f"{self.root}: holds no rows. Give a row for each image.")
            columns = _columns(rows, self.image_column, self.label_column, self.root)
            folder = Path(os.path.normpath(self.root.parent))
            found = [_read(row, columns, folder, allow_outside=self.allow_outside) for row in rows]
            _refuse(rows, found, columns, self.root)
            self._images = [image for image in found if isinstance(image, _Listed)]
            _warn_about(self._images, self.root)
        return self._images


@dataclass(frozen=True)
class _Columns:
    """The columns of paths and of labels, and the one that divides the rows, where there is one."""

    image: str
    label: str
    part: str | None


def _columns(rows: Sequence[Row], image: str | None, label: str | None, file: Path) -> _Columns:
    """Raises ConfigError for a given column that is not there, DataError where it is not clear which is meant."""
    names = dict.fromkeys(name for _, values in rows for name in values)
    example = {name: next((v[name] for _, v in rows if not is_missing(v.get(name))), None) for name in names}
    part = next((name for name in names if name.casefold() == _PART and name not in (image, label)), None)
    known = [name for name in names if name.casefold() in _PATHS and name != label]
    if image is None and len(known) != 1:
        raise DataError(
            f"{file}: which column holds the paths of images? The columns are {listed(names)}; it could be "
            f'{listed(known, joiner=" or ") or "none of them"}. Say it: image_column="...".'
        )
    candidates = {name: value for name, value in example.items() if name != part}
    found = find_columns("text_classification", candidates, text=image or known[0], label=label)
    assert found.label is not None
    return _Columns(found.text, found.label, part)


_NO_FILE = "files that are not there"


def _read(row: Row, columns: _Columns, folder: Path, *, allow_outside: bool) -> _Listed | str:
    """The image of a row, or what is wrong with the row."""
    given, label = row.values.get(columns.image), row.values.get(columns.label)
    if not isinstance(given, str) or not given.strip() or "\0" in given:
        return "rows without a path"
    path = Path(os.path.normpath(folder / given.strip()))  # links stay links: a folder may be one
    if not allow_outside and not path.is_relative_to(folder):
        return "paths that lead out of the table's folder (allow_outside=True permits them)"
    if path.suffix.lower() not in ENDINGS:
        return f"files that do not end in {', '.join(ENDINGS)}; convert them if they are images"
    if not path.is_file():
        return _NO_FILE
    if is_missing(label) or not str(label).strip():
        return "rows without a label"
    label = int(label) if isinstance(label, float) and label.is_integer() else label
    if not isinstance(label, (str, int)):
        return "labels that are neither texts nor whole numbers"
    part = "" if columns.part is None else str(row.values.get(columns.part)).strip().casefold()
    if columns.part is not None and part not in _PARTS:
        return f"values of {columns.part!r} that are none of {', '.join(_PARTS)}"
    return _Listed(row.line, path, str(label).strip(), _PARTS.get(part, ""))


def _refuse(rows: Sequence[Row], found: Sequence[_Listed | str], columns: _Columns, file: Path) -> None:
    """Raises DataError for rows that cannot be used; DataNotFoundError where files are missing and nothing else."""
    problems: dict[str, list[Row]] = {}
    for row, problem in zip(rows, found, strict=True):
        if isinstance(problem, str):
            problems.setdefault(problem, []).append(row)
    if not problems:
        return
    lines = []
    for problem, wrong in problems.items():
        named = ", ".join(f"line {row.line:,} ({shown(row.values.get(columns.image))})" for row in wrong[:_NAMED])
        more = f" and {len(wrong) - _NAMED:,} more" if len(wrong) > _NAMED else ""
        lines.append(f"\n  {problem} ({len(wrong):,}): {named}{more}")
    count = sum(map(len, problems.values()))
    kind = DataNotFoundError if list(problems) == [_NO_FILE] else DataError
    raise kind(
        f"{file}: {count:,} of {len(rows):,} rows cannot be used. Correct or remove them; paths begin in {file.parent}."
        f"{''.join(lines)}"
    )


def _warn_about(images: Sequence[_Listed], file: Path) -> None:
    """Warn about images in several rows, and about labels that often stand for a missing value."""
    times = Counter(image.path for image in images)
    if repeated := [path for path, count in times.items() if count > 1]:
        log.warning(
            "%s: %d images stand in more than one row; the first is %s. Training and validation may share them.",
            file, len(repeated), repeated[0],
        )  # fmt: skip
    for word in sorted({image.label for image in images}.intersection(MISSING_WORDS)):
        of_word = [image.line for image in images if image.label == word]
        log.warning(
            "%s: %d labels are %r, the first in line %d, which often stands for a missing value: here it is a class.",
            file, len(of_word), word, of_word[0],
        )  # fmt: skip
