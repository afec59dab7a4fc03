"""Byte-level BPE, learned from the text: frequent pieces of words become tokens, and any text can be encoded.

Sennrich et al., arXiv 1508.07909; bytes as the alphabet: Radford et al. 2019 (GPT-2), section 2.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from utils.errors import ConfigError
from utils.tokenization.encoding import pieces
from utils.tokenization.special_tokens import SPECIAL_TOKENS, as_fast_tokenizer, check_special_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from utils.tokenization.fast import TrainbookTokenizer

NUM_BYTES = 256


def smallest_bpe_vocabulary(special_tokens: Sequence[str] = SPECIAL_TOKENS) -> int:
    """Every byte and the special tokens: below that, not every text could be encoded."""
    return NUM_BYTES + len(special_tokens)


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    min_frequency: int = 2,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    show_progress: bool = False,
) -> TrainbookTokenizer:
    """Learn a byte-level BPE tokenizer. The same texts give the same tokenizer; any text round-trips through it.

    Args:
        texts: what to learn from; the training part only, or the validation loss is flattered.
        vocab_size: most tokens, special ones included. A short text gives fewer.
        min_frequency: a pair that occurs less often is not merged.
        special_tokens: padding, unknown, beginning and end of text, then any others; ids 0, 1, 2, …
        show_progress: let `tokenizers` draw its progress bar on stderr.
    Raises:
        ConfigError: vocab_size is too small for every byte and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    names = check_special_tokens(special_tokens)
    smallest = smallest_bpe_vocabulary(names)
    if vocab_size < smallest:
        raise ConfigError(
            f"got vocab_size={vocab_size:,} for a byte-level BPE tokenizer; it needs at least {smallest:,} "
            f'({NUM_BYTES} bytes, {len(names)} special tokens). For less, use tokenizer_strategy="character".'
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=names,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=show_progress,
    )
    # In pieces, as the text will be encoded: one long text would be counted on one core.
    backend.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
    return as_fast_tokenizer(backend, names)
