"""Faults of settings and of training itself, each beside the same program put right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.kit.fault_tools import REGRESSION, SIDE, SIGNS, Program, Setup, for_signs, line, mlp, rings, signs, split

_SETTINGS, _TRAINING = "Settings", "Training"
_IMAGES = {"image_size": SIDE, "num_channels": 1}
_SGD = {"optimizer": "sgd", "learning_rate": 0.05}


def _images(model: nn.Module | None = None, **config: Any) -> Setup:
    train, validation = split(*signs())
    return Setup(model or for_signs(), train, validation, config, sizes=_IMAGES)


def _small_amount(eps: float) -> Setup:
    inputs, targets = line(4)
    train, validation = split(0.01 * inputs, 0.01 * targets)
    # Scaled to unit size inside, so that the small numbers by themselves are no hindrance.
    return Setup(mlp(4, 16, 1), train, validation, {"eps": eps, "learning_rate": 0.01, "epochs": 10}, task=REGRESSION)


def _amount(**config: Any) -> Setup:
    return Setup(mlp(3, 16, 1), *split(*line(3)), {"learning_rate": 0.01, **config}, task=REGRESSION)


class _Normed(nn.Module):
    """A convolutional net with batch normalisation for the signs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(32 * 9, SIGNS)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


def _frozen() -> Setup:
    model = _Normed()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.requires_grad_(False)
    return _images(model)


class _BodyAndHead(nn.Module):
    """A hidden layer and a head; `cut` detaches the head from the body."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__()
        self.body, self.head, self.cut = nn.Linear(2, 16), nn.Linear(16, 2), cut

    def forward(self, points: Tensor) -> Tensor:
        hidden = self.body(points).relu()
        return self.head(hidden.detach() if self.cut else hidden)


def _in_rings(cut: bool = False, optimizer: Callable[[nn.Module], torch.optim.Optimizer] | None = None) -> Setup:
    return Setup(_BodyAndHead(cut), *split(*rings()), {"learning_rate": 0.02, "epochs": 25}, optimizer=optimizer)


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.02)


def _stale(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = _adam(model.parameters())
    model.head = nn.Linear(16, 2)
    return optimizer


PROGRAMS = (
    Program(
        "rate_three", _SETTINGS, lambda: _images(optimizer="sgd", learning_rate=3.0), lambda: _images(**_SGD),
        r"learning.rate",
    ),
    Program(
        "rate_too_high_adam", _SETTINGS, lambda: _images(learning_rate=0.3), lambda: _images(learning_rate=3e-3),
        r"learning.rate.*(high|large)|lower.*learning.rate",
    ),
    Program(
        "accumulation_too_long", _SETTINGS, lambda: _images(batch_size=16, gradient_accumulation_steps=256),
        lambda: _images(batch_size=16), r"accumulation",
    ),
    Program("decay_ten", _SETTINGS, lambda: _images(weight_decay=10.0), lambda: _images(weight_decay=0.01), r"weight.decay"),
    Program(
        "clip_too_small", _SETTINGS, lambda: _images(max_grad_norm=1e-6, **_SGD), lambda: _images(**_SGD),
        r"max_grad_norm|clipping",
    ),
    Program(
        "wrong_optimizer", _SETTINGS, lambda: _images(optimizer="sgd", learning_rate=5e-5), lambda: _images(**_SGD),
        r"sgd.*(rate|adamw)|learning.rate.*(low|small)",
    ),
    Program(
        "misspelt", _SETTINGS, lambda: _images(learning_rte=0.005), lambda: _images(learning_rate=0.005),
        r"did you mean '?learning_rate",
    ),
    Program("epsilon", _SETTINGS, lambda: _small_amount(0.1), lambda: _small_amount(1e-8), r"\beps"),
    Program("frozen_but_norms", _TRAINING, _frozen, lambda: _images(_Normed()), r"frozen|requires_grad"),
    Program(
        "optimizer_with_part", _TRAINING, lambda: _in_rings(optimizer=lambda model: _adam(model.head.parameters())),
        lambda: _in_rings(optimizer=lambda model: _adam(model.parameters())), r"not in the optimizer|optimizer.*(lacks|without|leaves out)",
    ),
    Program(
        "stale_optimizer", _TRAINING, lambda: _in_rings(optimizer=_stale),
        lambda: _in_rings(optimizer=lambda model: _adam(model.parameters())), r"not the model's",
    ),
    Program(
        "detached", _TRAINING, lambda: _in_rings(cut=True), _in_rings, r"no gradient|without a gradient|gets? no gradient",
    ),
    Program(
        "accuracy_of_amounts", _TRAINING, lambda: _amount(monitor="val/accuracy", mode="max"),
        lambda: _amount(monitor="val/r2", mode="max"), r"val/r2|no accuracy",
    ),
)  # fmt: skip
