"""Callbacks of the callback trainer: `Callback`, `CallbackList`, `LoggingCallback`, `ProfilingCallback`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

Logs = dict[str, Any]


class Callback:
    """Base class; override what you need. Epochs and batches count from 0; `trainer` and `logs` may be None."""

    def on_train_begin(self, trainer: Any, logs: Logs | None = None) -> None:
        """Before the first epoch of a fit."""

    def on_train_end(self, trainer: Any, logs: Logs | None = None) -> None:
        """At the end of a fit, after an error too. logs: metrics_history, and error where there was one."""

    def on_epoch_begin(self, epoch: int, trainer: Any, logs: Logs | None = None) -> None:
        """Before an epoch."""

    def on_epoch_end(self, epoch: int, trainer: Any, logs: Logs | None = None) -> None:
        """After an epoch, its validation and the scheduler's step. logs: the epoch's dict, which the history keeps."""

    def on_batch_begin(self, batch_idx: int, trainer: Any, logs: Logs | None = None) -> None:
        """Before a forward pass. logs: batch_idx, batch_size."""

    def on_batch_end(self, batch_idx: int, trainer: Any, logs: Logs | None = None) -> None:
        """After a batch, and after the optimizer's step where one is due. logs also: loss, accuracy (of the epoch so far)."""

    def on_backward_end(self, batch_idx: int, trainer: Any, logs: Logs | None = None) -> None:
        """After a backward pass, before clipping and the optimizer's step."""

    def on_evaluate_begin(self, trainer: Any, logs: Logs | None = None) -> None:
        """Before a validation."""

    def on_evaluate_end(self, trainer: Any, logs: Logs | None = None) -> None:
        """After a validation. logs: val_loss, val_accuracy and the other metrics."""


class CallbackList:
    """Callbacks in order; each event reaches all of them before the next one. The given list is copied."""

    def __init__(self, callbacks: Sequence[Any] | None = None) -> None:
        self.callbacks = list(callbacks or [])

    def append(self, callback: Any) -> None:
        """Add a callback, unless this very object is there already."""
        if all(known is not callback for known in self.callbacks):
            self.callbacks.append(callback)

    def _call(self, event: str, *arguments: Any) -> None:
        for callback in tuple(self.callbacks):
            method = getattr(callback, event, None)
            if method is not None:
                method(*arguments)

    def on_train_begin(self, trainer: Any, logs: Logs | None = None) -> None:
        """See `Callback`."""
        self._call("on_train_begin", trainer, logs)

    def on_train_end(self, trainer: Any, logs: Logs | None = None) -> None:
        """See `Callback`."""
        self._call("on_train_end", trainer, logs)

    def on_epoch_begin(self, epoch: int, trainer: Any, logs: Logs | None = None) -> None:
        """See `Callback`."""
        self._call("on_epoch_begin", epoch, trainer, logs)

    def on_epoch_end(self, epoch: int, trainer: Any, logs: Logs | None = None) -> None:
        """See `Callback`."""
        self._call("on_epoch_end", epoch, trainer, logs)

    def on_batch_begin(self, batch_idx: int, trainer: Any, logs: Logs | None = None) -> None:
        """See `Callback`."""
        self._call("on_batch_begin", batch_idx, trainer, logs)

    def on_batch_end(self, batch_idx: int, trainer: Any, logs: Logs | None = None) -> None:
        """See `Callback`."""
        self._call("on_batch_end", batch_idx, trainer, logs)

    def on_backward_end(self, batch_idx: int, trainer: Any, logs: Logs | None = None) -> None:
        """See `Callback`."""
        self._call("on_backward_end", batch_idx, trainer, logs)

    def on_evaluate_begin(self, trainer: Any, logs: Logs | None = None) -> None:
        """See `Callback`."""
        self._call("on_evaluate_begin", trainer, logs)

    def on_evaluate_end(self, trainer: Any, logs: Logs | None = None) -> None:
        """See `Callback`."""
        self._call("on_evaluate_end", trainer, logs)


class LoggingCallback(Callback):
    """Prints a line every `log_interval` batches and a summary of each epoch to standard output.

    Attributes:
        batch_count, sample_count: of the current epoch; epoch_start_time, batch_start_time: seconds, None before the first.
        epoch_metrics: logs of the latest epoch.
    """

    def __init__(self, log_interval: int = 10, verbose: bool = True) -> None:
        self.log_interval, self.verbose = log_interval, verbose
        self.epoch_start_time: float | None = None
        self.batch_start_time: float | None = None
        self.epoch_metrics: Logs = {}
        self.batch_count = self.sample_count = 0

    def _print(self, line: str) -> None:
        if self.verbose:
            print(line)  # noqa: T201 - what this callback is for

    def _seconds(self) -> float:
        return max(time.perf_counter() - (self.epoch_start_time or time.perf_counter()), 1e-9)

    def on_epoch_begin(self, epoch: int, trainer: Any, logs: Logs | None = None) -> None:
        self.epoch_start_time = time.perf_counter()
        self.batch_count = self.sample_count = 0
        total = getattr(trainer, "num_epochs", None)
        self._print(f"Epoch {epoch + 1}" + (f"/{total}" if total else ""))

    def on_batch_begin(self, batch_idx: int, trainer: Any, logs: Logs | None = None) -> None:
        self.batch_start_time = time.perf_counter()

    def on_batch_end(self, batch_idx: int, trainer: Any, logs: Logs | None = None) -> None:
        logs = logs or {}
        self.batch_count += 1
        self.sample_count += logs.get("batch_size", 0)
        if batch_idx % max(1, self.log_interval) == 0:
            parts = [
                f"Batch {batch_idx:4d}",
                *_figures(logs, ""),
                f"{self.sample_count / self._seconds():.0f} samples/s",
            ]
            self._print(" | ".join(parts))

    def on_epoch_end(self, epoch: int, trainer: Any, logs: Logs | None = None) -> None:
        self.epoch_metrics = dict(logs or {})
        seconds = self._seconds()
        parts = [*_figures(self.epoch_metrics, "train_"), *_figures(self.epoch_metrics, "val_"), f"{seconds:.1f} s"]
        speed = f"{self.sample_count / seconds:.0f} samples/s, {self.batch_count / seconds:.1f} batches/s"
        self._print(f"Epoch {epoch + 1}: {' | '.join([*parts, speed])}")


