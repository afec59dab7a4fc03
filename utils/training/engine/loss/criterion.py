"""The objective of a user-supplied loss: `criterion(outputs, labels)`, as torch.nn has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from utils.adapters.forward import ModelCall
from utils.data.batch import Batch
from utils.errors import ModelError
from utils.training.engine.loss.objective import Loss, Objective, output_spread
from utils.training.engine.loss.tasks.base import flattening_hint
from utils.training.engine.metrics import CountSizes, Sums


class CriterionObjective(Objective):
    """The mean over samples of what a criterion says of outputs and labels.

    A target is a sample, a row of the batch. What is learned is the mean over the samples of a step, however the criterion adds
    up: a mean (`reduction="mean"`, and functions that give one number) is multiplied by the number of rows, a sum is taken as
    it is, and of a loss per row (`"none"`) the rows are added, each the mean of its entries. So with `reduction="sum"`
    gradients are those of the sum divided by the number of samples.

    Right answers are counted where there are scores (B, C) and classes (B,); `counts_accuracy` says whether there were.

    Args:
        criterion: a module or function of (outputs, labels).
    Not covered: parameters of the criterion, which no checkpoint holds.
    """

    count_sizes: CountSizes = MappingProxyType({"correct": 1, "output_spread": 1})

    def __init__(self, criterion: Callable[[Any, Tensor], Tensor]) -> None:
        self.criterion = criterion
        self.counts_accuracy = False

    def count_targets(self, batch: Batch) -> int:
        return len(_labels(batch))

    def __call__(
        self, model: ModelCall, batch: Batch, keep_outputs: bool = False, num_targets: int | None = None
    ) -> Loss:
        labels = _labels(batch)
        outputs = model.uncounted(batch)
        if outputs.dim() and outputs.shape[-1] > 1:  # one score may be for a yes or no, with labels 0 and 1
            model.check_labels(outputs.shape[-1], outputs.shape[:-1], batch)
        # Outputs of half precision are scored in full, as every other objective does.
        outputs = outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
        loss_sum = self._loss_sum(outputs, labels, flattening_hint(outputs, batch))
        counts = {"output_spread": output_spread(outputs)}
        if _is_classification(outputs, labels):
            self.counts_accuracy = True
            with torch.no_grad():
                counts["correct"] = (outputs.argmax(dim=1) == labels).sum()
        return Loss(loss_sum, len(labels), outputs if keep_outputs else None, counts)

    def _loss_sum(self, outputs: Tensor, labels: Tensor, hint: str) -> Tensor:
        rows = len(labels)
        try:
            value = self.criterion(outputs, labels)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            error.add_note(
                f"The criterion was given outputs {tuple(outputs.shape)} {outputs.dtype} and labels {tuple(labels.shape)} "
                f"{labels.dtype}.{hint}"
            )
            raise
        if not isinstance(value, Tensor):
            raise ModelError(f"the criterion returned a {type(value).__name__}; expected a tensor: the loss.")
        if value.dim() == 0:
            return value if getattr(self.criterion, "reduction", "mean") == "sum" else value * rows
        if len(value) != rows:
            raise ModelError(
                f"the criterion returned a loss of shape {tuple(value.shape)} for {rows} samples; expected one number, or one "
                "row a sample."
            )
        return value.reshape(rows, -1).mean(dim=1).sum()

    def metrics(self, sums: Sums) -> dict[str, float]:
        """`loss` (mean over samples) and, where classes are scored, `accuracy` (0 to 1) of running sums."""
        found = super().metrics(sums)
        return found if self.counts_accuracy else {"loss": found["loss"]}


def _labels(batch: Mapping[str, Tensor]) -> Tensor:
    labels = batch.get("labels")
    if labels is None or labels.dim() == 0:
        shapes = {name: tuple(tensor.shape) for name, tensor in batch.items()}
        raise ModelError(
            f"a criterion needs labels, one row a sample; the batch has {shapes}. Give pairs (inputs, labels), or dicts with "
            "labels."
        )
    return labels


def _is_classification(outputs: Tensor, labels: Tensor) -> bool:
    return outputs.dim() == 2 and labels.dim() == 1 and not labels.is_floating_point() and outputs.shape[1] > 1
