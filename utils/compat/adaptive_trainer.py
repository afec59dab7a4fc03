"""The callback trainer: `Trainer(model, optimizer, criterion).fit(train_loader, num_epochs)`. A translation onto the engine."""

from __future__ import annotations

import copy
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.compat.adaptive_callbacks import Callback, CallbackList, ProgressBar
from utils.compat.adaptive_engine import FitEvents, FitTrainer, as_loader, renamed
from utils.errors import CallbackError, CheckpointError, ConfigError
from utils.training.engine.checkpointing.store import read_plain, write_file
from utils.training.engine.compute.user_supplied import OwnParts, parameters_of
from utils.training.engine.loss.criterion import CriterionObjective
from utils.training.engine.loss.objective import Loss
from utils.training.training_config import TrainingConfig

_RESUME = "resume"
_LARGE = ("model", "optimizer", "model_state_dict", "optimizer_state_dict")
_CORE = ("epoch", "model_state_dict", "optimizer_state_dict", "metrics_history", "scaler_state_dict", _RESUME)


@dataclass(frozen=True)
class _GivenParts(OwnParts):
    """The caller's parts; an optimizer of other parameters is accepted, with a warning."""

    def check(self, model: nn.Module) -> None:
        own = {id(parameter) for parameter in model.parameters()}
        if any(id(parameter) not in own for parameter in parameters_of(self.optimizer)):
            return
        super().check(model)


class FitObjective(CriterionObjective):
    """A criterion, and functions of (outputs, targets) whose values are averaged over samples."""

    def __init__(self, criterion: Any, functions: Mapping[str, Callable[[Tensor, Tensor], Any]]) -> None:
        super().__init__(criterion)
        self.functions = dict(functions)
        self.count_sizes = {**type(self).count_sizes, **{f"metric:{name}": 1 for name in functions}}
        self.last_counts: dict[str, Tensor] = {}

    def __call__(self, model: Any, batch: Any, keep_outputs: bool = False, num_targets: int | None = None) -> Loss:
        loss = super().__call__(model, batch, True, num_targets)
        assert loss.outputs is not None
        with torch.no_grad():
            for name, function in self.functions.items():
                value = float(function(loss.outputs.detach(), batch["labels"]))
                loss.counts[f"metric:{name}"] = loss.loss_sum.new_tensor(value * loss.num_targets)
        self.last_counts = loss.counts
        loss.outputs = loss.outputs if keep_outputs else None
        return loss

    def _loss_sum(self, outputs: Tensor, labels: Tensor, hint: str) -> Tensor:
        """With the classes last, as language models have them, torch's losses get them second."""
        by_class = isinstance(self.criterion, (nn.CrossEntropyLoss, nn.NLLLoss)) and not labels.is_floating_point()
        if by_class and outputs.dim() == labels.dim() + 1 > 2 and outputs.shape[2:] != labels.shape[1:]:
            outputs = outputs.movedim(-1, 1)
        return super()._loss_sum(outputs, labels, hint)

    def metrics(self, sums: Any) -> dict[str, float]:
        found = super().metrics(sums)
        return {**found, **{name: sums.count(f"metric:{name}") / sums.targets for name in self.functions}}


