"""Files and corpora -> documents -> token ids -> blocks -> batches.

Reading order: readers and corpus (documents), prepare (the whole path), splitting, packing (blocks), module (batches).
Labelled records: records, columns and labels (what was given), labelled (the whole path), encoded (ids), collators (batches).
Conversations: the package `conversations`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.lazy import lazy_exports

if TYPE_CHECKING:
    from utils.data.collators import collator_for, register_collator
    from utils.data.conversations import prepare_conversations
    from utils.data.corpus import builtin_corpus
    from utils.data.image_sets import BaseDataset, ImageSamples
    from utils.data.labelled import prepare_examples
    from utils.data.load_report import LoadReport
    from utils.data.loader import DatasetLoader, DatasetUploader
    from utils.data.module import UniversalDataModule
    from utils.data.packing import TokenBlocks, pack
    from utils.data.prepare import DataSetup, PreparedData, prepare_data, prepare_text
    from utils.data.preview import preview_batch
    from utils.data.readers import TextDocument, read_text_file
    from utils.data.registry import DatasetRegistry
    from utils.data.report import DataReport, ExamplesReport

# Exported name -> the module that holds it, imported on first use: torch is slow to import.
_EXPORTS = {
    "collator_for": "utils.data.collators",
    "register_collator": "utils.data.collators",
    "prepare_conversations": "utils.data.conversations",
    "builtin_corpus": "utils.data.corpus",
    "BaseDataset": "utils.data.image_sets",
    "ImageSamples": "utils.data.image_sets",
    "DatasetRegistry": "utils.data.registry",
    "DatasetLoader": "utils.data.loader",
    "DatasetUploader": "utils.data.loader",
    "LoadReport": "utils.data.load_report",
    "prepare_examples": "utils.data.labelled",
    "UniversalDataModule": "utils.data.module",
    "TokenBlocks": "utils.data.packing",
    "pack": "utils.data.packing",
    "preview_batch": "utils.data.preview",
    "DataReport": "utils.data.report",
    "ExamplesReport": "utils.data.report",
    "DataSetup": "utils.data.prepare",
    "PreparedData": "utils.data.prepare",
    "prepare_data": "utils.data.prepare",
    "prepare_text": "utils.data.prepare",
    "TextDocument": "utils.data.readers",
    "read_text_file": "utils.data.readers",
}

__all__ = [
    "BaseDataset", "DataReport", "DataSetup", "DatasetLoader", "DatasetRegistry", "DatasetUploader", "ExamplesReport",
    "ImageSamples", "LoadReport", "PreparedData", "TextDocument", "TokenBlocks", "UniversalDataModule",
    "builtin_corpus", "collator_for", "pack", "prepare_conversations", "prepare_data", "prepare_examples", "prepare_text",
    "preview_batch", "read_text_file", "register_collator",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
