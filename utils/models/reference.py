"""Small real models to start from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from utils.errors import ConfigError, Problem
from utils.models.registry import ModelRegistry
from utils.tokenization.special_tokens import BOS_ID, EOS_ID, PAD_ID

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


@ModelRegistry.register("gpt-small")
def gpt_small(
    vocab_size: int = 4096,
    max_seq_len: int = 128,
    n_layer: int = 4,
    n_embd: int = 256,
    n_head: int = 4,
    dropout: float = 0.2,
    seed: int = 42,
    bos_token_id: int | None = BOS_ID,
    eos_token_id: int | None = EOS_ID,
    pad_token_id: int | None = PAD_ID,
) -> GPT2LMHeadModel:
    """A GPT-2 of a size that learns on two CPU cores within minutes: 4.2 M parameters with the defaults.

    Args:
        vocab_size: token ids, V.
        max_seq_len: most positions, T.
        n_layer, n_embd, n_head: layers, width and heads; the width is a multiple of the heads.
        dropout: on embeddings and block outputs. Attention weights have none: on a CPU it makes attention 2 to 5 times
            slower.
        seed: of the initial weights; the same arguments give the same weights, and the caller's random state is left as
            it was.
        bos_token_id, eos_token_id, pad_token_id: what `generate` uses; the defaults are those of Trainbook's own
            tokenizers. None: unknown.
    Raises:
        ConfigError: lists every size that cannot be.
    """
    _check_sizes(vocab_size, max_seq_len, n_layer, n_embd, n_head, dropout)
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=max_seq_len,
        n_layer=n_layer,
        n_embd=n_embd,
        n_head=n_head,
        embd_pdrop=dropout,
        resid_pdrop=dropout,
        attn_pdrop=0.0,
        bos_token_id=_known(bos_token_id, vocab_size),
        eos_token_id=_known(eos_token_id, vocab_size),
        pad_token_id=_known(pad_token_id, vocab_size),
    )
    with _seeded(seed):
        model = GPT2LMHeadModel(config)
    # transformers derives it from the class name, finds none for this class, and warns at the first loss.
    model.loss_type = "ForCausalLM"
    return model


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's CPU generator seeded inside the block and as before after it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _known(token_id: int | None, vocab_size: int) -> int | None:
    """An id that the vocabulary does not have is no id."""
    return token_id if token_id is not None and token_id < vocab_size else None


def _check_sizes(vocab_size: int, max_seq_len: int, n_layer: int, n_embd: int, n_head: int, dropout: float) -> None:
    counts = {
        "vocab_size": vocab_size, "max_seq_len": max_seq_len, "n_layer": n_layer, "n_embd": n_embd, "n_head": n_head,
    }  # fmt: skip
    problems = [
        Problem(name, f"got {value!r}; must be a whole number of at least 1")
        for name, value in counts.items()
        if not isinstance(value, int) or isinstance(value, bool) or value < 1
    ]
    if not problems and n_embd % n_head:
        problems.append(
            Problem("n_embd", f"got {n_embd} for n_head={n_head}; the width must be a multiple of the heads")
        )
    if not isinstance(dropout, (int, float)) or isinstance(dropout, bool) or not 0 <= dropout < 1:
        problems.append(Problem("dropout", f"got {dropout!r}; must be at least 0 and below 1"))
    if problems:
        raise ConfigError.from_problems("gpt-small", problems)
