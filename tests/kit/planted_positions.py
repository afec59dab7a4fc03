"""Faults planted in what an output sees and in how positions enter: rotary angles, biases, masks on the wrong side, state."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from tests.kit.planted_designs import GRADIENTS, OUTPUTS, SHAPES, D, Heads, Residual, T, Text, V


def angles(length: int, width: int, *, halves: bool) -> Tensor:
    """Rotary angles (T, width): the frequencies twice, as halves or as neighbours."""
    frequencies = 10000 ** (-torch.arange(0, width, 2).float() / width)
    twice = torch.cat([frequencies, frequencies]) if halves else frequencies.repeat_interleave(2)
    return torch.arange(length)[:, None] * twice


def rotated(x: Tensor, angle: Tensor) -> Tensor:
    """Rotation of the pairs (i, i + width / 2)."""
    first, second = x.chunk(2, -1)
    return x * angle.cos() + torch.cat([-second, first], -1) * angle.sin()


class Rotary(Heads):
    """Causal attention with rotary positions.

    Args:
        halves: how the angles are laid out; the rotation pairs halves.
        keys: whether keys are rotated too.
        slope: added to the scores for each position of distance.
    """

    def __init__(self, *, halves: bool = True, keys: bool = True, turns: bool = True, slope: float = 0.0) -> None:
        super().__init__()
        self.halves, self.keys, self.turns, self.slope = halves, keys, turns, slope

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        angle, place = angles(x.shape[1], q.shape[-1], halves=self.halves), torch.arange(x.shape[1])
        if self.turns:
            q, k = rotated(q, angle), rotated(k, angle) if self.keys else k
        scores = q @ k.mT / math.sqrt(q.shape[-1]) + self.slope * (place[:, None] - place)
        seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        return self.out((scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Unplaced(Text):
    """No positions in the embeddings."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__(*blocks)
        del self.positions

    def embedded(self, ids: Tensor) -> Tensor:
        return self.embedding(ids)


class _AllAtZero(nn.Module):
    """A Llama whose wrapper gives every token the position 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = LlamaConfig(
            vocab_size=V, hidden_size=D, intermediate_size=2 * D, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=T, pad_token_id=None, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        self.llama = LlamaForCausalLM(self.config)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.llama(input_ids, position_ids=torch.zeros_like(input_ids)).logits


class _TextForMaskedLM(Text):
    """Named as transformers names models that see both sides; the attention in it is causal."""


class _ShiftedInside(Text):
    """Moves its inputs one position to the right, as a decoder that is given labels."""

    def embedded(self, ids: Tensor) -> Tensor:
        return super().embedded(F.pad(ids, (1, -1)))


class Patches(nn.Module):
    """A vision transformer with a class token; the table of positions starts at zero."""

    def __init__(self, *, placed: bool) -> None:
        super().__init__()
        self.image_size = 12
        self.patches, self.first = nn.Conv2d(1, D, 4, stride=4), nn.Parameter(torch.randn(1, 1, D) * 0.02)
        self.places = nn.Parameter(torch.zeros(1, 10, D)) if placed else None
        layer = nn.TransformerEncoderLayer(D, 2, 2 * D, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(D, 4)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.patches(pixel_values).flatten(2).mT
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        return self.head(self.encoder(x if self.places is None else x + self.places)[:, 0])


class Translation(nn.Module):
    """An encoder-decoder of torch's layers; `causal` puts the decoder's mask on cross-attention too."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.config, self.max_seq_len = SimpleNamespace(is_encoder_decoder=True, vocab_size=V), T
        self.embedding, self.positions, self.head = nn.Embedding(V, D), nn.Embedding(T, D), nn.Linear(D, V)
        for table in (self.embedding, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        encoder = nn.TransformerEncoderLayer(D, 2, 2 * D, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(encoder, 1, enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoderLayer(D, 2, 2 * D, dropout=0.0, batch_first=True, norm_first=True)
        self.causal = causal

    def _embedded(self, ids: Tensor) -> Tensor:
        return self.embedding(ids) + self.positions(torch.arange(ids.shape[1]))

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        memory, x = self.encoder(self._embedded(input_ids)), self._embedded(decoder_input_ids)
        hidden = torch.ones(x.shape[1], memory.shape[1], dtype=torch.bool).triu(1)
        own = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.head(self.decoder(x, memory, tgt_mask=own, memory_mask=hidden if self.causal else None))


class _Detached(nn.Module):
    """A GRU whose state is cut off from the graph after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(D, D)

    def forward(self, x: Tensor) -> Tensor:
        state, states = torch.zeros_like(x[:, 0]), []
        for step in x.unbind(1):
            state = self.cell(step, state.detach())
            states.append(state)
        return torch.stack(states, 1)


class Scored(Text):
    """Computes its loss; targets that are token 3 are left out, which `padding` declares as padding or not."""

    def __init__(self, *, padding: bool) -> None:
        super().__init__(Residual(Heads()))
        if padding:
            self.embedding.padding_idx = 3

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> object:
        logits = super().forward(input_ids)
        loss = None
        if labels is not None:
            targets = labels[:, 1:].masked_fill(labels[:, 1:] == 3, -100)
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten())
        return SimpleNamespace(loss=loss, logits=logits)


#: By name: what makes the model, the check that must name the fault, and the causes that count.
POSITIONS: dict[str, tuple[Callable[[], nn.Module], str, tuple[str, ...]]] = {
    "rotary pairs laid out otherwise": (lambda: Unplaced(Residual(Rotary(halves=False))), SHAPES, ("positions not relative",)),
    "queries rotated, keys not": (lambda: Unplaced(Residual(Rotary(keys=False))), SHAPES, ("positions not relative",)),
    "all rotary positions zero": (lambda: _AllAtZero(), SHAPES, ("rotation without effect",)),
    "linear biases of the wrong sign": (
        lambda: Unplaced(Residual(Rotary(turns=False, slope=0.25))), SHAPES, ("far preferred",)
    ),
    "image patches without positions": (lambda: Patches(placed=False), SHAPES, ("order ignored",)),
    "causal mask in a masked language model": (lambda: _TextForMaskedLM(Residual(Heads())), SHAPES, ("causal mask",)),
    "inputs shifted inside": (lambda: _ShiftedInside(Residual(Heads())), SHAPES, ("own token unseen",)),
    "causal mask on cross-attention": (lambda: Translation(causal=True), SHAPES, ("source hidden",)),
    "state detached at each step": (lambda: Text(Residual(_Detached())), GRADIENTS, ("gradient between positions",)),
    "token left out of the loss": (lambda: Scored(padding=False), OUTPUTS, ("ignored token",)),
}  # fmt: skip
