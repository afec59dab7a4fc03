"""Whether token ids are ones that the model has, said before an embedding is asked for a row that it does not have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from utils.data.examples import IGNORED, Batch, IdSource, Source
from utils.data.packing import TokenBlocks
from utils.errors import DataError

# Samples that are looked at beforehand where reading all of them would take too long.
_SAMPLED = 64


def check_source(source: Source, name: str, vocab_size: int) -> None:
    """Check the ids of rows in one array entirely, of other data sets in up to 64 samples spread over them.

    Args:
        name: of the data in the message; vocab_size: ids are from 0 to below it.
    Raises:
        DataError: an id is out of range; names sample and position.
    """
    if isinstance(source, (IdSource, TokenBlocks)):
        rows = source.ids_NT.numpy() if isinstance(source, IdSource) else source.blocks
        if rows.size == 0:
            raise DataError(
                f"{name}: the samples have no tokens (shape {rows.shape}). Give samples of at least two tokens."
            )
        for at in (rows.argmin(), rows.argmax()):
            sample, position = (int(index) for index in np.unravel_index(at, rows.shape))
            _refuse(int(rows[sample, position]), name, sample, position, vocab_size, "token id")
        return
    total = len(source)
    for index in sorted({int(index) for index in np.linspace(0, total - 1, num=min(total, _SAMPLED))}):
        check_batch(source.take([index]), [index], name, vocab_size)


def check_batch(batch: Batch, samples: Sequence[int], name: str, vocab_size: int) -> None:
    """Check the ids of a batch that is still in main memory, and the labels where each belongs to a token.

    Args:
        samples: the number of each row.
    Raises:
        DataError: as `check_source`.
    """
    ids_BT, labels = batch.get("input_ids"), batch.get("labels")
    if ids_BT is None or ids_BT.dim() != 2:
        return
    _check_rows(ids_BT, samples, name, vocab_size, "token id")
    if labels is not None and labels.shape == ids_BT.shape:
        _check_rows(labels.masked_fill(labels == IGNORED, 0), samples, name, vocab_size, "label")


def _check_rows(rows: Tensor, samples: Sequence[int], name: str, vocab_size: int, what: str) -> None:
    lowest, highest = torch.aminmax(rows)
    if int(lowest) >= 0 and int(highest) < vocab_size:
        return
    row, position = ((rows < 0) | (rows >= vocab_size)).nonzero()[0].tolist()
    _refuse(int(rows[row, position]), name, samples[row], position, vocab_size, what)


def _refuse(value: int, name: str, sample: int, position: int, vocab_size: int, what: str) -> None:
    if 0 <= value < vocab_size:
        return
    ignored = f", or {IGNORED} where nothing is scored" if what == "label" else ""
    raise DataError(
        f"{name}: sample {sample:,} has the {what} {value:,} at position {position:,}, but the model's vocabulary of "
        f"{vocab_size:,} has ids 0 to {vocab_size - 1:,}{ignored}. Use the model's own tokenizer, or a model with a larger "
        "vocabulary."
    )
