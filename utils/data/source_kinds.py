"""Sources of data that a setup can name: what each needs, and what it is called.

A new source is a name in `DatasetSource`, a row in `SOURCE_KINDS` and a loader (`load_texts` in `utils.data.prepare`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

DatasetSource = Literal["builtin", "local", "huggingface", "drive", "upload"]

# Settings that say which part of the data is meant.
_OF_FILES = ("text_column", "label_column", "conversation_layout")
_OF_DATASETS = ("config_name", "dataset_split", "text_column", "label_column")


@dataclass(frozen=True)
class SourceKind:
    """One source of data.

    Attributes:
        title: its name in menus. help: what it is, in a few words. in_words: its data, in the middle of a sentence.
        place: the setting that says where the data are; None where they need none.
        parts: further settings that have a meaning for it.
        in_mixtures: whether a form offers it for a dataset of a mixture.
    """

    title: str
    help: str
    in_words: str
    place: Literal["dataset_path", "dataset_name"] | None = None
    parts: tuple[str, ...] = ()
    in_mixtures: bool = True

    @property
    def fields(self) -> tuple[str, ...]:
        """Settings that have a meaning for it, and not for every source."""
        return (*([self.place] if self.place else []), *self.parts)


SOURCE_KINDS: Mapping[str, SourceKind] = {
    "builtin": SourceKind("Built-in text", "Python language reference, works offline", "the built-in text"),
    "local": SourceKind(
        "File or folder", "your own text or table", "the file or folder that was given", "dataset_path", _OF_FILES
    ),
    "huggingface": SourceKind(
        "Hugging Face", "a dataset of the Hub", "the dataset that was given", "dataset_name", _OF_DATASETS
    ),
    "drive": SourceKind(
        "Google Drive", "files on your Google Drive", "the file on your Drive that was given", "dataset_path", _OF_FILES,
        in_mixtures=False,
    ),
    "upload": SourceKind(
        "Uploaded file", "a file from this computer", "the file that was uploaded", "dataset_path", _OF_FILES,
        in_mixtures=False,
    ),
}  # fmt: skip

#: Names of all sources, and of those whose data are files.
SOURCES: tuple[str, ...] = tuple(SOURCE_KINDS)
OF_FILES = tuple(name for name, kind in SOURCE_KINDS.items() if kind.place == "dataset_path")


def sources_with(setting: str) -> tuple[str, ...]:
    """The sources for which a setting, a place or a part, has a meaning."""
    return tuple(name for name, kind in SOURCE_KINDS.items() if setting in kind.fields)
