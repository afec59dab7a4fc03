"""Any `nn.Module` as a function from a batch to logits."""

from __future__ import annotations

from typing import Any

_EXPORTS = {"ModelCall": "forward", "generate": "generation", "generate_text": "generation"}
__all__ = ["ModelCall", "generate", "generate_text"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
