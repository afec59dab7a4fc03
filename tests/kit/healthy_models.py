"""Healthy models of different make, on which no check may raise an alarm: untrained, trained, adapted, frozen, odd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.kit.checked_models import HEALTHY_DESIGNS
from tests.kit.healthy_makes import MAKES
from tests.kit.healthy_positions import POSITIONS
from tests.kit.healthy_starts import STARTS
from tests.kit.planted import Causal
from tests.kit.toys import tiny_gpt

_TEXT = {"vocab_size": 60, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def _stock(model: str, config: str, **sizes: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**sizes))

    return make


def train(model: nn.Module, batches: int = 60, rate: float = 3e-3) -> nn.Module:
    """A short training on rows that count up, with plain AdamW: enough to move weights far from their initial values."""
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=rate)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(batches):
        ids = (torch.randint(60, (8, 1), generator=generator) + torch.arange(16)) % 60
        logits = model(ids)
        logits = getattr(logits, "logits", logits)
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


class RecurrentLM(nn.Module):
    """ids (B, T) -> logits (B, T, V) by a GRU or an LSTM."""

    def __init__(self, cell: type[nn.RNNBase] = nn.GRU) -> None:
        super().__init__()
        self.max_seq_len = 32
        self.embedding, self.cell = nn.Embedding(60, 32), cell(32, 32, batch_first=True)
        self.head = nn.Linear(32, 60)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.cell(self.embedding(ids))[0])


class ConvolutionalLM(nn.Module):
    """Causal convolutions with a residual path."""

    def __init__(self) -> None:
        super().__init__()
        self.max_seq_len = 32
        self.embedding = nn.Embedding(60, 32)
        self.layers = nn.ModuleList(nn.Conv1d(32, 32, 3) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 60)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.embedding(ids).transpose(1, 2)
        for layer in self.layers:
            hidden = hidden + F.relu(layer(F.pad(hidden, (2, 0))))
        return self.head(self.norm(hidden.transpose(1, 2)))


class LoRALinear(nn.Module):
    """A frozen linear layer beside a trained product of two thin matrices, the second one zero at first."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.lora_A.T @ self.lora_B.T


class Attention(nn.Module):
    """A causal transformer of torch's own layers, with learned positions and without a padding mask."""

    def __init__(self, layers: int = 3, shared: bool = False, head_bias: bool = False) -> None:
        super().__init__()
        self.max_seq_len, self.shared = 32, shared
        self.embedding, self.positions = nn.Embedding(60, 32), nn.Embedding(32, 32)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        make = nn.TransformerEncoderLayer
        self.layers = nn.ModuleList(
            make(32, 2, 64, dropout=0.1, batch_first=True, norm_first=True) for _ in range(1 if shared else layers)
        )
        self.times = layers if shared else 1
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 60, bias=head_bias)

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        hidden = self.embedding(input_ids) + self.positions(torch.arange(length, device=input_ids.device))
        mask = torch.full((length, length), -1e9, dtype=hidden.dtype, device=hidden.device).triu(1)
        for _ in range(self.times):
            for layer in self.layers:
                hidden = layer(hidden, src_mask=mask)
        return self.head(self.norm(hidden))


class StateSpace(nn.Module):
    """A diagonal linear recurrence, whose A starts with equal rows by design (S4D-real, Mamba)."""

    def __init__(self) -> None:
        super().__init__()
        self.max_seq_len = 32
        self.embedding = nn.Embedding(60, 16)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, 5).float()).repeat(16, 1))
        self.B, self.C = nn.Linear(16, 4), nn.Linear(16, 4)
        self.D = nn.Parameter(torch.ones(16))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 60)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        decay = torch.exp(-0.1 * self.A_log.exp())
        state, outputs = x.new_zeros(x.shape[0], 16, 4), []
        for t in range(x.shape[1]):
            state = decay * state + x[:, t, :, None] * self.B(x[:, t])[:, None]
            outputs.append((state * self.C(x[:, t])[:, None]).sum(-1) + self.D * x[:, t])
        return self.head(self.norm(x + torch.stack(outputs, 1)))


