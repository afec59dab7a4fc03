"""The old functions beside the engine that took their place: a lazy face over `utils.compat.functions`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.lazy import lazy_exports

if TYPE_CHECKING:
    from utils.compat.functions import test_fine_tuning, test_hyperparameter_search

_EXPORTS = {
    "test_fine_tuning": "utils.compat.functions",
    "test_hyperparameter_search": "utils.compat.functions",
}
__all__ = ["test_fine_tuning", "test_hyperparameter_search"]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
