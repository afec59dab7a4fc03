"""A tokenizer learned from the data of a task, with the special tokens that the task's models read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from utils.tokenization.adaptive import choose_tokenizer
from utils.tokenization.special_tokens import BOS_ID, EOS_ID, SPECIAL_TOKENS
from utils.training.task_kinds import kind_of_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: Vocabulary size of a newly trained tokenizer when no number is given; as many as the models here have by default.
VOCAB_SIZE = 4096
MASK_TOKEN = "<mask>"  # noqa: S105 - a token of text


def learn_tokenizer(
    texts: Sequence[str], vocab_size: int, task_type: str, *, pairs: bool = False, strategy: str = "auto"
) -> tuple[PreTrainedTokenizerFast, str]:
    """A tokenizer for `texts`, the training part, and why it is this one.

    Inputs of masked language models and classifiers are `<s> text </s>`, of pairs `<s> text </s> pair </s>` with token types 0
    and 1; the beginning is where classifiers look (BERT, arXiv 1810.04805, section 3). Inputs and targets of
    sequence-to-sequence models are `text </s>` (T5, arXiv 1910.10683).

    Args:
        vocab_size: most tokens.
        pairs: whether examples have two texts.
        strategy: as for `choose_tokenizer`.
    Raises:
        ConfigError, DataError: as `choose_tokenizer`.
    """
    masked = task_type == "masked_lm"
    choice = choose_tokenizer(
        texts, vocab_size - 1 if masked else vocab_size, strategy, whole_texts=kind_of_task(task_type).per_sample
    )
    tokenizer = choice.tokenizer
    begin, end = SPECIAL_TOKENS[BOS_ID], SPECIAL_TOKENS[EOS_ID]
    if task_type != "seq2seq":
        tokenizer.add_special_tokens(
            {"cls_token": begin, "sep_token": end, **({"mask_token": MASK_TOKEN} if masked else {})}
        )
    if pairs:
        tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    _close_texts(tokenizer, "" if task_type == "seq2seq" else f"{begin} ", end)
    return tokenizer, choice.reason + (", and a mask token" if masked else "")


def _close_texts(tokenizer: PreTrainedTokenizerFast, begin: str, end: str) -> None:
    from tokenizers import processors

    special = [(SPECIAL_TOKENS[token_id], token_id) for token_id in (BOS_ID, EOS_ID)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin}$A {end}", pair=f"{begin}$A {end} $B:1 {end}:1", special_tokens=special
    )
