"""The run that golden checkpoints were saved from: a model of this file's own, so that no other package can change it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from utils.training import Callback, TrainingConfig

VOCAB_SIZE, LENGTH = 11, 6


class GoldenLM(nn.Module):
    """Ids (B, T) -> logits (B, T, V): an embedding, dropout, a norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embedding = nn.Embedding(VOCAB_SIZE, 8)
            self.norm = nn.LayerNorm(8)
            self.dropout = nn.Dropout(0.1)
            self.head = nn.Linear(8, VOCAB_SIZE)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.dropout(self.norm(self.embedding(input_ids))))


class CountSteps(Callback):
    """Counts steps over all sessions of a run."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step_end(self, step: int, trainer: Any, logs: dict[str, Any] | None = None) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def golden_parts() -> tuple[nn.Module, TrainingConfig, TensorDataset, TensorDataset, CountSteps]:
    """Model, settings, training data, validation data and callback: 4 steps an epoch, 12 in all."""
    config = TrainingConfig(
        epochs=3, batch_size=4, gradient_accumulation_steps=2, learning_rate=1e-2, warmup_steps=2, weight_decay=0.1,
        max_grad_norm=0.5, label_smoothing=0.05, early_stopping_patience=3, run_name="golden", precision="32",
    )  # fmt: skip
    rows = (torch.arange(30)[:, None] * 3 + torch.arange(LENGTH)) % VOCAB_SIZE
    return GoldenLM(), config, TensorDataset(rows[:26]), TensorDataset(rows[26:]), CountSteps()
