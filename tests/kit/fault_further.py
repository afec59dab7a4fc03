"""Further faults of training programs from forums: squeezed shapes, visible targets, frozen heads, dropout in the wrong place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.kit.fault_tools import REGRESSION, Program, Setup, for_signs, kinds, line, mlp, signs, split
from utils.training import TaskSpec

_MODELS, _DATA, _SETTINGS, _TRAINING = "Models and losses", "Data", "Settings", "Training"
_VOCAB, _MASK = 24, 1


def _subtracted(squeezed: bool) -> Setup:
    """A squared error by hand, from outputs (B, 1) and targets (B,)."""
    inputs, targets = line(4)

    def criterion(outputs: Tensor, labels: Tensor) -> Tensor:
        return ((outputs[:, 0] if squeezed else outputs) - labels).square().mean()

    return Setup(mlp(4, 16, 1), *split(inputs, targets[:, 0]), {"epochs": 12}, criterion, task=REGRESSION)


class _Encoder(nn.Module):
    """Masked language modelling by a recurrence in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_VOCAB, 24)
        self.layer = nn.GRU(24, 24, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, _VOCAB)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(input_ids))[0])


def _masked(hidden: bool) -> Setup:
    """Rows that count up, with a quarter of the tokens to be predicted."""
    from tests.kit.fault_data import _counting

    ids = _counting(12)
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.25
    chosen[:, 0] = True
    rows: list[dict[str, Any]] = [
        {"input_ids": row.masked_fill(picked, _MASK) if hidden else row, "labels": row.masked_fill(~picked, -100)}
        for row, picked in zip(ids, chosen, strict=True)
    ]
    task = TaskSpec.masked_lm(vocab_size=_VOCAB)
    return Setup(_Encoder(), rows[:96], rows[96:128], {"learning_rate": 0.01, "epochs": 3}, task=task)


def _frozen_head(frozen: bool) -> Setup:
    model = for_signs()
    for parameter in model[-1].parameters():
        parameter.requires_grad_(not frozen)
    return Setup(model, *split(*signs()), sizes={"image_size": 12, "num_channels": 1})


def _smoothed(share: float) -> Setup:
    return Setup(mlp(4, 16, 3), *split(*kinds()), {"learning_rate": 0.01, "label_smoothing": share})


def _in_place(faulty: bool) -> Setup:
    """Negative features are set to zero in the caller's tensor, for the residual's sake only in one of the twins."""

    class Clamped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = mlp(4, 16, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layers(F.relu(inputs, inplace=faulty) - 0.5)

    return Setup(Clamped(), *split(*kinds()), {"learning_rate": 0.01, "epochs": 8})


PROGRAMS: tuple[Program, ...] = (
    Program("subtracted_targets", _MODELS, lambda: _subtracted(False), lambda: _subtracted(True), r"broadcast"),
    Program("nothing_is_masked", _DATA, lambda: _masked(False), lambda: _masked(True), r"unmasked|visible"),
    Program("output_layer_frozen", _TRAINING, lambda: _frozen_head(True), lambda: _frozen_head(False), r"output layer.*frozen"),
    Program("smoothing_and_confidence_confused", _SETTINGS, lambda: _smoothed(0.9), lambda: _smoothed(0.1), r"label_smoothing"),
    Program("features_clipped_in_place", _MODELS, lambda: _in_place(True), lambda: _in_place(False), r"in place"),
)  # fmt: skip
