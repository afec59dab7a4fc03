"""Small real models to start from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from utils.errors import ConfigError, Problem
from utils.models.images import as_size
from utils.models.registry import ModelRegistry
from utils.tokenization.special_tokens import BOS_ID, EOS_ID, PAD_ID

if TYPE_CHECKING:
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        BertForSequenceClassification,
        BertForTokenClassification,
        GPT2LMHeadModel,
        T5ForConditionalGeneration,
        ViTForImageClassification,
    )


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
    sizes = {"vocab_size": vocab_size, "max_seq_len": max_seq_len}
    _check_sizes("gpt-small", sizes, n_layer, n_embd, n_head, dropout)
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


@ModelRegistry.register("bert-small")
def bert_small(
    vocab_size: int = 4096,
    max_seq_len: int = 128,
    n_layer: int = 4,
    n_embd: int = 256,
    n_head: int = 4,
    dropout: float = 0.1,
    seed: int = 42,
    pad_token_id: int | None = PAD_ID,
) -> BertForMaskedLM:
    """A BERT that fills in masked tokens (Devlin et al. 2019): 4.3 M parameters with the defaults.

    Args:
        vocab_size: token ids, V.
        max_seq_len: most positions, T.
        n_layer, n_embd, n_head: layers, width and heads; the width is a multiple of the heads.
        dropout: on embeddings and block outputs; attention weights have none, as `gpt_small`'s.
        seed: as `gpt_small`'s.
        pad_token_id: its embedding is zero and learns nothing; None: unknown.
    Raises:
        ConfigError: lists every size that cannot be.
    """
    config = _bert_config("bert-small", vocab_size, max_seq_len, n_layer, n_embd, n_head, dropout, pad_token_id)
    from transformers import BertForMaskedLM

    with _seeded(seed):
        return BertForMaskedLM(config)


@ModelRegistry.register("bert-small-classifier")
def bert_small_classifier(
    num_classes: int = 2,
    vocab_size: int = 4096,
    max_seq_len: int = 128,
    n_layer: int = 4,
    n_embd: int = 256,
    n_head: int = 4,
    dropout: float = 0.1,
    seed: int = 42,
    pad_token_id: int | None = PAD_ID,
) -> BertForSequenceClassification:
    """The same with a score for each of `num_classes` classes of the whole text.

    Args:
        num_classes: classes, C; the others as `bert_small`'s.
    Raises:
        ConfigError: lists every size that cannot be.
    """
    config = _bert_config(
        "bert-small-classifier", vocab_size, max_seq_len, n_layer, n_embd, n_head, dropout, pad_token_id, num_classes
    )
    from transformers import BertForSequenceClassification

    with _seeded(seed):
        return BertForSequenceClassification(config)


@ModelRegistry.register("bert-small-token-classifier")
def bert_small_token_classifier(
    num_classes: int = 2,
    vocab_size: int = 4096,
    max_seq_len: int = 128,
    n_layer: int = 4,
    n_embd: int = 256,
    n_head: int = 4,
    dropout: float = 0.1,
    seed: int = 42,
    pad_token_id: int | None = PAD_ID,
) -> BertForTokenClassification:
    """The same with a score for each of `num_classes` tags of every token.

    Args:
        num_classes: tags, C; the others as `bert_small`'s.
    Raises:
        ConfigError: lists every size that cannot be.
    """
    config = _bert_config(
        "bert-small-token-classifier",
        vocab_size,
        max_seq_len,
        n_layer,
        n_embd,
        n_head,
        dropout,
        pad_token_id,
        num_classes,
    )
    from transformers import BertForTokenClassification

    with _seeded(seed):
        return BertForTokenClassification(config)


def _bert_config(
    model: str, vocab_size: int, max_seq_len: int, n_layer: int, n_embd: int, n_head: int, dropout: float,
    pad_token_id: int | None, num_classes: int | None = None,
) -> BertConfig:  # fmt: skip
    classes = {} if num_classes is None else {"num_classes": num_classes}
    sizes = {**classes, "vocab_size": vocab_size, "max_seq_len": max_seq_len}
    _check_sizes(model, sizes, n_layer, n_embd, n_head, dropout)
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=vocab_size,
        max_position_embeddings=max_seq_len,
        num_hidden_layers=n_layer,
        hidden_size=n_embd,
        num_attention_heads=n_head,
        intermediate_size=4 * n_embd,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,
        pad_token_id=_known(pad_token_id, vocab_size),
    )
    if num_classes is not None:
        config.num_labels = num_classes
    return config


@ModelRegistry.register("t5-mini")
def t5_mini(
    vocab_size: int = 4096,
    n_layer: int = 2,
    n_embd: int = 128,
    n_head: int = 4,
    dropout: float = 0.1,
    seed: int = 42,
    eos_token_id: int | None = EOS_ID,
    pad_token_id: int | None = PAD_ID,
) -> T5ForConditionalGeneration:
    """A T5, sequence-to-sequence (Raffel et al. 2020): 1.4 M parameters with the defaults.

    Positions are relative, so there is no longest input. It is the first version's design: the output layer shares the
    embedding's weights, scaled so that the first loss is that of a guess. T5 1.1's own output layer begins far above it.

    Args:
        vocab_size: token ids, V.
        n_layer: layers of the encoder, and of the decoder; n_embd, n_head: width and heads; the width is a multiple of them.
        dropout: everywhere, attention weights too: T5 has one setting for all.
        seed: as `gpt_small`'s.
        eos_token_id, pad_token_id: what `generate` uses; an answer begins with the padding id, or with 0 without one.
    Raises:
        ConfigError: lists every size that cannot be.
    """
    _check_sizes("t5-mini", {"vocab_size": vocab_size}, n_layer, n_embd, n_head, dropout)
    from transformers import T5Config, T5ForConditionalGeneration

    pad_id = _known(pad_token_id, vocab_size)
    config = T5Config(
        vocab_size=vocab_size,
        num_layers=n_layer,
        d_model=n_embd,
        d_kv=n_embd // n_head,
        num_heads=n_head,
        d_ff=4 * n_embd,
        dropout_rate=dropout,
        feed_forward_proj="relu",
        eos_token_id=_known(eos_token_id, vocab_size),
        pad_token_id=pad_id,
    )
    config.decoder_start_token_id = pad_id or 0
    with _seeded(seed):
        return T5ForConditionalGeneration(config)


@ModelRegistry.register("vit-small")
def vit_small(
    num_classes: int = 10,
    input_channels: int = 1,
    input_size: int | tuple[int, int] = 28,
    patch_size: int = 4,
    n_layer: int = 4,
    n_embd: int = 128,
    n_head: int = 4,
    dropout: float = 0.1,
    seed: int = 42,
) -> ViTForImageClassification:
    """A vision transformer over patches (Dosovitskiy et al. 2021): 0.8 M parameters with the defaults.

    Args:
        num_classes: classes, C.
        input_channels: 1 for grey, 3 for colour.
        input_size: (height, width) in pixels, or one number for both.
        patch_size: side of the patch that becomes a token, in pixels; the input's sides are multiples of it.
        n_layer, n_embd, n_head: layers, width and heads; the width is a multiple of the heads.
        dropout: on embeddings and block outputs; attention weights have none, as `gpt_small`'s.
        seed: as `gpt_small`'s.
    Raises:
        ConfigError: lists every size that cannot be.
    """
    size = as_size("vit-small", input_size)
    sizes = {"num_classes": num_classes, "input_channels": input_channels, "patch_size": patch_size}
    _check_sizes("vit-small", sizes, n_layer, n_embd, n_head, dropout)
    if size[0] % patch_size or size[1] % patch_size:
        problem = f"got {patch_size} for images of {size[0]} x {size[1]} pixels; both sides must be multiples of it"
        raise ConfigError.from_problems("vit-small", [Problem("patch_size", problem)])
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=size,
        patch_size=patch_size,
        num_channels=input_channels,
        num_hidden_layers=n_layer,
        hidden_size=n_embd,
        num_attention_heads=n_head,
        intermediate_size=4 * n_embd,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=0.0,
    )
    config.num_labels = num_classes
    with _seeded(seed):
        return ViTForImageClassification(config)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's CPU generator seeded inside the block and as before after it."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _known(token_id: int | None, vocab_size: int) -> int | None:
    """An id that the vocabulary does not have is no id."""
    return token_id if token_id is not None and token_id < vocab_size else None


def _check_sizes(model: str, sizes: Mapping[str, Any], n_layer: int, n_embd: int, n_head: int, dropout: float) -> None:
    """Raises ConfigError that lists every size of `model` that cannot be; `sizes` are those besides the transformer's own."""
    counts = {**sizes, "n_layer": n_layer, "n_embd": n_embd, "n_head": n_head}
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
        raise ConfigError.from_problems(model, problems)
