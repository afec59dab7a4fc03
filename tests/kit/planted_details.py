"""Faults planted in the details of a model: what acts on its outputs, what is not saved, what it does to special ids."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.kit.planted_designs import GRADIENTS, OUTPUTS, SHAPES, WEIGHTS, D, Heads, Residual, Text, V


class _RandomFeatures(Text):
    """Multiplies the normalised features by a random matrix that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__(Residual(Heads()))
        norm, matrix = self.norm, torch.randn(D, D) / D**0.5

        class Projected(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm, self.matrix = norm, matrix

            def forward(self, x: Tensor) -> Tensor:
                return self.norm(x) @ self.matrix

        self.norm = Projected()  # type: ignore[assignment]


class _ReplacesPadding(Text):
    """Writes another id over id 0 in the caller's tensor, only while it trains where `in_training` is set."""

    def __init__(self, in_training: bool = False) -> None:
        super().__init__(Residual(Heads()))
        self.in_training = in_training

    def forward(self, input_ids: Tensor) -> Tensor:
        if self.training or not self.in_training:
            input_ids[input_ids == 0] = 1
        return super().forward(input_ids)


class _DroppedScores(Text):
    """Functional dropout on the scores, in training only."""

    def forward(self, input_ids: Tensor) -> Tensor:
        return F.dropout(super().forward(input_ids), 0.2, self.training)


class _Recomputed(Text):
    """Runs its blocks again in the backward pass, with other random numbers for dropout."""

    def __init__(self) -> None:
        super().__init__(
            *(Residual(Heads(), nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Dropout(0.1))) for _ in range(2))
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedded(input_ids)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False) if self.training else block(x)
        return self.head(self.norm(x))


class _Dropped(nn.Sequential):
    """A classifier of 12 x 12 images, or of six numbers, with something after its last layer."""

    def __init__(self, last: nn.Module, images: bool = False) -> None:
        first = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()] if images else []
        super().__init__(*first, nn.Linear(64 if images else 6, 16), nn.ReLU(), nn.Linear(16, 5), last)
        self.image_size, self.num_channels = 12, 1


def _sure_of_one_class() -> nn.Module:
    """An image classifier whose last bias makes class 2 certain."""
    model = _Dropped(nn.Identity(), images=True)
    with torch.no_grad():
        model[-2].bias.copy_(torch.tensor([0.0, 0.0, 9.0, 0.0, 0.0]))
    return model


def _no_activation(dropout: bool) -> nn.Module:
    """A transformer whose MLP is two linear layers in sequence, with dropout between them or nothing."""
    between = [nn.Dropout(0.1)] if dropout else []
    mlp = nn.Sequential(nn.Linear(D, 4 * D), *between, nn.Linear(4 * D, D))
    return Text(Residual(Heads(), mlp), Residual(Heads()))


def _switched_off() -> nn.Module:
    """A normalisation before attention whose scales are zero: the attention gets nothing of its input."""
    model = Text(Residual(Heads()), Residual(Heads()))
    nn.init.zeros_(model.blocks[0].first.weight)
    return model


#: By name: what makes the model, the check that must name the fault, and the causes that count.
DETAILS: dict[str, tuple[Callable[[], nn.Module], str, tuple[str, ...]]] = {
    "random matrix after a LayerNorm, unsaved": (_RandomFeatures, WEIGHTS, ("unsaved state",)),
    "special ids replaced in place": (_ReplacesPadding, OUTPUTS, ("inputs changed in place",)),
    "special ids replaced in place, in training": (lambda: _ReplacesPadding(in_training=True), OUTPUTS, ("inputs changed in place",)),
    "dropout on the scores of tokens": (lambda: _DroppedScores(Residual(Heads())), OUTPUTS, ("dropout on the outputs",)),
    "dropout on the scores of classes": (lambda: _Dropped(nn.Dropout(0.5)), OUTPUTS, ("dropout on the outputs",)),
    "dropout on the scores of images": (lambda: _Dropped(nn.Dropout(0.1), images=True), OUTPUTS, ("dropout on the outputs",)),
    "no activation in the MLP": (lambda: _no_activation(False), WEIGHTS, ("linear",)),
    "dropout in place of an activation": (lambda: _no_activation(True), WEIGHTS, ("linear",)),
    "normalisation switched off before attention": (_switched_off, WEIGHTS, (WEIGHTS,)),
    "recomputed with other dropout": (_Recomputed, GRADIENTS, ("gradient checkpointing",)),
    "embedding one row short": (lambda: Text(Residual(Heads()), vocabulary=V + 1), SHAPES, ("vocabulary",)),
    "bias that is sure of one class of images": (_sure_of_one_class, OUTPUTS, ("dominated by a bias",)),
}  # fmt: skip
