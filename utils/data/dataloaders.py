"""Interpret a DataLoader that a user gives: its samples in our order, or its batches as they come."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

# How a dataset or a worker_init_fn finds out which part of a stream a worker should read.
_SHARDING_CALL = "get_worker_info"


@dataclass(frozen=True)
class EpochPlan:
    """Samples of an epoch.

    Attributes:
        num_samples: samples of an epoch, as `RandomSampler(num_samples=...)` has it; None: every sample once.
        replacement: whether they are drawn with replacement.
        multiple_of: with `drop_last`, the batch size: samples beyond a multiple of it are left out. 1: none are.
    """

    num_samples: int | None = None
    replacement: bool = False
    multiple_of: int = 1

    @classmethod
    def of(cls, loader: DataLoader[Any]) -> EpochPlan:
        """The plan of a loader whose samples are taken in our order."""
        multiple_of = loader.batch_size if loader.drop_last and loader.batch_size else 1
        sampler = loader.sampler
        if not isinstance(sampler, RandomSampler):
            return cls(multiple_of=multiple_of)
        drawn = sampler.num_samples if sampler.replacement or sampler.num_samples != len(sampler.data_source) else None
        return cls(drawn, sampler.replacement, multiple_of)

    def size(self, count: int) -> int:
        """Samples of an epoch over a dataset of `count` samples."""
        size = count if self.num_samples is None else self.num_samples
        return size - size % self.multiple_of

    def order(self, count: int, size: int, generator: torch.Generator) -> np.ndarray:
        """`size` of the samples 0 to `count` - 1 in random order: int64. More than there are: one permutation after another."""
        if self.replacement:
            return torch.randint(count, (size,), generator=generator).numpy()
        passes = [torch.randperm(count, generator=generator) for _ in range(max(1, math.ceil(size / count)))]
        return torch.cat(passes)[:size].numpy()


def has_plain_order(loader: DataLoader[Any]) -> bool:
    """Whether a loader yields the samples of a map-style dataset, shuffled or in order, which can be fetched by index."""
    return (
        not isinstance(loader.dataset, IterableDataset)
        and loader.batch_size is not None
        and type(loader.sampler) in (RandomSampler, SequentialSampler)
        and type(loader).__iter__ is DataLoader.__iter__
    )


def without_duplicates(loader: DataLoader[Any], argument: str) -> tuple[DataLoader[Any], str | None]:
    """The loader with one worker, where each of its workers would read the whole stream; and a notice about it.

    A dataset that shards itself asks `torch.utils.data.get_worker_info`, as those of Hugging Face do. Only where neither it nor
    the loader's `worker_init_fn` does, the number of workers is changed: one worker reads every stream exactly once.
    """
    if loader.num_workers < 2 or not isinstance(loader.dataset, IterableDataset):
        return loader, None
    if _shards_itself(loader.dataset) or _calls(loader.worker_init_fn, _SHARDING_CALL):
        return loader, None
    single = copy.copy(loader)
    single.num_workers = 1
    single._iterator = None  # workers that persist are the given loader's
    return single, (
        f"{argument}: the stream is read by 1 worker instead of {loader.num_workers}: {type(loader.dataset).__name__} does not "
        f"divide itself among workers, so each of them would read all of it. To use several, have its __iter__ yield the "
        f"share of torch.utils.data.get_worker_info()."
    )


def ignored_settings(loader: DataLoader[Any], argument: str) -> list[str]:
    """Notices on settings of a loader that have no meaning when its samples are taken in our order."""
    ignored = {
        "worker_init_fn": loader.worker_init_fn is not None,
        f"num_workers={loader.num_workers}": loader.num_workers > 0,
    }
    names = [name for name, is_set in ignored.items() if is_set]
    if not names:
        return []
    return [f"{argument}: the DataLoader's {' and '.join(names)} is not used; set num_workers in TrainingConfig."]


def _shards_itself(dataset: Any) -> bool:
    """Whether a stream, or a stream that it wraps, asks which worker reads it."""
    seen: set[int] = set()
    waiting = [dataset]
    while waiting:
        stream = waiting.pop()
        if id(stream) in seen:
            continue
        seen.add(id(stream))
        if type(stream).__module__.partition(".")[0] == "datasets":
            return True
        kinds = [kind for kind in type(stream).__mro__ if kind.__module__ != IterableDataset.__module__]
        if any(_calls(member, _SHARDING_CALL) for kind in kinds for member in vars(kind).values()):
            return True
        waiting += [value for value in getattr(stream, "__dict__", {}).values() if isinstance(value, IterableDataset)]
    return False


def _calls(function: Any, name: str) -> bool:
    """Whether the code of a function mentions a name."""
    code = getattr(function, "__code__", None)
    return code is not None and name in code.co_names
