"""Sources of data that a setup can name: what each needs, how it is read, and what it is called.

A new source is a name in `DatasetSource` and a row in `SOURCE_KINDS`. One that is read like a source that exists (`reader`)
needs no more; another one needs a `Reader`, with a branch in `load_texts`, `load_answers` and `load_labelled`
(`utils.data.prepare`), each of which raises `unread` for a reader that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from utils.errors import ConfigError, Problem
from utils.schema import nearest, shown

DatasetSource = Literal["builtin", "local", "huggingface", "drive", "upload"]
Reader = Literal["corpus", "files", "hub"]

# Settings that say which part of the data is meant.
_OF_FILES = ("text_column", "label_column", "conversation_layout")
_OF_DATASETS = ("config_name", "dataset_split", "text_column", "label_column")


@dataclass(frozen=True)
class SourceKind:
    """One source of data.

    Attributes:
        title: its name in menus. help: what it is, in a few words. in_words: its data, in the middle of a sentence.
        reader: how it is read: the built-in corpus, files at a path, or a dataset of the Hub (or a folder in its layout).
        given_as: kinds of arguments of `TrainingCoordinator.train` that can name it (`Kind` in its `arguments` module).
        place: the setting that says where the data are; None where they need none.
        parts: further settings that have a meaning for it.
        on_drive: whether its path is one below the user's Google Drive.
        offers_upload: whether a form offers to upload files for it.
        in_mixtures: whether a form offers it for a dataset of a mixture.
    """

    title: str
    help: str
    in_words: str
    reader: Reader
    given_as: tuple[str, ...]
    place: Literal["dataset_path", "dataset_name"] | None = None
    parts: tuple[str, ...] = ()
    on_drive: bool = False
    offers_upload: bool = False
    in_mixtures: bool = True

    @property
    def fields(self) -> tuple[str, ...]:
        """Settings that have a meaning for it, and not for every source."""
        return (*([self.place] if self.place else []), *self.parts)


SOURCE_KINDS: Mapping[str, SourceKind] = {
    "builtin": SourceKind(
        "Built-in text", "Python language reference, works offline", "the built-in text", "corpus", ("builtin", "mixture")
    ),
    "local": SourceKind(
        "File or folder", "your own text or table", "the file or folder that was given", "files", ("file", "named"),
        "dataset_path", _OF_FILES, offers_upload=True,
    ),
    "huggingface": SourceKind(
        "Hugging Face", "a dataset of the Hub", "the dataset that was given", "hub", ("named",),
        "dataset_name", _OF_DATASETS,
    ),
    "drive": SourceKind(
        "Google Drive", "files on your Google Drive", "the file on your Drive that was given", "files", ("file",),
        "dataset_path", _OF_FILES, on_drive=True, in_mixtures=False,
    ),
    "upload": SourceKind(
        "Uploaded file", "a file from this computer", "the file that was uploaded", "files", ("file",),
        "dataset_path", _OF_FILES, offers_upload=True, in_mixtures=False,
    ),
}  # fmt: skip


def sources_with(setting: str) -> tuple[str, ...]:
    """The sources for which a setting, a place or a part, has a meaning."""
    return tuple(name for name, kind in SOURCE_KINDS.items() if setting in kind.fields)


def is_implied(source: str) -> bool:
    """Whether naming the source's place (`dataset_path`, `dataset_name`) is enough, without `dataset_source`."""
    place = SOURCE_KINDS[source].place
    return place is not None and sources_with(place)[0] == source


def source_problem(source: Any) -> Problem | None:
    """Problem of a name that is not one of `SOURCE_KINDS`, or None."""
    if isinstance(source, str) and source in SOURCE_KINDS:
        return None
    guess = nearest(str(source), tuple(SOURCE_KINDS))
    hint = f"; did you mean {guess!r}?" if guess else ""
    return Problem("dataset_source", f"got {shown(source)}; must be one of {', '.join(SOURCE_KINDS)}{hint}", guess)


def kind_of_source(source: str) -> SourceKind:
    """The row of a source. Raises ConfigError that lists the sources there are."""
    if problem := source_problem(source):
        raise ConfigError(f"{problem.field}: {problem.message}", [problem])
    return SOURCE_KINDS[source]


def unread(source: str, what: str, function: str) -> ConfigError:
    """The error for a source in `SOURCE_KINDS` whose reader a function does not know.

    Args:
        what: what was wanted of it, such as "texts"; function: where the branch belongs, with its module.
    """
    reader = SOURCE_KINDS[source].reader
    message = (
        f"got {source!r}; {function} cannot read {what} with its reader in SOURCE_KINDS, {reader!r}: add a branch there"
    )
    return ConfigError(f"dataset_source: {message}", [Problem("dataset_source", message)])
