"""One token per character: for small vocabularies and short texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from utils.errors import ConfigError
from utils.tokenization.special_tokens import SPECIAL_TOKENS, as_fast_tokenizer, check_special_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from utils.tokenization.fast import TrainbookTokenizer

NUM_BYTES = 256
_BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(NUM_BYTES))


def build_character_tokenizer(
    texts: Iterable[str], vocab_size: int | None = None, special_tokens: Sequence[str] = SPECIAL_TOKENS
) -> TrainbookTokenizer:
    """A tokenizer with one token per Unicode character of the texts, in the order of their code points.

    Where `vocab_size` leaves room for 256 more tokens, a character that the texts do not have becomes its UTF-8 bytes,
    so any text round-trips; otherwise it becomes the unknown token.

    Args:
        texts: whose characters to take; the training part only.
        vocab_size: most tokens, special ones included; None: no limit.
        special_tokens: padding, unknown, beginning and end of text, then any others; ids 0, 1, 2, …
    Raises:
        ConfigError: the texts have more different characters than `vocab_size` allows; gives both numbers.
    """
    names = check_special_tokens(special_tokens)
    characters = sorted(distinct_characters(texts))
    needed = len(names) + len(characters)
    if vocab_size is not None and vocab_size < needed:
        raise ConfigError(
            f"the text has {len(characters):,} different characters, which need {needed:,} tokens with the "
            f"{len(names)} special ones, but the vocabulary holds {vocab_size:,}. Use a model with a larger one, or "
            'tokenizer_strategy="bpe" (from 260 tokens on).'
        )
    byte_fallback = vocab_size is None or vocab_size >= needed + len(_BYTE_TOKENS)
    return as_fast_tokenizer(character_backend(names, characters, byte_fallback), names)


def character_backend(names: Sequence[str], characters: Sequence[str], byte_fallback: bool) -> Tokenizer:
    """One token each: the special tokens, then with `byte_fallback` the 256 bytes, then the characters."""
    from tokenizers import Tokenizer, decoders, models

    tokens = [*names, *(_BYTE_TOKENS if byte_fallback else ()), *characters]
    # BPE without merges: every character stays alone, at the speed of the compiled library.
    model = models.BPE(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=[],
        unk_token=names[1],
        byte_fallback=byte_fallback,
    )
    backend = Tokenizer(model)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return backend


def distinct_characters(texts: Iterable[str]) -> set[str]:
    """Every character that occurs in the texts. One text at a time is held."""
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    return seen
