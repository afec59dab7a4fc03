"""Toy but real models, data and settings: milliseconds a step, with everything that can go wrong on a resume."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from utils.storage import json_line
from utils.training import TrainingConfig
from utils.training.engine.results import TrainingResults

VOCAB_SIZE, LENGTH = 32, 16


def tiny_gpt(
    vocab_size: int = VOCAB_SIZE, length: int = LENGTH, dropout: float = 0.1, seed: int = 0, layers: int = 2
) -> nn.Module:  # fmt: skip
    """A GPT2LMHeadModel of 2 layers and width 32. One layer is traced in less time."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab_size, n_positions=length, n_embd=32, n_layer=layers, n_head=2, bos_token_id=0,
                eos_token_id=0, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
            )
        )  # fmt: skip


def gpt_of_one_layer(dropout: float = 0.1, seed: int = 0, length: int = LENGTH) -> nn.Module:
    """A `tiny_gpt` for what no layer changes, such as what is stored and continued: two thirds of the time."""
    return tiny_gpt(length=length, dropout=dropout, seed=seed, layers=1)


def tiny_llama(vocab_size: int = VOCAB_SIZE, length: int = LENGTH, seed: int = 0) -> nn.Module:
    """A LlamaForCausalLM of 2 layers and width 32: rotary positions, gated layers, an output layer of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size, max_position_embeddings=length, hidden_size=32, intermediate_size=64,
                num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, bos_token_id=0, eos_token_id=0,
                pad_token_id=None,
            )
        )  # fmt: skip


class PlainLM(nn.Module):
    """A module that nobody prepared: ids (B, T) -> logits (B, T, V) from a token and the one before, with a name of its own for
    its input. A recurrent layer would be half of the time of each test that trains it."""

    def __init__(self, vocab_size: int = VOCAB_SIZE, width: int = 32, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.mixer = nn.Linear(2 * width, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        here = self.embedding(tokens)
        before = nn.functional.pad(here[:, :-1], (0, 0, 1, 0))
        hidden = torch.tanh(self.mixer(torch.cat((here, before), dim=-1)))
        return self.head(self.dropout(self.norm(hidden)))


class RecurrentLM(nn.Module):
    """A language model of a recurrent layer, whose weights are one piece of memory: ids (B, T) -> logits (B, T, V)."""

    def __init__(self, vocab_size: int = VOCAB_SIZE, width: int = 32, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.mixer = nn.GRU(width, width, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden, _ = self.mixer(self.embedding(tokens))
        return self.head(self.dropout(self.norm(hidden)))


class Bigram(nn.Module):
    """The least that is a language model, ids (B, T) -> logits (B, T, V): quick to export."""

    def __init__(self, vocab_size: int = VOCAB_SIZE) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table(input_ids)


def plain_lm(vocab_size: int = VOCAB_SIZE, dropout: float = 0.1, seed: int = 0) -> nn.Module:
    """A `PlainLM` with fixed initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PlainLM(vocab_size, dropout=dropout)


def recurrent_lm(vocab_size: int = VOCAB_SIZE, dropout: float = 0.1, seed: int = 0) -> nn.Module:
    """A `RecurrentLM` with fixed initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RecurrentLM(vocab_size, dropout=dropout)


class NormedLM(nn.Module):
    """A language model with batch normalisation, whose running statistics are buffers that a forward pass changes."""

    def __init__(self, vocab_size: int = VOCAB_SIZE, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.embedding(tokens).transpose(1, 2)).transpose(1, 2))


def normed_lm(seed: int = 0) -> NormedLM:
    """A `NormedLM` with fixed initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NormedLM()


def token_rows(count: int = 34, length: int = LENGTH, vocab_size: int = VOCAB_SIZE, seed: int = 1) -> Tensor:
    """int64 (count, length): each row counts up from a random start by a random stride, so there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(0, vocab_size, (count, 1), generator=generator)
    stride = torch.randint(1, 4, (count, 1), generator=generator)
    return (start + stride * torch.arange(length)) % vocab_size


def train_set() -> TensorDataset:
    """34 rows: with 4 a micro-batch and 3 micro-batches a step, the last step has 10 samples and its last micro-batch 2."""
    return TensorDataset(token_rows())


def validation_set() -> TensorDataset:
    """9 rows."""
    return TensorDataset(token_rows(9, seed=2))


def golden_config(**changes: Any) -> TrainingConfig:
    """Accumulation, ragged last batch, warm-up, cosine, clipping that bites, early stopping; 3 steps an epoch, 12 in all."""
    settings: dict[str, Any] = {
        "epochs": 4, "batch_size": 4, "gradient_accumulation_steps": 3, "learning_rate": 3e-3, "warmup_steps": 2,
        "weight_decay": 0.1, "max_grad_norm": 0.5, "early_stopping_patience": 3, "run_name": "golden",
    }  # fmt: skip
    return TrainingConfig(**{**settings, **changes})


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """History rows without what a clock decides."""
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    """Whether two models agree bit for bit."""
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def assert_same_run(first: TrainingResults, second: TrainingResults) -> None:
    """The two runs ended with the same weights, state and history, bit for bit; times apart."""
    assert same_weights(first.model, second.model)
    states = [results.state.to_dict() for results in (first, second)]
    for state in states:
        state["history"] = without_times(state["history"])
        del state["elapsed_s"], state["energy"]  # of the machine
    assert states[0] == states[1]
    # As JSON lines, in which NaN is equal to NaN.
    mine, theirs = ([json_line(row) for row in without_times(results.step_rows)] for results in (first, second))
    assert mine == theirs
