"""Packed blocks with document boundaries: optional shuffling of documents per epoch and document-level attention masks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from utils.data.batch import IGNORED
from utils.data.packing import TokenBlocks, blocks_of
from utils.errors import ConfigError


class DocumentBlocks(TokenBlocks):
    """Blocks of a flat array of ids, in which each document ends with `eos_id`.

    `blocks`, and what is made from it (sizes, the largest id), are the documents in their own order. Nothing is copied: a
    block is gathered when it is taken, so a memory-mapped file stays on disk.

    Args:
        ids: int32 or uint16, shape (number of tokens,).
        block_size: tokens per block, T.
        eos_id: end-of-text token.
        shuffle: pack the documents in an order of their own in each epoch, drawn by `begin_epoch`: other documents meet in a
            block, documents are cut in other places, and other tokens are in the last partial block, which is left out.
        masks: keep documents apart: `position_ids` begin again at 0 with each document of a block, from which transformers'
            models make a block-diagonal attention mask (`keeps_segments_apart`), and no first token of a document is predicted
            from the document before.
    Raises:
        ConfigError: T is below 2; DataError: fewer than T tokens in all.
    """

    def __init__(
        self, ids: np.ndarray, block_size: int, eos_id: int, *, shuffle: bool = False, masks: bool = False
    ) -> None:
        super().__init__(blocks_of(ids, block_size))
        self.shuffle, self.masks = shuffle, masks
        self._ids = ids
        ends = np.flatnonzero(ids == eos_id) + 1
        if not len(ends) or ends[-1] < len(ids):
            ends = np.append(ends, len(ids))
        self._lengths = np.diff(ends, prepend=0)
        self._first = ends - self._lengths  # where each document begins in `ids`
        self._order = np.arange(len(ends))
        self._ends = ends  # where the documents end, in their present order

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return len(self._lengths)

    def begin_epoch(self, seed: int) -> None:
        """With `shuffle`: put the documents in the order that `seed` draws, the same for the same seed."""
        if self.shuffle:
            self._order = np.random.default_rng(seed).permutation(self.num_documents)
            self._ends = np.cumsum(self._lengths[self._order])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Block number `index`: as `take`, each (T,)."""
        return {name: value[0] for name, value in self.take([range(len(self))[index]]).items()}

    def take(self, indices: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """Blocks `indices` of the present epoch as one batch: `input_ids` and `labels`, and `position_ids` with `masks`; each
        (B, T) int64."""
        columns_T = np.arange(self.block_size)
        places_BT = np.asarray(indices, dtype=np.int64)[:, None] * self.block_size + columns_T
        documents_BT = np.searchsorted(self._ends, places_BT, side="right")
        members_BT = self._order[documents_BT]
        offsets_BT = places_BT - (self._ends[documents_BT] - self._lengths[members_BT])
        input_ids = torch.from_numpy(self._ids[self._first[members_BT] + offsets_BT].astype(np.int64))
        batch = {"input_ids": input_ids, "labels": input_ids.clone()}
        if self.masks:
            # A document that began in another block begins here with the block.
            batch["position_ids"] = torch.from_numpy(np.minimum(offsets_BT, columns_T))
            batch["labels"][batch["position_ids"] == 0] = IGNORED
        return batch

    def digest(self) -> str:
        """Changes when the ids, T, or how blocks are made of them does."""
        hasher = hashlib.blake2b(f"{super().digest()}:{self.shuffle}:{self.masks}".encode(), digest_size=16)
        hasher.update(np.ascontiguousarray(self._ids[self.blocks.size :], dtype="<i4").data)
        hasher.update(np.ascontiguousarray(self._lengths, dtype="<i8").data)
        return hasher.hexdigest()

    def __repr__(self) -> str:
        return f"DocumentBlocks({len(self):,} blocks of {self.block_size:,} tokens, {self.num_documents:,} documents)"


def check_is_text(shuffle: bool, masks: bool) -> None:
    """Raise `ConfigError` when a setting of how texts are packed is on, for data whose rows are samples already."""
    if shuffle or masks:
        name = "shuffle_documents" if shuffle else "document_masks"
        raise ConfigError(
            f"{name}: got True, but the data are rows with answers or labels, which are samples of their own: the rows are "
            f"shuffled each epoch and kept apart in any case. Set {name}=False."
        )


def make_blocks(
    ids: np.ndarray, block_size: int, eos_id: int | None, *, shuffle: bool = False, masks: bool = False
) -> TokenBlocks:
    """`TokenBlocks`, or `DocumentBlocks` where one of their settings is on.

    Raises:
        ConfigError: a setting needs to know where documents end, and the tokenizer has no end-of-text token.
    """
    if not (shuffle or masks):
        return TokenBlocks(blocks_of(ids, block_size))
    if eos_id is None:
        names = [name for name, on in (("shuffle_documents", shuffle), ("document_masks", masks)) if on]
        raise ConfigError(
            f"{' and '.join(names)}: the tokenizer has no end-of-text token, so nothing says where a document ends. Set "
            "tokenizer.eos_token, or leave the setting off."
        )
    return DocumentBlocks(ids, block_size, eos_id, shuffle=shuffle, masks=masks)
