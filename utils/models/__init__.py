"""Models by name, small reference models, and what a model says about its sizes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils.models.inspect import max_seq_len_of, vocab_size_of
    from utils.models.registry import ModelRegistry

# Exported name -> the module that holds it, imported on first use.
_EXPORTS = {
    "ModelRegistry": "utils.models.registry",
    "max_seq_len_of": "utils.models.inspect",
    "vocab_size_of": "utils.models.inspect",
}

__all__ = ["ModelRegistry", "max_seq_len_of", "vocab_size_of"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
