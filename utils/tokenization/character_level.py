"""CharacterLevelTokenizer: one token per character, for any vocabulary and without a text to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from utils.errors import ConfigError
from utils.tokenization.character import NUM_BYTES, character_backend
from utils.tokenization.code_points import NUM_BASIC, code_points_by_use
from utils.tokenization.fast import TrainbookTokenizer
from utils.tokenization.special_tokens import SPECIAL_TOKENS, check_special_tokens, roles_of


class CharacterLevelTokenizer(TrainbookTokenizer):
    """One token per character, of as many characters as fit, in the order of `utils.tokenization.code_points`.

    From 256 tokens beside the special ones on, the first 256 are the bytes and every text round-trips: a character that has
    no token is written as its UTF-8 bytes. Below that, what is no character of the vocabulary becomes the unknown token. For
    a text that is known, `build_character_tokenizer` takes the characters of that text and none besides.

    Args:
        vocab_size: tokens, special ones included: at least 96 beside those (ASCII's printable characters and the line end).
            Exactly so many are made, up to all of Unicode (1,112,064 characters).
        special_tokens: padding, unknown, beginning and end of text, then any others; ids 0, 1, 2, …
        add_bos_token, add_eos_token: whether encoding puts the beginning before and the end after each text. Truncation
            counts them in, and keeps them.
    Raises:
        ConfigError: a vocabulary below the smallest, or special tokens without their four roles.
    """

    def __init__(
        self, vocab_size: int | None = None, special_tokens: Sequence[str] = SPECIAL_TOKENS, *,
        add_bos_token: bool = False, add_eos_token: bool = False, **loaded: Any,
    ) -> None:  # fmt: skip
        if vocab_size is not None:
            names = check_special_tokens(special_tokens)
            backend = _backend(vocab_size, names)
            loaded |= {"tokenizer_object": backend, **roles_of(backend, names)}
            loaded |= {"add_bos_token": add_bos_token, "add_eos_token": add_eos_token}
        elif not {"tokenizer_object", "tokenizer_file"} & loaded.keys():  # what `from_pretrained` gives
            raise ConfigError("CharacterLevelTokenizer needs vocab_size: the number of tokens, for example 1000.")
        super().__init__(**loaded)  # type: ignore[no-untyped-call]


def _backend(vocab_size: int, names: list[str]) -> Any:
    smallest = len(names) + NUM_BASIC
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int) or vocab_size < smallest:
        raise ConfigError(
            f"got vocab_size={vocab_size!r} for a character tokenizer; it needs at least {smallest} ({NUM_BASIC} characters, "
            f"{len(names)} special tokens), and {len(names) + NUM_BYTES} for every text to round-trip."
        )
    byte_fallback = vocab_size >= len(names) + NUM_BYTES
    room = vocab_size - len(names) - (NUM_BYTES if byte_fallback else 0)
    return character_backend(names, code_points_by_use(room), byte_fallback)
