"""Models from any source, models by name, small reference models, and the sizes that a model states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.lazy import lazy_exports

if TYPE_CHECKING:
    from utils.models.images import BaseModel
    from utils.models.inspect import max_seq_len_of, vocab_size_of
    from utils.models.pretrained import extend_vocabulary, load_pretrained
    from utils.models.pretrained_facts import inspect_pretrained
    from utils.models.registry import ModelRegistry
    from utils.models.sources import load_model

# Exported name -> the module that holds it, imported on first use.
_EXPORTS = {
    "BaseModel": "utils.models.images",
    "ModelRegistry": "utils.models.registry",
    "extend_vocabulary": "utils.models.pretrained",
    "inspect_pretrained": "utils.models.pretrained_facts",
    "load_model": "utils.models.sources",
    "load_pretrained": "utils.models.pretrained",
    "max_seq_len_of": "utils.models.inspect",
    "vocab_size_of": "utils.models.inspect",
}

__all__ = [
    "BaseModel", "ModelRegistry", "extend_vocabulary", "inspect_pretrained", "load_model", "load_pretrained", "max_seq_len_of",
    "vocab_size_of",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
