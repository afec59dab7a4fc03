"""Faults planted in models of many makes (recurrent, convolutional, mixing, pooling), and the check that must name each."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

V, D, T = 60, 32, 32


class Residual(nn.Module):
    """A causal mixer (over positions) and an MLP (within a position), each behind a LayerNorm."""

    def __init__(self, mixer: nn.Module, mlp: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(D), nn.LayerNorm(D)
        self.mixer = mixer
        self.mlp = mlp or nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.first(x)
        x = x + (self.mixer(y) if mask is None else self.mixer(y, mask))
        return x + self.mlp(self.second(x))


class Text(nn.Module):
    """ids (B, T) -> logits (B, T, V): residual blocks around the mixers that are given."""

    def __init__(self, *blocks: nn.Module, last: nn.Module | None = None, vocabulary: int = V) -> None:
        super().__init__()
        self.max_seq_len = T
        self.embedding, self.positions = nn.Embedding(V, D), nn.Embedding(T, D)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.blocks = nn.ModuleList(blocks)
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, vocabulary)
        self.last = last or nn.Identity()

    def embedded(self, ids: Tensor) -> Tensor:
        return self.embedding(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedded(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.last(self.head(self.norm(x)))


class Heads(nn.Module):
    """Causal self-attention; `allowed(length)` gives the mask, `weigh` turns scores and mask into weights."""

    def __init__(self, weigh: Callable[[Tensor, Tensor], Tensor] | None = None, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.weigh = weigh or (lambda scores, seen: scores.masked_fill(~seen, float("-inf")).softmax(-1))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        seen = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        weights = self.weigh(q @ k.mT / math.sqrt(q.shape[-1]), seen)
        return self.out((weights @ v).transpose(1, 2).reshape(x.shape))


class Applied(nn.Module):
    """A layer and how it is called on x (B, T, D)."""

    def __init__(self, layer: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.layer, x)


class _HalfGradient(torch.autograd.Function):
    """A GELU whose backward pass forgets a factor."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        context.save_for_backward(x)
        return F.gelu(x)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = context.saved_tensors
        return gradient * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attention_over_rows() -> nn.Module:
    """`nn.MultiheadAttention` without batch_first: rows of the batch attend to each other."""
    return Text(
        Residual(Applied(nn.MultiheadAttention(D, 2), lambda layer, x: layer(x, x, x, need_weights=False)[0])),
        Residual(Heads()),
    )


def convolution_on_both_sides() -> nn.Module:
    return Text(*(Residual(Applied(nn.Conv1d(D, D, 3, padding=1), lambda layer, x: layer(x.mT).mT)) for _ in range(2)))


def recurrence_in_both_directions() -> nn.Module:
    cell = nn.GRU(D, D // 2, batch_first=True, bidirectional=True)
    return Text(Residual(Applied(cell, lambda layer, x: layer(x)[0])))


def normalised_over_positions() -> nn.Module:
    """Group normalisation takes its statistics over the whole length, the future included."""
    return Text(Residual(Applied(nn.GroupNorm(4, D), lambda layer, x: layer(x.mT).mT)), Residual(Heads()))


def masked_after_softmax() -> nn.Module:
    return Text(Residual(Heads(lambda scores, seen: scores.softmax(-1) * seen)), Residual(Heads()))


def mask_too_weak() -> nn.Module:
    """The mask subtracts 5, which a softmax still hears."""
    return Text(Residual(Heads(lambda scores, seen: (scores - 5.0 * ~seen).softmax(-1))), Residual(Heads()))


def fourier_mixing() -> nn.Module:
    return Text(Residual(Applied(nn.Linear(D, D), lambda layer, x: layer(torch.fft.fft(x, dim=1).real / 6))))


def reshaped_heads() -> nn.Module:
    """Takes (B, T, D) apart into heads by a view without a transpose: positions and channels are mixed."""

    class Mixed(Heads):
        def forward(self, x: Tensor) -> Tensor:
            batch, length, _ = x.shape
            q, k, v = (part.reshape(batch, self.heads, length, -1) for part in self.qkv(x).chunk(3, -1))
            return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).reshape(x.shape))

    return Text(Residual(Mixed()), Residual(Mixed()))


