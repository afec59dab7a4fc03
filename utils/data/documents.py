"""Blocks with document boundaries: best-fit packing, other companions in each epoch, document-level attention masks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from utils.data.batch import IGNORED
from utils.data.best_fit import best_fit
from utils.data.packing import TokenBlocks, blocks_of
from utils.errors import ConfigError, Problem
from utils.schema import nearest, shown

Packing = Literal["concatenate", "best_fit"]
PACKINGS: tuple[str, ...] = get_args(Packing)


@dataclass(frozen=True)
class PackingSettings:
    """Settings of how documents become blocks. With the defaults, as `utils.data.packing.pack` does.

    Attributes:
        packing: one of `PACKINGS`; shuffle_documents, document_masks: `shuffle` and `masks` of `DocumentBlocks`.
    """

    packing: str = "concatenate"
    shuffle_documents: bool = False
    document_masks: bool = False

    @classmethod
    def of(cls, setup: Any) -> PackingSettings:
        """Those of an object with attributes of these names; defaults for names that it lacks."""
        values: dict[str, Any] = {field.name: getattr(setup, field.name, field.default) for field in fields(cls)}
        return cls(**values)

    @property
    def changed(self) -> dict[str, Any]:
        """Settings that do not have their default."""
        return {name: value for name, value in vars(self).items() if value != getattr(_DEFAULTS, name)}


_DEFAULTS = PackingSettings()


@dataclass(frozen=True)
class _Layout:
    """Where pieces of documents stand. A place is a position in all rows, one after the other: row * T + column.

    Attributes:
        sources: where each piece begins in the ids; lengths: its tokens; places: where it begins, ascending. Each (number of
            pieces,) int64.
    """

    sources: np.ndarray
    lengths: np.ndarray
    places: np.ndarray


class DocumentBlocks(TokenBlocks):
    """Blocks of a flat array of ids, in which each document ends with `eos_id`.

    No id is copied: a block is gathered when it is taken, so a memory-mapped file stays on disk.

    Args:
        ids: int32 or uint16, shape (number of tokens,).
        block_size: tokens per block, T.
        eos_id: end-of-text token.
        shuffle: pack the documents in an order of their own in each epoch, drawn by `begin_epoch`. Concatenated documents meet
            others in a block, are cut in other places, and other tokens are in the last partial block, which is left out. With
            best-fit packing, documents of equal length change places, and the documents of a block change their order, so that
            the number of blocks stays the same.
        masks: keep documents apart: `position_ids` begin again at 0 with each document of a block, from which transformers'
            models make a block-diagonal attention mask (`keeps_segments_apart`), and no first token of a document is predicted
            from the document before.
        packing: "concatenate": documents follow each other and are cut where a block ends. "best_fit": a document is cut only
            if it is longer than a block, into full blocks and a remainder, and these pieces are assigned to blocks by best-fit
            decreasing (Ding et al., arXiv 2404.10830). What is left of a block is padding on the right, filled with `eos_id`:
            no target, and under a causal mask no token attends to it, so any id would do.
    Raises:
        ConfigError: T is below 2; DataError: fewer than T tokens in all.
    """

    def __init__(
        self, ids: np.ndarray, block_size: int, eos_id: int, *, shuffle: bool = False, masks: bool = False,
        packing: Packing = "concatenate",
    ) -> None:  # fmt: skip
        super().__init__(blocks_of(ids, block_size))
        self.shuffle, self.masks, self.packing = shuffle, masks, packing
        self._ids, self._eos_id = ids, eos_id
        ends = np.flatnonzero(ids == eos_id) + 1
        if not len(ends) or ends[-1] < len(ids):
            ends = np.append(ends, len(ids))
        self._lengths = np.diff(ends, prepend=0)  # of the documents
        self._num_rows = len(self._blocks)
        self._own = _Layout(ends - self._lengths, self._lengths, ends - self._lengths)
        if packing == "best_fit":
            self._own, self._num_rows = _best_fit_layout(self._own, block_size)
        self._layout = self._own  # of the present epoch

    def __len__(self) -> int:
        return self._num_rows

    @property
    def blocks(self) -> np.ndarray:
        """The blocks as one array, shape (N, T), with the documents in their own order. A copy with best-fit packing."""
        if self.packing == "concatenate":
            return self._blocks
        ids_NT, _ = self._gathered(np.arange(len(self)), self._own)
        return ids_NT

    @property
    def ids(self) -> np.ndarray:
        """The ids of all blocks without padding, flat, in the documents' own order; without a copy."""
        return self._ids if self.packing == "best_fit" else super().ids

    @property
    def num_documents(self) -> int:
        """How many documents there are."""
        return len(self._lengths)

    def begin_epoch(self, seed: int) -> None:
        """With `shuffle`: put the documents in the order that `seed` draws, the same for the same seed."""
        if not self.shuffle:
            return
        generator = np.random.default_rng(seed)
        if self.packing == "best_fit":
            self._layout = _reshuffled(self._own, self.block_size, generator)
            return
        order = generator.permutation(self.num_documents)
        lengths = self._lengths[order]
        self._layout = _Layout(self._own.sources[order], lengths, np.cumsum(lengths) - lengths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Block number `index`: as `take`, each (T,); with `attention_mask` where blocks have padding and no `masks`, for
        objectives that attend in both directions."""
        number = range(len(self))[index]
        row = {name: value[0] for name, value in self.take([number]).items()}
        if self.num_padding and not self.masks:
            row["attention_mask"] = self.attention_mask([number])[0]
        return row

    def take(self, indices: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """Blocks `indices` of the present epoch as one batch: `input_ids` and `labels`, and `position_ids` with `masks`; each
        (B, T) int64. Padding has the label -100; there is no attention mask, which a causal model needs only on the left."""
        ids_BT, offsets_BT = self._gathered(np.asarray(indices, dtype=np.int64), self._layout)
        input_ids = torch.from_numpy(ids_BT.astype(np.int64))
        batch = {"input_ids": input_ids, "labels": input_ids.clone()}
        padding_BT = offsets_BT < 0
        batch["labels"][torch.from_numpy(padding_BT)] = IGNORED
        if self.masks:
            # A document that began in another block begins here with the block; padding is a segment of its own.
            positions_BT = np.where(padding_BT, -1 - offsets_BT, np.minimum(offsets_BT, np.arange(self.block_size)))
            batch["position_ids"] = torch.from_numpy(positions_BT)
            batch["labels"][batch["position_ids"] == 0] = IGNORED
        return batch

    def attention_mask(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """1 for the tokens of blocks `indices`, 0 for padding: (B, T) int64."""
        _, offsets_BT = self._gathered(np.asarray(indices, dtype=np.int64), self._layout)
        return torch.from_numpy((offsets_BT >= 0).astype(np.int64))

    def _gathered(self, rows_B: np.ndarray, layout: _Layout) -> tuple[np.ndarray, np.ndarray]:
        """The ids of rows, and where in its piece each token stands; on padding -1, -2, …. Each (B, T)."""
        places_BT = rows_B[:, None] * self.block_size + np.arange(self.block_size)
        pieces_BT = np.searchsorted(layout.places, places_BT, side="right") - 1
        offsets_BT = places_BT - layout.places[pieces_BT]
        beyond_BT = offsets_BT - layout.lengths[pieces_BT]
        padding_BT = beyond_BT >= 0
        ids_BT: np.ndarray = self._ids[layout.sources[pieces_BT] + np.where(padding_BT, 0, offsets_BT)]
        if self.packing == "best_fit":
            ids_BT[padding_BT] = self._eos_id
        return ids_BT, np.where(padding_BT, -1 - beyond_BT, offsets_BT)

    def digest(self) -> str:
        """Changes when the ids, T, or how blocks are made of them does."""
        packed = "" if self.packing == "concatenate" else f":{self.packing}"
        hasher = hashlib.blake2b(f"{super().digest()}:{self.shuffle}:{self.masks}{packed}".encode(), digest_size=16)
        hasher.update(np.ascontiguousarray(self._ids[self._blocks.size :], dtype="<i4").data)
        hasher.update(np.ascontiguousarray(self._lengths, dtype="<i8").data)
        return hasher.hexdigest()

    def __repr__(self) -> str:
        padding = f", {self.num_padding / (len(self) * self.block_size):.1%} padding" if self.num_padding else ""
        return f"DocumentBlocks({len(self):,} blocks of {self.block_size:,} tokens, {self.num_documents:,} documents{padding})"


def _best_fit_layout(documents: _Layout, block_size: int) -> tuple[_Layout, int]:
    """The layout of documents in rows by best-fit decreasing, and the number of rows.

    The documents of a row keep their own order, and rows are ordered by their first document: a place in a row says nothing
    about a document's length, and the first rows hold the first documents.
    """
    counts = -(-documents.lengths // block_size)
    owners = np.repeat(np.arange(len(counts)), counts)
    skipped = block_size * (np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts))
    lengths = np.minimum(block_size, documents.lengths[owners] - skipped)
    placed, rows_placed = best_fit(lengths, block_size)
    rows = np.empty_like(rows_placed)
    rows[placed] = rows_placed
    _, firsts, rows = np.unique(rows, return_index=True, return_inverse=True)
    rows = np.argsort(np.argsort(firsts))[rows]
    order = np.argsort(rows, kind="stable")
    sources = (documents.sources[owners] + skipped)[order]
    return _Layout(sources, lengths[order], _places(lengths[order], rows[order], block_size)), len(firsts)


def _reshuffled(layout: _Layout, block_size: int, generator: np.random.Generator) -> _Layout:
    """Pieces of equal length change places at random, and then the pieces of a row their order in it."""
    sources = np.empty_like(layout.sources)
    drawn = np.lexsort((generator.random(len(sources)), layout.lengths))
    sources[np.argsort(layout.lengths, kind="stable")] = layout.sources[drawn]
    rows = layout.places // block_size
    order = np.lexsort((generator.random(len(sources)), rows))
    lengths = layout.lengths[order]
    return _Layout(sources[order], lengths, _places(lengths, rows, block_size))


def _places(lengths: np.ndarray, rows: np.ndarray, block_size: int) -> np.ndarray:
    """Where pieces begin that fill rows from the left. Rows ascend."""
    begins = np.cumsum(lengths) - lengths
    firsts = np.searchsorted(rows, rows, side="left")
    places: np.ndarray = rows * block_size + begins - begins[firsts]
    return places


def check_is_text(settings: PackingSettings) -> None:
    """Raise `ConfigError` when a setting of how texts are packed is on, for data whose rows are samples already."""
    for name, value in settings.changed.items():
        raise ConfigError(
            f"{name}: got {value!r}, but the data are rows with answers or labels, which are samples of their own: "
            f"the rows are shuffled each epoch and kept apart in any case. Set {name}={getattr(_DEFAULTS, name)!r}."
        )


def make_blocks(
    ids: np.ndarray, block_size: int, eos_id: int | None, settings: PackingSettings = _DEFAULTS
) -> TokenBlocks:
    """`TokenBlocks`, or `DocumentBlocks` where a setting does not have its default.

    Raises:
        ConfigError: unknown packing, or a setting needs to know where documents end, and the tokenizer has no end-of-text
            token.
    """
    check_packing(settings.packing)
    if not settings.changed:
        return TokenBlocks(blocks_of(ids, block_size))
    if eos_id is None:
        raise ConfigError(
            f"{' and '.join(settings.changed)}: the tokenizer has no end-of-text token, so nothing says where a document "
            "ends. Set tokenizer.eos_token, or leave the setting off."
        )
    kind: Packing = "best_fit" if settings.packing == "best_fit" else "concatenate"
    return DocumentBlocks(
        ids, block_size, eos_id, shuffle=settings.shuffle_documents, masks=settings.document_masks, packing=kind
    )


def packing_problem(packing: Any) -> Problem | None:
    """The problem, with the nearest name, when `packing` is not one of `PACKINGS`."""
    if packing in PACKINGS:
        return None
    guess = nearest(str(packing), PACKINGS)
    hint = f"; did you mean {guess!r}?" if guess else ""
    return Problem("packing", f"got {shown(packing)}; must be one of {', '.join(PACKINGS)}{hint}", guess)


def check_packing(packing: Any) -> None:
    """Raise `ConfigError` when `packing` is not one of `PACKINGS`."""
    if (problem := packing_problem(packing)) is not None:
        raise ConfigError.from_problems("the data", [problem])
