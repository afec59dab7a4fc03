"""Check that token ids and labels are within the model's vocabulary and classes before an embedding is indexed out of range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.data.batch import IGNORED, Batch
from utils.data.packing import TokenBlocks
from utils.data.sources import DatasetSource, IdSource, Source
from utils.errors import DataError

#: Samples that are read before training where reading all of them would take too long.
SAMPLED = 64


@dataclass(frozen=True)
class Limits:
    """Ranges of token ids and labels.

    Attributes:
        vocab_size: token ids are from 0 to below it; None: not known.
        num_labels: labels are whole numbers from 0 to below it, or -100; None: not known.
        label_kind: what a label numbers: "class" or "token"; "id": labels as long as the ids are ids, others are not looked at.
    """

    vocab_size: int | None
    num_labels: int | None = None
    label_kind: str = "id"


def check_source(source: Source, name: str, limits: Limits) -> None:
    """Check the ids of rows in one array entirely, of other datasets in up to 64 samples spread over them.

    Args:
        name: of the data in the message.
    Raises:
        DataError: an id is out of range; names sample and position.
    """
    if isinstance(source, (IdSource, TokenBlocks)) and limits.vocab_size is not None:
        ids = source.ids_NT.numpy() if isinstance(source, IdSource) else source.ids
        if ids.size and ids.min() >= 0 and source.max_id() < limits.vocab_size:
            return
        rows = ids if isinstance(source, IdSource) else source.blocks
        if rows.size == 0:
            raise DataError(
                f"{name}: the samples have no tokens (shape {rows.shape}). Give samples of at least two tokens."
            )
        for at in (rows.argmin(), rows.argmax()):
            sample, position = (int(index) for index in np.unravel_index(at, rows.shape))
            _refuse_id(int(rows[sample, position]), name, sample, position, limits.vocab_size, "token id")
        return
    total = len(source)
    chosen = sorted({int(index) for index in np.linspace(0, total - 1, num=min(total, SAMPLED))})
    if isinstance(source, DatasetSource) and (batch := source.columns(chosen)) is not None:
        check_batch(batch, chosen, name, limits)
        return
    for index in chosen:
        check_batch(source.take([index]), [index], name, limits)


def check_batch(batch: Batch, samples: Sequence[int], name: str, limits: Limits) -> None:
    """Check the ids and labels of a batch that is still in main memory.

    Args:
        samples: the number of each row.
    Raises:
        DataError: as `check_source`.
    """
    ids_BT, labels = batch.get("input_ids"), batch.get("labels")
    if labels is not None and limits.label_kind != "id" and limits.num_labels is not None:
        _check_labels(labels, samples, name, limits.num_labels, limits.label_kind)
    if ids_BT is None or ids_BT.dim() != 2 or limits.vocab_size is None:
        return
    _check_rows(ids_BT, samples, name, limits.vocab_size, "token id")
    if labels is not None and labels.shape == ids_BT.shape and limits.label_kind == "id":
        _check_rows(labels.masked_fill(labels == IGNORED, 0), samples, name, limits.vocab_size, "label")


def _check_labels(labels: Tensor, samples: Sequence[int], name: str, count: int, kind: str) -> None:
    if labels.is_floating_point() or not labels.numel():
        return
    strange = ((labels < 0) & (labels != IGNORED)) | (labels >= count)
    if not bool(strange.any()):
        return
    row, *position = strange.nonzero()[0].tolist()
    where = f" at position {position[0]:,}" if position else ""
    numbered = {"class": "classes", "token": "tokens"}[kind]
    raise DataError(
        f"{name}: sample {samples[row]:,} has the label {int(labels[(row, *position)]):,}{where}, but the model scores "
        f"{count:,} {numbered}: labels are 0 to {count - 1:,}, or {IGNORED} where nothing is scored. Number the labels "
        "so, or make the model with more outputs."
    )


def _check_rows(rows: Tensor, samples: Sequence[int], name: str, vocab_size: int, what: str) -> None:
    lowest, highest = torch.aminmax(rows)
    if int(lowest) >= 0 and int(highest) < vocab_size:
        return
    row, position = ((rows < 0) | (rows >= vocab_size)).nonzero()[0].tolist()
    _refuse_id(int(rows[row, position]), name, samples[row], position, vocab_size, what)


def _refuse_id(value: int, name: str, sample: int, position: int, vocab_size: int, what: str) -> None:
    if 0 <= value < vocab_size:
        return
    ignored = f", or {IGNORED} where nothing is scored" if what == "label" else ""
    raise DataError(
        f"{name}: sample {sample:,} has the {what} {value:,} at position {position:,}, but the model's vocabulary of "
        f"{vocab_size:,} has ids 0 to {vocab_size - 1:,}{ignored}. Use the model's own tokenizer, or a model with a larger "
        "vocabulary."
    )
