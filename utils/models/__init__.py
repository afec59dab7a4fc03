"""Models from any source, models by name, small reference models, and the sizes that a model states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.lazy import lazy_exports

if TYPE_CHECKING:
    from utils.models.images import BaseModel
    from utils.models.inspect import max_seq_len_of, vocab_size_of
    from utils.models.registry import ModelRegistry
    from utils.models.sources import load_model

# Exported name -> the module that holds it, imported on first use.
_EXPORTS = {
    "BaseModel": "utils.models.images",
    "ModelRegistry": "utils.models.registry",
    "load_model": "utils.models.sources",
    "max_seq_len_of": "utils.models.inspect",
    "vocab_size_of": "utils.models.inspect",
}

__all__ = ["BaseModel", "ModelRegistry", "load_model", "max_seq_len_of", "vocab_size_of"]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
