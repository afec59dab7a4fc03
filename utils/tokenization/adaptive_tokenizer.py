"""AdaptiveTokenizer: the tokenizer for a vocabulary, from the first of four tiers that can give one.

1. the user's own: a file, a folder or an object, when one is given
2. pretrained: a published tokenizer of that size, verified (`utils.tokenization.pretrained`)
3. BPE, learned from the text that is given
4. characters: of the text, or without a text, of as much of Unicode as fits
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, Literal

from utils.errors import ConfigError
from utils.schema import nearest
from utils.tokenization.adaptive import Strategy, TokenizerChoice, check_fits, check_ids, choose_tokenizer
from utils.tokenization.cache import cached_tokenizer
from utils.tokenization.character_level import CharacterLevelTokenizer
from utils.tokenization.fast import TrainbookTokenizer
from utils.tokenization.own import load_own
from utils.tokenization.pretrained import KNOWN, Found, find_pretrained
from utils.tokenization.special_tokens import SPECIAL_TOKENS, check_special_tokens
from utils.tokenization.texts import as_sequence, count_texts, texts_of

logger = logging.getLogger("trainbook.tokenization")

STRATEGIES = ("auto", "pretrained", "bpe", "character")
# Texts and tokens from which on BPE is worth it, as long as nobody has read the texts: their length is not known then.
_MANY_TEXTS = 100
_SMALLEST_USEFUL_BPE = 1000


class AdaptiveTokenizer:
    """Makes the tokenizer that a model's vocabulary needs; `tokenizer.choice` says why this one was chosen."""

    @staticmethod
    def detect_strategy(vocab_size: int, dataset_size: int | None = None) -> Literal["pretrained", "bpe", "character"]:
        """Strategy that `load_or_create` tries first, from the sizes alone.

        Args:
            vocab_size: tokens of the model.
            dataset_size: number of texts; None or 0: no texts.
        """
        if vocab_size in KNOWN:
            return "pretrained"
        many = (dataset_size or 0) >= _MANY_TEXTS
        return "bpe" if many and vocab_size >= _SMALLEST_USEFUL_BPE else "character"

    @classmethod
    def load_or_create(
        cls, vocab_size: int, dataset: Any = None, cache_dir: str | os.PathLike[str] | None = None,
        special_tokens: Sequence[str] | None = None, tokenizer: Any = None, *, strategy: str = "auto",
        text_column: str | None = None,
    ) -> TrainbookTokenizer:  # fmt: skip
        """The tokenizer for a model with `vocab_size` tokens. It may have fewer, never more; `.choice.reason` says why.

        Args:
            vocab_size: tokens of the model.
            dataset: what to learn from, the training part only: a list of texts, a dataset of the `datasets` library, or an
                iterator, which is read into memory (`FastBPETrainer.train_with_streaming` does not do that).
            cache_dir: folder in which the tokenizer is kept under a digest of texts, settings and versions; None: not kept.
            special_tokens: padding, unknown, beginning and end of text, then any others; None: `SPECIAL_TOKENS`, or what a
                published tokenizer has. One that lacks those asked for is not used.
            tokenizer: the user's own: an object, a tokenizer.json, a vocab.txt, or a folder in the Hugging Face format.
            strategy: "pretrained", "bpe" or "character" to have that or an error; "auto": the first that works.
            text_column: the column of `dataset`; None: "text", or else the only one of texts.
        Raises:
            ConfigError: the tokenizer has more tokens than the model, with both numbers; or the vocabulary is too small.
            DataError: no text, or a tokenizer file that cannot be read.
        """
        _check_arguments(vocab_size, strategy)
        names = None if special_tokens is None else check_special_tokens(special_tokens)
        if tokenizer is not None:
            return _own(tokenizer, vocab_size)
        before = ""
        if strategy in ("auto", "pretrained"):
            found = _pretrained(vocab_size, names, cache_dir)
            if found.tokenizer is not None:
                return _chosen(found.tokenizer, "pretrained", f"published tokenizer: {found.reason}")
            if strategy == "pretrained":
                raise ConfigError(f'tokenizer_strategy="pretrained" cannot be had: {found.reason}. Use "auto".')
            before = found.reason if vocab_size in KNOWN else ""
            if before:
                logger.warning("No published tokenizer with %d tokens: %s. One is made instead.", vocab_size, before)
        made = _made(vocab_size, dataset, cache_dir, names or list(SPECIAL_TOKENS), strategy, text_column)
        assert made.choice is not None
        if not before:
            return made
        return _chosen(made, made.choice.strategy, f"{made.choice.reason}; no published tokenizer, because {before}")


