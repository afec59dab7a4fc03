"""Models by name, small reference models, and what a model says about its sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.lazy import lazy_exports

if TYPE_CHECKING:
    from utils.models.images import BaseModel
    from utils.models.inspect import max_seq_len_of, vocab_size_of
    from utils.models.registry import ModelRegistry

# Exported name -> the module that holds it, imported on first use.
_EXPORTS = {
    "BaseModel": "utils.models.images",
    "ModelRegistry": "utils.models.registry",
    "max_seq_len_of": "utils.models.inspect",
    "vocab_size_of": "utils.models.inspect",
}

__all__ = ["BaseModel", "ModelRegistry", "max_seq_len_of", "vocab_size_of"]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
