"""Run `fit` of the callback trainer on the engine: a trainer without a visible run folder, and the translated events."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler, default_collate

from utils.adapters.left_as_found import modes_kept
from utils.compat.adaptive_callbacks import CallbackList
from utils.data.module import UniversalDataModule
from utils.training.engine.callbacks import Callback
from utils.training.engine.callbacks import CallbackList as EngineCallbacks
from utils.training.engine.checkpointing.saver import RunSaver
from utils.training.engine.checkpointing.store import Payload
from utils.training.engine.compute.assembly import Parts, assemble
from utils.training.engine.compute.master_weights import fp32_weights
from utils.training.engine.compute.user_supplied import OwnParts
from utils.training.engine.facade import RunFacade
from utils.training.engine.planning import plan_data
from utils.training.engine.session import train_one_epoch
from utils.training.engine.state import Row, TrainState
from utils.training.engine.step import switch_to_training, validation_sums
from utils.training.engine.trainer import Trainer as EngineTrainer
from utils.training.run_start import Start
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig


class FitEvents(Callback):
    """Turns the engine's events into those of the callback trainer, in their documented order and with their logs."""

    def __init__(self, trainer: Any, callbacks: CallbackList, first_epoch: int) -> None:
        self._trainer, self._callbacks, self._first = trainer, callbacks, first_epoch
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._right = self._seen = 0.0
        self._pending_size = 0
        self._ended = False

    @property
    def history(self) -> list[dict[str, Any]]:
        """Numbers and texts of the epochs so far."""
        plain = (bool, int, float, str)
        rows = self._trainer.metrics_history
        return [{name: value for name, value in row.items() if type(value) in plain} for row in rows]

    def on_train_begin(self, trainer: EngineTrainer, logs: dict[str, Any] | None = None) -> None:
        self._callbacks.on_train_begin(self._trainer, {})

    def on_epoch_begin(self, epoch: int, trainer: EngineTrainer, logs: dict[str, Any] | None = None) -> None:
        self._trainer.current_epoch = epoch - self._first
        sums = trainer.state.epoch_sums
        self._right, self._seen = sums.count("correct"), float(sums.targets)
        self._callbacks.on_epoch_begin(epoch - self._first, self._trainer, {})

    def on_batch_begin(self, batch_idx: int, trainer: EngineTrainer, logs: dict[str, Any] | None = None) -> None:
        self._finish_batch()
        size = (logs or {}).get("batch_size", 0)
        self._pending_size = size
        self._callbacks.on_batch_begin(batch_idx, self._trainer, {"batch_idx": batch_idx, "batch_size": size})

    def on_backward_end(self, batch_idx: int, trainer: EngineTrainer, logs: dict[str, Any] | None = None) -> None:
        logs = {"batch_idx": batch_idx, "batch_size": self._pending_size}
        self._callbacks.on_backward_end(batch_idx, self._trainer, logs)

    def on_batch_end(self, batch_idx: int, trainer: EngineTrainer, logs: dict[str, Any] | None = None) -> None:
        found = {"batch_idx": batch_idx, **(logs or {})}
        objective: Any = None if trainer.parts is None else trainer.parts.objective
        self._seen += found.get("batch_size", 0)
        if getattr(objective, "counts_accuracy", False):
            self._right += float(objective.last_counts.get("correct", 0))
            found["accuracy"] = self._right / max(1.0, self._seen)
        rows = max(1, found.get("batch_size", 1))
        for name in getattr(objective, "functions", {}):
            found[name] = float(objective.last_counts[f"metric:{name}"]) / rows
        self._pending = (batch_idx, found)  # reported after the optimizer's step, where one follows

    def on_step_end(self, step: int, trainer: EngineTrainer, logs: dict[str, Any] | None = None) -> None:
        self._finish_batch()

    def _finish_batch(self) -> None:
        pending, self._pending = self._pending, None
        if pending is not None:
            self._callbacks.on_batch_end(pending[0], self._trainer, pending[1])

    def on_evaluate_begin(self, trainer: EngineTrainer, logs: dict[str, Any] | None = None) -> None:
        self._callbacks.on_evaluate_begin(self._trainer, {})

    def on_evaluate_end(self, trainer: EngineTrainer, logs: dict[str, Any] | None = None) -> None:
        self._callbacks.on_evaluate_end(self._trainer, renamed(logs or {}, self._trainer.metrics))

    def on_epoch_end(self, epoch: int, trainer: EngineTrainer, logs: dict[str, Any] | None = None) -> None:
        row = {"epoch": epoch - self._first, **renamed(logs or {}, self._trainer.metrics)}
        self._trainer.metrics_history.append(row)
        self._callbacks.on_epoch_end(epoch - self._first, self._trainer, row)
        if any(getattr(callback, "stop_training", False) for callback in self._callbacks.callbacks):
            print(f"Early stopping at epoch {epoch - self._first + 1}")  # noqa: T201 - as documented
            trainer.request_stop("callback")

    def on_train_end(self, trainer: EngineTrainer, logs: dict[str, Any] | None = None) -> None:
        self._end({})

    def on_error(self, error: BaseException, trainer: EngineTrainer, logs: dict[str, Any] | None = None) -> None:
        self._end({"error": error})

    def _end(self, logs: dict[str, Any]) -> None:
        if not self._ended:
            self._ended = True
            self._callbacks.on_train_end(self._trainer, {"metrics_history": self._trainer.metrics_history, **logs})


