"""Loss and accuracy over batches: every sample weighs the same."""

from __future__ import annotations

import pytest
import torch

from utils.errors import ModelError
from utils.training import MetricsTracker

RIGHT = torch.tensor([[0.0, 1.0]])
WRONG = torch.tensor([[1.0, 0.0]])


def test_a_small_last_batch_weighs_as_many_samples_as_it_has():
    tracker = MetricsTracker()
    tracker.update(1.0, RIGHT.repeat(4, 1), torch.ones(4, dtype=torch.long))
    tracker.update(torch.tensor(6.0), WRONG, torch.tensor([1]))
    assert tracker.get_metrics() == {"loss": 2.0, "accuracy": 80.0, "total_samples": 5}
    assert tracker.get_average_loss() == 2.0
    assert tracker.get_accuracy() == 80.0


def test_empty_and_reset_trackers_say_zero():
    tracker = MetricsTracker()
    assert tracker.get_metrics() == {"loss": 0.0, "accuracy": 0.0, "total_samples": 0}
    tracker.update(1.0, RIGHT, torch.tensor([1]))
    tracker.reset()
    assert tracker.get_metrics()["total_samples"] == 0


def test_shapes_that_are_no_classification_are_named():
    with pytest.raises(ModelError, match=r"got \(4, 1, 2\) and \(4,\)"):
        MetricsTracker().update(1.0, torch.zeros(4, 1, 2), torch.zeros(4))
