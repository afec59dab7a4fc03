"""Run an experiment on the engine: a trainer with the experiment's file names, and the callback that keeps its log."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler

from utils.adapters.left_as_found import modes_kept
from utils.compat.experiment_log import HISTORY, ExperimentLog
from utils.data.module import UniversalDataModule
from utils.data.sources import DatasetSource, StreamSource
from utils.errors import CheckpointError
from utils.training.checkpoint_manager import CheckpointManager, core_entries
from utils.training.engine.callbacks import Callback, CallbackList
from utils.training.engine.checkpointing.store import CheckpointStore, Payload
from utils.training.engine.compute.assembly import Parts, assemble
from utils.training.engine.compute.master_weights import fp32_weights
from utils.training.engine.compute.user_supplied import OwnParts
from utils.training.engine.facade import RunFacade
from utils.training.engine.planning import plan_data, plan_objective
from utils.training.engine.session import train_one_epoch
from utils.training.engine.state import Best, Row, TrainState
from utils.training.engine.step import switch_to_training, validation_sums
from utils.training.engine.trainer import Trainer as EngineTrainer
from utils.training.experiments import ExperimentManager
from utils.training.run_start import Start
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

log = logging.getLogger("trainbook.compat")

History = dict[str, list[float]]

# A picture takes about as long as an epoch of a small model: it is drawn this often at most, and at the end.
_DRAW_EVERY_S = 15.0


class ExperimentRecord(Callback):
    """Keeps an experiment's history, log and picture, and gives its checkpoints their names.

    Attributes:
        history: lists of `HISTORY`, one entry an epoch; epochs: their numbers, from 1.
        on_row: called after each epoch with its number from 1 and its row.
    """

    main_only = True

    def __init__(self, experiment: ExperimentManager, manager: Any = None, dataset: Any = None) -> None:
        self.experiment, self.manager, self.dataset = experiment, manager, dataset
        self.history: History = {name: [] for name in HISTORY}
        self.epochs: list[int] = []
        self.log = ExperimentLog(experiment.log_file)
        self.on_row: Callable[[int, TrainState], None] = lambda epoch, state: None
        self.measures_accuracy = True
        self._drawn_at = time.monotonic()
        self._steps_before = 0
        self._began = self._trained = self._judged = 0.0
        self.val_batches: int | None = None

    def on_epoch_begin(self, epoch: int, trainer: EngineTrainer, logs: dict[str, Any] | None = None) -> None:
        self._began = self._trained = self._judged = time.monotonic()
        self._steps_before = trainer.state.step

    def on_evaluate_begin(self, trainer: EngineTrainer, logs: dict[str, Any] | None = None) -> None:
        self._trained = self._judged = time.monotonic()

    def on_evaluate_end(self, trainer: EngineTrainer, logs: dict[str, Any] | None = None) -> None:
        self._judged = time.monotonic()

    def on_epoch_end(self, epoch: int, trainer: EngineTrainer, logs: dict[str, Any] | None = None) -> None:
        now = time.monotonic()
        trained = self._trained if self._trained > self._began else now
        steps = trainer.state.step - self._steps_before
        times = {
            "epoch_time": now - self._began, "train_speed": steps / max(trained - self._began, 1e-9),
            "val_speed": (self.val_batches or 0) / max(self._judged - self._trained, 1e-9),
        }  # fmt: skip
        row = {**self.row_of(logs or {}), **times}
        self.epochs.append(epoch + 1)
        for name in HISTORY:
            self.history[name].append(row[name])
        self.log.append(epoch + 1, row)
        self.on_row(epoch + 1, trainer.state)
        self._draw_again(trainer)
        if self.dataset is not None and trainer.state.stop_reason is None:
            self._reset_transforms(trainer)

    def row_of(self, logs: Mapping[str, Any]) -> dict[str, float]:
        """The engine's row by the history's names: accuracies 0 to 100, NaN for what was not measured."""
        return {
            "train_loss": logs.get("train/loss", math.nan), "train_accuracy": self._percent(logs.get("train/accuracy")),
            "val_loss": logs.get("val/loss", math.nan), "val_accuracy": self._percent(logs.get("val/accuracy")),
            "learning_rate": logs.get("train/learning_rate", math.nan), "epoch_time": logs.get("time/epoch_s", math.nan),
            "train_speed": math.nan, "val_speed": math.nan,
        }  # fmt: skip

    def _percent(self, accuracy: float | None) -> float:
        return math.nan if accuracy is None or not self.measures_accuracy else 100.0 * accuracy

    def _reset_transforms(self, trainer: EngineTrainer) -> None:
        """New random transforms for the next epoch; a dataset that makes its training set anew is asked for the new one."""
        assert isinstance(trainer, ExperimentTrainer)
        before = getattr(self.dataset, "_train_dataset", None)
        self.dataset.reset_train_transforms()
        after = getattr(self.dataset, "_train_dataset", None)
        source = None if trainer.data is None else trainer.data.train
        if after is not before and isinstance(source, DatasetSource) and source.dataset is before:
            source.dataset = after

    def on_checkpoint_saved(self, path: Path, trainer: EngineTrainer, logs: dict[str, Any] | None = None) -> None:
        if self.manager is None:
            return
        state = trainer.state
        epoch, accuracy, best = state.epoch, None, False  # of a file in mid-epoch, which no validation has judged
        if path.name.startswith("epoch"):
            epoch = int(path.stem.removeprefix("epoch_"))
            accuracy = self._accuracy_of(epoch, state)
            best = state.best.epoch == epoch
        if isinstance(self.manager, CheckpointManager):
            self.manager.take_names(path, epoch, accuracy, best=best if accuracy is None else None)
        else:
            self._save_by(self.manager, trainer, epoch, accuracy)

    def _accuracy_of(self, epoch: int, state: TrainState) -> float | None:
        """The validation accuracy (0 to 100) after `epoch` completed epochs, or None."""
        rows = [row for row in state.history if row["event"] == "epoch" and row["epoch"] == epoch - 1]
        accuracy = self.row_of(rows[-1])["val_accuracy"] if rows else math.nan
        return None if math.isnan(accuracy) else accuracy

    def _save_by(self, manager: Any, trainer: EngineTrainer, epoch: int, accuracy: float | None) -> None:
        """A manager of another class writes its own files, of the model as it is now."""
        loss = self.history["val_loss"][-1] if self.history["val_loss"] else math.nan
        arguments = (trainer.model, trainer.optimizer, epoch, loss, math.nan if accuracy is None else accuracy)
        manager.save_latest_checkpoint(*arguments)
        manager.save_best_model(*arguments)
        manager.save_epoch_checkpoint(*arguments)

    def on_train_end(self, trainer: EngineTrainer, logs: dict[str, Any] | None = None) -> None:
        self.draw()

    def _draw_again(self, trainer: EngineTrainer) -> None:
        if trainer.state.stop_reason is None and time.monotonic() - self._drawn_at >= _DRAW_EVERY_S:
            self.draw()

    def draw(self) -> None:
        """The picture of all epochs so far. A disk that is full costs the picture, not the run."""
        from utils.views.curves import save_figure
        from utils.views.experiment import experiment_curves

        self._drawn_at = time.monotonic()
        if not self.epochs:
            return
        try:
            save_figure(
                experiment_curves(self.history, self.epochs[0], self.experiment.name), self.experiment.plot_file
            )
        except OSError as error:
            log.warning("%s could not be drawn: %s", self.experiment.plot_file, error.strerror or error)

    def state_dict(self) -> dict[str, Any]:
        """The history, for a checkpoint."""
        return {"epochs": list(self.epochs), "history": {name: list(values) for name, values in self.history.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The history of a checkpoint, in the same lists; the log is made to agree with it."""
        self.replace(state["epochs"], [dict(zip(HISTORY, row, strict=True)) for row in zip(
            *(state["history"][name] for name in HISTORY), strict=True)])  # fmt: skip

    def replace(self, epochs: list[int], rows: list[dict[str, float]]) -> None:
        """These epochs and no others, in the same lists and in the log."""
        self.take(epochs, rows)
        self.log.rewrite(self.epochs, rows)

    def take(self, epochs: list[int], rows: list[dict[str, float]]) -> None:
        """These epochs and no others, in the same lists."""
        self.epochs[:] = epochs
        for name in HISTORY:
            self.history[name][:] = [row[name] for row in rows]


