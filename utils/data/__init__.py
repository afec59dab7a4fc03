"""Files and corpora -> documents -> token ids -> blocks -> batches.

Reading order: readers and corpus (documents), prepare (the whole path), splitting, packing (blocks), module (batches).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.lazy import lazy_exports

if TYPE_CHECKING:
    from utils.data.corpus import builtin_corpus
    from utils.data.image_sets import BaseDataset, ImageSamples
    from utils.data.load_report import LoadReport
    from utils.data.loader import DatasetLoader, DatasetUploader
    from utils.data.module import UniversalDataModule
    from utils.data.packing import TokenBlocks, pack
    from utils.data.prepare import DataSetup, PreparedData, prepare_data, prepare_text
    from utils.data.readers import TextDocument, read_text_file
    from utils.data.registry import DatasetRegistry
    from utils.data.report import DataReport

# Exported name -> the module that holds it, imported on first use: torch is slow to import.
_EXPORTS = {
    "builtin_corpus": "utils.data.corpus",
    "BaseDataset": "utils.data.image_sets",
    "ImageSamples": "utils.data.image_sets",
    "DatasetRegistry": "utils.data.registry",
    "DatasetLoader": "utils.data.loader",
    "DatasetUploader": "utils.data.loader",
    "LoadReport": "utils.data.load_report",
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
    "BaseDataset", "DataReport", "DataSetup", "DatasetLoader", "DatasetRegistry", "DatasetUploader", "ImageSamples",
    "LoadReport", "PreparedData", "TextDocument", "TokenBlocks", "UniversalDataModule", "builtin_corpus", "pack",
    "prepare_data", "prepare_text", "read_text_file",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
