"""MetricsTracker: loss and accuracy over the batches of an epoch, for loops that somebody writes by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from utils.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


class MetricsTracker:
    """Adds up what batches give. Every sample weighs the same, however many a batch has.

    Attributes:
        total_samples: samples seen since the last `reset`.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin a new epoch."""
        self._loss_sum, self._right, self.total_samples = 0.0, 0.0, 0

    def update(self, loss: float | Tensor, outputs: Tensor, labels: Tensor | Sequence[int]) -> None:
        """One more batch.

        Args:
            loss: the mean loss of its samples; a tensor is read, which waits for its device.
            outputs: scores, shape (B, C); the class is the one with the highest score.
            labels: classes, B whole numbers.
        Raises:
            ModelError: shapes that do not belong together; says which were got.
        """
        import torch

        classes = torch.as_tensor(labels, device=outputs.device)
        if outputs.dim() != 2 or classes.shape != outputs.shape[:1]:
            raise ModelError(
                f"MetricsTracker counts classes: outputs (B, C) and labels (B,); got {tuple(outputs.shape)} and "
                f"{tuple(classes.shape)}."
            )
        count = len(classes)
        right = int((outputs.detach().argmax(dim=1) == classes).sum())
        self.add(float(loss) * count, right, count)

    def add(self, loss_sum: float, right: float, samples: int) -> None:
        """Add sums computed elsewhere: the sum of losses and the correct predictions of `samples` samples."""
        self._loss_sum += loss_sum
        self._right += right
        self.total_samples += samples

    def get_average_loss(self) -> float:
        """Mean loss of a sample; 0.0 before the first batch."""
        return self._loss_sum / self.total_samples if self.total_samples else 0.0

    def get_accuracy(self) -> float:
        """Right answers in per cent, 0 to 100; 0.0 before the first batch."""
        return 100.0 * self._right / self.total_samples if self.total_samples else 0.0

    def get_metrics(self) -> dict[str, Any]:
        """`loss` (mean over samples), `accuracy` (0 to 100) and `total_samples`; zeros before the first batch."""
        return {
            "loss": self.get_average_loss(), "accuracy": self.get_accuracy(), "total_samples": self.total_samples,
        }  # fmt: skip
