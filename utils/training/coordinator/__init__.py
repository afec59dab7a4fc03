"""One call from a dataset's name to a trained model: a translation onto prepare_text, TrainingConfig and Trainer.

Reading order: coordinate (the calls), arguments (what each of them says), given_data (data -> what the Trainer takes),
record (what a run remembers of its data), results (what comes back).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.lazy import lazy_exports

if TYPE_CHECKING:
    from utils.training.coordinator.coordinate import TrainingCoordinator, train_model
    from utils.training.coordinator.results import CoordinatorResults

_EXPORTS = {
    "CoordinatorResults": "utils.training.coordinator.results",
    "TrainingCoordinator": "utils.training.coordinator.coordinate",
    "train_model": "utils.training.coordinator.coordinate",
}

__all__ = ["CoordinatorResults", "TrainingCoordinator", "train_model"]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
