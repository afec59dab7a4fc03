"""Files and corpora -> documents -> token ids -> blocks -> batches.

Reading order: readers and corpus (documents), prepare (the whole path), splitting, packing (blocks), module (batches).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils.data.corpus import builtin_corpus
    from utils.data.module import UniversalDataModule
    from utils.data.packing import TokenBlocks, pack
    from utils.data.prepare import DataSetup, PreparedData, prepare_data, prepare_text
    from utils.data.readers import TextDocument, read_text_file
    from utils.data.report import DataReport

# Exported name -> the module that holds it, imported on first use: torch is slow to import.
_EXPORTS = {
    "builtin_corpus": "utils.data.corpus",
    "UniversalDataModule": "utils.data.module",
    "TokenBlocks": "utils.data.packing",
    "pack": "utils.data.packing",
    "DataReport": "utils.data.report",
    "DataSetup": "utils.data.prepare",
    "PreparedData": "utils.data.prepare",
    "prepare_data": "utils.data.prepare",
    "prepare_text": "utils.data.prepare",
    "TextDocument": "utils.data.readers",
    "read_text_file": "utils.data.readers",
}

__all__ = [
    "DataReport", "DataSetup", "PreparedData", "TextDocument", "TokenBlocks", "UniversalDataModule", "builtin_corpus",
    "pack", "prepare_data", "prepare_text", "read_text_file",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
