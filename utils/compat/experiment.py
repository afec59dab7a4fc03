"""The experiment trainer: `Trainer(model, train_loader, val_loader, criterion, optimizer, device, ...).train(epochs)`.

A translation onto the engine. What is new beside the documented interface: a killed or interrupted experiment continues exactly
where its newest checkpoint is (`ExperimentManager(resume_exp=...)`), scheduler and random state included.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from utils.compat.experiment_run import ExperimentRecord, ExperimentTrainer, History, refuse_foreign
from utils.errors import ConfigError, DataError
from utils.training.checkpoint_manager import CheckpointManager
from utils.training.config_rules import Precision
from utils.training.engine.callbacks import Callback
from utils.training.engine.compute.user_supplied import OwnParts
from utils.training.engine.state import TrainState
from utils.training.experiments import ExperimentManager
from utils.training.metrics_tracker import MetricsTracker
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

log = logging.getLogger("trainbook.compat")

_REGRESSIONS = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss, nn.GaussianNLLLoss)


class Trainer:
    """Trains a model, epoch by epoch, as one experiment with a folder of its own.

    Args:
        model, criterion, optimizer, scheduler: as torch has them; the loss is `criterion(model(inputs), labels)`. The scheduler
            is stepped once an epoch; ReduceLROnPlateau gets the validation loss with mode="min" and the validation accuracy
            (0 to 1) with mode="max".
        train_loader, val_loader: batches of (inputs, labels), or dicts with labels. Their datasets, collate functions and
            batch sizes are used; a shuffled loader's order is a function of the seed and the epoch. val_loader may be None.
        device: where to train.
        experiment_manager: the experiment. One that is resumed continues from its newest checkpoint; a fork starts from its
            source's, unless `experiment_manager.restore_fork` or `checkpoint_manager.load_checkpoint` was called before.
        checkpoint_manager: gives checkpoints the names latest_checkpoint.pt, best_model.pt and epoch_N.pt. Without one the
            experiment is still saved, so that it can be resumed: the two newest epochs and the best.
        dataset: its `reset_train_transforms()` is called between epochs.
        patience: stop after that many epochs in a row whose validation accuracy is not higher than any before (with a
            criterion for regression: whose loss is not lower); 0: never.
        precision: TrainingConfig's; seed: of the order of samples and of dropout, None: torch's current one.
        callbacks: the engine's, in order.
    Attributes:
        history: dict of lists, one entry an epoch: train_loss, train_accuracy, val_loss, val_accuracy, learning_rate,
            epoch_time, train_speed, val_speed. Losses are means over samples, accuracies per cent, speeds batches a second.
        best_accuracy: per cent; best_epoch: its epoch, from 1, 0 before there is one.
        epochs_without_improvement, stopped_early: of the latest training.
        train_metrics, val_metrics: `MetricsTracker`s with the sums of the latest epoch.
    Raises:
        ConfigError, DataError: parts that do not belong together, before anything is trained.
    """

    def __init__(
        self, model: nn.Module, train_loader: DataLoader[Any], val_loader: DataLoader[Any] | None,
        criterion: Callable[[Any, Tensor], Tensor], optimizer: torch.optim.Optimizer, device: torch.device | str,
        experiment_manager: ExperimentManager, checkpoint_manager: CheckpointManager | None = None, scheduler: Any = None,
        dataset: Any = None, patience: int = 0, *, precision: Precision = "32", seed: int | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:  # fmt: skip
        if not isinstance(patience, int) or isinstance(patience, bool) or patience < 0:
            raise ConfigError(f"patience: got {patience!r}; must be a whole number of epochs, 0 for none.")
        self.model, self.criterion, self.optimizer, self.scheduler = model, criterion, optimizer, scheduler
        self.train_loader, self.val_loader, self.dataset = train_loader, val_loader, dataset
        self.device = torch.device(device)
        self.experiment_manager, self.checkpoint_manager = experiment_manager, checkpoint_manager
        self.patience, self.precision, self.seed = patience, precision, seed
        self.callbacks = list(callbacks)
        self.best_accuracy, self.best_epoch, self.epochs_without_improvement = 0.0, 0, 0
        self.stopped_early = False
        self.train_metrics, self.val_metrics = MetricsTracker(), MetricsTracker()
        self._own_parts = OwnParts(optimizer, criterion, scheduler, _device_kind(self.device))
        self._own_parts.check(model)
        self._record = ExperimentRecord(experiment_manager, checkpoint_manager, dataset)
        self._record.on_row = self._note
        self._record.log.begin()
        self._state: TrainState | None = None  # of the latest training of this object
        self.monitors_accuracy = _scores_classes(criterion, train_loader)
        if getattr(scheduler, "mode", None) == "max" and not self.monitors_accuracy:
            raise ConfigError(
                'scheduler: mode="max" waits for the accuracy, which is not measured here. Make it with mode="min".'
            )
        self._record.measures_accuracy = self.monitors_accuracy

    @property
    def history(self) -> History:
        """The epochs so far; the object itself, which training continues filling."""
        return self._record.history

    def train(self, epochs: int, start_epoch: int = 0) -> dict[str, Any]:
        """Train epochs `start_epoch` (0-based) to `epochs`, the total.

        A resumed experiment continues after what its newest checkpoint holds, whatever `start_epoch` says. Called again, it
        trains `epochs - start_epoch` more from where the model stands; numbers and history go on, patience begins anew.

        Returns:
            `epochs_trained` by this call, `best_accuracy` (per cent), `training_time` (seconds, of this call), `history` (the
            object itself), `experiment_dir`, `stopped_early`, `best_epoch` (from 1; 0: none).
        Raises:
            NonFiniteError, CheckpointError, TrainingInterrupted and others of the engine; what was done is saved.
        """
        _check_epochs(epochs, start_epoch)
        began, live = time.monotonic(), self._state is not None
        self.stopped_early = False
        if not live:
            self._prepare(start_epoch)
        done = 0 if self._state is None else self._state.epoch
        total = done + max(0, epochs - start_epoch) if live else epochs
        trained_before = len(self._record.epochs)
        if total > (done if live else start_epoch) or self.experiment_manager.resumed:
            engine = self._engine(total, first_epoch=start_epoch, live=live)
            try:
                engine.train(self.train_loader, self.val_loader, resume_from="auto")
            finally:
                self._state = engine.state
                self._take_over(engine.state)
            trained_before = engine.experiment.epochs_before
        return {
            "epochs_trained": len(self._record.epochs) - trained_before, "best_accuracy": self.best_accuracy,
            "training_time": time.monotonic() - began, "history": self.history,
            "experiment_dir": self.experiment_manager.experiment_dir, "stopped_early": self.stopped_early,
            "best_epoch": self.best_epoch,
        }  # fmt: skip

    def _prepare(self, start_epoch: int) -> None:
        """Prepare the first training: resume or fork."""
        experiment = self.experiment_manager
        if experiment.resumed:
            refuse_foreign(experiment)
        elif experiment.fork_source_dir is not None and start_epoch == 0 and not experiment.is_restored(self.model):
            experiment.restore_fork(self.model, self.optimizer)

    def train_epoch(self, epoch: int) -> tuple[dict[str, Any], float]:
        """Train one epoch and nothing else: no validation, log, checkpoint or scheduler.

        Args:
            epoch: 0-based; it decides the order of samples.
        Returns:
            `loss`, `accuracy` (per cent) and `total_samples`; batches a second.
        """
        engine = self._engine(
            epoch + 1, own_parts=OwnParts(self.optimizer, self.criterion, None, self._own_parts.device)
        )
        began = time.monotonic()
        row = engine.one_epoch(self.train_loader, epoch)
        seconds = time.monotonic() - began
        found = self._record.row_of(row)
        _fill(self.train_metrics, found["train_loss"], found["train_accuracy"], engine.state.targets_done)
        return _metrics(self.train_metrics, found["train_accuracy"]), engine.state.step / max(seconds, 1e-9)

    def validate(self) -> tuple[dict[str, Any], float]:
        """One pass over the validation data, which changes nothing.

        Returns:
            `loss`, `accuracy` (per cent) and `total_samples`; batches a second.
        """
        if self.val_loader is None:
            raise DataError("there is no val_loader to validate with; give one to Trainer.")
        engine = self._engine(1)
        began = time.monotonic()
        loss, accuracy, samples = engine.one_validation(self.train_loader, self.val_loader)
        seconds = time.monotonic() - began
        _fill(self.val_metrics, loss, 100 * accuracy, samples)
        return _metrics(self.val_metrics, 100 * accuracy), (self._record.val_batches or 0) / max(seconds, 1e-9)

    def load_history_from_log(self) -> int:
        """Take the history from the experiment's log, in place of what is there; damaged rows are left out.

        Numbers are rounded as the log has them; where this object has trained those epochs itself, it keeps its own.
        Returns:
            the last epoch's number, from 1; 0 without a log.
        """
        epochs, rows = self._record.log.read()
        if epochs != self._record.epochs:
            self._record.take(epochs, rows)
        return epochs[-1] if epochs else 0

    def _engine(
        self, epochs: int, *, first_epoch: int = 0, live: bool = False, own_parts: OwnParts | None = None
    ) -> ExperimentTrainer:
        manager = self.checkpoint_manager
        return ExperimentTrainer(
            self.model, self._config(epochs), self._task(), own_parts or self._own_parts, self._record,
            callbacks=self.callbacks, save_frequency=None if manager is None else manager.save_frequency,
            first_epoch=first_epoch, live=live,
        )  # fmt: skip

    def _config(self, epochs: int) -> TrainingConfig:
        """The engine's settings. Rate and decay are the optimizer's, and are here only to be read."""
        group = self.optimizer.param_groups[0]
        rate, decay = float(group["lr"]), float(group.get("weight_decay", 0.0))
        return TrainingConfig(
            epochs=max(1, epochs), batch_size=getattr(self.train_loader, "batch_size", None) or 1,
            learning_rate=rate if 0 < rate < 1 else 0.5, weight_decay=decay if 0 <= decay < 1 else 0.0,
            use_lr_schedule=False, max_grad_norm=0.0, precision=self.precision, random_seed=self._seed(),
            num_workers=getattr(self.train_loader, "num_workers", 0), early_stopping_patience=self.patience or None,
            monitor="val/accuracy" if self.monitors_accuracy else "val/loss",
            mode="max" if self.monitors_accuracy else "min", on_config_change="continue",
            run_name=self.experiment_manager.name, output_dir=self.experiment_manager.base_dir,
        )  # fmt: skip

    def _seed(self) -> int:
        """The seed that was given, else the one this experiment had before, else torch's."""
        if self.seed is None:
            kept = self.experiment_manager.kept_seed()
            self.seed = torch.initial_seed() % 2**32 if kept is None else kept
        return self.seed

    def _task(self) -> TaskSpec:
        kind = "image_classification" if self.monitors_accuracy else "regression"
        return TaskSpec("experiment", "vision", task_type=kind)

    def _note(self, epoch: int, state: TrainState) -> None:
        """Update log and plot after each epoch."""
        self._take_over(state)
        last = {name: values[-1] for name, values in self.history.items()}
        _fill(self.train_metrics, last["train_loss"], last["train_accuracy"], _length(self.train_loader))
        _fill(self.val_metrics, last["val_loss"], last["val_accuracy"], _length(self.val_loader))
        log.info(
            "Epoch %d: train loss %.4f, accuracy %.2f %%; val loss %.4f, accuracy %.2f %%", epoch, last["train_loss"],
            last["train_accuracy"], last["val_loss"], last["val_accuracy"],
        )  # fmt: skip

    def _take_over(self, state: TrainState) -> None:
        best = state.best
        known = self.monitors_accuracy and best.value is not None
        self.best_accuracy = 100.0 * best.value if known and best.value is not None else self._best_measured()
        self.best_epoch, self.epochs_without_improvement = best.epoch or 0, best.waits
        self.stopped_early = state.stop_reason == "early_stopping"

    def _best_measured(self) -> float:
        return max((value for value in self.history["val_accuracy"] if not math.isnan(value)), default=0.0)


