"""One interface to the kinds of data that users pass: a source that yields batches of any samples, in any order.

`as_source` takes a Dataset, a DataLoader, a Hugging Face Dataset, a list of id tensors, a list of texts or a TensorDataset of
ids. Nothing is copied that need not be.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from utils.data.batch import Batch, Collate, PreparingCollate, as_batch, described
from utils.data.dataloaders import has_plain_order, ignored_settings, without_duplicates
from utils.data.packing import UNMARKED_ENDS, TokenBlocks, pack
from utils.data.padding import labels_of
from utils.data.text_collator import TextCollator, with_left_mask
from utils.errors import DataError, DataTypeError, TrainbookError, first_line


@runtime_checkable
class Source(Protocol):
    """Map-style data: samples by index, which can be shuffled and resumed exactly."""

    def __len__(self) -> int: ...

    def take(self, indices: Sequence[int]) -> Batch:
        """The samples `indices`, collated: every tensor has len(indices) rows."""
        ...

    def digest(self) -> str:
        """Short text that changes when the content does."""
        ...


def epoch_seed(seed: int, *numbers: int) -> int:
    """A 64-bit seed for (seed, numbers): independent streams, by numpy's SeedSequence."""
    low, high = np.random.SeedSequence([seed, *numbers]).generate_state(2)
    return int(low) | (int(high) << 32)


class DatasetSource:
    """A map-style dataset and a collate function.

    What a dataset or a collate function draws at random (augmentation, masking) is a function of seed, epoch and sample
    number, so neither the number of loader processes nor a resume in mid-epoch changes it; the caller's random state is left
    as it was. A collate function that draws for each sample does so in `prepare` (`PreparingCollate`); what it draws for a
    batch depends on the last sample of it.

    Attributes:
        epoch: set before each epoch.
        before_sample: called with the number of each sample before it is read.
    Not covered: generators that a dataset makes for itself (`np.random.default_rng()`).
    """

    def __init__(self, dataset: Any, collate: Collate, seed: int = 0) -> None:
        self.dataset, self.collate, self.seed, self.epoch = dataset, collate, seed, 0
        self.before_sample: Callable[[int], object] = lambda index: None
        self._prepare: Callable[[Any], Any] | None = None
        self._join = collate
        if isinstance(collate, PreparingCollate):
            self._prepare, self._join = collate.prepare, collate.collate
        self._draws = may_draw(dataset) or getattr(collate, "draws", True)
        in_columns = type(dataset) is TensorDataset and len(dataset.tensors) in (1, 2)
        self._of_columns: Callable[[Tensor, Tensor | None], Batch | None] | None = None
        if in_columns and self._prepare is None:
            self._of_columns = getattr(collate, "of_columns", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, indices: Sequence[int]) -> Batch:
        """The samples `indices` as a batch. Raises `DataError` that names the sample which cannot be read."""
        if not self._draws:
            if (batch := self.columns(indices)) is not None:
                return batch
            samples = [self._prepared(self._sample(int(index)), int(index)) for index in indices]
            return self._collated(samples, indices)
        with _KeptRandomState():
            samples = []
            for index in indices:
                _seed_cpu(epoch_seed(self.seed, self.epoch, int(index)))
                samples.append(self._prepared(self._sample(int(index)), int(index)))
            return self._collated(samples, indices)  # what it draws goes on from the last sample's

    def columns(self, indices: Sequence[int]) -> Batch | None:
        """What `take` returns, made without single samples, several times faster; each row is what `take` makes of its sample.

        None where samples have to be looked at one by one: by the collate function, or to say which of them is wrong.
        """
        if self._of_columns is None or self._draws:
            return None
        for index in indices:
            self.before_sample(int(index))
        try:
            rows = torch.as_tensor(np.asarray(indices, dtype=np.int64))
            if not len(rows):
                return None
            inputs_B, *labels_B = [tensor[rows].contiguous() for tensor in self.dataset.tensors]
            return self._of_columns(inputs_B, labels_B[0] if labels_B else None)
        except (TrainbookError, LookupError, RuntimeError, TypeError, ValueError):
            return None

    def _sample(self, index: int) -> Any:
        self.before_sample(index)
        try:
            return self.dataset[index]
        except TrainbookError:
            raise
        except Exception as error:  # whatever it is, it comes from the user's dataset
            raise DataError(
                f"sample {index} of {type(self.dataset).__name__} cannot be read: {first_line(error, with_class=True)}"
            ) from error

    def _prepared(self, sample: Any, index: int) -> Any:
        if self._prepare is None:
            return sample
        try:
            return self._prepare(sample)
        except TrainbookError:
            raise
        except Exception as error:  # whatever it is, it comes from the user's sample or collate function
            raise DataError(
                f"sample {index} cannot be prepared for a batch: {first_line(error, with_class=True)}"
            ) from error

    def _collated(self, samples: list[Any], indices: Sequence[int]) -> Batch:
        try:
            return as_batch(self._join(samples))
        except TrainbookError:
            raise
        except Exception as error:  # whatever it is, it comes from the user's samples or collate function
            raise DataError(
                f"samples {', '.join(str(int(index)) for index in indices[:8])} cannot be made a batch: "
                f"{first_line(error, with_class=True)}. Samples of a batch need equal shapes, or a data_collator of "
                "yours that makes them equal."
            ) from error

    def digest(self) -> str:
        """The dataset's own where it has one; else from the length and up to 64 samples spread over it: reading a large one
        whole would take too long."""
        if isinstance(self.dataset, Source):
            return self.dataset.digest()
        total = len(self)
        hasher = hashlib.blake2b(str(total).encode(), digest_size=16)
        for row in self.single(sorted({int(i) for i in np.linspace(0, total - 1, num=min(total, 64))})):
            for name, tensor in sorted(row.items()):
                hasher.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
                hasher.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return hasher.hexdigest()

    def single(self, indices: Sequence[int]) -> Iterator[Batch]:
        """A batch of each of these samples alone."""
        if (batch := self.columns(indices)) is None:
            yield from (self.take([index]) for index in indices)
            return
        for row in range(len(indices)):
            yield {name: tensor[row : row + 1] for name, tensor in batch.items()}


