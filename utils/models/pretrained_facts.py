"""Facts of a pretrained model before its weights are loaded: from its files, or from the Hub before they are downloaded."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.errors import ModelError, ModelNotFoundError
from utils.hub_ids import hub_reference
from utils.models.transformers_models import entry_on_hub, hub_folder, read_json, torch_version
from utils.schema import shown

_LARGEST_HEADER = 100 << 20  # what the safetensors format allows
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
_DTYPES = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16", "I8": "int8", "U8": "uint8"}


@dataclass(frozen=True)
class PretrainedDescription:
    """A pretrained model as its files, or the Hub, describe it; nothing of it was loaded. None where they do not say.

    Attributes:
        source: as given.
        architecture: the model class that the weights were saved from; model_type: transformers' name of the family.
        bytes_on_disk: size of the weights; parameters: numbers in them, from the headers of safetensors files.
        dtype: format of most of the numbers: "fp32", "bf16", …
        vocab_size, context_length: token ids, and positions; licence: from the model card.
        files: names of all files; weights: those with weights.
        safe: whether all weights are in safetensors files; own_code: whether the config asks for code of the repository.
    """

    source: str
    architecture: str | None
    model_type: str
    bytes_on_disk: int
    parameters: int | None
    dtype: str | None
    vocab_size: int | None
    context_length: int | None
    licence: str | None
    files: tuple[str, ...]
    weights: tuple[str, ...]
    safe: bool
    own_code: bool

    def __str__(self) -> str:
        unknown = "unknown"
        numbers = unknown if self.parameters is None else f"{self.parameters:,}"
        return (
            f"{self.architecture or self.model_type}: {numbers} parameters in {self.dtype or unknown}, "
            f"{self.bytes_on_disk / 2**20:,.1f} MiB on disk, vocabulary {self.vocab_size or unknown}, "
            f"context {self.context_length or unknown}, licence {self.licence or unknown}."
        )


@dataclass(frozen=True)
class PretrainedFacts(PretrainedDescription):
    """A pretrained model whose files are on this machine.

    Attributes:
        folder: where they are.
    """

    folder: Path


def describe_on_hub(source: str) -> PretrainedDescription:
    """Describe a model of the Hub by its config and the Hub's list of files; no weights are downloaded, and nothing is kept.

    Args:
        source: "owner/name" or "owner/name@revision".
    Raises:
        ModelNotFoundError: that is no Hub id. HubError: the Hub did not answer, or has no such model.
        ModelError: it is no transformers model.
    """
    reference = hub_reference(source)
    if reference is None:
        raise ModelNotFoundError(f"{shown(source)} is no Hub id (owner/name).")
    entry = entry_on_hub(reference.id, reference.revision)
    safe, weights = _weights_among(entry.sizes)
    counts = {_DTYPES.get(name, name.lower()): count for name, count in entry.parameters.items()}
    return PretrainedDescription(
        **_described(entry.config, f"{source}: config.json", max(counts, key=lambda name: counts[name], default=None)),
        source=source, bytes_on_disk=sum(entry.sizes[name] or 0 for name in weights), parameters=sum(counts.values()) or None,
        licence=entry.licence, files=tuple(sorted(entry.sizes)), weights=weights, safe=bool(safe),
    )  # fmt: skip


def inspect_pretrained(source: str | os.PathLike[str], *, safetensors_only: bool = True) -> PretrainedFacts:
    """Read architecture, sizes and licence of a pretrained model from its files, without loading weights.

    Args:
        source: a folder of transformers, a run's folder with an export for transformers, or a Hub id ("owner/name",
            "owner/name@revision"), whose files are downloaded.
        safetensors_only: False consents to weights in pickle files, of which tensors alone are read.
    Raises:
        ModelNotFoundError: no such folder. HubError: the Hub did not give it.
        ModelError: it is no transformers model, has no weights, or weights that need consent.
    """
    folder = _folder_of(source)
    values = read_json(folder / "config.json")
    files = tuple(sorted(path.name for path in folder.iterdir() if path.is_file()))
    safe, weights = _weights_among(files)
    if not weights:
        raise ModelError(
            f"{source}: there are no weights (model.safetensors) in {folder}. For a model with new weights give load_model its "
            "config.json."
        )
    if not safe and safetensors_only:
        raise ModelError(
            f"{source}: its weights are in {weights[0]} only, a pickle file, which can run code when it is read. Convert them "
            "to safetensors, or consent with safetensors_only=False."
        )
    if not safe and torch_version() < (2, 10):
        raise ModelError(
            f"{source}: its weights are in {weights[0]} only, which torch {torch.__version__} cannot load safely. Use torch "
            "2.10 or newer, or convert them to safetensors."
        )
    parameters, dtype = _numbers_in([folder / name for name in safe])
    return PretrainedFacts(
        **_described(values, str(folder / "config.json"), dtype), source=str(source), folder=folder,
        bytes_on_disk=sum((folder / name).stat().st_size for name in weights), parameters=parameters,
        licence=_licence_of(folder), files=files, weights=weights, safe=bool(safe),
    )  # fmt: skip


def _weights_among(files: Iterable[str]) -> tuple[list[str], tuple[str, ...]]:
    """The files of safetensors, and the files with weights: those, or else the pickled ones."""
    names = sorted(files)
    safe = [name for name in names if name.endswith(".safetensors")]
    pickled = [name for name in names if name.startswith("pytorch_model") and name.endswith(".bin")]
    return safe, tuple(safe or pickled)


def _described(values: Mapping[str, Any], place: str, dtype: str | None) -> dict[str, Any]:
    """What a config says of its model. Raises ModelError when it is not one of transformers."""
    if "model_type" not in values:
        raise ModelError(f"{place} has no model_type, so it is no config of transformers.")
    text = values.get("text_config") if isinstance(values.get("text_config"), dict) else {}
    described = {**(text or {}), **values}
    architectures = values.get("architectures") or [None]
    return {
        "architecture": architectures[0], "model_type": str(values["model_type"]),
        "dtype": dtype or described.get("dtype") or described.get("torch_dtype"),
        "vocab_size": _count(described, ("vocab_size",)), "context_length": _count(described, _POSITIONS),
        "own_code": bool(values.get("auto_map")),
    }  # fmt: skip


def _folder_of(source: str | os.PathLike[str]) -> Path:
    text = os.fspath(source)
    path = Path(text).expanduser()
    if path.is_dir():
        for folder in (path, path / "exports" / "hf", path / "hf"):
            if (folder / "config.json").is_file():
                return folder.absolute()
        if (path / "adapter_config.json").is_file():
            raise ModelError(
                f"{path} is an adapter of peft: load_model({text!r}) puts it on its base model, and an export of the format "
                "'hf' is the merged model."
            )
        raise ModelError(
            f"{path} has no config.json. A folder of transformers has one, and so has a run after "
            "export_model(results, ['hf'])."
        )
    if path.exists() or text.startswith(("/", "./", "../", "~")):
        raise ModelNotFoundError(f"{path} is no folder of a pretrained model; the working folder is {Path.cwd()}.")
    reference = hub_reference(text)
    if reference is None:
        raise ModelNotFoundError(f"{shown(text)} is no folder here and no Hub id (owner/name).")
    return hub_folder(reference.id, reference.revision)


def _numbers_in(files: Sequence[Path]) -> tuple[int | None, str | None]:
    """Number of parameters in safetensors files, and the most common dtype; only their headers are read."""
    counts: dict[str, int] = {}
    for file in files:
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= _LARGEST_HEADER:
                raise ModelError(f"{file} is damaged: its header would have {length:,} bytes. Download it again.")
            try:
                header = json.loads(opened.read(length))
                entries = [entry for name, entry in header.items() if name != "__metadata__"]
                for entry in entries:
                    counts[entry["dtype"]] = counts.get(entry["dtype"], 0) + _product(entry["shape"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelError(
                    f"{file} is damaged: its header cannot be read ({error}). Download it again."
                ) from None
    if not counts:
        return None, None
    most = max(counts, key=lambda name: counts[name])
    return sum(counts.values()), _DTYPES.get(most, most.lower())


def _product(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= int(size)
    return total


def _count(values: Mapping[str, Any], names: Sequence[str]) -> int | None:
    found = (values.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and not isinstance(value, bool)), None)


def _licence_of(folder: Path) -> str | None:
    card = folder / "README.md"
    if card.is_file():
        head = card.read_text(encoding="utf-8", errors="replace")[:20_000]
        if head.startswith("---") and (
            match := re.search(r"^license:\s*(.+)$", head.split("\n---", 1)[0], re.MULTILINE)
        ):
            return match[1].strip().strip("'\"")
    return next((path.name for path in sorted(folder.glob("LICEN[CS]E*"))), None)
