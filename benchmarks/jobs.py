"""One contender's task: which model, text, precision and device; and what is the same for all of them."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.workload import Sizes, Workload

#: What is not scored (torch's and transformers' convention).
IGNORED = -100


@dataclass(frozen=True)
class Job:
    """What every contender is given. All optimize with AdamW at a constant learning rate, without weight decay.

    Attributes:
        precision: "32", "bf16" (mixed), or "auto": the contender's own default.
        device: "cpu" or "cuda"; folder: where it may write; compile_mode: torch.compile's mode, None: eager.
    """

    sizes: Sizes
    workload: Workload
    precision: str
    device: str
    folder: str
    compile_mode: str | None = None
    learning_rate: float = 5e-4
    max_grad_norm: float = 1.0
    seed: int = 0

    @property
    def targets_a_batch(self) -> int:
        """Targets of a packed batch: every token but the first of each block."""
        return self.sizes.batch * (self.sizes.length - 1)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision for a loop that is written by hand."""
        import torch

        if self.precision == "bf16":
            return torch.autocast(self.device, torch.bfloat16)
        return contextlib.nullcontext()

    def block_rows(self) -> list[dict[str, Any]]:
        """The blocks as samples for a DataLoader: input_ids and labels, int64 (T,)."""
        import torch

        blocks_NT = torch.from_numpy(self.workload.blocks).long()
        return [{"input_ids": ids_T, "labels": ids_T} for ids_T in blocks_NT]


def count_targets(labels_BT: Any) -> int:
    """Useful tokens of a batch: labels that are scored. Padding is not, and neither is the first token of a row."""
    return int((labels_BT[:, 1:] != IGNORED).sum())


def padded(lines: list[np.ndarray], pad_id: int, length: int | None = None) -> dict[str, Any]:
    """Lines as one batch: input_ids, attention_mask and labels, each int64 (B, T'); T' = `length` or the longest line."""
    import torch

    longest = length or max(len(line) for line in lines)
    ids_BT = torch.full((len(lines), longest), pad_id)
    mask_BT = torch.zeros_like(ids_BT)
    for row, line in enumerate(lines):
        ids_BT[row, : len(line)] = torch.from_numpy(line)
        mask_BT[row, : len(line)] = 1
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": ids_BT.masked_fill(mask_BT == 0, IGNORED)}


class Counted:
    """A collate function that remembers each batch's useful tokens, in order: loaders may fetch a batch ahead."""

    def __init__(self, collate: Callable[[list[Any]], Mapping[str, Any]]) -> None:
        self._collate = collate
        self._counts: deque[int] = deque()

    def __call__(self, rows: list[Any]) -> Mapping[str, Any]:
        batch = self._collate(rows)
        self._counts.append(count_targets(batch["labels"]))
        return batch

    def next_count(self) -> int:
        """Useful tokens of the oldest batch that was not asked for yet: the one that was just trained on."""
        return self._counts.popleft()
