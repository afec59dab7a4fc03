"""Observers of a step between its micro-batches; without listeners they cost nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.training.engine.callbacks import CallbackList, Logs
from utils.training.engine.hardware.memory import rows_of

if TYPE_CHECKING:
    from utils.data.batch import Batch
    from utils.training.engine.loss.objective import Loss


class StepWatch:
    """Observer of a step between micro-batches. The null object: observes nothing."""

    wants_outputs = False

    def batch_begin(self, batch: Batch) -> None:
        """Before a micro-batch's forward pass."""

    def backward_end(self) -> None:
        """After its backward pass, before anything touches the gradients."""

    def batch_end(self, batch: Batch, loss: Loss, num_targets: int) -> None:
        """After it is done."""


class BatchEvents(StepWatch):
    """Turns what happens inside a step into batch events. Built only when somebody listens to them."""

    EVENTS = ("on_batch_begin", "on_backward_end", "on_batch_end")

    def __init__(self, callbacks: CallbackList) -> None:
        self._callbacks = callbacks
        self.wants_outputs = any(getattr(callback, "wants_outputs", False) for callback in callbacks.callbacks)
        self.index = 0

    def batch_begin(self, batch: Batch) -> None:
        self._callbacks.fire("on_batch_begin", self.index, logs={"batch_size": rows_of(batch)})

    def backward_end(self) -> None:
        self._callbacks.fire("on_backward_end", self.index)

    def batch_end(self, batch: Batch, loss: Loss, num_targets: int) -> None:
        if self._callbacks.heard("on_batch_end"):
            mean = float(loss.loss_sum.detach()) / max(1, int(loss.num_targets))
            logs: Logs = {"batch_size": rows_of(batch), "loss": mean}
            if self.wants_outputs:
                logs |= {"batch": batch, "outputs": loss.outputs}
            self._callbacks.fire("on_batch_end", self.index, logs=logs)
        self.index += 1