_LLAMA = _stock("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2, max_position_embeddings=64, **_SIZES, **_TEXT)


def _with_lora() -> nn.Module:
    model = _LLAMA().requires_grad_(False)
    for layer in model.model.layers:  # type: ignore[union-attr]
        attention = layer.self_attn
        attention.q_proj, attention.v_proj = LoRALinear(attention.q_proj), LoRALinear(attention.v_proj)
    return model


def _frozen_first_blocks() -> nn.Module:
    model = tiny_gpt(length=32)
    model.transformer.wte.requires_grad_(False)
    model.transformer.h[0].requires_grad_(False)
    return model


def _head_only() -> nn.Module:
    model = Attention().requires_grad_(False)
    model.head.requires_grad_(True)
    return model


def _classifier_of_digits(trained: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    if trained:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        x = torch.randn(256, 10)
        y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
        for _ in range(200):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


def _regression(trained: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1))
    if trained:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        x = torch.randn(256, 3)
        y = 40 * x[:, :1] + 100
        for _ in range(300):
            F.mse_loss(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model


class SeriesClassifier(nn.Module):
    """Series of numbers (B, T, F) -> classes by an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(3, 16, batch_first=True), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class BatchNormedTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _small_images() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 36, 10)
    )
    model.image_size = 12
    return model


#: By name; each a function that makes the model.
HEALTHY: dict[str, Callable[[], nn.Module]] = {
    **HEALTHY_DESIGNS,
    **MAKES,
    **STARTS,
    **POSITIONS,
    "RoFormer": _stock(
        "RoFormerForMaskedLM", "RoFormerConfig", embedding_size=32, max_position_embeddings=32, **_SIZES, **_TEXT
    ),
    "Longformer classifier": _stock(
        "LongformerForSequenceClassification", "LongformerConfig", attention_window=8, max_position_embeddings=34, num_labels=3,
        **_SIZES, **_TEXT,
    ),
    "Switch Transformer": _stock(
        "SwitchTransformersForConditionalGeneration", "SwitchTransformersConfig", vocab_size=60, d_model=32, d_kv=8, d_ff=32,
        num_layers=2, num_sparse_encoder_layers=1, num_decoder_layers=2, num_sparse_decoder_layers=1, num_heads=2,
        num_experts=2, decoder_start_token_id=0,
    ),
    "GPT-2": lambda: tiny_gpt(length=32),
    "GPT-2 trained": lambda: train(tiny_gpt(vocab_size=60, length=32)),
    "GPT-2 in bf16": lambda: tiny_gpt(length=32).to(torch.bfloat16),
    "GPT-2, first blocks frozen": _frozen_first_blocks,
    "Llama": _stock("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=1, max_position_embeddings=64, **_SIZES, **_TEXT),
    "Llama trained": lambda: train(
        _stock("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2, max_position_embeddings=64, **_SIZES, **_TEXT)()
    ),
    "Qwen2": _stock("Qwen2ForCausalLM", "Qwen2Config", num_key_value_heads=1, max_position_embeddings=64, **_SIZES, **_TEXT),
    "OPT": _stock(
        "OPTForCausalLM", "OPTConfig", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64,
        max_position_embeddings=64, word_embed_proj_dim=32, **_TEXT,
    ),
    "BLOOM (ALiBi)": _stock("BloomForCausalLM", "BloomConfig", hidden_size=32, n_layer=2, n_head=2, **_TEXT),
    "GPT-NeoX": _stock("GPTNeoXForCausalLM", "GPTNeoXConfig", max_position_embeddings=64, **_SIZES, **_TEXT),
    "Mamba": _stock("MambaForCausalLM", "MambaConfig", hidden_size=32, num_hidden_layers=2, state_size=4, **_TEXT),
    "BERT": _stock("BertForMaskedLM", "BertConfig", max_position_embeddings=64, vocab_size=60, **_SIZES),
    "BERT classifier": _stock(
        "BertForSequenceClassification", "BertConfig", max_position_embeddings=64, vocab_size=60, num_labels=3, **_SIZES
    ),
    "BERT regressor": _stock(
        "BertForSequenceClassification", "BertConfig", max_position_embeddings=64, vocab_size=60, num_labels=1, **_SIZES
    ),
    "GPT-2 regressor": _stock(
        "GPT2ForSequenceClassification", "GPT2Config", n_embd=32, n_layer=2, n_head=2, n_positions=64, num_labels=1, **_TEXT
    ),
    "ViT regressor": _stock("ViTForImageClassification", "ViTConfig", image_size=32, patch_size=8, num_labels=1, **_SIZES),
    "BERT tagger": _stock(
        "BertForTokenClassification", "BertConfig", max_position_embeddings=64, vocab_size=60, num_labels=5, **_SIZES
    ),
    "DistilBERT classifier": _stock(
        "DistilBertForSequenceClassification", "DistilBertConfig", dim=32, n_layers=2, n_heads=2, hidden_dim=64,
        vocab_size=60, max_position_embeddings=64, num_labels=2,
    ),
    "ALBERT (shared layers)": _stock(
        "AlbertForMaskedLM", "AlbertConfig", embedding_size=16, max_position_embeddings=64, vocab_size=60, **_SIZES
    ),
    "GPT-2 classifier": _stock(
        "GPT2ForSequenceClassification", "GPT2Config", n_embd=32, n_layer=2, n_head=2, n_positions=64, num_labels=2, **_TEXT
    ),
    "BART": _stock(
        "BartForConditionalGeneration", "BartConfig", d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
        max_position_embeddings=64, decoder_start_token_id=0, **_TEXT,
    ),
    "ViT": _stock("ViTForImageClassification", "ViTConfig", image_size=32, patch_size=8, num_labels=4, **_SIZES),
    "plain transformer": Attention,
    "plain transformer with a padding mask": Causal,
    "plain transformer, trained": lambda: train(Attention()),
    "plain transformer, shared layers": lambda: Attention(shared=True),
    "Llama with LoRA": _with_lora,
    "Llama with LoRA, trained": lambda: train(_with_lora()),
    "plain transformer, head only": _head_only,
    "GRU": RecurrentLM,
    "LSTM trained": lambda: train(RecurrentLM(nn.LSTM)),
    "causal convolutions": ConvolutionalLM,
    "state space": StateSpace,
    "classifier of a table": lambda: _classifier_of_digits(False),
    "classifier of a table, trained": lambda: _classifier_of_digits(True),
    "regression": lambda: _regression(False),
    "regression trained": lambda: _regression(True),
    "LSTM over series": SeriesClassifier,
    "table with batch normalisation": BatchNormedTable,
    "convolutions with batch normalisation": _small_images,
}
