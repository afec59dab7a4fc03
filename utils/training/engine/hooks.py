"""TrainingHooks: events in the signatures of the first engine API, adapted to `Callback`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.training.engine.callbacks import Callback, Logs

if TYPE_CHECKING:
    from utils.training.engine.trainer import Trainer


class TrainingHooks:
    """Base class; override what you need. Every hook gets the trainer and may call `trainer.request_stop(reason)`.

    Reading `outputs` in `on_batch_end` needs the logits of every batch; overriding that hook keeps them.
    """

    def on_train_begin(self, trainer: Trainer, train_dataset: Any, val_dataset: Any) -> None:
        """Before the first step; the data as they were given to `train`."""

    def on_epoch_begin(self, trainer: Trainer, epoch: int) -> None:
        """Before an epoch (0-based)."""

    def on_batch_end(self, trainer: Trainer, batch: Any, outputs: Any) -> None:
        """After a micro-batch: its dict of tensors and its logits."""

    def on_validation_end(self, trainer: Trainer, metrics: Logs) -> None:
        """After a validation."""

    def on_epoch_end(self, trainer: Trainer, epoch: int, metrics: Logs) -> None:
        """After an epoch: its row of metrics."""

    def on_checkpoint_saved(self, trainer: Trainer, path: Path) -> None:
        """After a checkpoint is committed."""

    def on_train_end(self, trainer: Trainer, results: Logs) -> None:
        """After the last step."""


class HooksCallback(Callback):
    """A `TrainingHooks` as a callback. Only what the hooks override is subscribed to."""

    def __init__(self, hooks: Any, train_data: Any, val_data: Any) -> None:
        self._hooks, self._data = hooks, (train_data, val_data)
        self.wants_outputs = self._has("on_batch_end")
        if self.wants_outputs:
            self.on_batch_end = self._on_batch_end  # type: ignore[method-assign]

    def _has(self, name: str) -> bool:
        own = getattr(self._hooks, name, None)
        return own is not None and getattr(own, "__func__", own) is not getattr(TrainingHooks, name, None)

    def _call(self, name: str, *arguments: Any) -> None:
        if self._has(name):
            getattr(self._hooks, name)(*arguments)

    def on_train_begin(self, trainer: Trainer, logs: Logs | None = None) -> None:
        self._call("on_train_begin", trainer, *self._data)

    def on_epoch_begin(self, epoch: int, trainer: Trainer, logs: Logs | None = None) -> None:
        self._call("on_epoch_begin", trainer, epoch)

    def _on_batch_end(self, batch_idx: int, trainer: Trainer, logs: Logs | None = None) -> None:
        assert logs is not None
        self._call("on_batch_end", trainer, logs["batch"], logs["outputs"])

    def on_evaluate_end(self, trainer: Trainer, logs: Logs | None = None) -> None:
        self._call("on_validation_end", trainer, logs or {})

    def on_epoch_end(self, epoch: int, trainer: Trainer, logs: Logs | None = None) -> None:
        self._call("on_epoch_end", trainer, epoch, logs or {})

    def on_checkpoint_saved(self, path: Path, trainer: Trainer, logs: Logs | None = None) -> None:
        self._call("on_checkpoint_saved", trainer, path)

    def on_train_end(self, trainer: Trainer, logs: Logs | None = None) -> None:
        self._call("on_train_end", trainer, logs or {})
