"""Size, vocabulary and longest input, read from a model and its config. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# Where models state the most positions they can take: transformers' names first, then those of plain modules.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_seq_length", "block_size", "context_length")


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model; None where it does not say. Lazy layers have no size before their first forward pass.

    Attributes:
        name: its class.
        parameters: numbers that it holds; a shared tensor counts once.
        trainable: those of them that training changes.
        vocab_size: token ids that it takes, from 0.
        max_length: the longest input in tokens.
        pretrained: whether it was loaded from a folder or a repository, as transformers' models note.
    """

    name: str
    parameters: int | None
    trainable: int | None
    vocab_size: int | None
    max_length: int | None
    pretrained: bool = False


def model_facts(model: Any) -> ModelFacts:
    """The facts about `model`, an `nn.Module` of any library."""
    config = _text_config(getattr(model, "config", None))
    sources = [config, model]
    parameters = list(model.parameters()) if callable(getattr(model, "parameters", None)) else None
    return ModelFacts(
        name=type(model).__name__,
        parameters=_total(parameters),
        trainable=_total(parameters, trained=True),
        # The table itself comes before what a config says of it: it may have been resized since.
        vocab_size=_input_embedding_rows(model) or first_count(sources, "vocab_size") or _token_embeddings(model),
        max_length=_longest_input(model, first_count(sources, *_POSITIONS)),
        pretrained=bool(getattr(getattr(model, "config", None), "_name_or_path", None)),
    )


def first_count(sources: Iterable[Any], *names: str) -> int | None:
    """The first positive integer that one of `sources` (mappings or objects) has under one of `names`."""
    for source in sources:
        for name in names:
            value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
    return None


def _longest_input(model: Any, stated: int | None) -> int | None:
    """The stated number of positions, less the rows that a table of positions reserves.

    RoBERTa and its relatives number positions from `padding_idx + 1` on, within `max_position_embeddings` rows. OPT and BART
    have extra rows for their offset, so nothing is lost there.
    """
    if stated is None or not callable(getattr(model, "named_modules", None)):
        return stated
    usable = [stated]
    for name, module in model.named_modules():
        rows, padding_idx = getattr(module, "num_embeddings", None), getattr(module, "padding_idx", None)
        if isinstance(rows, int) and isinstance(padding_idx, int) and "pos" in name.rpartition(".")[2].lower():
            usable.append(rows - padding_idx - 1)
    return min(usable)


def _total(parameters: list[Any] | None, trained: bool = False) -> int | None:
    if parameters is None or any(
        hasattr(parameter, "materialize") for parameter in parameters
    ):  # torch's lazy parameters
        return None
    return sum(int(parameter.numel()) for parameter in parameters if parameter.requires_grad or not trained)


def _text_config(config: Any) -> Any:
    """The part of a transformers config that is about text; other configs as they are."""
    part = getattr(config, "get_text_config", None)
    return part() if callable(part) else config


def _token_embeddings(model: Any) -> int | None:
    """Rows of the first embedding table that is not one of positions."""
    modules = model.named_modules() if callable(getattr(model, "named_modules", None)) else ()
    for name, module in modules:
        rows = getattr(module, "num_embeddings", None)
        if isinstance(rows, int) and "pos" not in name.lower():
            return rows
    return None


def _input_embedding_rows(model: Any) -> int | None:
    named = getattr(model, "get_input_embeddings", None)
    if not callable(named):
        return None
    try:
        rows = getattr(named(), "num_embeddings", None)
    except NotImplementedError:  # how transformers reports a missing one
        return None
    return rows if isinstance(rows, int) else None
