"""Bits per byte of a validation: a loss that does not depend on the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from utils.data.batch import IGNORED, Batch
from utils.data.text_bytes import TextBytes
from utils.errors import DataError
from utils.training.engine.distributed.world import World
from utils.training.engine.loss.objective import Objective
from utils.training.engine.loss.tasks.tokens import TokenTask
from utils.training.engine.metrics import Sums

METRIC = "bits_per_byte"


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Cross-entropy in bits per UTF-8 byte, from its sum over targets in nats and the bytes of their text."""
    return nats / (math.log(2) * num_bytes)


class ValidationBytes:
    """Counts the bytes of the targets while a validation goes through its batches: once, since it always has the same.

    Args:
        objective: only a `TokenTask` with `writes_text` has bytes.
        tokenizer: made the ids; None, or one that cannot decode: nothing is counted.
        changes: whether each validation may have other data, so that each is counted.
        notice: called with a sentence when the bytes cannot be known.
    """

    def __init__(
        self, objective: Objective, tokenizer: Any, *, changes: bool = False, notice: Callable[[str], None]
    ) -> None:
        self._task = objective if isinstance(objective, TokenTask) and objective.writes_text else None
        self._tokenizer, self._changes, self._notice = tokenizer, changes, notice
        self._text: TextBytes | None = None
        self._counted, self._reason = 0, ""  # of this process, in the validation under way
        self._total: int | None = None
        self._due = self._task is not None and hasattr(tokenizer, "decode")

    def watching(self, batches: Iterable[Batch | None], *, continued: bool = False) -> Iterable[Batch | None]:
        """The batches, counted as they pass where that is due.

        Args:
            continued: they belong to the same validation as the batches before.
        """
        return self._passing(batches, continued) if self._due else batches

    def metrics(self, sums: Sums, world: World) -> dict[str, float]:
        """`val/bits_per_byte` of the validation that `watching` saw to its end; empty where the bytes are not known."""
        if self._due:
            counted, failed = world.totals(self._counted, bool(self._reason))
            if failed:
                self._notice(
                    f"val/{METRIC} is not reported: {self._reason or 'another process cannot count the bytes.'}"
                )
            self._due = self._changes and not failed
            self._total = None if failed else int(counted)
        if not self._total or not sums.targets:
            return {}
        nats = sums.count("plain_loss") if "plain_loss" in sums.counts else sums.loss
        return {f"val/{METRIC}": bits_per_byte(nats, self._total)}

    def _passing(self, batches: Iterable[Batch | None], continued: bool) -> Iterator[Batch | None]:
        if not continued:
            self._counted, self._reason = 0, ""
        for batch in batches:
            if batch is not None and not self._reason:
                try:
                    self._counted += self._bytes_of(batch)
                except DataError as error:
                    self._reason = str(error)
            yield batch

    def _bytes_of(self, batch: Batch) -> int:
        assert self._task is not None
        if self._text is None:
            self._text = TextBytes(self._tokenizer)
        labels_BT = self._task.labels(batch).cpu().numpy()
        scored_BT = labels_BT != IGNORED
        ids_BT = np.where(scored_BT, labels_BT, -1)
        inputs = batch.get("input_ids")
        if self._task.shift and inputs is not None and tuple(inputs.shape) == labels_BT.shape:
            # Context that is not scored still decides how a target is decoded.
            ids_BT = np.where(scored_BT, labels_BT, inputs.cpu().numpy())
        scored_BT[:, : self._task.shift] = False
        return self._text.count(ids_BT, scored_BT)
