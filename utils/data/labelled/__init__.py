"""Labelled records -> samples of token ids with their labels, for every task except language modelling.

In: a list of dicts, a DataFrame, a Hugging Face dataset or a file of records. Out: `PreparedData` with `EncodedExamples`, the
task with its sizes, and a report. Open `prepare.py` first; `labels.py` says which labels each task takes.
"""

from __future__ import annotations

from utils.lazy import lazy_exports

_EXPORTS = {"prepare_examples": "utils.data.labelled.prepare"}
__all__ = sorted(_EXPORTS)

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
