"""Small models for the model checks: healthy ones of unusual design, and ones with a single thing wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.kit.toys import tiny_gpt

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_TEXT = {"vocab_size": 60, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
_IMAGES = {"image_size": 32, "num_labels": 4}


def _stock(model: str, config: str, **sizes: Any) -> Callable[[], nn.Module]:
    """A transformers model of tiny sizes with its own initial weights."""

    def make() -> nn.Module:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**sizes))

    return make


#: Stock models whose design has, each in its way, looked like a fault: see the comments.
HEALTHY_DESIGNS: dict[str, Callable[[], nn.Module]] = {
    # Its positions begin after the padding id: 64 of them take 62 tokens.
    "RoBERTa": _stock("RobertaForMaskedLM", "RobertaConfig", **_SIZES, **_TEXT),
    # Experts that no token was sent to get no gradient.
    "Mixtral": _stock(
        "MixtralForCausalLM", "MixtralConfig", num_key_value_heads=2, num_local_experts=4, **_SIZES, **_TEXT
    ),
    # Adds 1 to its normalisations' scales, which begin at 0.
    "Gemma": _stock("GemmaForCausalLM", "GemmaConfig", num_key_value_heads=2, head_dim=16, **_SIZES, **_TEXT),
    # Tokens and positions of zeros go through a LayerNorm, whose derivative there is 1/sqrt(eps).
    "DeiT": _stock("DeiTForImageClassification", "DeiTConfig", patch_size=8, **_SIZES, **_IMAGES),
    # Its table of relative position biases begins at 0.
    "Swin": _stock(
        "SwinForImageClassification", "SwinConfig", patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2],
        window_size=4, **_IMAGES,
    ),
    # Scales its branches by 1e-6 at first.
    "ConvNeXt": _stock(
        "ConvNextForImageClassification", "ConvNextConfig", hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], **_IMAGES
    ),
    "T5": _stock(
        "T5ForConditionalGeneration", "T5Config", vocab_size=60, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
        decoder_start_token_id=0,
    ),
}  # fmt: skip

resnet = _stock(
    "ResNetForImageClassification", "ResNetConfig", num_channels=3, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],
    num_labels=4,
)  # fmt: skip


def zero_projections(head: bool = False) -> nn.Module:
    """A GPT-2 whose residual projections, and `head` if asked, begin at zero: a usual design that trains well."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=60, n_positions=64, n_embd=32, n_layer=2, n_head=2, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_proj.weight.zero_()
            block.mlp.c_proj.weight.zero_()
        if head:
            model.lm_head.weight.zero_()
    return model


def scaled(name: str, factor: float) -> nn.Module:
    """A tiny GPT-2 with one parameter multiplied by `factor`."""
    model = tiny_gpt(length=64)
    with torch.no_grad():
        model.get_parameter(name).mul_(factor)
    return model


class Block(nn.Module):
    """ids (B, T) -> logits (B, T, V): an embedding, a normalised layer and a head, position by position."""

    def __init__(self, vocab_size: int = 32, width: int = 16, max_seq_len: int = 32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.max_seq_len = max_seq_len
        self.embedding = nn.Embedding(vocab_size, width)
        self.layer, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size)

    def mixed(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD + self.layer(self.norm(hidden_BTD)).tanh()

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.head(self.mixed(self.embedding(ids_BT)))


class RowByRow(Block):
    """Right, and as slow as its rows one by one."""

    def mixed(self, hidden_BTD: Tensor) -> Tensor:
        return torch.stack([super(RowByRow, self).mixed(row_TD) for row_TD in hidden_BTD])


class PairsPositions(Block):
    """Compares every three positions: cubic in the length."""

    def mixed(self, hidden_BTD: Tensor) -> Tensor:
        first_BT = hidden_BTD[..., 0]
        triples = first_BT[:, :, None, None] * first_BT[:, None, :, None] * first_BT[:, None, None, :]
        return super().mixed(hidden_BTD) + 0 * triples.sum()


class PairsRows(Block):
    """Compares every row of the batch with every other: quadratic in the batch."""

    def mixed(self, hidden_BTD: Tensor) -> Tensor:
        rows = hidden_BTD.flatten(1)
        return super().mixed(hidden_BTD) + 0 * (rows[:, None] - rows[None]).square().sum()


class TakesFewerPositions(Block):
    """States twice the positions that it has."""

    def __init__(self) -> None:
        super().__init__(max_seq_len=32)
        self.positions = nn.Embedding(16, 16)

    def mixed(self, hidden_BTD: Tensor) -> Tensor:
        return super().mixed(hidden_BTD + self.positions(torch.arange(hidden_BTD.shape[1])))


class Undecided(Block):
    """Gives every class the same score, whatever the input."""

    def forward(self, ids_BT: Tensor) -> Tensor:
        logits_BTV = super().forward(ids_BT)
        return logits_BTV.sum(-1, keepdim=True).expand_as(logits_BTV)


class Meddling(Block):
    """Changes its own weights and replaces a buffer in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, ids_BT: Tensor) -> Tensor:
        self.calls = self.calls + 1
        with torch.no_grad():
            self.layer.weight.mul_(0.999)
        return super().forward(ids_BT)
