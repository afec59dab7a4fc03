"""MixtureSource: one dataset of a mixture, as a setup names it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, ClassVar, Literal

from pydantic import Field

from utils.data.source_kinds import SOURCE_KINDS, DatasetSource, sources_with
from utils.errors import ConfigError, Problem
from utils.schema import Schema, path_text, shown

#: What `MixtureSource` has in common with a setup that names a single dataset.
SETTINGS = (
    "dataset_source",
    "dataset_path",
    "dataset_name",
    "config_name",
    "text_column",
    "data_kind",
    "conversation_layout",
)


class MixtureSource(Schema):
    """One dataset of a mixture: where it is, what its rows are, and how much of it an epoch has."""

    aliases: ClassVar[Mapping[str, str]] = {
        "source": "dataset_source",
        "path": "dataset_path",
        "dataset": "dataset_name",
    }

    name: str | None = Field(None, min_length=1, max_length=60, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    weight: float | None = Field(None, gt=0)
    dataset_source: DatasetSource = "builtin"
    dataset_path: str | None = Field(None, min_length=1)
    dataset_name: str | None = Field(None, min_length=1)
    config_name: str | None = Field(None, min_length=1)
    text_column: str | None = Field(None, min_length=1)
    data_kind: Literal["auto", "text", "conversations", "pairs"] = "auto"
    conversation_layout: (
        Literal["messages", "sharegpt", "instruction", "prompt_completion", "question_answer"] | None
    ) = None

    @classmethod
    def translate(cls, values: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        """Infer the source from the place that is given, and accept whole numbers as weights."""
        values = {name: path_text(value) for name, value in values.items()}
        if isinstance(values.get("weight"), int) and not isinstance(values["weight"], bool):
            values["weight"] = float(values["weight"])
        for place in ("dataset_path", "dataset_name"):
            if values.get(place) is not None:
                values.setdefault("dataset_source", sources_with(place)[0])
        return values, []

    @classmethod
    def contradictions(cls, values: Mapping[str, Any], given: Mapping[str, Any]) -> list[Problem]:
        source = values["dataset_source"]
        place = SOURCE_KINDS[source].place
        problems = [
            Problem(other, f"got {shown(values[other])} with dataset_source={source!r}; keep one of the two")
            for other in ("dataset_path", "dataset_name") if other != place and values[other] is not None
        ]  # fmt: skip
        if place is not None and values[place] is None:
            problems.append(Problem(place, f"is required when dataset_source is {source!r}"))
        return problems

    @property
    def label(self) -> str:
        """The name, else one from the place: a file's stem, a dataset's last name, "builtin"."""
        if self.name is not None:
            return self.name
        place = self.dataset_path or self.dataset_name or self.dataset_source
        stem = PurePath(os.fspath(place).rstrip("/")).stem
        plain = "".join(sign if sign.isascii() and (sign.isalnum() or sign in "_-") else "-" for sign in stem).strip(
            "-_"
        )
        return plain or "dataset"


def mixture_sources(values: Any) -> tuple[MixtureSource, ...]:
    """The datasets of a mixture from mappings or `MixtureSource`s, checked together.

    Raises:
        ConfigError: an entry is not usable, names are given twice, or only some have a weight; says which.
    """
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ConfigError(
            f"mixture: got {shown(values)}; must be a list of datasets, such as [{{path: web.txt, weight: 2}}]."
        )
    sources = tuple(one if isinstance(one, MixtureSource) else MixtureSource.from_dict(one) for one in values)
    if len(sources) == 1:
        raise ConfigError("mixture: got 1 dataset; give at least two, or name it by dataset_path or dataset_name.")
    labels = [one.label for one in sources]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        raise ConfigError(
            f"mixture: {', '.join(map(repr, twice))} names several datasets; give each a name of its own."
        )
    weighted = [one.weight is not None for one in sources]
    if any(weighted) and not all(weighted):
        bare = ", ".join(label for label, has in zip(labels, weighted, strict=True) if not has)
        raise ConfigError(f"mixture: {bare} has no weight and others have; give every dataset one, or none of them.")
    return sources
