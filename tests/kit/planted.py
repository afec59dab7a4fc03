"""Models with one planted fault each, and the check and cause that must name it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.kit.planted_designs import FAULTS
from tests.kit.planted_details import DETAILS
from tests.kit.planted_positions import POSITIONS
from tests.kit.planted_starts import STARTS
from tests.kit.toys import tiny_gpt

V, D, T = 60, 32, 32


@dataclass(frozen=True)
class Plant:
    """`make()` gives the model; `check` must report a finding whose cause is one of `causes`."""

    make: Callable[[], nn.Module]
    check: str
    causes: tuple[str, ...]


class Mixer(nn.Module):
    """Causal self-attention with a padding mask; `fault` plants one thing."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.norm = nn.BatchNorm1d(D) if fault == "batchnorm" else nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, _ = x.shape
        y = self.norm(x.transpose(1, 2)).transpose(1, 2) if self.fault == "batchnorm" else self.norm(x)
        q, k, v = (part.view(batch, length, 2, D // 2).transpose(1, 2) for part in self.qkv(y).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(D // 2)
        seen = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        if self.fault == "mask off by one":
            seen = torch.ones(length, length, dtype=torch.bool).tril(1)
        if self.fault == "no mask when long" and length > 20:
            seen = torch.ones_like(seen)
        if self.fault == "no mask in training" and self.training:
            seen = torch.ones_like(seen)
        if self.fault == "last position seen":
            seen[:, -1] = True
        if mask is not None and self.fault != "mask ignored":
            seen = seen & (mask[:, None, None].bool() if self.fault != "mask inverted" else ~mask[:, None, None].bool())
            if self.fault != "masked rows are NaN":
                seen = seen | torch.eye(length, dtype=torch.bool)
        scores = scores.masked_fill(~seen, float("-inf"))
        weights = scores.softmax(0 if self.fault == "softmax over rows" else -1)
        if self.fault == "softmax over rows":
            weights = weights.nan_to_num()
        return x + self.out((weights @ v).transpose(1, 2).reshape(batch, length, D))


class Causal(nn.Module):
    """ids (B, T) -> logits (B, T, V): three blocks of attention and MLP, with `fault` planted."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fault, self.max_seq_len = fault, T
        self.embedding, self.positions = nn.Embedding(V, D), nn.Embedding(T, D)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.mixers = nn.ModuleList(Mixer(fault) for _ in range(3))
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, D)) for _ in range(3))
        self.dropout = nn.Dropout(0.95 if fault == "dropout kept as dropped" else 0.1)
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, V)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        plant = getattr(self, "_plant_" + fault.replace(" ", "_").replace("-", "_"), None)
        if plant:
            plant()

    # ---- planted in the constructor ----

    def _plant_layer_in_a_list(self) -> None:
        self.extra = [nn.Linear(D, D)]

    def _plant_tensor_without_Parameter(self) -> None:
        self.scale = torch.ones(D, requires_grad=True)

    def _plant_same_layer_three_times(self) -> None:
        self.mlps = nn.ModuleList([self.mlps[0]] * 3)

    def _plant_two_names_for_one_layer(self) -> None:
        self.first = self.second = nn.Linear(D, D)

    def _plant_random_tensor_not_saved(self) -> None:
        self.projection = torch.randn(D, D) / D**0.5

    def _plant_buffer_not_persistent(self) -> None:
        self.register_buffer("projection", torch.randn(D, D) / D**0.5, persistent=False)

    def _plant_running_mean_not_saved(self) -> None:
        self.mean = torch.zeros(D)

    def _plant_tie_copied(self) -> None:
        self.head.weight = nn.Parameter(self.embedding.weight.detach().clone())

    def _plant_middle_block_frozen(self) -> None:
        self.mixers[1].requires_grad_(False)

    def _plant_head_too_large(self) -> None:
        nn.init.normal_(self.head.weight, std=1.0)

    def _plant_embedding_too_large(self) -> None:
        nn.init.normal_(self.embedding.weight, std=5.0)

    def _plant_layer_too_small(self) -> None:
        nn.init.normal_(self.mlps[1][0].weight, std=1e-5)

    def _plant_constant_weights(self) -> None:
        nn.init.constant_(self.mlps[1][0].weight, 0.1)

    def _plant_NaN_weight(self) -> None:
        with torch.no_grad():
            self.mlps[0][0].weight[0, 0] = float("nan")

    def _plant_bias_of_the_head(self) -> None:
        nn.init.normal_(self.head.bias, std=5.0)

    def _plant_dead_relu(self) -> None:
        nn.init.constant_(self.mlps[1][0].bias, -20.0)

    def _plant_norm_scale_huge(self) -> None:
        nn.init.constant_(self.norm.weight, 100.0)

    def _plant_appends_outputs(self) -> None:
        self.kept: list[Tensor] = []

    def _plant_memory_of_the_last_call(self) -> None:
        self.memory = torch.zeros(D)

    # ---- planted in forward ----

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        fault, length = self.fault, input_ids.shape[1]
        if fault == "input changed":
            input_ids[:, 0] = 0
        if fault == "seeds":
            torch.manual_seed(0)
        if fault == "draws with numpy":
            np.random.rand()  # noqa: NPY002 - the fault
        positions = torch.arange(length)
        if fault == "positions wrap":
            positions = positions % T
        x = self.embedding(input_ids) + self.positions(positions)
        x = F.dropout(x, 0.2) if fault == "dropout always on" else self.dropout(x)
        if fault == "embedding detached":
            x = x.detach()
        if fault == "NaN at one length" and length == 7:
            x = x * float("nan")
        if fault == "raises on one row" and len(x) == 1:
            raise RuntimeError("a batch of one is squeezed away")
        if fault == "layer in a list":
            x = x + self.extra[0](x)
        if fault == "two names for one layer":
            x = x + self.first(x) + self.second(x)
        if fault == "tensor without Parameter":
            x = x * self.scale
        if fault in ("random tensor not saved", "buffer not persistent"):
            x = x + x @ self.projection
        if fault == "running mean not saved":
            if self.training:
                self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 1))
            x = x - self.mean
        if fault == "memory of the last call":
            x = x + self.memory
            self.memory = x.detach().mean((0, 1))
        for index, (mixer, mlp) in enumerate(zip(self.mixers, self.mlps, strict=True)):
            x = mixer(x, attention_mask)
            more = mlp(x)
            if fault == "half of a path detached" and index == 1:
                more = 0.5 * more + 0.5 * more.detach()
            if fault == "block under no_grad" and index == 1:
                with torch.no_grad():
                    more = mlp(x)
            if fault == "gradient reversed" and index == 1:
                more = 2 * more.detach() - more
            if fault == "layer unused" and index == 1:
                more = x
            x = x + more
        if fault == "mean over positions":
            x = x + x.mean(1, keepdim=True)
        if fault == "mean over rows":
            x = x + x.mean(0, keepdim=True)
        if fault == "mean over rows in training" and self.training:
            x = x + x.mean(0, keepdim=True)
        if fault == "appends outputs":
            self.kept.append(x)
        if fault == "pairs with a vector each":
            x = x + 0 * (x[:, :, None] + x[:, None]).sum(2)
        if fault == "pairs of rows":
            rows = x.flatten(1)
            x = x + 0 * (rows[:, None] * rows[None]).tanh().sum()
        if fault == "loop over rows":
            x = torch.stack([self.norm(row).tanh() for row in x])
        logits = self.head(self.norm(x))
        if fault == "transposed":
            return logits.transpose(0, 1)
        if fault == "last position only":
            return logits[:, -1]
        wrapped = {
            "softmax": lambda z: z.softmax(-1), "log-softmax": lambda z: z.log_softmax(-1), "sigmoid": torch.sigmoid,
            "relu": F.relu, "tanh": torch.tanh, "clamp": lambda z: z.clamp(-0.05, 0.05), "squared": torch.square,
            "times 1000": lambda z: z * 1000, "summed": lambda z: z.sum(-1, keepdim=True).expand_as(z),
            "input ignored": lambda z: z * 0 + self.head.bias + self.head.weight[:, 0],
        }  # fmt: skip
        return wrapped[fault](logits) if fault in wrapped else logits


class WithLoss(Causal):
    """Computes its own loss, wrongly."""

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:  # type: ignore[override]
        logits = super().forward(input_ids)
        if labels is None:
            return {"logits": logits}
        if self.fault == "labels shifted twice":
            loss = F.cross_entropy(logits[:, :-2].flatten(0, 1), labels[:, 2:].flatten())
        elif self.fault == "ignored label scored":
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].clamp_min(0).flatten())
        else:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        return {"logits": logits, "loss": loss}


class Deep(nn.Module):
    """A plain stack over numbers without residual paths."""

    def __init__(self, activation: type[nn.Module], gain: float, layers: int = 12) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, D)
        blocks = []
        for _ in range(layers):
            linear = nn.Linear(D, D)
            nn.init.normal_(linear.weight, std=gain / D**0.5)
            blocks.append(nn.Sequential(linear, activation()))
        self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def _table(*layers: nn.Module) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(*layers)

    return make


class SeriesAcrossRows(nn.Module):
    """A recurrent net that takes the batch for the time."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(3, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def _gpt(change: Callable[[Any], None]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = tiny_gpt(vocab_size=V, length=T)
        change(model)
        return model

    return make


def _cache_positions_from_zero(model: Any) -> None:
    forward = model.transformer.forward

    def wrong(input_ids: Any = None, past_key_values: Any = None, position_ids: Any = None, **rest: Any) -> Any:
        if past_key_values is not None and position_ids is not None:
            position_ids = torch.arange(input_ids.shape[1])[None].expand(len(input_ids), -1)
        return forward(input_ids, past_key_values=past_key_values, position_ids=position_ids, **rest)

    model.transformer.forward = wrong


def _untie(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight) * 0.02)


def _encoder_ignored() -> nn.Module:
    import transformers

    config = transformers.T5Config(
        vocab_size=V, d_model=D, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config)
    encode = model.encoder.forward

    def wrong(*arguments: Any, **named: Any) -> Any:
        outputs = encode(*arguments, **named)
        outputs.last_hidden_state = torch.ones_like(outputs.last_hidden_state)
        return outputs

    model.encoder.forward = wrong
    return model


def _decoder_sees_ahead() -> nn.Module:
    import transformers

    config = transformers.T5Config(
        vocab_size=V, d_model=D, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config)
    model.decoder.is_decoder = True
    for block in model.decoder.block:
        block.register_forward_pre_hook(
            lambda module, inputs: (inputs[0] + inputs[0].mean(1, keepdim=True), *inputs[1:])
        )
    return model


def _causal(fault: str, check: str, *causes: str, kind: type[nn.Module] = Causal) -> tuple[str, Plant]:
    return fault, Plant(lambda: kind(fault), check, causes)


SHAPES, GRADIENTS, OUTPUTS = "shapes", "gradient flow", "output stability"
WEIGHTS, MEMORY, SPEED = "parameter initialisation", "memory footprint", "inference speed"

#: By name of the fault.
PLANTED: dict[str, Plant] = dict(
    [
        _causal("mask off by one", SHAPES, "causality", SHAPES),
        _causal("no mask when long", SHAPES, "causality"),
        _causal("no mask in training", SHAPES, "causality"),
        _causal("last position seen", SHAPES, "causality", SHAPES),
        _causal("mean over positions", SHAPES, "causality", SHAPES),
        _causal("mean over rows", SHAPES, SHAPES),
        _causal("mean over rows in training", SHAPES, "rows in training"),
        _causal("softmax over rows", SHAPES, SHAPES),
        _causal("batchnorm", SHAPES, "causality", "rows in training"),
        _causal("mask ignored", SHAPES, "padding"),
        _causal("mask inverted", SHAPES, "padding"),
        _causal("masked rows are NaN", SHAPES, "padding"),
        _causal("positions wrap", SHAPES, "length"),
        _causal("NaN at one length", SHAPES, "length"),
        _causal("raises on one row", SHAPES, SHAPES),
        _causal("transposed", SHAPES, SHAPES),
        _causal("last position only", SHAPES, SHAPES),
        _causal("memory of the last call", SHAPES, "carried state"),
        _causal("embedding detached", GRADIENTS, GRADIENTS),
        _causal("half of a path detached", GRADIENTS, "gradient"),
        _causal("block under no_grad", GRADIENTS, GRADIENTS, "gradient"),
        _causal("gradient reversed", GRADIENTS, "gradient"),
        _causal("layer unused", GRADIENTS, GRADIENTS),
        _causal("layer in a list", GRADIENTS, "unregistered"),
        _causal("tensor without Parameter", GRADIENTS, "unregistered"),
        _causal("middle block frozen", GRADIENTS, "frozen block"),
        _causal("same layer three times", WEIGHTS, "shared module"),
        _causal("two names for one layer", WEIGHTS, "shared module"),
        _causal("random tensor not saved", WEIGHTS, "unsaved state"),
        _causal("buffer not persistent", WEIGHTS, "unsaved state"),
        _causal("running mean not saved", WEIGHTS, "unsaved state"),
        _causal("tie copied", WEIGHTS, "broken tie"),
        _causal("dropout kept as dropped", WEIGHTS, "dropout rate"),
        _causal("embedding too large", WEIGHTS, WEIGHTS),
        _causal("layer too small", WEIGHTS, WEIGHTS),
        _causal("constant weights", WEIGHTS, WEIGHTS),
        _causal("NaN weight", WEIGHTS, WEIGHTS),
        _causal("norm scale huge", WEIGHTS, WEIGHTS),
        _causal("dead relu", WEIGHTS, "dead units"),
        _causal("head too large", OUTPUTS, "initial loss"),
        _causal("times 1000", OUTPUTS, OUTPUTS, "initial loss"),
        _causal("bias of the head", OUTPUTS, "dominated by a bias", "initial loss"),
        _causal("softmax", OUTPUTS, "probabilities"),
        _causal("log-softmax", OUTPUTS, "log-probabilities"),
        _causal("sigmoid", OUTPUTS, "bounded"),
        _causal("tanh", OUTPUTS, "bounded"),
        _causal("clamp", OUTPUTS, "bounded", "clipped"),
        _causal("relu", OUTPUTS, "one-sided"),
        _causal("squared", OUTPUTS, "one-sided"),
        _causal("summed", OUTPUTS, OUTPUTS),
        _causal("input ignored", OUTPUTS, OUTPUTS),
        _causal("dropout always on", OUTPUTS, OUTPUTS),
        _causal("seeds", OUTPUTS, OUTPUTS),
        _causal("draws with numpy", OUTPUTS, "random state"),
        _causal("input changed", OUTPUTS, "inputs changed in place"),
        _causal("appends outputs", MEMORY, "growth"),
        _causal("pairs with a vector each", MEMORY, "T x T x d"),
        _causal("pairs of rows", MEMORY, MEMORY, "growth with batch"),
        _causal("loop over rows", SPEED, SPEED),
        _causal("labels shifted twice", OUTPUTS, "own loss", kind=WithLoss),
        _causal("ignored label scored", OUTPUTS, "own loss", kind=WithLoss),
        _causal("loss summed", OUTPUTS, "own loss", kind=WithLoss),
    ]
) | {
    "cache counts positions from zero": Plant(_gpt(_cache_positions_from_zero), SHAPES, ("cache",)),
    "tie lost": Plant(_gpt(_untie), WEIGHTS, ("broken tie",)),
    "encoder ignored": Plant(_encoder_ignored, SHAPES, ("encoder ignored",)),
    "decoder sees ahead": Plant(_decoder_sees_ahead, SHAPES, ("causality",)),
    "sigmoid stack": Plant(lambda: Deep(nn.Sigmoid, 1.0), GRADIENTS, ("vanishing gradients",)),
    "exploding stack": Plant(lambda: Deep(nn.ReLU, 5.0), GRADIENTS, ("exploding gradients",)),
    "shrinking stack": Plant(lambda: Deep(nn.ReLU, 0.3), WEIGHTS, ("activations through depth",)),
    "no activation": Plant(_table(nn.Linear(4, 32), nn.Linear(32, 32), nn.Linear(32, 2)), WEIGHTS, ("linear",)),
    "softmax over one unit": Plant(
        _table(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1), nn.Softmax(-1)), OUTPUTS, ("constant output", OUTPUTS)
    ),
    "sigmoid before cross-entropy": Plant(
        _table(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3), nn.Sigmoid()), OUTPUTS, ("bounded",)
    ),
    "relu on a regression": Plant(
        _table(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1), nn.ReLU()), OUTPUTS, ("one-sided",)
    ),
    "softmax over the batch": Plant(
        _table(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3), nn.Softmax(0)), SHAPES, (SHAPES,)
    ),
    "batch taken for time": Plant(SeriesAcrossRows, SHAPES, (SHAPES,)),
    **{name: Plant(*fault) for name, fault in (FAULTS | DETAILS | STARTS | POSITIONS).items()},
}
