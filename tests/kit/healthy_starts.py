"""Healthy models that start in an unusual way: normalised, deep, copied on purpose."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.kit.planted_designs import D, Heads, Residual, T, Text, V


class _Unit(nn.Module):
    """A block of the normalised transformer (Loshchilov et al. 2024): hidden states keep a norm of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer, self.mlp = Heads(), nn.Sequential(nn.Linear(D, 2 * D), nn.SiLU(), nn.Linear(2 * D, D))
        self.rates = nn.ParameterList(torch.full((D,), 0.05) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for rate, branch in zip(self.rates, (self.mixer, self.mlp), strict=True):
            x = F.normalize(x + rate * (F.normalize(branch(x), dim=-1) - x), dim=-1)
        return x


class _Normalised(nn.Module):
    """Cosines of hidden states and output embeddings, with a trained scale for each token: at first between -1 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.max_seq_len = T
        self.embedding, self.output = nn.Embedding(V, D), nn.Parameter(torch.randn(V, D) * 0.02)
        self.positions = nn.Embedding(T, D)
        for table in (self.embedding, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        self.blocks, self.scale = nn.ModuleList(_Unit() for _ in range(3)), nn.Parameter(torch.ones(V))

    def forward(self, input_ids: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = F.normalize(self.embedding(input_ids) + self.positions(places), dim=-1)
        for block in self.blocks:
            x = block(x)
        return self.scale * F.linear(x, F.normalize(self.output, dim=-1))


class Slopes(Heads):
    """Attention to both sides with linear biases, made in fp32 whatever the weights are in."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        place = torch.arange(x.shape[1])
        bias = -(place - place[:, None]).abs().float() * torch.tensor([0.5, 0.25, 0.125, 0.0625])[:, None, None]
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None]).transpose(1, 2).flatten(2))


def _with_teacher() -> nn.Module:
    """A moving average of the blocks beside them, which starts as a copy and is not trained."""
    model = Text(Residual(Heads()), Residual(Heads()))
    model.teacher = copy.deepcopy(model.blocks).requires_grad_(False)
    return model


def _stacked() -> nn.Module:
    """Twice the blocks of a model that has been trained: its scales have left 1."""
    model = Text(Residual(Heads()), Residual(Heads()))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.add_(0.1 * torch.randn(D))
    model.blocks.extend(copy.deepcopy(model.blocks))
    return model


class _DeepLSTM(nn.Module):
    """Four layers, through which the signal of the input shrinks before training."""

    def __init__(self) -> None:
        super().__init__()
        self.max_seq_len = T
        self.embedding, self.cell, self.head = nn.Embedding(V, D), nn.LSTM(D, D, 4, batch_first=True), nn.Linear(D, V)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.cell(self.embedding(input_ids))[0])


def _deep_table() -> nn.Module:
    """Batch normalisation whose running statistics have seen nothing: in evaluation mode the signal shrinks."""
    layers = [nn.Sequential(nn.Linear(6 if i == 0 else 32, 32), nn.BatchNorm1d(32), nn.ReLU()) for i in range(6)]
    return nn.Sequential(*(module for layer in layers for module in layer), nn.Linear(32, 3))


class _RowsOrSeries(nn.Module):
    """A GRU over series of numbers (B, T, 6), which takes single rows (B, 6) as series of one step."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 6
        self.cell, self.head = nn.GRU(6, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x if x.dim() == 3 else x[:, None])[0][:, -1])


#: By name, what makes them.
STARTS: dict[str, Callable[[], nn.Module]] = {
    "normalised transformer": _Normalised,
    "teacher beside the model": _with_teacher,
    "stacked copies of trained blocks": _stacked,
    "deep LSTM": _DeepLSTM,
    "deep table with batch normalisation": _deep_table,
    "GRU over rows or series": _RowsOrSeries,
}
