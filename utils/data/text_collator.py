"""Rows of token ids -> a batch: padded on the right, with labels and an attention mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.data.batch import IGNORED, Batch, described
from utils.data.padding import labels_of, left_padding_mask
from utils.errors import DataTypeError


class TextCollator:
    """Samples of token ids -> a batch: right-padded to the longest, labels made where none are given.

    A sample is a 1-D tensor or list of ids, a 1-tuple of it, a pair (ids, labels) or a dict with input_ids. Padding is never
    scored: padded positions have label -100, and so have runs of pad ids at either end of a sample without labels or mask
    (`utils.data.padding.labels_of`).

    Args:
        pad_id: fills up short samples; None: 0, which is harmless because the positions are masked and not scored.
        eos_id: the end-of-text id, where it is known.

    Attributes:
        draws: whether anything is drawn at random.
        packs: whether texts are to be packed into blocks of ids before they come here.
    """

    draws, packs = False, True

    def __init__(self, pad_id: int | None = None, eos_id: int | None = None) -> None:
        self.pad_id, self.eos_id = pad_id, eos_id

    def __call__(self, samples: list[Any]) -> Batch:
        rows = [self.row(sample) for sample in samples]
        length = max(row["input_ids"].numel() for row in rows)
        ragged = any(row["input_ids"].numel() != length for row in rows)
        fill = {"input_ids": self.pad_id or 0, "labels": IGNORED, "attention_mask": 0}
        batch: Batch = {}
        for name in rows[0]:
            values = [row[name] for row in rows]
            if not all(
                value.dim() == 1 and value.numel() == row["input_ids"].numel()
                for value, row in zip(values, rows, strict=True)
            ):
                batch[name] = torch.stack(values)
                continue
            batch[name] = torch.stack(
                [
                    torch.nn.functional.pad(value, (0, length - value.numel()), value=fill.get(name, 0))
                    for value in values
                ]
            )
        if ragged and "attention_mask" not in batch:
            lengths = torch.tensor([row["input_ids"].numel() for row in rows])
            batch["attention_mask"] = (torch.arange(length)[None, :] < lengths[:, None]).long()
        return with_left_mask(batch, self.pad_id, self.eos_id) if self._makes_labels(samples) else batch

    @staticmethod
    def _makes_labels(samples: list[Any]) -> bool:
        """Whether the samples are ids alone, so that padding is found by its id."""
        first = samples[0]
        marked = isinstance(first, Mapping) and bool({"labels", "attention_mask"} & first.keys())
        return isinstance(first, (Tensor, np.ndarray, Mapping)) and not marked

    def row(self, sample: Any) -> Batch:
        """One sample as a dict of tensors, with labels. Raises `DataTypeError` when it is no row of ids."""
        if isinstance(sample, (tuple, list)) and sample and isinstance(sample[0], Tensor) and sample[0].dim() == 1:
            sample = dict(zip(("input_ids", "labels"), sample[:2], strict=False))
        elif isinstance(sample, (Tensor, list, tuple, np.ndarray)):
            sample = {"input_ids": sample}
        if not isinstance(sample, Mapping) or "input_ids" not in sample:
            raise DataTypeError(
                f"Expected a sample to be token ids, a pair (ids, labels) or a dict with input_ids; got {described(sample)}. "
                "Texts need a tokenizer: Trainer(..., tokenizer=...); other kinds of samples need data_collator=."
            )
        row = {str(name): torch.as_tensor(value) for name, value in sample.items() if not isinstance(value, str)}
        ids = row["input_ids"]
        if ids.is_floating_point() or ids.dim() != 1:
            raise DataTypeError(
                f"input_ids of a sample must be a 1-D integer tensor; got shape {tuple(ids.shape)}, {ids.dtype}"
            )
        row["input_ids"] = ids.long()
        if "labels" not in row:
            mask = row.get("attention_mask")
            row["labels"] = labels_of(row["input_ids"], mask, self.pad_id, self.eos_id)
        return row


def with_left_mask(batch: Batch, pad_id: int | None, eos_id: int | None) -> Batch:
    """The batch with padding on the left hidden in its attention mask, where there is any and it has been given none."""
    ids_BT = batch["input_ids"]
    mask_BT = left_padding_mask(ids_BT, pad_id, eos_id) if ids_BT.dim() == 2 else None
    if mask_BT is None:
        return batch
    given = batch.get("attention_mask")
    return {**batch, "attention_mask": mask_BT if given is None else given * mask_BT}
