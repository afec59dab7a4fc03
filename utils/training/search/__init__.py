"""Hyper-parameter search: one search space for grid, random and Optuna; every trial is a run.

Reading order: space (what is tried), strategies (in which order), record (what was tried, on disk), job (the training of one
trial), session (one process's part in a search), on_ray (trials on a cluster), running (the call), results (results).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.lazy import lazy_exports

if TYPE_CHECKING:
    from utils.training.search.results import SearchResults
    from utils.training.search.running import search_hyperparameters
    from utils.training.search.space import Choices, LogRange, Range, SearchSpace
    from utils.training.search.trial import Trial

_EXPORTS = {
    "Choices": "utils.training.search.space",
    "LogRange": "utils.training.search.space",
    "Range": "utils.training.search.space",
    "SearchResults": "utils.training.search.results",
    "SearchSpace": "utils.training.search.space",
    "Trial": "utils.training.search.trial",
    "search_hyperparameters": "utils.training.search.running",
}

__all__ = [
    "Choices", "LogRange", "Range", "SearchResults", "SearchSpace", "Trial", "search_hyperparameters",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
