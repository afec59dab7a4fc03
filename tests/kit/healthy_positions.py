"""Healthy models whose positions or gradients are unusual on purpose, and the twins of faults of positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.kit.planted_designs import D, Heads, Residual, Text
from tests.kit.planted_positions import Patches, Rotary, Scored, Translation, Unplaced


class _WeightDecomposed(nn.Module):
    """A frozen linear layer with a low-rank change, its direction and its size apart; the norm is held constant (DoRA)."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(4, base.in_features) / 6), nn.Parameter(torch.randn(base.out_features, 4) / 6)
        self.size = nn.Parameter(base.weight.norm(dim=1).detach())

    def forward(self, x: Tensor) -> Tensor:
        weight = self.base.weight + self.up @ self.down
        return F.linear(x, self.size[:, None] * weight / weight.norm(dim=1, keepdim=True).detach(), self.base.bias)


def _with_dora() -> nn.Module:
    model = Text(Residual(Heads())).requires_grad_(False)
    mixer, mlp = model.blocks[0].mixer, model.blocks[0].mlp
    mixer.out, mlp[0], mlp[2] = (_WeightDecomposed(layer) for layer in (mixer.out, mlp[0], mlp[2]))
    return model


class _Routed(nn.Module):
    """Two experts with dropout; each token goes to one of them, so how many masks are drawn depends on the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(D, 2)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * D, D)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        shares, chosen = self.router(x).softmax(-1).max(-1)
        y = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            y[chosen == index] = expert(x[chosen == index]) * shares[chosen == index][:, None]
        return y


def _deep_convolutions() -> nn.Module:
    """Small initial weights behind batch normalisation, which has no statistics yet: in evaluation mode signals vanish."""
    layers: list[nn.Module] = []
    for index in range(8):
        layers += [nn.Conv2d(1 if index == 0 else 8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()]
        nn.init.normal_(layers[-3].weight, std=0.02)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model.image_size = 12
    return model


#: By name, what makes them.
POSITIONS: dict[str, Callable[[], nn.Module]] = {
    "rotary positions": lambda: Unplaced(Residual(Rotary()), Residual(Rotary())),
    "causal attention without positions": lambda: Unplaced(Residual(Heads()), Residual(Heads())),
    "linear biases": lambda: Unplaced(Residual(Rotary(turns=False, slope=-0.25))),
    "image patches, positions start at zero": lambda: Patches(placed=True),
    "encoder-decoder of torch's layers": lambda: Translation(causal=False),
    "padding left out of the loss": lambda: Scored(padding=True),
    "DoRA": _with_dora,
    "deep convolutions with small weights": _deep_convolutions,
    "experts with dropout": lambda: Text(Residual(Heads(), _Routed())),
}
