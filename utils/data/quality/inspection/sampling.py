"""A bounded sample of a dataset as arrays: evenly spaced rows, in order, without a trace in anybody's random state."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.data.batch import IGNORED, Batch
from utils.data.encoded import EncodedExamples
from utils.data.id_limits import SAMPLED
from utils.data.packing import TokenBlocks
from utils.data.sources import DatasetSource, IdSource, Source, may_draw

#: Most rows of a sample, and most numbers in its inputs.
MOST_ROWS, MOST_VALUES = 4096, 4_000_000
#: Most rows of a dataset with code of the user's own, and seconds after which no more of them are read.
MOST_FOREIGN_ROWS, FOREIGN_SECONDS = 256, 1.0

_ROWS_AT_ONCE = 32
#: Fills up token rows; no token has this id.
NO_TOKEN = -1

LabelKind = Literal["classes", "flags", "numbers", "tokens"]


@dataclass(frozen=True)
class Sample:
    """Rows of a dataset. n rows, F features, T positions, K numbers of a label.

    Attributes:
        num_rows: rows of the whole dataset.
        inputs: token ids int64 (n, T), filled up with -1; or numbers float32 (n, ...): (n, F), (n, T, F), (n, C, H, W).
        labels: (n,), (n, K), or (n, T) filled up with -100; None without labels.
        mask: bool (n, T), the attention mask; None without one.
        batch: the first rows as the model gets them.
    """

    num_rows: int
    inputs: np.ndarray
    labels: np.ndarray | None
    mask: np.ndarray | None
    batch: Batch

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def is_complete(self) -> bool:
        """Whether these are all rows."""
        return len(self) == self.num_rows

    @property
    def holds_tokens(self) -> bool:
        """Whether the inputs are token ids."""
        return self.inputs.dtype.kind == "i"

    @property
    def holds_images(self) -> bool:
        """Whether the inputs are images (n, C, H, W)."""
        return self.inputs.ndim == 4

    def label_kind(self, task_type: str | None = None) -> LabelKind | None:
        """Kind of labels of a task: one class per row, multi-label, numbers, or a token or class per position."""
        labels = self.labels
        if labels is None or not labels.size:
            return None
        if labels.dtype.kind != "f":
            if labels.ndim == 1:
                return "numbers" if task_type == "regression" else "classes"
            binary = not self.holds_tokens and bool(np.isin(labels, (0, 1)).all())
            return "flags" if binary else "tokens"
        known = labels[np.isfinite(labels)]
        if task_type != "regression" and known.size and labels.ndim == 2 and labels.shape[1] > 1:
            return "flags" if bool(((known >= 0) & (known <= 1)).all()) else "numbers"
        return "classes" if known.size and bool(np.isin(known, (0, 1)).all()) else "numbers"

    def columns(self) -> np.ndarray:
        """The inputs as a table: features (n, F) as they are, otherwise one column per feature of a step or per channel."""
        if self.inputs.ndim == 1:
            return self.inputs[:, None]
        if self.inputs.ndim == 4:
            return np.moveaxis(self.inputs, 1, -1).reshape(-1, self.inputs.shape[1])
        return self.inputs.reshape(-1, self.inputs.shape[-1])


def read_sample(source: Source, num_rows: int | None = None, *, num_workers: int = 0) -> Sample | None:
    """Read evenly spaced rows of `source`, as training would read them.

    Random generators are as before afterwards, those that the dataset holds included. A dataset with code of the user's own
    is read for at most a second; with loader processes, no other rows of it are read than the engine reads anyway.

    Args:
        num_rows: only the first rows count; None: all.
    Returns:
        None for batches without numbers.
    Raises:
        DataError: a row cannot be read.
    """
    total = len(source) if num_rows is None else num_rows
    with own_generators_kept(source):
        first = source.take([0])
    main = _main_input(first)
    if main is None or total == 0:
        return None
    most = max(SAMPLED, min(MOST_ROWS, MOST_VALUES // max(1, first[main][0].numel())))
    foreign = is_foreign(source)
    if foreign:
        most = min(most, SAMPLED if num_workers else MOST_FOREIGN_ROWS)
    rows = sorted({int(row) for row in np.linspace(0, total - 1, num=min(total, most))})
    with own_generators_kept(source):
        batches = list(_batches(source, rows, time.monotonic() + FOREIGN_SECONDS if foreign else None))
    return sample_of(batches, main, total)


def sample_of(batches: Sequence[Batch], main: str, num_rows: int) -> Sample:
    """Batches as one sample."""
    tokens = main == "input_ids" and not batches[0][main].is_floating_point()
    inputs = _joined([batch[main] for batch in batches], NO_TOKEN if tokens else None)
    labels = None
    if all("labels" in batch for batch in batches):
        labels = _joined([batch["labels"] for batch in batches], IGNORED)
        labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 and not tokens else labels
    mask = None
    if tokens and all("attention_mask" in batch for batch in batches):
        mask = _joined([batch["attention_mask"] for batch in batches], 0).astype(bool)
    return Sample(num_rows, inputs, labels, mask, batches[0])


def is_foreign(source: Source) -> bool:
    """Whether reading a row runs code of the user's own."""
    if isinstance(source, (IdSource, TokenBlocks, EncodedExamples)):
        return False
    return not isinstance(source, DatasetSource) or may_draw(source.dataset)


