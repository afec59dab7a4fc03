"""Token ids -> full blocks: no padding, every position is used. `utils.data.documents` packs documents in other ways."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.errors import ConfigError, DataError, DataTypeError

TokenIds = Sequence[int] | np.ndarray

#: Notice for texts that were packed with a tokenizer without an end-of-text token.
UNMARKED_ENDS = (
    "The tokenizer has no end-of-text token: documents follow each other unmarked, and the model cannot learn where one ends. "
    "Set tokenizer.eos_token to mark them."
)


def pack(sequences: Iterable[TokenIds], block_size: int, eos_id: int | None) -> np.ndarray:
    """Concatenate sequences, each ended by `eos_id`, and cut into full blocks.

    Args:
        sequences: token ids, any lengths; empty ones are skipped.
        block_size: tokens per block, T.
        eos_id: end-of-text token; None: sequences follow each other without a separator.
    Returns:
        int32, shape (N, T). The last partial block is dropped: at most T - 1 tokens.
    Raises:
        DataError: fewer than T tokens in all; says how many there were.
        DataTypeError: a sequence is no row of whole numbers.
        ConfigError: T is below 2, so a block would hold no target.
    """
    _check_block_size(block_size)
    end = np.array([] if eos_id is None else [eos_id], dtype=np.int32)
    pieces: list[np.ndarray] = []
    for number, sequence in enumerate(sequences):
        ids = np.asarray(sequence)
        if ids.size == 0:
            continue
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise DataTypeError(
                f"sequence {number} has shape {ids.shape} and type {ids.dtype}; token ids are one row of whole "
                "numbers. Tokenize texts first."
            )
        if ids.min() < 0 or ids.max() > np.iinfo(np.int32).max:
            bad = ids.min() if ids.min() < 0 else ids.max()
            raise DataError(f"sequence {number} holds the token id {bad}; ids run from 0 to {np.iinfo(np.int32).max}.")
        pieces += [ids.astype(np.int32, copy=False), end]
    ids = np.concatenate([*pieces, np.array([], dtype=np.int32)])
    return blocks_of(ids, block_size)


def blocks_of(ids: np.ndarray, block_size: int) -> np.ndarray:
    """Cut a flat array of ids into full blocks, without a copy: a memory-mapped file stays on disk.

    Args:
        ids: int32 or uint16, shape (number of tokens,), as `encode_corpus` gives it.
        block_size: tokens per block, T.
    Returns:
        The same type, shape (N, T). The last partial block is left out: at most T - 1 tokens.
    Raises:
        ConfigError: T is below 2; DataError: fewer than T tokens in all; says how many there were.
    """
    _check_block_size(block_size)
    _check_enough_tokens(ids.size, block_size)
    num_blocks = ids.size // block_size
    return ids[: num_blocks * block_size].reshape(num_blocks, block_size)


def _check_block_size(block_size: int) -> None:
    if block_size < 2:
        raise ConfigError(
            f"got block_size={block_size}; at least 2 tokens are needed for one to be predicted from the other."
        )


def _check_enough_tokens(num_tokens: int, block_size: int) -> None:
    if num_tokens < block_size:
        raise DataError(
            f"{num_tokens:,} tokens are too few for one block of {block_size:,}. "
            "Give more text or shorter blocks (max_length)."
        )


class TokenBlocks(Dataset[dict[str, Tensor]]):
    """Blocks of token ids as a dataset for language modelling: labels equal the ids, the objective shifts them.

    Args:
        blocks: int32 or uint16, shape (N, T), N >= 1, T >= 2; kept as it is, so a memory-mapped file stays on disk.
    Raises:
        DataTypeError: another shape or type.
        DataError: no blocks, or blocks of one token.
    """

    draws = False  # nothing at random

    #: Settings of `prepare_data` that give these blocks again; None where they were made in another way.
    origin: Mapping[str, Any] | None = None

    #: Of validation data: the loss of a unigram model of the training data, nats per target. None where it is not known.
    unigram_loss: float | None = None

    def __init__(self, blocks: np.ndarray) -> None:
        if not isinstance(blocks, np.ndarray) or blocks.ndim != 2 or blocks.dtype not in (np.int32, np.uint16):
            got = (
                f"shape {blocks.shape}, {blocks.dtype}"
                if isinstance(blocks, np.ndarray)
                else f"a {type(blocks).__name__}"
            )
            raise DataTypeError(
                f"token blocks are an int32 or uint16 array of shape (N, T); got {got}. pack() makes one."
            )
        if blocks.shape[0] < 1 or blocks.shape[1] < 2:
            raise DataError(
                f"got {blocks.shape[0]} blocks of {blocks.shape[1]} tokens; at least 1 block of 2 tokens is needed."
            )
        self._blocks = blocks

    @property
    def blocks(self) -> np.ndarray:
        """The blocks as one array, shape (N, T)."""
        return self._blocks

    @property
    def ids(self) -> np.ndarray:
        """The ids of all blocks without padding, flat, shape (num_tokens,); without a copy."""
        return self._blocks.reshape(-1)

    def __len__(self) -> int:
        return int(self._blocks.shape[0])

    @property
    def block_size(self) -> int:
        """Tokens per block, T."""
        return int(self._blocks.shape[1])

    @property
    def num_tokens(self) -> int:
        """Tokens in all blocks, padding not counted."""
        return int(self.ids.size)

    @property
    def num_padding(self) -> int:
        """Positions of all blocks that are padding."""
        return len(self) * self.block_size - self.num_tokens

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Block number `index`: `input_ids` and `labels`, each (T,) int64."""
        return _batch(self._blocks[index])

    def take(self, indices: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """Blocks `indices` as one batch: `input_ids` and `labels`, each (B, T) int64. One gather, no loop."""
        return _batch(self._blocks[np.asarray(indices, dtype=np.int64)])

    def attention_mask(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """1 for the tokens of blocks `indices`, 0 for padding, of which these blocks have none: (B, T) int64."""
        return torch.ones(len(indices), self.block_size, dtype=torch.int64)

    def max_id(self) -> int:
        """The largest token id."""
        return int(self.ids.max())

    def digest(self) -> str:
        """Changes when shape or content does; the same for int32 and uint16. Reads everything once (about 1 GB/s)."""
        hasher = hashlib.blake2b(repr(self._blocks.shape).encode(), digest_size=16)
        rows = max(
            1, (1 << 20) // self.block_size
        )  # about 4 MiB at a time, so a memory-mapped file is never held whole
        for start in range(0, len(self._blocks), rows):
            hasher.update(np.ascontiguousarray(self._blocks[start : start + rows], dtype="<i4").data)
        return hasher.hexdigest()

    def __repr__(self) -> str:
        return f"TokenBlocks({len(self):,} blocks of {self.block_size:,} tokens)"


def _batch(ids: Any) -> dict[str, Tensor]:
    input_ids = torch.from_numpy(np.array(ids, dtype=np.int64))
    # Labels of their own: who masks some of them in place must not change the inputs.
    return {"input_ids": input_ids, "labels": input_ids.clone()}
