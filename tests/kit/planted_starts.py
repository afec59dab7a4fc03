"""Faults planted in how a model starts (copies, residual paths, scores, settings) and in what it reads of its input."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.kit.planted_designs import GRADIENTS, OUTPUTS, WEIGHTS, D, Heads, Residual, T, Text, V


class _Unconnected(Residual):
    """A block that hands on its branches alone."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.mlp(self.second(self.mixer(self.first(x))))


class _NormedBranches(Residual):
    """norm(f(x)) where norm(x + f(x)) belongs, around the attention only."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.first(self.mixer(x))
        return self.second(x + self.mlp(x))


class _Experts(nn.Module):
    """A sum of experts, weighted by a router; the experts are copies of one."""

    def __init__(self) -> None:
        super().__init__()
        expert = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, D))
        self.router, self.experts = nn.Linear(D, 4), nn.ModuleList(copy.deepcopy(expert) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        return sum(shares[..., i, None] * expert(x) for i, expert in enumerate(self.experts))


class _LargeScores(Heads):
    """Multiplies scores by the root of the head's width twice, instead of dividing by it."""

    def __init__(self) -> None:
        super().__init__(lambda scores, seen: (scores * 16 * 4).masked_fill(~seen, float("-inf")).softmax(-1))


def _copied_blocks() -> nn.Module:
    block = Residual(Heads())
    return Text(*(copy.deepcopy(block) for _ in range(3)))


def _other_padding_row() -> nn.Module:
    model = Text(Residual(Heads()))
    model.embedding = nn.Embedding(V, D, padding_idx=7)
    model.config = SimpleNamespace(pad_token_id=1, vocab_size=V)
    return model


class _ReadsLabels(nn.Module):
    """An encoder-decoder that hands labels to its decoder as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.max_seq_len = SimpleNamespace(is_encoder_decoder=True, vocab_size=V), T
        self.embedding, self.positions = nn.Embedding(V, D), nn.Embedding(T, D)
        self.encoder, self.decoder = Residual(nn.Linear(D, D)), Residual(Heads())
        self.cross = nn.MultiheadAttention(D, 2, batch_first=True)
        self.head = nn.Linear(D, V)

    def _embedded(self, ids: Tensor) -> Tensor:
        return self.embedding(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor | None = None, labels: Tensor | None = None) -> object:
        if decoder_input_ids is None:
            assert labels is not None
            decoder_input_ids = labels
        memory, x = self.encoder(self._embedded(input_ids)), self.decoder(self._embedded(decoder_input_ids))
        logits = self.head(x + self.cross(x, memory, memory, need_weights=False)[0])
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return SimpleNamespace(loss=loss, logits=logits)


class _Whole(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.int().float()


class _OneStep(nn.Module):
    """A GRU over tables of numbers, each row of which is a series of one step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(6, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x.flatten(1)[:, None, :6])[0][:, -1])


def _forgetful_statistics() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16, momentum=0.99), nn.ReLU(), nn.Linear(16, 3))


#: By name: what makes the model, the check that must name the fault, and the causes that count.
STARTS: dict[str, tuple[Callable[[], nn.Module], str, tuple[str, ...]]] = {
    "blocks that are copies of one": (_copied_blocks, WEIGHTS, ("copied blocks",)),
    "experts that are copies of one": (lambda: Text(Residual(Heads(), _Experts())), WEIGHTS, ("copied blocks",)),
    "no residual connections": (lambda: Text(*(_Unconnected(Heads()) for _ in range(4))), WEIGHTS, ("residual connections",)),
    "norm of a branch alone": (lambda: Text(*(_NormedBranches(Heads()) for _ in range(4))), WEIGHTS, ("residual connections",)),
    "scores multiplied by the width": (lambda: Text(Residual(_LargeScores())), WEIGHTS, ("scores too large",)),
    "running statistics of the last batch": (_forgetful_statistics, WEIGHTS, ("batch norm momentum",)),
    "padding row of another token": (_other_padding_row, WEIGHTS, ("padding row",)),
    "decoder reads its labels": (_ReadsLabels, OUTPUTS, ("sees its targets",)),
    "inputs cut to whole numbers": (
        lambda: nn.Sequential(_Whole(), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), OUTPUTS, ("fractions dropped",)
    ),
    "series of one step": (_OneStep, GRADIENTS, (GRADIENTS,)),
}  # fmt: skip