def _batches(source: Source, rows: list[int], deadline: float | None) -> Iterator[Batch]:
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        if deadline is not None and start >= SAMPLED and time.monotonic() > deadline:
            return
        yield source.take(rows[start : start + _ROWS_AT_ONCE])


def _main_input(batch: Batch) -> str | None:
    names: list[str] = [name for name in ("input_ids", "pixel_values") if name in batch]
    names += [name for name, value in batch.items() if name != "labels" and value.is_floating_point()]
    return next((name for name in names if batch[name].dim() >= 1 and batch[name].numel()), None)


def _joined(parts: Sequence[Tensor], fill: int | None) -> np.ndarray:
    """Tensors one after the other, the last dimension of (n, T) filled up to the longest."""
    arrays = [_array(part) for part in parts]
    if fill is not None and arrays[0].ndim == 2 and len({array.shape[1] for array in arrays}) > 1:
        longest = max(array.shape[1] for array in arrays)
        arrays = [np.pad(array, ((0, 0), (0, longest - array.shape[1])), constant_values=fill) for array in arrays]
    return np.concatenate(arrays)


def _array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return np.asarray((tensor.float() if tensor.is_floating_point() else tensor.long()).numpy())


@contextlib.contextmanager
def own_generators_kept(source: Any) -> Iterator[None]:
    """Generators that a dataset, its transforms or its collate function hold are as before after the block."""
    restore: list[tuple[Callable[[Any, Any], object], Any, Any]] = []
    for generator in _generators(source, depth=5, seen=set()):
        if isinstance(generator, np.random.Generator):
            restore.append((_set_numpy_state, generator, generator.bit_generator.state))
        elif isinstance(generator, np.random.RandomState):
            restore.append((np.random.RandomState.set_state, generator, generator.get_state()))
        elif isinstance(generator, torch.Generator):
            restore.append((torch.Generator.set_state, generator, generator.get_state()))
        else:
            restore.append((random.Random.setstate, generator, generator.getstate()))
    try:
        yield
    finally:
        for set_state, generator, state in restore:
            set_state(generator, state)


def _set_numpy_state(generator: np.random.Generator, state: Any) -> None:
    generator.bit_generator.state = state


def _generators(value: Any, depth: int, seen: set[int]) -> Iterator[Any]:
    if isinstance(value, (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)):
        if id(value) not in seen:
            seen.add(id(value))
            yield value
        return
    if depth == 0 or id(value) in seen or isinstance(value, (str, bytes, Tensor, np.ndarray, type)):
        return
    seen.add(id(value))
    if isinstance(value, (list, tuple)):
        inner = list(value[:16])  # transforms, not rows
    elif isinstance(value, dict):
        inner = list(value.values())[:16]
    else:
        inner = list(getattr(value, "__dict__", {}).values())
    for one in inner:
        if not isinstance(one, torch.nn.Module) or isinstance(value, Dataset):
            yield from _generators(one, depth - 1, seen)
