"""Faults of models and losses, each beside the same program put right."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from tests.kit.fault_tools import (
    REGRESSION,
    SIDE,
    SIGNS,
    Program,
    Setup,
    for_signs,
    kinds,
    line,
    mlp,
    numbers,
    rings,
    signs,
    split,
)
from utils.training import TaskSpec

_SECTION = "Models and losses"
CLASSES = TaskSpec.classification(num_classes=2)
_IMAGES = {"image_size": SIDE, "num_channels": 1}


class _Then(nn.Module):
    """A model followed by a function."""

    def __init__(self, model: nn.Module, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.then = model, then

    def forward(self, inputs: Tensor) -> Tensor:
        return self.then(self.model(inputs))


def _amount(*more: nn.Module, low: bool = False) -> Setup:
    inputs, targets = line(3)
    if low:
        targets = (targets - 0.7).clamp(-1, 1)
    train, validation = split(inputs, targets)
    return Setup(nn.Sequential(*mlp(3, 16, 1), *more), train, validation, {"learning_rate": 0.01}, task=REGRESSION)


def _yes_or_no(last: nn.Module) -> Setup:
    labels = (torch.rand(400, 1, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    inputs = labels.expand(-1, 4) + 0.1 * numbers(400, 4)
    train, validation = split(inputs, labels)
    return Setup(nn.Sequential(*mlp(4, 8, 1), last), train, validation, criterion=nn.BCELoss(), task=REGRESSION)


def _images(model: nn.Module | None = None, **config: object) -> Setup:
    train, validation = split(*signs())
    return Setup(model or for_signs(), train, validation, dict(config), sizes=_IMAGES)


def _flowers(then: Callable[[Tensor], Tensor] | None = None) -> Setup:
    from sklearn.datasets import load_iris

    inputs, labels = load_iris(return_X_y=True)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    rows = torch.tensor(inputs, dtype=torch.float32)[order]
    train, validation = split((rows - rows.mean(0)) / rows.std(0), torch.tensor(labels)[order])
    model: nn.Module = mlp(4, 16, 3)
    return Setup(
        model if then is None else _Then(model, then), train, validation,
        {"learning_rate": 0.01, "batch_size": 16, "epochs": 15},
    )  # fmt: skip


def _deep(std: float | None) -> Setup:
    model = nn.Sequential(nn.Flatten(), *mlp(SIDE * SIDE, 128, 128, 128, SIGNS))
    if std is not None:
        for layer in model:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=std)
    return _images(model)


def _eight(bias: float | None) -> Setup:
    model = mlp(8, 24, 3)
    if bias is not None:
        nn.init.constant_(model[0].bias, bias)  # type: ignore[arg-type]
    return Setup(model, *split(*kinds(8, 3)), {"learning_rate": 0.01})


def _in_rings(model: nn.Module, epochs: int = 25) -> Setup:
    return Setup(model, *split(*rings()), {"learning_rate": 0.02, "epochs": epochs})


def _equal_weights() -> nn.Module:
    model = mlp(2, 16, 2)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.1)
    return model


def _by_heart(faulty: bool) -> Setup:
    inputs, labels = kinds(30, 2, rows=720, spread=5.0)
    wrong = torch.rand(720, generator=torch.Generator().manual_seed(9)) < 0.2
    labels = torch.where(wrong, 1 - labels, labels)
    train = TensorDataset(inputs[:120], labels[:120]) if faulty else TensorDataset(inputs[:520], labels[:520])
    validation = TensorDataset(inputs[520:], labels[520:])
    config = {"epochs": 60 if faulty else 6, "learning_rate": 3e-3, "batch_size": 32, "weight_decay": 0.0}
    return Setup(mlp(30, 256, 256, 2) if faulty else mlp(30, 8, 2), train, validation, config)


def _three_kinds(dim: int | None) -> Setup:
    model: nn.Module = mlp(4, 16, 3)
    if dim is not None:
        model = _Then(model, lambda scores: scores.softmax(dim))
    return Setup(model, *split(*kinds()), {"learning_rate": 0.01})


class _Series(nn.Module):
    """Rows (B, 8, 3) -> scores (B, 2) by a recurrent layer."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(3, 16, batch_first=batch_first), nn.Linear(16, 2)

    def forward(self, rows: Tensor) -> Tensor:
        hidden, _ = self.layer(rows)
        return self.head(hidden[:, -1])


def _series(batch_first: bool) -> Setup:
    rows = numbers(400, 24).view(400, 8, 3)
    labels = (rows[:, :, 0].sum(1) > 0).long()
    return Setup(_Series(batch_first), *split(rows, labels), {"learning_rate": 0.01, "epochs": 8}, task=CLASSES)


