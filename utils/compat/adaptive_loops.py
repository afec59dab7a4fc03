"""The legacy `TrainingLoop` for adaptive models, `quick_train`, `train_epoch` and `evaluate_model`; each runs on `Trainer`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.compat.adaptive_callbacks import Callback
from utils.compat.adaptive_config import AdaptiveConfig
from utils.compat.adaptive_model import AdaptiveModel
from utils.compat.adaptive_trainer import Trainer
from utils.storage import write_json


class TrainingLoop:
    """Trains an `AdaptiveModel` by its config: Adam, cross-entropy, gradients clipped at 1.0, seed `config.seed`.

    With `config.save_checkpoint` every fifth epoch is kept as `checkpoint_dir/checkpoint_epoch_{epoch}.pt`; `metrics_file` is
    written at the end of `train`. Accuracies are per cent. Lines of progress go to standard output.
    """

    def __init__(
        self, model: AdaptiveModel, config: AdaptiveConfig, optimizer: torch.optim.Optimizer | None = None,
        criterion: nn.Module | None = None,
    ) -> None:  # fmt: skip
        self.model, self.config = model, config
        self.optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        self.criterion = criterion or nn.CrossEntropyLoss()
        self.metrics_history: list[dict[str, Any]] = []
        self.current_epoch = 0
        self._trainer = Trainer(
            model, self.optimizer, self.criterion, config.device, [_LegacyLog(self)], max_grad_norm=1.0
        )
        self._trainer.seed = config.seed
        if config.save_checkpoint:
            Path(config.checkpoint_dir).mkdir(parents=True, exist_ok=True)

    def train(self, train_loader: Any, test_loader: Any = None, num_epochs: int | None = None) -> list[dict[str, Any]]:
        """Train `num_epochs` more epochs (None or 0: `config.num_epochs`). Returns the history of all calls."""
        self._trainer.fit(train_loader, num_epochs or self.config.num_epochs, test_loader)
        self.save_metrics()
        return self.metrics_history

    def train_epoch(self, train_loader: Any, epoch: int) -> dict[str, Any]:
        """One epoch without validation: train_loss, train_accuracy."""
        return _percent(self._trainer._train_epoch(train_loader, epoch))

    def evaluate(self, test_loader: Any) -> dict[str, Any]:
        """val_loss, val_accuracy."""
        return _percent(self._trainer.evaluate(test_loader))

    def save_checkpoint(self, epoch: int) -> None:
        """Write `checkpoint_dir/checkpoint_epoch_{epoch}.pt`: weights, state of nodes and phases, optimizer, history."""
        path = Path(self.config.checkpoint_dir) / f"checkpoint_epoch_{epoch}.pt"
        extra = {"config": self.config.to_dict(), "history": self.metrics_history}
        self._trainer.current_epoch = epoch
        self._trainer.save_checkpoint(path, **extra)

    def load_checkpoint(self, path: str | Path) -> int:
        """Load what `save_checkpoint` wrote, and return its epoch; `train` continues from there exactly."""
        content = self._trainer.load_checkpoint(path)
        self.metrics_history = [dict(row) for row in content.get("history", [])]
        self.current_epoch = int(content["epoch"])
        return self.current_epoch

    def save_metrics(self) -> None:
        """Write the history to `config.metrics_file`."""
        path = Path(self.config.metrics_file)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, json.loads(json.dumps(self.metrics_history)))


class _LegacyLog(Callback):
    """Keeps the history of a `TrainingLoop` and writes its lines and files."""

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop, self._began = loop, 0.0

    def on_epoch_begin(self, epoch: int, trainer: Any, logs: dict[str, Any] | None = None) -> None:
        self._began = time.monotonic()

    def on_batch_end(self, batch_idx: int, trainer: Any, logs: dict[str, Any] | None = None) -> None:
        if batch_idx % self._loop.config.log_interval == 0:
            line = f"Epoch {trainer.current_epoch}, Batch {batch_idx}: loss {(logs or {})['loss']:.4f}"
            print(line)  # noqa: T201 - as documented

    def on_epoch_end(self, epoch: int, trainer: Any, logs: dict[str, Any] | None = None) -> None:
        loop, nodes = self._loop, self._loop.model.get_metrics()
        times = {"timestamp": time.time(), "epoch_time": time.monotonic() - self._began}
        row = {**_percent(logs or {}), "epoch": epoch, **times, **nodes}
        loop.current_epoch = epoch
        loop.metrics_history.append(row)
        line = f"Epoch {epoch}: loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.2f} %"
        print(f"{line}, active nodes {nodes['active_node_ratio']:.2f}, energy {nodes['mean_energy']:.2f}")  # noqa: T201
        if loop.config.save_checkpoint and (epoch + 1) % 5 == 0:
            loop.save_checkpoint(epoch)


def _percent(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: 100.0 * value if name.endswith("accuracy") else value for name, value in metrics.items()}


def quick_train(
    config: AdaptiveConfig, train_loader: Any, test_loader: Any = None, num_epochs: int = 1
) -> dict[str, Any]:
    """Make an `AdaptiveModel` and train it. Returns model, trainer, metrics_history and final_metrics."""
    model = AdaptiveModel(config)
    trainer = TrainingLoop(model, config)
    history = trainer.train(train_loader, test_loader, num_epochs)
    return {
        "model": model, "trainer": trainer, "metrics_history": history, "final_metrics": history[-1] if history else {}
    }  # fmt: skip


def train_epoch(model: nn.Module, loader: Any, optimizer: Any, criterion: Any, device: Any) -> tuple[float, float]:
    """One epoch. Returns the mean loss and the accuracy (0 to 1; NaN where classes are not scored)."""
    row = Trainer(model, optimizer, criterion, device, max_grad_norm=None)._train_epoch(loader, 0)
    return row["train_loss"], row.get("train_accuracy", float("nan"))


def evaluate_model(model: nn.Module, loader: Any, device: Any, criterion: Any = None) -> float:
    """The accuracy of a model, 0 to 1 (NaN where classes are not scored)."""
    optimizer = torch.optim.SGD(list(model.parameters()) or [torch.zeros(1, requires_grad=True)], lr=0.0)
    found = Trainer(model, optimizer, criterion or nn.CrossEntropyLoss(), device).evaluate(loader)
    return found.get("val_accuracy", float("nan"))