def normalised_over_rows() -> nn.Module:
    return Text(Residual(Applied(nn.Linear(D, D), lambda layer, x: layer(F.normalize(x, dim=0)))), Residual(Heads()))


class _Stateful(nn.Module):
    """A recurrent layer that goes on from where the last batch ended."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.state = nn.GRU(D, D, batch_first=True), None

    def forward(self, x: Tensor) -> Tensor:
        state = self.state if self.state is not None and self.state.shape[1] == len(x) else None
        output, state = self.cell(x, state)
        self.state = state.detach()
        return output


def attention_dropout_always() -> nn.Module:
    return Text(Residual(Heads(lambda s, seen: F.dropout(s.masked_fill(~seen, -torch.inf).softmax(-1), 0.1))))


class _Pooled(nn.Module):
    """ids and mask (B, T) -> scores (B, 3): embeddings, an encoder and pooling."""

    def __init__(self, pool: Callable[[Tensor, Tensor], Tensor], recurrent: bool = False) -> None:
        super().__init__()
        self.max_seq_len, self.pool, self.recurrent = T, pool, recurrent
        self.embedding = nn.Embedding(V, D)
        self.layer: nn.Module = (
            nn.GRU(D, D // 2, batch_first=True, bidirectional=True)
            if recurrent
            else nn.TransformerEncoderLayer(D, 2, 2 * D, batch_first=True)
        )
        self.head = nn.Linear(D, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.embedding(input_ids)
        x = self.layer(x)[0] if self.recurrent else self.layer(x, src_key_padding_mask=mask == 0)
        return self.head(self.pool(x, mask))


def _masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp_min(1)


class _Scores(nn.Module):
    """A masked classifier whose own attention multiplies the scores of padding by zero instead of removing them."""

    def __init__(self) -> None:
        super().__init__()
        self.max_seq_len = T
        self.embedding, self.query, self.head = nn.Embedding(V, D), nn.Linear(D, 1), nn.Linear(D, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embedding(input_ids)
        scores = self.query(x)[..., 0]
        if attention_mask is not None:
            scores = scores * attention_mask
        return self.head((scores.softmax(-1)[..., None] * x).sum(1))


def with_dropout(rate: float) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(rate), nn.Linear(64, 3))


def wrong_backward() -> nn.Module:
    activation = Applied(nn.Identity(), lambda _, x: _HalfGradient.apply(x))
    mlp = nn.Sequential(nn.Linear(D, 2 * D), activation, nn.Linear(2 * D, D))
    return Text(Residual(Heads(), mlp), Residual(Heads()))


class _Checkpointed(Text):
    """Recomputes its blocks in the backward pass, with different weights of dropout than in the forward pass."""

    def __init__(self) -> None:
        super().__init__(
            *(Residual(Heads(), nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Dropout(0.1))) for _ in range(2))
        )
        self.gradient_checkpointing = False

    def gradient_checkpointing_enable(self, **_: Any) -> None:
        self.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        self.gradient_checkpointing = False

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embedded(input_ids)
        for block in self.blocks:
            recompute = self.gradient_checkpointing and self.training
            x = checkpoint(block, x.detach(), use_reentrant=False) if recompute else block(x)
        return self.head(self.norm(x))


class _OwnLoss(Text):
    """Returns a loss that `wrong` computes from logits and labels."""

    def __init__(self, wrong: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(Residual(Heads()), Residual(Heads()))
        self.wrong = wrong

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:  # type: ignore[override]
        logits = super().forward(input_ids)
        return {"logits": logits} | ({} if labels is None else {"loss": self.wrong(logits, labels)})


def _unshifted(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def _mean_over_everything(logits: Tensor, labels: Tensor) -> Tensor:
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return losses / labels.numel()


def _of_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].softmax(-1).flatten(0, 1), labels[:, 1:].flatten())


class _Listed(Text):
    """Keeps its experts in a dictionary, which registers nothing."""

    def __init__(self) -> None:
        super().__init__(Residual(Heads()))
        self.experts = {"first": nn.Linear(D, D), "second": nn.Linear(D, D)}

    def embedded(self, ids: Tensor) -> Tensor:
        x = super().embedded(ids)
        return x + sum(expert(x) for expert in self.experts.values())


class _FreshLayer(Text):
    """Makes a layer in every forward pass."""

    def embedded(self, ids: Tensor) -> Tensor:
        return nn.Linear(D, D)(super().embedded(ids))


class _Growing(Text):
    """Attends to everything of all earlier calls: time and memory grow."""

    def __init__(self) -> None:
        super().__init__(Residual(Heads()))
        self.memory: list[Tensor] = []

    def embedded(self, ids: Tensor) -> Tensor:
        x = super().embedded(ids)
        self.memory.append(x.detach().mean((0, 1)))
        return x + 0 * torch.stack(self.memory).sum()


class _Shuffles(Text):
    """Moves Python's random state in evaluation mode."""

    def embedded(self, ids: Tensor) -> Tensor:
        random.random()
        return super().embedded(ids)