class ExperimentFacade(RunFacade):
    """Adapt a run to an experiment: names and numbers of its files, its history, and when it is resumed.

    Args:
        record: keeps the log.
        save_frequency: epochs whose checkpoint is never removed; None: no such ones.
        first_epoch: completed epochs to begin with, where there is no checkpoint.
        live: what the parts hold is newer than the checkpoint: weights, optimizer and scheduler stay as they are.

    Attributes:
        epochs_before: in the history, when training begins.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainingConfig, record: ExperimentRecord, *,
        save_frequency: int | None, first_epoch: int, live: bool,
    ) -> None:  # fmt: skip
        self._model, self._optimizer, self._config, self.record = model, optimizer, config, record
        self._save_frequency, self._first_epoch, self._live = save_frequency, first_epoch, live
        self.epochs_before = len(record.epochs)

    def data_ready(self, data: UniversalDataModule, train_data: Any) -> None:
        data.shuffle = not (isinstance(train_data, DataLoader) and isinstance(train_data.sampler, SequentialSampler))
        self.record.val_batches = _validation_batches(data)

    def store_ready(self, store: CheckpointStore) -> None:
        store.keep_every_n_epochs = self._save_frequency

    def before_restore(self, start: Start, parts: Parts) -> None:
        if start.checkpoint is not None and self._live:
            own = {
                "model": parts.model.state_dict(), "optimizer": parts.optimizer.state_dict(),
                "schedule": parts.schedule.state_dict(),
            }  # fmt: skip
            start.checkpoint = {**start.checkpoint, **own}

    def resumed(self, state: TrainState, checkpoint: Payload) -> None:
        """Reset the patience when more epochs are requested after an early stop."""
        stopped_early = checkpoint["state"]["stop_reason"] == "early_stopping"
        if state.epoch < self._config.epochs:
            state.stop_reason = None
            if stopped_early or self._live:
                state.best.waits = 0

    def restored(self, start: Start, state: TrainState, notices: list[str]) -> None:
        if not self._live:  # who calls train() again has the same parts, and knows of the epochs that he asks for
            for sentence in notices:
                log.warning(sentence)
        if start.checkpoint is None:
            self._begin(state)
        else:
            self._take_up(start.checkpoint, state)
        self.epochs_before = len(self.record.epochs)
        manager = self.record.manager
        if isinstance(manager, CheckpointManager) and state.best.value is not None and self._monitors_accuracy:
            manager.best_accuracy = max(manager.best_accuracy, 100.0 * state.best.value)

    def checkpoint_entries(self, payload: Payload) -> Payload:
        """The documented names of a checkpoint's entries. Tensors are those of the engine's entries: stored once."""
        state, rows = payload["state"], [row for row in payload["state"]["history"] if row["event"] == "epoch"]
        last = self.record.row_of(rows[-1]) if rows else self.record.row_of({})
        core = core_entries(self._model, self._optimizer, state["epoch"], last["val_loss"], last["val_accuracy"])
        same = {"model_state_dict": payload["model"], "optimizer_state_dict": payload["optimizer"]}
        return {**core, **same, "train_loss": last["train_loss"], "train_accuracy": last["train_accuracy"]}

    @property
    def _monitors_accuracy(self) -> bool:
        return self._config.monitor.endswith("/accuracy")

    def _begin(self, state: TrainState) -> None:
        """A new run: after the epochs that are said to be done, with the accuracy to beat that the manager was given."""
        first = self._first_epoch
        state.epoch = first
        kept = [(epoch, row) for epoch, row in zip(*self.record.log.read(), strict=True) if epoch <= first]
        self.record.replace([epoch for epoch, _ in kept], [row for _, row in kept])
        manager = self.record.manager
        if isinstance(manager, CheckpointManager) and manager.has_best and self._monitors_accuracy:
            state.best = Best(manager.best_accuracy / 100.0)

    def _take_up(self, checkpoint: Payload, state: TrainState) -> None:
        """A run that continues: its history as it was when the checkpoint was saved."""
        kept = checkpoint.get("callbacks", {}).get(type(self.record).__name__)
        if kept is not None:
            self.record.load_state_dict(kept)
            return
        rows = [row for row in state.history if row["event"] == "epoch"]
        self.record.replace([row["epoch"] + 1 for row in rows], [self.record.row_of(row) for row in rows])


class ExperimentTrainer(EngineTrainer):
    """The engine's trainer as an experiment needs it; the keywords are those of `ExperimentFacade`."""

    def __init__(
        self, model: nn.Module, training_config: TrainingConfig, task_spec: TaskSpec, own_parts: OwnParts,
        record: ExperimentRecord, *, callbacks: list[Callback], save_frequency: int | None = None, first_epoch: int = 0,
        live: bool = False,
    ) -> None:  # fmt: skip
        from torch.utils.data import default_collate

        self.experiment = ExperimentFacade(
            model, own_parts.optimizer, training_config, record, save_frequency=save_frequency, first_epoch=first_epoch,
            live=live,
        )  # fmt: skip
        super().__init__(
            model, training_config=training_config, task_spec=task_spec, data_collator=default_collate, own_parts=own_parts,
            callbacks=[record, *callbacks], facade=self.experiment,
        )  # fmt: skip
        self.record = record
        if record.experiment.settings:
            self.description = {"experiment": record.experiment.settings}

    def one_epoch(self, train_data: Any, epoch: int) -> Row:
        """Train one epoch outside of any run: nothing is saved, logged or validated. Returns the engine's row."""
        data = self._batches(train_data, None)
        assert self.own_parts is not None
        with modes_kept(self.model), fp32_weights(self.model, self.own_parts.optimizer):
            switch_to_training(self.model)
            parts = self._assembled(data)
            self.state = TrainState(epoch=epoch)
            row = train_one_epoch(parts, data, self.state, self.training_config, CallbackList([], self, False))
        self.record.measures_accuracy = _counts_accuracy(parts)
        return row

    def one_validation(self, train_data: Any, val_data: Any) -> tuple[float, float, int]:
        """One pass over the validation data: mean loss, accuracy (0 to 1, NaN where classes are not scored), samples."""
        data = self._batches(train_data, val_data)
        parts = self._assembled(data)
        sums = validation_sums(parts, data.validation_batches())
        self.record.measures_accuracy = _counts_accuracy(parts)
        if not sums.targets:
            return 0.0, 0.0, 0
        objective: Any = parts.objective
        metrics = objective.metrics(sums)
        return metrics["loss"], metrics.get("accuracy", math.nan), sums.targets

    def _batches(self, train_data: Any, val_data: Any) -> UniversalDataModule:
        data = self.data = plan_data(self.trainer_arguments(), train_data, val_data, None, self.notice)
        self.experiment.data_ready(data, train_data)
        return data

    def _assembled(self, data: UniversalDataModule) -> Parts:
        assert self.task_spec is not None
        objective = plan_objective(self.trainer_arguments(), self.task_spec, data, None)
        self.parts = assemble(self.model, objective, self.training_config, None, own_parts=self.own_parts)
        return self.parts


def _counts_accuracy(parts: Parts) -> bool:
    return bool(getattr(parts.objective, "counts_accuracy", True))


def _validation_batches(data: UniversalDataModule) -> int | None:
    if data.validation is None:
        return None
    if isinstance(data.validation, StreamSource):
        return data.validation.num_batches
    return math.ceil((data.num_validation or 0) / data.validation_batch_size)


def refuse_foreign(experiment: ExperimentManager) -> None:
    """Say what to do with an experiment that another system has trained: its files have our names and cannot be continued.

    Raises:
        CheckpointError: its checkpoints are not the engine's.
    """
    from utils.training.engine.checkpointing.store import checkpoint_files, newest

    folder = Path(experiment.checkpoints_dir)
    if not checkpoint_files(folder):
        return
    try:
        newest(folder, mapped=True)
    except CheckpointError as error:
        raise CheckpointError(
            f"{experiment.name} cannot be continued exactly: {error}\nStart a new experiment from its weights instead: "
            f"ExperimentManager(base_dir={experiment.base_dir!r}, fork_exp={experiment.name!r})."
        ) from None
