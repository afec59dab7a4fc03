"""Files and corpora -> documents or records -> token ids -> batches.

Open `prepare.py` first. Packages, from the bottom up: `read/` (files -> records), `text/` (documents -> blocks of token ids),
`labelled/` (records with labels -> samples), `conversations/` (dialogues -> samples), `images/` (files -> samples), `quality/`
(measures and findings). Modules beside them: `sources.py` takes whatever a user calls data, `packing.py`, `collators.py` and
`masking.py` make samples and batches of it, `module.py` decides their order, `workers.py` prepares batches in other processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.lazy import lazy_exports

if TYPE_CHECKING:
    from utils.data.collators import collator_for, register_collator
    from utils.data.conversations import prepare_conversations
    from utils.data.images.registry import DatasetRegistry
    from utils.data.images.samples import BaseDataset, ImageSamples
    from utils.data.labelled.prepare import prepare_examples
    from utils.data.mixed_examples import MixedExamples
    from utils.data.mixture import mix
    from utils.data.module import UniversalDataModule
    from utils.data.packing import TokenBlocks, pack
    from utils.data.prepare import DataSetup, prepare_data
    from utils.data.prepared import PreparedData
    from utils.data.read.load_report import LoadReport
    from utils.data.read.text_file import TextDocument, read_text_file
    from utils.data.text.corpus import builtin_corpus
    from utils.data.text.loader import DatasetLoader, DatasetUploader
    from utils.data.text.prepare import prepare_text
    from utils.data.text.preview import preview_batch
    from utils.data.text.report import DataReport, ExamplesReport

# Exported name -> the module that holds it, imported on first use: torch is slow to import.
_EXPORTS = {
    "collator_for": "utils.data.collators",
    "register_collator": "utils.data.collators",
    "prepare_conversations": "utils.data.conversations",
    "builtin_corpus": "utils.data.text.corpus",
    "BaseDataset": "utils.data.images.samples",
    "ImageSamples": "utils.data.images.samples",
    "DatasetRegistry": "utils.data.images.registry",
    "DatasetLoader": "utils.data.text.loader",
    "DatasetUploader": "utils.data.text.loader",
    "LoadReport": "utils.data.read.load_report",
    "prepare_examples": "utils.data.labelled.prepare",
    "UniversalDataModule": "utils.data.module",
    "TokenBlocks": "utils.data.packing",
    "MixedExamples": "utils.data.mixed_examples",
    "mix": "utils.data.mixture",
    "pack": "utils.data.packing",
    "preview_batch": "utils.data.text.preview",
    "DataReport": "utils.data.text.report",
    "ExamplesReport": "utils.data.text.report",
    "DataSetup": "utils.data.prepare",
    "PreparedData": "utils.data.prepare",
    "prepare_data": "utils.data.prepare",
    "prepare_text": "utils.data.prepare",
    "TextDocument": "utils.data.read.text_file",
    "read_text_file": "utils.data.read.text_file",
}

__all__ = [
    "BaseDataset", "DataReport", "DataSetup", "DatasetLoader", "DatasetRegistry", "DatasetUploader", "ExamplesReport",
    "ImageSamples", "LoadReport", "MixedExamples", "PreparedData", "TextDocument", "TokenBlocks", "UniversalDataModule",
    "builtin_corpus", "collator_for", "mix", "pack", "prepare_conversations", "prepare_data", "prepare_examples",
    "prepare_text", "preview_batch", "read_text_file", "register_collator",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
