"""A tokenizer like BERT's and small labelled records, for every task that has texts."""

from __future__ import annotations

from functools import cache
from typing import Any

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)
_WORDS = [
    "the", "a", "cat", "dog", "sat", "ran", "on", "mat", "fast", "slow", "good", "bad", "red", "blue", "one", "two", "three",
    "play",
]  # fmt: skip
_PIECES = ["##ing", "##s", "##ed", "!", "?", ".", "x", "##x"]


@cache
def _vocabulary() -> dict[str, int]:
    return {token: number for number, token in enumerate([*SPECIAL, *_WORDS, *_PIECES])}


def bert_like_tokenizer() -> Any:
    """WordPiece with [CLS] text [SEP] pair [SEP] and token types: `playing` is the two pieces play ##ing."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece(vocab=_vocabulary(), unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def ids_of(*tokens: str) -> list[int]:
    """The ids of tokens by name."""
    return [_vocabulary()[token] for token in tokens]