def _check_arguments(vocab_size: Any, strategy: str) -> None:
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or vocab_size < 1:
        raise ConfigError(f"got vocab_size={vocab_size!r}; give the number of tokens of the model, for example 10000.")
    if strategy not in STRATEGIES:
        guess = nearest(str(strategy), STRATEGIES)
        hint = f" Did you mean {guess!r}?" if guess else ""
        raise ConfigError(f"got strategy={strategy!r}; must be one of {', '.join(STRATEGIES)}.{hint}")


def _chosen(tokenizer: TrainbookTokenizer, strategy: Strategy, reason: str) -> TrainbookTokenizer:
    """With its choice, and a padding token: batches need one, and GPT-2's tokenizer has none."""
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
        reason += f"; it has no padding token, {tokenizer.eos_token} stands in for it"
    tokenizer.choice = TokenizerChoice(tokenizer, strategy, reason)
    return tokenizer


def _own(given: Any, vocab_size: int) -> TrainbookTokenizer:
    tokenizer, what = load_own(given)
    note = check_fits(tokenizer, vocab_size)
    check_ids(tokenizer, vocab_size)
    return _chosen(tokenizer, "user", f"{what}, {len(tokenizer):,} tokens" + (f". {note}" if note else ""))


def _pretrained(vocab_size: int, names: list[str] | None, cache_dir: str | os.PathLike[str] | None) -> Found:
    if vocab_size not in KNOWN:
        return find_pretrained(vocab_size)
    if cache_dir is None:
        return _with_names(find_pretrained(vocab_size), names)
    settings = {"strategy": "pretrained", "vocab_size": vocab_size, "known": repr(KNOWN[vocab_size])}

    def make() -> tuple[TrainbookTokenizer, str]:
        found = find_pretrained(vocab_size)
        if found.tokenizer is None:
            raise _NotFoundError(found)
        return found.tokenizer, found.reason

    try:
        return _with_names(Found(*cached_tokenizer(cache_dir, settings, (), make)), names)
    except _NotFoundError as nothing:
        return nothing.found


class _NotFoundError(Exception):
    """Nothing to keep."""

    def __init__(self, found: Found) -> None:
        super().__init__(found.reason)
        self.found = found


def _with_names(found: Found, names: list[str] | None) -> Found:
    """The same, unless the special tokens that were asked for are not all in it."""
    if found.tokenizer is None or names is None:
        return found
    vocabulary = found.tokenizer.get_vocab()
    missing = [name for name in names if name not in vocabulary]
    if not missing:
        return found
    return Found(None, f"{found.reason.partition(',')[0]} lacks the special tokens {', '.join(missing)}")


def _made(
    vocab_size: int, dataset: Any, cache_dir: str | os.PathLike[str] | None, names: list[str], strategy: str,
    text_column: str | None,
) -> TrainbookTokenizer:  # fmt: skip
    """A tokenizer trained on the text, or one of characters where there is no text."""
    if dataset is None:
        if strategy == "bpe":
            raise ConfigError('strategy="bpe" learns from a text: give dataset, for example a list of texts.')
        made = CharacterLevelTokenizer(vocab_size, names)
        reason = f"one token per character, {len(made):,} tokens, because there is no text to learn from"
        return _chosen(made, "character", reason)
    texts = as_sequence(texts_of(dataset, text_column))
    count_texts(texts)

    def make() -> tuple[TrainbookTokenizer, str]:
        choice = choose_tokenizer(texts, vocab_size, strategy, names)
        return choice.tokenizer, f"{choice.strategy}: {choice.reason}"

    if cache_dir is None:
        tokenizer, summary = make()
    else:
        settings = {"strategy": strategy, "vocab_size": vocab_size, "special_tokens": names}
        tokenizer, summary = cached_tokenizer(cache_dir, settings, texts, make)
    kind, _, reason = summary.partition(": ")
    return _chosen(tokenizer, "bpe" if kind == "bpe" else "character", reason)