def _check_epochs(epochs: Any, start_epoch: Any) -> None:
    for name, value in (("epochs", epochs), ("start_epoch", start_epoch)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"{name}: got {value!r}; must be a whole number, from 0.")


def _device_kind(device: torch.device) -> str:
    if device.index not in (None, 0):
        raise ConfigError(
            f"device: got {str(device)!r}; training takes the first one that is visible. Start with CUDA_VISIBLE_DEVICES="
            f"{device.index}, and give device={device.type!r}."
        )
    return device.type


def _scores_classes(criterion: Any, loader: Any) -> bool:
    """Whether labels are classes, one a sample, so that there is an accuracy."""
    if isinstance(criterion, _REGRESSIONS):
        return False
    dataset = getattr(loader, "dataset", None)
    if dataset is None or isinstance(dataset, IterableDataset) or not len(dataset):
        return True
    with torch.random.fork_rng(devices=[]):  # a sample's augmentation draws; the run's random state is not to move
        sample = dataset[0]
    labels = (
        sample.get("labels") if isinstance(sample, dict) else sample[-1] if isinstance(sample, (tuple, list)) else None
    )
    if isinstance(labels, int):
        return True
    return isinstance(labels, Tensor) and not labels.is_floating_point() and labels.numel() == 1


def _fill(tracker: MetricsTracker, loss: float, accuracy: float, samples: int) -> None:
    tracker.reset()
    tracker.add(loss * samples, (0.0 if math.isnan(accuracy) else accuracy) / 100 * samples, samples)


def _metrics(tracker: MetricsTracker, accuracy: float) -> dict[str, Any]:
    """The tracker's metrics; NaN where there is no accuracy, rather than 0."""
    return {**tracker.get_metrics(), "accuracy": accuracy if tracker.total_samples else 0.0}


def _length(loader: Any) -> int:
    try:
        return len(loader.dataset)
    except (TypeError, AttributeError):
        return 0
