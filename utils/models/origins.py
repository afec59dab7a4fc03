"""Record the call that made a model, so that a run can store it and rebuild the same model."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_tokenizers: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()
_origins: weakref.WeakKeyDictionary[nn.Module, dict[str, Any]] = weakref.WeakKeyDictionary()


def note_origin(model: nn.Module, source: str, arguments: Mapping[str, Any]) -> None:
    """Record that `load_model(source, **arguments)` makes `model`. Arguments that no file can hold are not recorded."""
    if all(_is_plain(value) for value in arguments.values()):
        _origins[model] = {"name": source, **arguments}


def origin_of(model: nn.Module) -> dict[str, Any] | None:
    """{"name": source, **arguments} for `load_model`, as a job file's `model` section; None where it is not known."""
    found = _origins.get(model)
    return None if found is None else dict(found)


def note_tokenizer(model: nn.Module, tokenizer: Any) -> None:
    """Record the tokenizer that came with a pretrained `model`."""
    _tokenizers[model] = tokenizer


def tokenizer_of(model: nn.Module | None) -> Any:
    """The tokenizer that came with a pretrained model, or None."""
    return None if model is None else _tokenizers.get(model)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(entry) for name, entry in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float, bool))