def may_draw(dataset: Any) -> bool:
    """Whether a dataset may draw at random. Plain containers and our own classes do not; a subclass of them may."""
    kind = type(dataset)
    return kind not in (list, tuple, TensorDataset) and bool(vars(kind).get("draws", True))


class StreamSource:
    """Batches in an order that cannot be chosen: an iterable dataset, or a loader with its own sampler."""

    def __init__(self, batches: Iterable[Any], batch_size: int | None, num_batches: int | None) -> None:
        self.batches, self.batch_size, self.num_batches = batches, batch_size, num_batches

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            yield as_batch(batch)


class _KeptRandomState:
    """The three global generators as they were, after the block."""

    def __enter__(self) -> None:
        self._states = (random.getstate(), np.random.get_state(), torch.get_rng_state())  # noqa: NPY002

    def __exit__(self, *_: object) -> None:
        random.setstate(self._states[0])
        np.random.set_state(self._states[1])  # noqa: NPY002
        torch.set_rng_state(self._states[2])


def _seed_cpu(seed: int) -> None:
    """Seed the three global generators. Devices' are left alone: a model draws its dropout from them."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 - users' datasets draw from the global generator
    torch.default_generator.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)


class IdSource:
    """Rows of token ids of equal length in one tensor: batches are slices of it."""

    def __init__(self, ids_NT: Tensor, pad_id: int | None = None, eos_id: int | None = None) -> None:
        self.ids_NT, self.pad_id, self.eos_id = ids_NT, pad_id, eos_id

    def __len__(self) -> int:
        return self.ids_NT.shape[0]

    def take(self, indices: Sequence[int]) -> Batch:
        ids_BT = self.ids_NT[torch.as_tensor(np.asarray(indices, dtype=np.int64))].long()
        batch = {"input_ids": ids_BT, "labels": labels_of(ids_BT, None, self.pad_id, self.eos_id)}
        return with_left_mask(batch, self.pad_id, self.eos_id)

    def max_id(self) -> int:
        """The largest token id."""
        return int(self.ids_NT.max())

    def digest(self) -> str:
        raw = self.ids_NT.contiguous().view(torch.uint8).numpy()
        return hashlib.blake2b(f"{tuple(self.ids_NT.shape)}".encode() + raw.tobytes(), digest_size=16).hexdigest()


def as_source(
    data: Any, *, argument: str, collate: Collate | None, tokenizer: Any = None, block_size: int | None = None,
    pad_id: int | None = None, eos_id: int | None = None, seed: int = 0,
) -> tuple[Source | StreamSource, int | None, list[str]]:  # fmt: skip
    """`data` as a source of batches.

    Args:
        data: see the module's docstring.
        argument: its name in messages, "train_data" or "val_data".
        collate: the user's collate function, or None for `TextCollator`.
        block_size: tokens per block when texts are given.
    Returns:
        the source, the batch size that a given DataLoader asks for (None: the config's), and notices for the user.
    Raises:
        DataTypeError: an object of another kind; says what was got and how to wrap it.
        DataError: no samples.
    """
    collate = collate or TextCollator(pad_id, eos_id)
    notices: list[str] = []
    batch_size: int | None = None
    source: Source | StreamSource
    if isinstance(data, _Samples):
        data = data.source
    if isinstance(data, DataLoader):
        if not has_plain_order(data):
            notices.append(f"{argument}: the DataLoader's own order is used as it is; exact resume is not promised.")
            data, duplicates = without_duplicates(data, argument)
            notices += [] if duplicates is None else [duplicates]
            return StreamSource(data, data.batch_size, _length(data)), data.batch_size, notices
        notices.append(
            f"{argument}: the DataLoader's dataset, collate_fn and batch_size={data.batch_size} are used, in our own order."
        )
        notices += ignored_settings(data, argument)
        batch_size = data.batch_size
        default = data.collate_fn is torch.utils.data.default_collate
        inner = data.dataset
        if hasattr(inner, "quotas"):
            raise DataTypeError(
                f"{argument}: a DataLoader around a mixture would not keep its shares. Give the mixture itself (data.train), "
                "and batch_size in the settings."
            )
        if isinstance(inner, _Samples) and isinstance(data.collate_fn, _AlreadyTaken):
            source = _recollated(inner.source, collate, seed)
        elif default:
            source = _mapped(inner, collate, pad_id, eos_id, seed)
        else:
            source = DatasetSource(inner, data.collate_fn, seed)
    elif isinstance(data, IterableDataset):
        raise DataTypeError(
            f"Expected {argument} to be Dataset or DataLoader with samples by number; got an IterableDataset. "
            "Wrap it in a DataLoader with a batch_size; it is then taken in its own order."
        )
    elif hasattr(data, "task_spec") and hasattr(data, "validation"):
        raise DataTypeError(
            f"Expected {argument} to be one part of the data; got a {type(data).__name__}, which has both. Give its .train and "
            ".validation, with task_spec=data.task_spec."
        )
    elif hasattr(data, "iloc"):  # its index looks up columns, or rows by their labels
        raise DataTypeError(
            f"Expected {argument} to have samples by number; got a pandas {type(data).__name__}. Give "
            "prepare_examples(frame, task_spec).train, or datasets.Dataset.from_pandas(frame)."
        )
    elif isinstance(data, (str, bytes, Mapping)) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise DataTypeError(
            f"Expected {argument} to be Dataset or DataLoader, a Hugging Face Dataset, a list of id tensors or of texts; "
            f"got {described(data)}. Wrap it: TensorDataset(torch.tensor(ids)) or datasets.Dataset.from_dict(...)."
        )
    elif isinstance(data, Source):
        source = _recollated(data, collate, seed)
    else:
        texts = _texts(data) if getattr(collate, "packs", True) else None
        if texts is not None:
            source = _recollated(_packed_texts(texts, tokenizer, block_size, argument), collate, seed)
            if tokenizer.eos_token_id is None and len(texts) > 1:
                notices.append(f"{argument}: {UNMARKED_ENDS}")
        else:
            source = _mapped(data, collate, pad_id, eos_id, seed)
    if len(source) == 0:
        raise DataError(f"{argument} holds no samples; at least one is needed.")
    return source, batch_size, notices


def _recollated(source: Source, collate: Collate, seed: int) -> Source:
    """`source`, its samples put together by `collate` where that is another than the usual one."""
    if isinstance(collate, TextCollator) or not hasattr(source, "__getitem__"):
        return source
    return DatasetSource(source, collate, seed)


class _AlreadyTaken:
    """Mark our own loaders, whose dataset already yields batches."""

    def __call__(self, samples: list[Batch]) -> Batch:
        return {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}


def loader_of(source: Source, batch_size: int, shuffle: bool, seed: int, num_workers: int = 0) -> DataLoader[Any]:
    """A plain DataLoader over `source`, for use outside the engine; given to `Trainer.train`, it is taken apart again."""
    return DataLoader(
        _Samples(source), batch_size=batch_size, shuffle=shuffle, num_workers=num_workers, collate_fn=_AlreadyTaken(),
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


class _Samples(torch.utils.data.Dataset[Batch]):
    """A source as a map-style dataset of one-row batches."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Batch:
        return self.source.take([index])


def _mapped(data: Any, collate: Collate, pad_id: int | None, eos_id: int | None, seed: int) -> Source:
    """A map-style dataset as a source; rows of ids of equal length as one tensor."""
    if isinstance(collate, TextCollator):
        tensors = data.tensors if type(data) is TensorDataset else None  # a subclass may give something else
        if tensors is not None and len(tensors) == 1 and tensors[0].dim() == 2 and not tensors[0].is_floating_point():
            return IdSource(tensors[0].cpu(), pad_id, eos_id)
        if isinstance(data, Tensor) and data.dim() == 2 and not data.is_floating_point():
            return IdSource(data.cpu(), pad_id, eos_id)
        if (
            type(data) in (list, tuple)
            and len(data)
            and all(isinstance(row, Tensor) and row.dim() == 1 for row in data)
        ):
            rows = [row.cpu() for row in data]
            if len({row.numel() for row in rows}) == 1 and not rows[0].is_floating_point():
                return IdSource(torch.stack(rows), pad_id, eos_id)
    return DatasetSource(data, collate, seed)


def _texts(data: Any) -> list[str] | None:
    """`data` as a list of texts, when that is what it is: a list of str, or a Hugging Face Dataset with a text column."""
    if isinstance(data, (list, tuple)) and len(data) and isinstance(data[0], str):
        return [str(text) for text in data]
    columns = getattr(data, "column_names", None)
    if columns and "input_ids" not in columns and "text" in columns:
        return [str(text) for text in data["text"] if text]
    return None


def _packed_texts(texts: list[str], tokenizer: Any, block_size: int | None, argument: str) -> Source:
    if tokenizer is None:
        raise DataTypeError(
            f"Expected {argument} to be Dataset or DataLoader of token ids; got {len(texts)} texts and no tokenizer. "
            "Give one: Trainer(..., tokenizer=tokenizer), or use prepare_data(setup, model)."
        )
    if block_size is None:
        raise DataTypeError(
            f"{argument} holds texts, and no length is known; give TaskSpec.language_modeling(max_seq_len=...)."
        )
    sequences = tokenizer(texts, add_special_tokens=False)["input_ids"]
    blocks: Source = TokenBlocks(pack(sequences, block_size, tokenizer.eos_token_id))
    return blocks


def _length(loader: DataLoader[Any]) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None