class _Centred(nn.Module):
    """Subtracts the mean of its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, x: Tensor) -> Tensor:
        x -= x.mean(-1, keepdim=True)
        return self.layers(x)


class _Images(nn.Module):
    """Images (B, 1, 16, 16) -> scores (B, 5)."""

    def __init__(self, gain: float = 1.0, rows: bool = False) -> None:
        super().__init__()
        self.image_size, self.num_channels, self.rows = 16, 1, rows
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
        )
        self.head = nn.Linear(256, 5)
        with torch.no_grad():
            self.layers[2].weight.mul_(gain)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.layers(pixel_values)
        return self.head(x.reshape(-1, len(x)).mT if self.rows else x.flatten(1))


def cosine_scores() -> nn.Module:
    """Scores are cosines: between -1 and 1, so that no class of sixty ever gets far above 1/60."""

    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(V, D) / D**0.5)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))

    model = Text(Residual(Heads()))
    model.head = Cosine()  # type: ignore[assignment]
    return model


def recurrent_exploding() -> nn.Module:
    """A plain recurrence with ReLU whose matrix doubles its state at every step."""
    cell = nn.RNN(D, D, batch_first=True, nonlinearity="relu")
    nn.init.eye_(cell.weight_hh_l0)
    with torch.no_grad():
        cell.weight_hh_l0.mul_(2.0)
    return Text(Residual(Applied(cell, lambda layer, x: layer(x)[0])))


def pairs_of_positions() -> nn.Module:
    """Additive attention that keeps a vector for every pair of positions."""

    class Additive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.score = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 1)

        def forward(self, x: Tensor) -> Tensor:
            scores = self.score((self.left(x)[:, :, None] + self.right(x)[:, None]).tanh())[..., 0]
            seen = torch.ones_like(scores[0], dtype=torch.bool).tril()
            return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ x

    return Text(Residual(Additive()), Residual(Additive()))


def head_frozen() -> nn.Module:
    model = Text(*(Residual(Heads()) for _ in range(3)))
    model.blocks[1].mixer.requires_grad_(False)  # type: ignore[union-attr]
    return model


def all_zero_layer() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    nn.init.zeros_(model[4].weight)
    return model


def linear_convolutions() -> nn.Module:
    model = _Images()
    model.layers[1] = nn.Identity()
    model.layers[3] = nn.Identity()
    return model


def unsaved_scale() -> nn.Module:
    class Scaled(Text):
        def __init__(self) -> None:
            super().__init__(Residual(Heads()))
            self.table = {"scale": torch.rand(D) + 0.5}

        def embedded(self, ids: Tensor) -> Tensor:
            return super().embedded(ids) * self.table["scale"]

    return Scaled()


def _forgets_the_bias(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    del state[prefix + "head.bias"]


class _Forgetful(Text):
    """Leaves a parameter out of what is saved."""

    def __init__(self) -> None:
        super().__init__(Residual(Heads()))
        self.register_state_dict_post_hook(_forgets_the_bias)


SHAPES, GRADIENTS, OUTPUTS = "shapes", "gradient flow", "output stability"
WEIGHTS, MEMORY, SPEED = "parameter initialisation", "memory footprint", "inference speed"

#: By name: what makes the model, the check that must name the fault, and the causes that count.
FAULTS: dict[str, tuple[Callable[[], nn.Module], str, tuple[str, ...]]] = {
    "attention over rows": (attention_over_rows, SHAPES, (SHAPES,)),
    "convolution on both sides": (convolution_on_both_sides, SHAPES, ("causality", SHAPES)),
    "recurrence in both directions": (recurrence_in_both_directions, SHAPES, ("causality", SHAPES)),
    "normalised over positions": (normalised_over_positions, SHAPES, ("causality", SHAPES)),
    "masked after softmax": (masked_after_softmax, SHAPES, ("causality", SHAPES)),
    "mask too weak": (mask_too_weak, SHAPES, ("causality", SHAPES)),
    "fourier mixing": (fourier_mixing, SHAPES, ("causality", SHAPES)),
    "heads by a view": (reshaped_heads, SHAPES, ("padding",)),
    "normalised over rows": (normalised_over_rows, SHAPES, (SHAPES,)),
    "state kept between batches": (lambda: Text(Residual(_Stateful())), SHAPES, ("carried state",)),
    "attention dropout always on": (attention_dropout_always, OUTPUTS, (OUTPUTS,)),
    "mean over padding": (lambda: _Pooled(lambda x, mask: x.mean(1)), SHAPES, ("padding",)),
    "maximum over padding": (lambda: _Pooled(lambda x, mask: x.amax(1)), SHAPES, ("padding",)),
    "recurrence through padding": (lambda: _Pooled(_masked_mean, recurrent=True), SHAPES, ("padding",)),
    "scores times the mask": (_Scores, SHAPES, ("padding",)),
    "dropout of 0.97": (lambda: with_dropout(0.97), WEIGHTS, ("dropout rate",)),
    "dropout of 1": (lambda: with_dropout(1.0), WEIGHTS, ("dropout rate",)),
    "wrong backward": (wrong_backward, GRADIENTS, ("gradient",)),
    "checkpointing detaches": (_Checkpointed, GRADIENTS, ("gradient checkpointing", "checkpointing")),
    "loss not shifted": (lambda: _OwnLoss(_unshifted), OUTPUTS, ("own loss",)),
    "loss over ignored targets": (lambda: _OwnLoss(_mean_over_everything), OUTPUTS, ("own loss",)),
    "loss of probabilities": (lambda: _OwnLoss(_of_probabilities), OUTPUTS, ("own loss",)),
    "layers in a dictionary": (_Listed, GRADIENTS, ("unregistered",)),
    "layer made in forward": (lambda: _FreshLayer(Residual(Heads())), GRADIENTS, ("unregistered",)),
    "memory of all calls": (_Growing, MEMORY, ("growth",)),
    "draws with random": (lambda: _Shuffles(Residual(Heads())), OUTPUTS, ("random state",)),
    "table centred in place": (_Centred, OUTPUTS, ("inputs changed in place",)),
    "images reshaped across rows": (lambda: _Images(rows=True), SHAPES, (SHAPES,)),
    "convolution too large": (lambda: _Images(gain=100.0), WEIGHTS, (WEIGHTS,)),
    "cosines as scores": (cosine_scores, OUTPUTS, ("bounded",)),
    "absolute scores": (lambda: Text(Residual(Heads()), last=Applied(nn.Identity(), lambda _, x: x.abs())), OUTPUTS, ("one-sided",)),
    "softplus scores": (lambda: Text(Residual(Heads()), last=nn.Softplus()), OUTPUTS, ("one-sided",)),
    "recurrence doubles": (recurrent_exploding, WEIGHTS, ("activations through depth",)),
    "vector for every pair": (pairs_of_positions, MEMORY, ("T x T x d",)),
    "attention frozen in the middle": (head_frozen, GRADIENTS, ("frozen block",)),
    "two layers of zeros": (all_zero_layer, GRADIENTS, (GRADIENTS,)),
    "convolutions without activation": (linear_convolutions, WEIGHTS, ("linear",)),
    "scale in a dictionary": (unsaved_scale, WEIGHTS, ("unsaved state",)),
    "bias lost in state_dict": (_Forgetful, WEIGHTS, ("save and load", "unsaved state")),
    "outputs rounded": (lambda: Text(Residual(Heads()), last=Applied(nn.Identity(), lambda _, x: (8 * x).round() / 8)), GRADIENTS, (GRADIENTS, "gradient")),
}  # fmt: skip
