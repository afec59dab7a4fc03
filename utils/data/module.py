"""UniversalDataModule: datasets -> batches. The order of samples is a function of (seed, epoch) and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from utils.data.batch import IGNORED, Batch, Collate
from utils.data.collators import AnyCollator, collator_for
from utils.data.dataloaders import EpochPlan
from utils.data.documents import DocumentBlocks
from utils.data.id_limits import SAMPLED, Limits, check_batch, check_source
from utils.data.mixed_examples import MixedExamples
from utils.data.packing import TokenBlocks
from utils.data.padding import evident_padding
from utils.data.sources import DatasetSource, IdSource, Source, StreamSource, as_source, epoch_seed, loader_of
from utils.data.workers import TIMEOUT_S, LoaderProcesses
from utils.errors import ConfigError, DataError, DataTypeError


@dataclass(frozen=True)
class StepBatches:
    """The micro-batches of one optimizer step and which samples they hold.

    Attributes:
        sample_ids: numbers of the samples in the dataset (in the stream, for streams), in order; of all processes.
        micro_batches: the samples as batches, of this process; the last one may be smaller.
    """

    sample_ids: list[int]
    micro_batches: list[Batch]


class UniversalDataModule:
    """Training and validation data as batches, from whatever the user has (see `utils.data.sources`).

    Args:
        train_dataset, val_dataset: the data; `train_data` and `val_data` are accepted as names too.
        task_spec: gives the pad id and the block length, where they are not in the tokenizer.
        data_collator: a collate function; None: the task's (`utils.data.collators.collator_for`). Where no task is known,
            token ids are padded and labelled by `TextCollator`, and images stacked.
        batch_size: samples in a micro-batch; a DataLoader's own batch size wins. Its `drop_last`, and the `num_samples` and
            `replacement` of its RandomSampler, hold for every epoch.
        num_workers: processes that prepare batches.
        seed: the order of epoch e is a function of (seed, e).
        max_train_samples, max_val_samples: use only the first n.
        pad_token_id: used when neither tokenizer nor task_spec has one.
        timeout_s: seconds after which a loader process without a batch is taken to hang; a DataLoader's own timeout wins.

    Attributes:
        share: (rank, number) of the processes that train together. A step's samples are cut into micro-batches as if there were
            one process, and micro-batch k is for process k mod number.
        lockstep: whether every process must have as many micro-batches, because a forward pass is done by all together; the
            missing ones are made up of a sample whose labels are all -100, so that nothing of it counts.
        shuffle: whether epochs come in a new order each; False: in the data's own.
    Raises:
        DataTypeError, DataError: before any work; says what was got and how to wrap it.
    """

    def __init__(
        self, train_dataset: Any = None, val_dataset: Any = None, task_spec: Any = None, tokenizer: Any = None,
        data_collator: Any = None, batch_size: int = 32, num_workers: int = 0, seed: int = 42, *, train_data: Any = None,
        val_data: Any = None, max_train_samples: int | None = None, max_val_samples: int | None = None,
        pad_token_id: int | None = None, block_size: int | None = None, timeout_s: float = TIMEOUT_S,
    ) -> None:  # fmt: skip
        train_dataset = train_data if train_dataset is None else train_dataset
        val_dataset = val_data if val_dataset is None else val_dataset
        if train_dataset is None:
            raise DataTypeError(
                "Expected train_data to be Dataset or DataLoader; got None. Give the dataset to train on."
            )
        candidates = [getattr(tokenizer, "pad_token_id", None), getattr(task_spec, "pad_token_id", None), pad_token_id]
        self.pad_token_id: int | None = next((pad for pad in candidates if pad is not None), None)
        self.num_workers, self.seed = num_workers, seed
        self.share, self.lockstep, self.shuffle = (0, 1), False, True
        self._limits: Limits | None = None
        self.timeout_s = (isinstance(train_dataset, DataLoader) and train_dataset.timeout) or timeout_s
        options: dict[str, Any] = {
            "collate": data_collator or self._task_collator(task_spec, tokenizer), "tokenizer": tokenizer,
            "pad_id": self.pad_token_id, "seed": seed,
            "eos_id": getattr(tokenizer, "eos_token_id", None),
            "block_size": getattr(task_spec, "max_seq_len", None) or block_size,
        }  # fmt: skip
        self.notices: list[str] = []
        self.train, wanted, notices = as_source(train_dataset, argument="train_data", **options)
        self.notices += notices
        self.batch_size = wanted or batch_size
        if (
            getattr(task_spec, "task_type", None) == "seq2seq" and tokenizer is not None and not data_collator
            and getattr(tokenizer, "eos_token_id", None) is None and getattr(tokenizer, "sep_token_id", None) is None
        ):  # fmt: skip
            self.notices.append("The tokenizer has no end-of-text token: the model cannot learn where a target ends.")
        self.num_train = _limited(self.train, max_train_samples)
        documents = _inner(self.train)
        if isinstance(documents, DocumentBlocks) and documents.shuffle and self.num_train != len(documents):
            raise ConfigError(
                f"max_train_samples={max_train_samples} takes the first blocks, and with shuffle_documents each epoch has "
                "other ones. Give fewer documents, or set shuffle_documents=False."
            )
        self._plan = self._planned(train_dataset, self.train, "train_data")
        self.validation: Source | StreamSource | None = None
        self.num_validation: int | None = 0
        self.validation_batch_size = self.batch_size
        if val_dataset is not None:
            self.validation, wanted, notices = as_source(val_dataset, argument="val_data", **options)
            self.notices += notices
            self.validation_batch_size = wanted or self.batch_size
            self.num_validation = _limited(self.validation, max_val_samples)
            plan = self._planned(val_dataset, self.validation, "val_data")
            if plan.num_samples is not None:
                self.notices.append("val_data: the sampler's num_samples is not used: every sample is validated once.")
            if self.num_validation is not None:
                self.num_validation -= self.num_validation % plan.multiple_of

    @property
    def mixture(self) -> MixedExamples | None:
        """The training data if they are a mixture, which orders its own samples; else None."""
        return _mixture_in(self.train)

    @property
    def validation_names(self) -> tuple[str, ...]:
        """Names of the datasets of which a validation consists; empty unless it is a mixture."""
        mixture = _mixture_in(self.validation)
        return () if mixture is None else mixture.names

    @property
    def unigram_loss(self) -> float | None:
        """Loss of a unigram model on the validation data, nats per target; None where the data do not say it."""
        return getattr(_inner(self.validation), "unigram_loss", None)

    def _planned(self, given: Any, source: Source | StreamSource, argument: str) -> EpochPlan:
        """Samples of an epoch, as a given DataLoader defines them. Raises DataError when none is left."""
        if not isinstance(given, DataLoader) or isinstance(source, StreamSource):
            return EpochPlan()
        plan = EpochPlan.of(given)
        count = self.num_train if argument == "train_data" else self.num_validation
        if count is not None and plan.size(count) == 0:
            raise DataError(
                f"{argument}: drop_last=True leaves no batch of {plan.multiple_of} out of {count} samples. Set drop_last=False "
                "or a smaller batch_size in the DataLoader."
            )
        return plan

    def _task_collator(self, task_spec: Any, tokenizer: Any) -> Collate:
        eos_id = getattr(tokenizer, "eos_token_id", None)
        if getattr(task_spec, "task_type", None) in (None, "causal_lm"):
            return AnyCollator(self.pad_token_id, eos_id)
        if getattr(tokenizer, "pad_token_id", None) is None and task_spec.pad_token_id is None:
            task_spec = task_spec.replace(pad_token_id=self.pad_token_id)
        return collator_for(task_spec, tokenizer)

    def check_ids(self, limits: Limits) -> None:
        """Refuse token ids and labels outside the limits: now, where a look at the data is cheap, else as batches are made.

        Raises:
            DataError: names data, sample, position, id and vocabulary size. So do `steps` and `validation_batches` from now on.
        """
        self._limits = limits
        for source, name in ((self.train, "train_data"), (self.validation, "val_data")):
            if source is not None and not isinstance(source, StreamSource):
                check_source(source, name, limits)

    def padding_notice(self, *, explicit: bool) -> str | None:
        """Notice about padding in training samples that have neither an attention mask nor ignored labels; None
        without such padding.

        Args:
            explicit: the padding id was given with tokenizer, task or config, not taken from the model.
        """
        if explicit or isinstance(self.train, StreamSource | TokenBlocks):
            return None
        rows = _unmarked_rows(self.train, self._num_samples, self.pad_token_id)
        if self.pad_token_id is None:
            found = evident_padding(rows)
            return (
                None
                if found is None
                else (
                    f"train_data seems padded with the id {found}, and no padding id is known: padding is scored like text. "
                    f"Set TaskSpec(..., pad_token_id={found}), or give a tokenizer, attention masks or labels with {IGNORED}."
                )
            )
        if not any(bool((row[[0, -1]] == self.pad_token_id).any()) for row in rows):
            return None
        return (
            f"The id {self.pad_token_id} at either end of a sample is padding (the model's pad_token_id) and is not scored. "
            f"If it is text, give labels or set the model's config.pad_token_id to None."
        )

    @property
    def resumable(self) -> bool:
        """Whether any position of the training data can be returned to exactly."""
        return not isinstance(self.train, StreamSource)

    def num_steps(self, accumulation: int) -> int | None:
        """Optimizer steps in one epoch; None when the length of a stream is unknown.

        Args:
            accumulation: micro-batches of one step, for each process.
        """
        if isinstance(self.train, StreamSource):
            return None if self.train.num_batches is None else math.ceil(self.train.num_batches / accumulation)
        return math.ceil(self._epoch_size / (self.batch_size * accumulation * self.share[1]))

    @property
    def samples_per_epoch(self) -> int | None:
        """Samples that an epoch trains on, `num_train` unless a given DataLoader says otherwise; None for streams."""
        return None if isinstance(self.train, StreamSource) else self._epoch_size

    @property
    def _num_samples(self) -> int:
        assert self.num_train is not None
        return self.num_train

    @property
    def _epoch_size(self) -> int:
        return self._plan.size(self._num_samples)

    def order(self, epoch: int) -> np.ndarray:
        """The samples of an epoch in the order in which they are trained on: int64, shape (samples_per_epoch,)."""
        if (mixture := self.mixture) is not None:
            return mixture.order(self.seed, epoch, self._epoch_size)
        if not self.shuffle:
            return np.arange(self._epoch_size) % self._num_samples
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch) & 0x7FFFFFFFFFFFFFFF)
        return self._plan.order(self._num_samples, self._epoch_size, generator)

    def steps(self, epoch: int, skip: int, accumulation: int) -> Iterator[StepBatches]:
        """The optimizer steps of an epoch from sample `skip` on (a multiple of a step's samples, or the epoch's end)."""
        if isinstance(self.train, StreamSource):
            yield from self._stream_steps(self.train, skip, accumulation)
            return
        if isinstance(self.train, DatasetSource):
            self.train.epoch = epoch
        if isinstance(documents := _inner(self.train), DocumentBlocks):
            documents.begin_epoch(epoch_seed(self.seed, epoch))
        order = self.order(epoch)[skip:]
        rank, processes = self.share
        per_step = self.batch_size * accumulation * processes
        steps = [order[start : start + per_step] for start in range(0, len(order), per_step)]
        mine = [_chunks(step, self.batch_size)[rank::processes] for step in steps]
        batches = self._batches(self.train, [chunk for chunks in mine for chunk in chunks], "train_data")
        for step, chunks in zip(steps, mine, strict=True):
            missing = math.ceil(len(step) / (self.batch_size * processes)) - len(chunks) if self.lockstep else 0
            micro_batches = [next(batches) for _ in chunks]
            micro_batches += [_without_targets(self.train) for _ in range(missing)]
            yield StepBatches(step.tolist(), micro_batches)

    def validation_batches(self, name: str | None = None) -> Iterator[Batch | None]:
        """This process's share of the validation data, in its own order: of all together, each sample once.

        Every process yields equally many, so that all can synchronise before each; None once this one has no batch left.

        Args:
            name: one of `validation_names`: only this dataset of the mixture.
        """
        if self.validation is None:
            return
        if isinstance(self.validation, StreamSource):
            position = 0
            for batch in self.validation:
                position = self._check_stream(batch, position, "val_data")
                yield batch
            return
        assert self.num_validation is not None
        rank, processes = self.share
        mixture = _mixture_in(self.validation)
        sections: Sequence[tuple[str | None, np.ndarray]] = (
            [(None, np.arange(self.num_validation))] if mixture is None else mixture.sections(self.num_validation)
        )
        chunks = [
            chunk for section, rows in sections if name in (None, section)
            for chunk in _chunks(rows, self.validation_batch_size)
        ]  # fmt: skip
        mine = chunks[rank::processes]
        yield from self._batches(self.validation, mine, "val_data")
        missing = math.ceil(len(chunks) / processes) - len(mine)
        for _ in range(missing):
            yield _without_targets(self.validation) if self.lockstep else None

    def _batches(self, source: Source, chunks: list[np.ndarray], name: str) -> Iterator[Batch]:
        batches: Iterable[Batch]
        if self.num_workers == 0:
            batches = (source.take(chunk.tolist()) for chunk in chunks)
        else:
            batches = LoaderProcesses(source, chunks, self.num_workers, self.timeout_s)
        seen = isinstance(source, (IdSource, TokenBlocks))  # entirely, before the first step
        for chunk, batch in zip(chunks, batches, strict=True):
            if self._limits is not None and not seen:
                check_batch(batch, chunk.tolist(), name, self._limits)
            yield batch

    def _check_stream(self, batch: Batch, first: int, name: str) -> int:
        """Check the ids of a batch that begins with sample `first` of a stream; returns where the next one begins."""
        end = first + len(next(iter(batch.values())))
        if self._limits is not None:
            check_batch(batch, range(first, end), name, self._limits)
        return end

    def _stream_steps(self, stream: StreamSource, skip: int, accumulation: int) -> Iterator[StepBatches]:
        """Steps of a stream; what was consumed before a resume is read again and skipped."""
        position = 0
        micro_batches: list[Batch] = []
        ids: list[int] = []
        for batch in stream:
            size = len(next(iter(batch.values())))
            position += size
            if position <= skip:
                continue
            self._check_stream(batch, position - size, "train_data")
            micro_batches.append(batch)
            ids += range(position - size, position)
            if len(micro_batches) == accumulation:
                yield StepBatches(ids, micro_batches)
                micro_batches, ids = [], []
        if micro_batches:
            yield StepBatches(ids, micro_batches)

    def digest(self) -> str:
        """Changes when the training data or how much of it is used does; empty for streams."""
        if isinstance(self.train, StreamSource):
            return ""
        # An order that draws other samples is other data; the plan of every sample once adds nothing.
        plan = "" if self._plan == EpochPlan() else f"{self._plan}:"
        return f"{plan}{self.num_train}:{self.train.digest()}"

    def train_dataloader(self) -> DataLoader[Any]:
        """The training data as a plain, shuffled DataLoader."""
        return self._loader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | None:
        """The validation data as a plain DataLoader; None without validation data."""
        return (
            None
            if self.validation is None
            else self._loader(self.validation, self.validation_batch_size, shuffle=False)
        )

    def _loader(self, source: Source | StreamSource, batch_size: int, *, shuffle: bool) -> DataLoader[Any]:
        if isinstance(source, StreamSource):
            assert isinstance(source.batches, DataLoader)
            return source.batches
        return loader_of(source, batch_size, shuffle, self.seed, self.num_workers)


def _unmarked_rows(source: Source, count: int, pad_id: int | None) -> list[torch.Tensor]:
    """Token ids of up to 64 samples spread over a source, of those in which neither a mask nor given labels mark padding."""
    rows: list[torch.Tensor] = []
    for index in sorted({int(index) for index in np.linspace(0, count - 1, num=min(count, SAMPLED))}):
        batch = source.take([index])
        ids, mask, labels = (batch.get(name) for name in ("input_ids", "attention_mask", "labels"))
        if ids is None or ids.dim() != 2:
            return []
        made = labels is None or labels.shape != ids.shape or bool(((labels == ids) | (ids == pad_id)).all())
        if made and ids.numel() and (mask is None or bool(mask.all())):
            rows.append(ids[0])
    return rows


def _inner(source: Source | StreamSource | None) -> Any:
    """The dataset itself, also where a collate function of the caller's makes its batches."""
    return source.dataset if isinstance(source, DatasetSource) else source


