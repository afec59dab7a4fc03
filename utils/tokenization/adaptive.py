"""The tokenizer that fits a model's vocabulary and a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from utils.errors import ConfigError, DataError
from utils.schema import nearest
from utils.tokenization.bpe import smallest_bpe_vocabulary, train_bpe
from utils.tokenization.character import build_character_tokenizer, distinct_characters
from utils.tokenization.special_tokens import SPECIAL_TOKENS

if TYPE_CHECKING:
    from utils.tokenization.fast import TrainbookTokenizer

Strategy = Literal["pretrained", "bpe", "character", "user"]
STRATEGIES = ("auto", "bpe", "character")

# Below this many tokens BPE finds little more than frequent pairs of letters.
_SMALLEST_USEFUL_BPE = 1000
# Text per token, so that a token of average length (4 characters) is seen a dozen times and not once or twice.
_CHARACTERS_PER_TOKEN = 50


@dataclass(frozen=True)
class TokenizerChoice:
    """A tokenizer and why it was chosen.

    Attributes:
        tokenizer: with padding, unknown, beginning and end tokens set.
        strategy: where it is from: "bpe" or "character", learned from a text; "pretrained", published; "user", given.
        reason: one sentence for the report.
    """

    tokenizer: TrainbookTokenizer
    strategy: Strategy
    reason: str


def choose_tokenizer(
    texts: Sequence[str], vocab_size: int, strategy: str = "auto", special_tokens: Sequence[str] = SPECIAL_TOKENS, *,
    whole_texts: bool = False,
) -> TokenizerChoice:  # fmt: skip
    """Make the tokenizer for `texts` that a model with `vocab_size` tokens can use.

    Args:
        texts: the training part of the text.
        vocab_size: most tokens that the tokenizer may have.
        strategy: "bpe" or "character"; "auto" takes BPE from 1,000 tokens on, with no more tokens than the text can
            teach (one for every 50 characters), and characters below that.
        special_tokens: padding, unknown, beginning and end of text, then any others.
        whole_texts: each text has one label. "auto" then takes BPE however little text there is, if the vocabulary holds its
            256 bytes: a small classifier learns a label from words long before it learns words from characters.
    Raises:
        ConfigError: an unknown strategy, or a vocabulary too small for what was asked.
        DataError: no text.
    """
    if strategy not in STRATEGIES:
        guess = nearest(str(strategy), STRATEGIES)
        hint = f" Did you mean {guess!r}?" if guess else ""
        raise ConfigError(f"got tokenizer_strategy={strategy!r}; must be one of {', '.join(STRATEGIES)}.{hint}")
    num_characters = sum(map(len, texts))
    if num_characters == 0:
        raise DataError("there is no text to make a tokenizer from: every training document is empty.")
    if strategy == "bpe":
        return _bpe(texts, vocab_size, special_tokens, "as asked")
    if strategy == "character":
        return _character(texts, vocab_size, special_tokens, "as asked")
    size = min(vocab_size, num_characters // _CHARACTERS_PER_TOKEN)
    if size >= _SMALLEST_USEFUL_BPE:
        limit = (
            "all that the vocabulary holds"
            if size == vocab_size
            else f"one for every {_CHARACTERS_PER_TOKEN} characters of text"
        )
        return _bpe(texts, size, special_tokens, limit)
    num_distinct = len(distinct_characters(texts))
    smallest_bpe = smallest_bpe_vocabulary(special_tokens)
    if whole_texts and vocab_size >= smallest_bpe:
        return _bpe(
            texts, vocab_size, special_tokens, "because a label is learned sooner from words than from characters"
        )
    if num_distinct + len(special_tokens) > vocab_size >= smallest_bpe:
        why = f"because {num_distinct:,} different characters do not fit the vocabulary"
        return _bpe(texts, max(size, smallest_bpe), special_tokens, why)
    if vocab_size < _SMALLEST_USEFUL_BPE:
        why = f"because BPE is of use from a vocabulary of {_SMALLEST_USEFUL_BPE:,} on"
    else:
        why = f"because {num_characters:,} characters are too little text for BPE"
    return _character(texts, vocab_size, special_tokens, why)


def check_fits(tokenizer: Any, vocab_size: int) -> str | None:
    """Compare a tokenizer with a model's vocabulary.

    Returns:
        None when the sizes are equal; a note when the tokenizer is smaller, which is allowed.
    Raises:
        ConfigError: the tokenizer is larger; gives both numbers.
    """
    size = len(tokenizer)
    if size > vocab_size:
        raise ConfigError(
            f"the tokenizer has {size:,} tokens, but the model's vocabulary holds {vocab_size:,}. Use a model with "
            f"vocab_size={size:,} or more, or a smaller tokenizer."
        )
    if size < vocab_size:
        return f"The tokenizer has {size:,} tokens; {vocab_size - size:,} of the model's {vocab_size:,} are never used."
    return None


def check_ids(tokenizer: Any, vocab_size: int) -> None:
    """Refuse a tokenizer whose ids have gaps, so that it has few enough tokens but an id that the model does not have.

    Raises:
        ConfigError: the highest id is not below `vocab_size`; gives both numbers.
    """
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= vocab_size:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer):,} tokens with ids up to {highest:,}, but the model's vocabulary holds "
            f"{vocab_size:,}, ids 0 to {vocab_size - 1:,}. Use a model with vocab_size={highest + 1:,} or more."
        )


def _bpe(texts: Sequence[str], vocab_size: int, special_tokens: Sequence[str], why: str) -> TokenizerChoice:
    tokenizer = train_bpe(texts, vocab_size, special_tokens=special_tokens)
    if len(tokenizer) < vocab_size:
        why = f"fewer than the {vocab_size:,} allowed because no other pair of tokens occurs twice"
    return TokenizerChoice(tokenizer, "bpe", f"byte-level BPE with {len(tokenizer):,} tokens, {why}")


def _character(texts: Sequence[str], vocab_size: int, special_tokens: Sequence[str], why: str) -> TokenizerChoice:
    tokenizer = build_character_tokenizer(texts, vocab_size, special_tokens)
    return TokenizerChoice(tokenizer, "character", f"one token per character, {len(tokenizer):,} tokens, {why}")