def _log_of_probability(probabilities: Tensor, labels: Tensor) -> Tensor:
    return -(labels * probabilities.log() + (1 - labels) * (1 - probabilities).log()).mean()


def _clear_kinds(faulty: bool) -> Setup:
    labels = (torch.arange(400) % 2).float()[:, None]
    inputs = 60 * (2 * labels - 1) + numbers(400, 4)
    model = mlp(4, 16, 1)
    train, validation = split(inputs / 60 if not faulty else inputs, labels)
    return Setup(
        nn.Sequential(*model, nn.Sigmoid()) if faulty else model, train, validation, {"epochs": 8},
        criterion=_log_of_probability if faulty else nn.BCEWithLogitsLoss(), task=REGRESSION,
    )  # fmt: skip


def _summed(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().sum()


def _points(criterion: Callable[[Tensor, Tensor], Tensor]) -> Setup:
    return Setup(
        nn.Linear(1, 1), *split(*line(1)), {"batch_size": 64, "max_grad_norm": 0.0}, criterion=criterion,
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.05), task=REGRESSION,
    )  # fmt: skip


def _flipped(scores: Tensor, labels: Tensor) -> Tensor:
    return scores.log_softmax(-1).gather(1, labels[:, None]).mean()


def _signed(criterion: Callable[[Tensor, Tensor], Tensor]) -> Setup:
    return Setup(mlp(4, 16, 3), *split(*kinds()), criterion=criterion)


PROGRAMS = (
    Program(
        "soft1_regression", _SECTION, lambda: _amount(nn.Softmax(-1)), _amount,
        r"softmax over one unit|same (output )?for every input|for every input.*softmax",
    ),
    Program(
        "soft1_binary", _SECTION, lambda: _yes_or_no(nn.Softmax(-1)), lambda: _yes_or_no(nn.Sigmoid()),
        r"softmax over one unit|for every input.*softmax",
    ),
    Program(
        "relu_regression", _SECTION, lambda: _amount(nn.ReLU(), low=True), lambda: _amount(low=True),
        r"never negative",
    ),
    Program(
        "relu_logits", _SECTION, lambda: _images(nn.Sequential(*for_signs(), nn.ReLU())), _images, r"never negative",
    ),
    Program("sigmoid_logits", _SECTION, lambda: _flowers(torch.sigmoid), _flowers, r"between 0 and 1"),
    Program(
        "softmax_twice", _SECTION, lambda: _images(nn.Sequential(*for_signs(), nn.Softmax(-1))), _images,
        r"probabilities already",
    ),
    Program("init_too_large", _SECTION, lambda: _deep(1.0), lambda: _deep(None), r"too large"),
    Program("dead_by_bias", _SECTION, lambda: _eight(-20.0), lambda: _eight(None), r"dead"),
    Program(
        "init_constant", _SECTION, lambda: _in_rings(_equal_weights()), lambda: _in_rings(mlp(2, 16, 2)),
        r"all the same|symmetry",
    ),
    Program(
        "no_activation", _SECTION, lambda: _in_rings(mlp(2, 16, 16, 16, 2, activation=nn.Identity)),
        lambda: _in_rings(mlp(2, 16, 16, 16, 2)), r"linear.*activation",
    ),
    Program(
        "too_small", _SECTION, lambda: _images(for_signs(1), epochs=8), lambda: _images(epochs=8),
        r"under-?fit|too small|bottleneck",
    ),
    Program(
        "no_hidden_layer", _SECTION, lambda: _in_rings(nn.Linear(2, 2)), lambda: _in_rings(mlp(2, 16, 2)),
        r"under-?fit|too simple|too small",
    ),
    Program("overfit", _SECTION, lambda: _by_heart(True), lambda: _by_heart(False), r"over-?fit|memoris"),
    Program(
        "softmax_over_rows", _SECTION, lambda: _three_kinds(0), lambda: _three_kinds(None),
        r"other rows|rows of (a|the) batch",
    ),
    Program(
        "axes_swapped", _SECTION, lambda: _series(False), lambda: _series(True), r"batch_first|other rows|rows of (a|the) batch",
    ),
    Program(
        "log_of_zero", _SECTION, lambda: _clear_kinds(True), lambda: _clear_kinds(False),
        r"(loss|criterion).*(nan|inf|not finite)|log(arithm)? of zero",
    ),
    Program("summed_loss", _SECTION, lambda: _points(_summed), lambda: _points(F.mse_loss), r"\bsum"),
    Program(
        "flipped_sign", _SECTION, lambda: _signed(_flipped), lambda: _signed(F.cross_entropy), r"\bsign\b|below zero",
    ),
    Program(
        "no_flatten", _SECTION, lambda: _images(nn.Sequential(nn.Linear(SIDE, SIGNS))),
        lambda: _images(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, SIGNS)), epochs=8), r"flatten",
    ),
)  # fmt: skip