class Trainer:
    """Trains any module with the caller's optimizer and loss, with callbacks.

    Args:
        model, optimizer, criterion: used as they are; the loss is `criterion(outputs, targets)`.
        device: None: CUDA where there is one, else the CPU. The model is moved there.
        use_amp: half precision as the device has it (bf16, or fp16 with loss scaling).
        gradient_accumulation_steps: batches in an optimizer step; a partial last window is the mean over its own targets.
        max_grad_norm: largest L2 norm of all gradients; None or 0: no clipping.
        seed: of the order of samples and of everything random; None: torch's current one. Given, it is set here too.
        metrics: name -> function of (outputs, targets); the results have train_<name> and val_<name>, means over samples.
        progress_bar: show a tqdm bar for each epoch where standard error is a terminal.
    Attributes:
        metrics_history: one dict an epoch of the latest fit; current_epoch: the latest epoch, from 0.
        scaler: a GradScaler with use_amp (switched on for fp16 only), else None.
    Warns when the optimizer holds parameters that are not the model's.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, criterion: Any, device: torch.device | str | None = None,
        callbacks: Sequence[Any] | None = None, use_amp: bool = False, gradient_accumulation_steps: int = 1,
        max_grad_norm: float | None = 1.0, seed: int | None = None, metrics: Mapping[str, Any] | None = None,
        progress_bar: bool = True,
    ) -> None:  # fmt: skip
        if device is None:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.optimizer, self.criterion, self.device = model, optimizer, criterion, device
        self.callbacks, self.metrics = CallbackList(callbacks), dict(metrics or {})
        self.use_amp, self.gradient_accumulation_steps = use_amp, gradient_accumulation_steps
        self.max_grad_norm, self.progress_bar, self.seed = max_grad_norm, progress_bar, seed
        self.num_epochs = self.current_epoch = 0
        self.metrics_history: list[dict[str, Any]] = []
        self._memory: dict[str, Any] | None = None
        self._engine: FitTrainer | None = None
        kind = torch.device(device).type
        self.scaler = torch.amp.GradScaler(kind, enabled=kind == "cuda" and not _has_bf16()) if use_amp else None
        model.to(device)
        own = {id(parameter) for parameter in model.parameters()}
        strange = sum(id(parameter) not in own for parameter in parameters_of(optimizer))
        if strange:
            warnings.warn(
                f"optimizer: {strange} of its parameters are not the model's, so those of the model are not trained by it.",
                UserWarning, stacklevel=2,
            )  # fmt: skip
        if seed is not None:
            self.set_seed(seed)

    def set_seed(self, seed: int) -> None:
        """Seed Python's, numpy's and torch's generators, and every fit from now on."""
        self.seed = seed
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - users' code draws from the global generator
        torch.manual_seed(seed)

    _set_seed = set_seed

    def request_stop(self, reason: str = "requested") -> None:
        """Finish the step and return what was trained so far."""
        if self._engine is not None:
            self._engine.request_stop(reason)

    def fit(
        self, train_loader: Any, num_epochs: int, val_loader: Any = None, scheduler: Any = None,
        early_stopping: Any = None, *, resume: bool = False, checkpoint_dir: str | Path | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Train `num_epochs` more epochs, or with `resume=True` until there are `num_epochs` in all.

        Args:
            scheduler: stepped once an epoch; ReduceLROnPlateau gets the validation loss, else the training loss.
            early_stopping: a callback of this fit only. Training ends after an epoch when it, or any other callback, has a
                true `stop_training`.
            resume: continue the history, the numbers of epochs and the position of the latest fit of this object, or of
                `load_checkpoint`; after an interrupt within an epoch too.
            checkpoint_dir: folder in which every epoch writes `latest.pt`; with `resume=True` a trainer that has trained
                nothing yet continues from that file, so a killed process loses at most one epoch.
        Returns:
            `metrics_history`: a dict an epoch: epoch, train_loss, val_loss; train_accuracy and val_accuracy (0 to 1) where
            classes are scored; the caller's metrics.
        Raises:
            TrainingInterrupted: Ctrl-C; names the checkpoint, which `load_checkpoint` reads; `fit(n, resume=True)`
            continues. What a callback raises is raised as it is.
        """
        if not isinstance(num_epochs, int) or isinstance(num_epochs, bool) or num_epochs < 0:
            raise ConfigError(f"num_epochs: got {num_epochs!r}; must be a whole number of at least 0.")
        latest = None if checkpoint_dir is None else Path(checkpoint_dir) / "latest.pt"
        if resume and latest is not None and self._memory is None and latest.exists():
            self.load_checkpoint(latest)
        callbacks = CallbackList(self.callbacks.callbacks)
        if latest is not None:
            callbacks.append(_SavesEachEpoch(latest))
        if self.progress_bar:
            callbacks.append(ProgressBar(_length(train_loader)))
        if early_stopping is not None:
            callbacks.append(early_stopping)
        memory = self._memory
        done = 0 if memory is None else memory["state"]["epoch"]
        first = 0 if resume else done
        if not resume:
            self.metrics_history = []
            if memory is not None:  # an epoch that was left unfinished is begun anew
                fresh = {"samples_done": 0, "epoch_sums": {"loss": 0.0, "targets": 0}}
                memory = {**memory, "state": {**memory["state"], **fresh}}
        total = num_epochs if resume else done + num_epochs
        self.num_epochs = num_epochs
        if total <= done:
            callbacks.on_train_begin(self, {})
            callbacks.on_train_end(self, {"metrics_history": self.metrics_history})
            return self.metrics_history
        folder, keep = tempfile.mkdtemp(prefix="trainbook-fit-"), False
        events = FitEvents(self, callbacks, first)
        engine = self._engine = self._made(train_loader, total, folder, scheduler, events, memory)
        try:
            engine.train(as_loader(train_loader), as_loader(val_loader))
        except CallbackError as error:
            if error.__cause__ is None:
                raise
            raise error.__cause__ from None
        except (KeyboardInterrupt, SystemExit):
            keep = True  # the message names the checkpoint there
            raise
        finally:
            self._memory = copy.deepcopy(engine.fit.kept)
            if engine.parts is not None and engine.parts.scaler is not None:
                self.scaler = engine.parts.scaler
            self._engine = None
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)
        return self.metrics_history

    def _made(
        self, loader: Any, epochs: int, folder: str, scheduler: Any = None, events: Any = None, memory: Any = None
    ) -> FitTrainer:
        group = self.optimizer.param_groups[0]
        rate = float(group["lr"])
        seed = torch.initial_seed() % 2**32 if self.seed is None else self.seed % 2**32
        config = TrainingConfig(
            epochs=max(1, epochs), batch_size=getattr(loader, "batch_size", None) or 1,
            gradient_accumulation_steps=self.gradient_accumulation_steps, learning_rate=rate if 0 < rate < 1 else 0.5,
            use_lr_schedule=False, max_grad_norm=self.max_grad_norm or 0.0, precision="16" if self.use_amp else "32",
            random_seed=seed, num_workers=getattr(loader, "num_workers", 0), on_config_change="continue",
            save_every_n_epochs=max(1, epochs), run_name="fit", output_dir=folder,
        )  # fmt: skip
        parts = _GivenParts(self.optimizer, self.criterion, scheduler, torch.device(self.device).type)
        objective = FitObjective(self.criterion, self.metrics)
        return FitTrainer(
            self.model, config, parts, objective, callbacks=[] if events is None else [events], memory=memory
        )

    def _train_epoch(self, loader: Any, epoch: int) -> dict[str, Any]:
        """Train one epoch, without validation or history."""
        with tempfile.TemporaryDirectory() as folder:
            row = self._made(loader, epoch + 1, folder).one_epoch(as_loader(loader), epoch)
        return renamed(row, self.metrics)

    def evaluate(self, val_loader: Any) -> dict[str, float]:
        """val_loss, val_accuracy (0 to 1, where classes are scored) and the caller's metrics; means over samples."""
        self.callbacks.on_evaluate_begin(self, {})
        with tempfile.TemporaryDirectory() as folder:
            found = self._made(val_loader, 1, folder).one_validation(as_loader(val_loader))
        metrics = {f"val_{name}": value for name, value in found.items()}
        self.callbacks.on_evaluate_end(self, dict(metrics))
        return metrics

    def save_checkpoint(self, path: str | Path, **extra: Any) -> None:
        """Write epoch (the latest, from 0), model_state_dict, optimizer_state_dict, metrics_history, scaler_state_dict with
        use_amp, the entries of `extra`, and what `fit(n, resume=True)` needs; folders are created."""
        if taken := sorted(set(extra) & set(_CORE)):
            raise ConfigError(
                f"save_checkpoint: {', '.join(taken)} is an entry of every checkpoint; choose another name."
            )
        position = self._memory if self._engine is None else self._engine.position()
        run_state: dict[str, Any] = getattr(self.model, "run_state_dict", dict)()
        content = {
            "epoch": self.current_epoch, "model_state_dict": self.model.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(), "metrics_history": _plain(self.metrics_history),
            **_plain(extra), _RESUME: {"position": position, "run_state": run_state},
        }  # fmt: skip
        if self.scaler is not None:
            content["scaler_state_dict"] = self.scaler.state_dict()
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)

    def load_checkpoint(self, path: str | Path, strict: bool = True) -> dict[str, Any]:
        """Load model, optimizer, history, and the position for `fit(n, resume=True)`. Returns the whole content.

        Raises:
            CheckpointError: no such file, damaged, or not of this trainer. RuntimeError: the weights do not fit, with `strict`.
        """
        content = read_plain(path)
        if not isinstance(content, dict) or "model_state_dict" not in content:
            raise CheckpointError(f"{path} has no model_state_dict; expected a file of Trainer.save_checkpoint.")
        self.model.load_state_dict(content["model_state_dict"], strict=strict)
        if content.get("optimizer_state_dict"):
            self.optimizer.load_state_dict(copy.deepcopy(content["optimizer_state_dict"]))
        self.current_epoch = content.get("epoch", 0)
        self.metrics_history = [dict(row) for row in content.get("metrics_history", [])]
        if self.scaler is not None and content.get("scaler_state_dict"):
            self.scaler.load_state_dict(content["scaler_state_dict"])
        resume = content.get(_RESUME) or {}
        if "format" in content:  # saved by an interrupted fit
            position = {name: value for name, value in content.items() if name not in _LARGE}
            resume = {"position": position, "run_state": content.get("run_state", {}).get("")}
        self._memory = resume.get("position")
        load_run_state = getattr(self.model, "load_run_state_dict", None)
        if resume.get("run_state") and callable(load_run_state):
            load_run_state(resume["run_state"])
        return content


class _SavesEachEpoch(Callback):
    """Writes a checkpoint at the end of every epoch."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_epoch_end(self, epoch: int, trainer: Any, logs: dict[str, Any] | None = None) -> None:
        trainer.save_checkpoint(self._path)


def _length(loader: Any) -> int | None:
    """Batches of a loader; None for a stream."""
    try:
        return len(loader)
    except TypeError:
        return None


def _has_bf16() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def _plain(value: Any) -> Any:
    """`value` with numpy's numbers and arrays as Python's, which a checkpoint can hold."""
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
