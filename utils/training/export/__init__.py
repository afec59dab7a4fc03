"""Trained models as files that others can load. Reads a checkpoint, never a live trainer. Exports are lazy."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_EXPORTS = {"FORMATS": "exporting", "ExportResult": "result", "export_model": "exporting"}
__all__ = ["FORMATS", "ExportResult", "export_model"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