def _mixture_in(source: Source | StreamSource | None) -> MixedExamples | None:
    """The mixture that a source is."""
    inner = _inner(source)
    return inner if isinstance(inner, MixedExamples) else None


def _without_targets(source: Source) -> Batch:
    batch = source.take([0])
    labels = batch.get("labels", next(iter(batch.values())))
    # An amount of -100 is an amount: what is not known is NaN there.
    return {**batch, "labels": torch.full_like(labels, math.nan if labels.is_floating_point() else IGNORED)}


def _chunks(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def _limited(source: Source | StreamSource, limit: int | None) -> int | None:
    if isinstance(source, StreamSource):
        return None
    return len(source) if limit is None else min(limit, len(source))


def nothing_to_learn(num_samples: int, epoch: int = 0) -> str:
    """Error message for an epoch (from 0) of `num_samples` samples without a single target."""
    if num_samples == 0 and epoch > 0:
        return (
            f"train_data gave no batch in epoch {epoch + 1}: it can be read only once. Have __iter__ begin anew each time, or "
            f"train one epoch of it; the {epoch} before are saved."
        )
    if num_samples == 0:
        return "train_data gave no batch in a whole epoch. See what its loader or sampler yields."
    return (
        f"train_data has no target: in {num_samples:,} samples every label is -100, or there is only one token. Give "
        "samples of at least two tokens, with labels for what is to be predicted."
    )