def renamed(row: dict[str, Any], metrics: Any) -> dict[str, Any]:
    """The engine's metrics by the names of the callback trainer: train_loss, val_accuracy and those of the caller."""
    wanted = ("loss", "accuracy", *metrics)
    names = [(f"{part}/{name}", f"{part}_{name}") for part in ("train", "val") for name in wanted]
    return {new: row[old] for old, new in names if old in row}


class _Batches(IterableDataset[Any]):
    """Any iterable of batches, as a loader's dataset."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Any:
        return iter(self.batches)


def as_loader(batches: Any) -> Any:
    """A DataLoader as it is; another iterable of batches in one."""
    return (
        batches
        if batches is None or isinstance(batches, DataLoader)
        else DataLoader(_Batches(batches), batch_size=None)
    )


class FitFacade(RunFacade):
    """Adapt a run to `fit`: its objective, an order without shuffling, and a position that is kept in memory.

    Attributes:
        memory: a checkpoint's entries without weights, of the position to continue from; None: from the start.
        kept: the same, of the latest save.
        saver: what saves the run under way; None before the first.
    """

    def __init__(self, objective: Any, memory: Payload | None, callbacks: list[Callback]) -> None:
        self._objective, self.memory, self.kept, self._callbacks = objective, memory, memory, callbacks
        self.saver: RunSaver | None = None

    def objective(self) -> Any:
        return self._objective

    def data_ready(self, data: UniversalDataModule, train_data: Any) -> None:
        data.shuffle = not (isinstance(train_data, DataLoader) and isinstance(train_data.sampler, SequentialSampler))

    def before_restore(self, start: Start, parts: Parts) -> None:
        if self.memory is not None:
            live = {"model": parts.model.state_dict(), "optimizer": parts.optimizer.state_dict()}
            live["schedule"] = parts.schedule.state_dict()
            start.checkpoint = {**copy.deepcopy(self.memory), **live, "callbacks": {}}
            start.checkpoint.pop("run_state", None)  # the model has it
            start.source = Path("this trainer's latest fit")

    def before_loop(self, saver: RunSaver) -> None:
        self.saver = saver

    def checkpoint_entries(self, payload: Payload) -> Payload:
        self.kept = {name: value for name, value in payload.items() if name not in ("model", "optimizer")}
        history = [event.history for event in self._callbacks if isinstance(event, FitEvents)]
        return {
            "epoch": max(0, payload["state"]["epoch"] - 1), "model_state_dict": payload["model"],
            "optimizer_state_dict": payload["optimizer"], "metrics_history": history[0] if history else [],
        }  # fmt: skip


class FitTrainer(EngineTrainer):
    """The engine's trainer for a fit: the caller's parts, and a position that the object before it left in memory."""

    def __init__(
        self, model: nn.Module, config: TrainingConfig, own_parts: OwnParts, objective: Any, *,
        callbacks: list[Callback] | None = None, memory: Payload | None = None,
    ) -> None:  # fmt: skip
        self.fit = FitFacade(objective, memory, callbacks or [])
        super().__init__(
            model, training_config=config, task_spec=TaskSpec("fit", "vision", task_type="image_classification"),
            data_collator=default_collate, own_parts=own_parts, callbacks=callbacks or [], facade=self.fit,
        )  # fmt: skip

    def position(self) -> Payload | None:
        """The position as it is now; of the latest save where no training is under way."""
        saver = self.fit.saver
        if saver is not None and saver.state.stop_reason is None:
            saver.payload(None, True)
        return self.fit.kept

    def one_epoch(self, train_data: Any, epoch: int) -> Row:
        """Train one epoch outside of any run: nothing is saved or validated. Returns the engine's row."""
        data = self._batches(train_data, None)
        assert self.own_parts is not None
        with modes_kept(self.model), fp32_weights(self.model, self.own_parts.optimizer):
            switch_to_training(self.model)
            parts = self._assembled()
            self.state = TrainState(epoch=epoch)
            events = EngineCallbacks(self.callbacks, self, False)
            return train_one_epoch(parts, data, self.state, self.training_config, events)

    def one_validation(self, data: Any) -> dict[str, float]:
        """One pass over validation data: the objective's metrics by name; empty without targets."""
        batches = self._batches(data, data).validation_batches()
        sums = validation_sums(self._assembled(), batches)
        return self.fit.objective().metrics(sums) if sums.targets else {}

    def _batches(self, train_data: Any, val_data: Any) -> UniversalDataModule:
        data = self.data = plan_data(self.trainer_arguments(), train_data, val_data, None, self.notice)
        self.fit.data_ready(data, train_data)
        return data

    def _assembled(self) -> Parts:
        self.parts = assemble(self.model, self.fit.objective(), self.training_config, None, own_parts=self.own_parts)
        return self.parts
