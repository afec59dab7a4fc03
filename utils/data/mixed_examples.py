"""MixedExamples: the examples of several datasets as one, with a fixed number of each in every epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.data.batch import Batch
from utils.data.encoded import EncodedExamples
from utils.data.packing import TokenBlocks
from utils.data.sources import epoch_seed
from utils.data.text_collator import TextCollator
from utils.errors import ConfigError

Part = TokenBlocks | EncodedExamples


class MixedExamples(Dataset[dict[str, Tensor]]):
    """Examples of several datasets: row i of the first, then of the second, and so on.

    As training data it has an order of its own: an epoch has as many examples as all datasets together, of which each dataset
    supplies its share. A dataset is iterated in a new random permutation each time, one after the other, and an epoch goes
    on where the last one stopped; so a dataset with a small share is seen completely over several epochs, and one with a large
    share is repeated within an epoch. The order is a function of seed and epoch alone.

    Args:
        parts: name -> examples of causal language modelling, in batches of token ids.
        shares: share of the examples of an epoch, for each part in order; positive. None: by their numbers of examples.
        pad_id: fills up shorter rows of a batch.
    Raises:
        ConfigError: an epoch is too short to hold an example of each part; says which share is too small.
    """

    draws = False  # nothing at random besides the order

    #: Settings of `prepare_data` that give these examples again; None where they were made in another way.
    origin: Mapping[str, Any] | None = None

    #: Of validation data: the loss of a unigram model of the training data, nats per target. None where it is not known.
    unigram_loss: float | None = None

    def __init__(
        self, parts: Mapping[str, Part], shares: Sequence[float] | None = None, pad_id: int | None = None
    ) -> None:
        self.parts = dict(parts)
        self.sizes = [len(part) for part in self.parts.values()]
        self._starts = np.cumsum([0, *self.sizes])
        self.shares = [size / len(self) for size in self.sizes] if shares is None else [s / sum(shares) for s in shares]
        self._collate = TextCollator(pad_id)
        rows = [part[0] for part in self.parts.values()]
        self._with_positions = any("position_ids" in row for row in rows)
        if shares is not None:
            self.quotas(len(self))

    @property
    def names(self) -> tuple[str, ...]:
        """The datasets' names, in order."""
        return tuple(self.parts)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Row `index`: int64 tensors (T,). With `position_ids` where any of the datasets has them."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no example {index}; there are {len(self):,}")
        index %= len(self)
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        part, place = list(self.parts.values())[number], index - int(self._starts[number])
        row = (
            {name: value[0] for name, value in part.take([place]).items()}
            if isinstance(part, TokenBlocks)
            else part[place]
        )
        if self._with_positions and "position_ids" not in row:
            row["position_ids"] = torch.arange(len(row["input_ids"]))
        return row

    def take(self, indices: Sequence[int]) -> Batch:
        """The rows `indices` as a batch."""
        return self._collate([self[int(index)] for index in indices])

    def quotas(self, size: int) -> list[int]:
        """Examples of each dataset in an epoch of `size` examples: the largest remainders are rounded up."""
        exact = [share * size for share in self.shares]
        counts = [int(value) for value in exact]
        by_remainder = sorted(range(len(counts)), key=lambda number: (counts[number] - exact[number], number))
        for number in by_remainder[: size - sum(counts)]:
            counts[number] += 1
        if 0 in counts:
            name = self.names[counts.index(0)]
            raise ConfigError(
                f"mixture: an epoch has {size:,} examples, of which {name!r} with its share of "
                f"{self.shares[counts.index(0)]:.2g} gets none. Raise its weight, or give more data."
            )
        return counts

    def order(self, seed: int, epoch: int, size: int) -> np.ndarray:
        """The rows of an epoch of `size` examples, in the order in which they are trained on: int64 (size,)."""
        chosen = [
            start + _walk(count, quota * epoch, quota, seed, number + 1)
            for number, (start, count, quota) in enumerate(
                zip(self._starts, self.sizes, self.quotas(size), strict=False)
            )
        ]
        rows: np.ndarray = np.concatenate(chosen)
        ordered: np.ndarray = rows[_permutation(size, seed, epoch)]
        return ordered

    def sections(self, limit: int) -> list[tuple[str, np.ndarray]]:
        """(name, rows) of each dataset, at most `limit` rows in all, by the datasets' sizes: for validation."""
        quotas = self.sizes
        if limit < len(self):
            kept = self._starts * limit // len(self)  # rounded so that they add up
            quotas = np.diff(kept).tolist()
        return [
            (name, np.arange(start, start + quota))
            for name, start, quota in zip(self.names, self._starts, quotas, strict=False)
        ]

    def digest(self) -> str:
        """Changes when the content, the names or the shares do. Reads everything once."""
        named = zip(self.parts.items(), self.shares, strict=True)
        described = [(name, part.digest(), repr(share)) for (name, part), share in named]
        return hashlib.blake2b(repr(described).encode(), digest_size=16).hexdigest()

    @property
    def num_tokens(self) -> int:
        """Tokens in all rows, padding of packed rows included."""
        return sum(part.num_tokens for part in self.parts.values())

    def max_id(self) -> int:
        """The largest token id."""
        return max(part.max_id() for part in self.parts.values())

    def __repr__(self) -> str:
        listed = ", ".join(f"{name}: {size:,}" for name, size in zip(self.names, self.sizes, strict=True))
        return f"MixedExamples({listed})"


def _walk(count: int, begin: int, length: int, seed: int, part: int) -> np.ndarray:
    """Positions `begin` to `begin + length` of the endless sequence of permutations of `count` rows."""
    passes = range(begin // count, (begin + length - 1) // count + 1)
    rows = np.concatenate([_permutation(count, seed, part, number, 1) for number in passes])
    offset = begin - passes[0] * count
    return rows[offset : offset + length]


def _permutation(count: int, *numbers: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(epoch_seed(*numbers) & 0x7FFFFFFFFFFFFFFF)
    return torch.randperm(count, generator=generator).numpy()