def _figures(logs: Logs, prefix: str) -> list[str]:
    found = []
    if (loss := logs.get(f"{prefix}loss")) is not None:
        found.append(f"{prefix}loss {loss:.4f}")
    if (accuracy := logs.get(f"{prefix}accuracy")) is not None:
        found.append(f"{prefix}accuracy {100 * accuracy:.2f} %")
    return found


class ProgressBar(Callback):
    """A tqdm bar for each epoch on standard error, with the loss and accuracy so far; only where that is a terminal."""

    def __init__(self, num_batches: int | None) -> None:
        self._num_batches = num_batches
        self._bar: Any = None

    def on_epoch_begin(self, epoch: int, trainer: Any, logs: Logs | None = None) -> None:
        from tqdm import tqdm

        title = f"Epoch {epoch + 1}/{trainer.num_epochs}"
        self._bar = tqdm(total=self._num_batches, desc=title, unit="batch", leave=False, disable=None)

    def on_batch_end(self, batch_idx: int, trainer: Any, logs: Logs | None = None) -> None:
        figures = {name: f"{logs[name]:.4f}" for name in ("loss", "accuracy") if logs and name in logs}
        self._bar.set_postfix(figures, refresh=False)
        self._bar.update()

    def on_epoch_end(self, epoch: int, trainer: Any, logs: Logs | None = None) -> None:
        self._bar.close()

    def on_train_end(self, trainer: Any, logs: Logs | None = None) -> None:
        if self._bar is not None:  # an epoch that was not finished
            self._bar.close()


class ProfilingCallback(Callback):
    """Measures epochs and batches; works by hand too, without a trainer.

    `get_metrics()`: epoch_times, batch_times (seconds), forward_times (forward and backward pass together), backward_times
    (empty: hooks do not part the two), optimizer_times, and on CUDA memory_allocated and memory_reserved (MiB).
    """

    def __init__(self, profile_memory: bool = True, profile_cuda: bool = True) -> None:
        self.profile_cuda = profile_cuda and torch.cuda.is_available()
        self.profile_memory = profile_memory
        names = ["epoch_times", "batch_times", "forward_times", "backward_times", "optimizer_times"]
        names += ["memory_allocated", "memory_reserved"] if profile_memory else []
        self.metrics: dict[str, list[float]] = {name: [] for name in names}
        self._epoch = self._batch = self._backward = 0.0

    def _now(self) -> float:
        if self.profile_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def get_metrics(self) -> dict[str, list[float]]:
        """A copy of what was measured."""
        return {name: list(values) for name, values in self.metrics.items()}

    def on_epoch_begin(self, epoch: int, trainer: Any, logs: Logs | None = None) -> None:
        self._epoch = self._now()

    def on_batch_begin(self, batch_idx: int, trainer: Any, logs: Logs | None = None) -> None:
        self._batch = self._backward = self._now()

    def on_backward_end(self, batch_idx: int, trainer: Any, logs: Logs | None = None) -> None:
        self._backward = self._now()
        self.metrics["forward_times"].append(self._backward - self._batch)

    def on_batch_end(self, batch_idx: int, trainer: Any, logs: Logs | None = None) -> None:
        now = self._now()
        self.metrics["batch_times"].append(now - self._batch)
        self.metrics["optimizer_times"].append(now - self._backward)

    def on_epoch_end(self, epoch: int, trainer: Any, logs: Logs | None = None) -> None:
        self.metrics["epoch_times"].append(self._now() - self._epoch)
        if self.profile_memory and self.profile_cuda:
            self.metrics["memory_allocated"].append(torch.cuda.memory_allocated() / 2**20)
            self.metrics["memory_reserved"].append(torch.cuda.memory_reserved() / 2**20)

    def on_train_end(self, trainer: Any, logs: Logs | None = None) -> None:
        for name in ("epoch_times", "batch_times"):
            if values := self.metrics[name]:
                print(f"{name}: mean {sum(values) / len(values):.4f} s of {len(values)}")  # noqa: T201 - as above
