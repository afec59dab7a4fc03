"""The special tokens of the tokenizers that are made here, and their ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from utils.tokenization.fast import TrainbookTokenizer

#: Padding, unknown, beginning of text, end of text. `</s>` ends every document in a packed block.
SPECIAL_TOKENS = ("<pad>", "<unk>", "<s>", "</s>")
PAD_ID, UNK_ID, BOS_ID, EOS_ID = range(4)


def check_special_tokens(special_tokens: Sequence[str]) -> list[str]:
    """`special_tokens` as a list. Raises ConfigError unless it has the roles of SPECIAL_TOKENS and no name twice."""
    names = [special_tokens] if isinstance(special_tokens, str) else list(special_tokens)
    are_names = all(isinstance(name, str) and name for name in names)
    if not are_names or len(names) < len(SPECIAL_TOKENS) or len(set(names)) < len(names):
        raise ConfigError(
            f"got special_tokens={names!r}; give different names for padding, unknown, beginning and end of text, "
            f"in this order (further ones may follow), for example {list(SPECIAL_TOKENS)}."
        )
    return names


def as_fast_tokenizer(backend: Tokenizer, special_tokens: Sequence[str]) -> TrainbookTokenizer:
    """`backend` as transformers' tokenizer. The special tokens have ids 0, 1, 2, … in it already."""
    from utils.tokenization.fast import TrainbookTokenizer

    return TrainbookTokenizer(tokenizer_object=backend, **roles_of(backend, special_tokens))  # type: ignore[no-untyped-call]


def roles_of(backend: Tokenizer, special_tokens: Sequence[str]) -> dict[str, Any]:
    """The arguments that tell transformers which special tokens are for what. Marks them as special in `backend`."""
    backend.add_special_tokens(list(special_tokens))
    pad, unk, bos, eos = special_tokens[: len(SPECIAL_TOKENS)]
    return {
        "pad_token": pad, "unk_token": unk, "bos_token": bos, "eos_token": eos,
        # True would remove spaces before punctuation: what is decoded must be what was encoded.
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
