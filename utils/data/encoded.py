"""Examples of a task as token ids, in flat arrays: 4 bytes a token, however many examples there are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from utils.data.batch import Batch, Collate, as_batch


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths in one array.

    Attributes:
        values: all rows, one after the other.
        offsets: int64 (N + 1,); row i is values[offsets[i]:offsets[i + 1]].
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Ragged:
        """Build from rows of integers that fit int32."""
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
        values = np.fromiter((value for row in rows for value in row), dtype=np.int32, count=int(offsets[-1]))
        return cls(values, offsets)

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """The rows of all parts."""
        ends = np.cumsum([0, *(part.offsets[-1] for part in parts)])
        offsets = [part.offsets[1:] + end for part, end in zip(parts, ends, strict=False)]
        return cls(np.concatenate([part.values for part in parts]), np.concatenate([np.zeros(1, np.int64), *offsets]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def lengths(self) -> np.ndarray:
        """int64 (N,)"""
        return np.diff(self.offsets)


class EncodedExamples(Dataset[dict[str, Any]]):
    """Examples by number, each a dict of tensors; as a source of batches, padded by the collate function of the task.

    Args:
        columns: `input_ids`, and `token_type_ids` and `labels` where there are any: rows of one length as an array (N, ...),
            of different lengths as `Ragged`.
        collate: makes a batch of samples.
    """

    draws = False  # nothing at random

    #: Settings of `prepare_data` that give these examples again; None where they were made in another way.
    origin: Mapping[str, Any] | None = None

    #: Of validation data: the loss of a unigram model of the training data, nats per target. None where it is not known.
    unigram_loss: float | None = None

    #: Of conversations whose answers alone are targets, the tokens that end them.
    end_ids: frozenset[int] = frozenset()

    def __init__(self, columns: Mapping[str, Ragged | np.ndarray], collate: Collate) -> None:
        self.columns, self.collate = dict(columns), collate

    def __len__(self) -> int:
        return len(self.columns["input_ids"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Example `index`: int64 tensors of ids; labels as the task has them."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no example {index}; there are {len(self):,}")
        index %= len(self)
        return {name: _tensor(column[index]) for name, column in self.columns.items()}

    def take(self, indices: Sequence[int]) -> Batch:
        """The examples `indices` as a batch."""
        return as_batch(self.collate([self[int(index)] for index in indices]))

    def digest(self) -> str:
        """Changes when the content does. Reads everything once."""
        hasher = hashlib.blake2b(digest_size=16)
        for name, column in sorted(self.columns.items()):
            arrays = [column.values, column.offsets] if isinstance(column, Ragged) else [column]
            for array in arrays:
                hasher.update(f"{name}{array.shape}{array.dtype.str}".encode())
                hasher.update(np.ascontiguousarray(array).data)
        return hasher.hexdigest()

    @property
    def num_tokens(self) -> int:
        """Tokens in all inputs."""
        return int(self.lengths().sum())

    def lengths(self) -> np.ndarray:
        """Tokens in the input of each example: int64 (N,)."""
        column = self.columns["input_ids"]
        return column.lengths() if isinstance(column, Ragged) else np.full(len(column), column.shape[1])

    def max_id(self) -> int:
        """The largest token id of the inputs."""
        column = self.columns["input_ids"]
        return int((column.values if isinstance(column, Ragged) else column).max())

    def __repr__(self) -> str:
        return f"EncodedExamples({len(self):,} examples, {self.num_tokens:,} tokens)"


def _tensor(value: Any) -> torch.Tensor:
    array = np.asarray(value)
    return torch.tensor(array, dtype=torch.float32 if array.dtype == np.float32 else torch.int64)
