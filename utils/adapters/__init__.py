"""Any `nn.Module` as a function from a batch to logits."""

from __future__ import annotations

from utils.lazy import lazy_exports

_EXPORTS = {
    "ModelCall": "utils.adapters.forward",
    "UniversalModelAdapter": "utils.adapters.lightning",
    "generate": "utils.adapters.generation",
    "generate_text": "utils.adapters.generation",
}
__all__ = sorted(_EXPORTS)

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
