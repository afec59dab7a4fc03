"""What is minimised: batch -> sum of losses over targets, and how many targets there were. One class per task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.adapters.forward import ModelCall
from utils.data.examples import IGNORED, Batch
from utils.errors import ConfigError, ModelError
from utils.training.task_spec import TaskSpec


@dataclass
class Loss:
    """The loss of a micro-batch.

    Attributes:
        loss_sum: scalar fp32, with graph: the sum over targets, not their mean.
        num_targets: scalar int64: positions that count.
        outputs: the logits, where somebody asked for them; else None.
        counts: scalar tensors that add up over batches, such as "correct".
    """

    loss_sum: Tensor
    num_targets: Tensor
    outputs: Tensor | None = None
    counts: dict[str, Tensor] = field(default_factory=dict)


class Objective:
    """Base class: how one task turns a batch into a loss. Holds no parameters."""

    def count_targets(self, batch: Batch) -> int:
        """Positions of the batch that count in the loss. Called before the batch goes to the device, so nothing waits."""
        raise NotImplementedError

    def __call__(self, model: ModelCall, batch: Batch, keep_outputs: bool = False) -> Loss:
        """The loss of `batch`, whose tensors are on the model's device."""
        raise NotImplementedError


class CausalLM(Objective):
    """Predict each next token: position t's logits are scored on token t + 1.

    Args:
        vocab_size: checked against the logits' last dimension when given: logits may have more columns (padded vocabulary).
        label_smoothing: share of each target spread over the vocabulary, as in torch's cross_entropy.
    """

    def __init__(self, vocab_size: int | None = None, label_smoothing: float = 0.0) -> None:
        self.vocab_size, self.label_smoothing = vocab_size, label_smoothing

    def count_targets(self, batch: Batch) -> int:
        return int((_labels(batch)[:, 1:] != IGNORED).sum())

    def __call__(self, model: ModelCall, batch: Batch, keep_outputs: bool = False) -> Loss:
        labels_BT = _labels(batch)
        logits_BTV = model(batch)
        if logits_BTV.dim() != 3 or logits_BTV.shape[:2] != labels_BT.shape:
            wanted = f"(B={labels_BT.shape[0]}, T={labels_BT.shape[1]}, V)"
            raise ModelError(
                f"{type(model.model).__name__} returned logits of shape {tuple(logits_BTV.shape)}; "
                f"predicting the next token needs {wanted}: one score per token of the vocabulary at every position."
            )
        if self.vocab_size is not None and logits_BTV.shape[-1] < self.vocab_size:
            raise ModelError(
                f"{type(model.model).__name__} scores {logits_BTV.shape[-1]} tokens of vocab_size={self.vocab_size}: "
                "its output layer must be at least as large."
            )
        # A slice of V-wide rows in fp32: the loss and its sum are never rounded to half precision.
        logits_NV = logits_BTV[:, :-1].flatten(0, 1).float()
        targets_N = labels_BT[:, 1:].flatten()
        loss_sum = F.cross_entropy(
            logits_NV, targets_N, ignore_index=IGNORED, reduction="sum", label_smoothing=self.label_smoothing
        )
        with torch.no_grad():
            counts = {"correct": (logits_NV.argmax(-1) == targets_N).sum()}
            num_targets = (targets_N != IGNORED).sum()
        return Loss(loss_sum, num_targets, logits_BTV if keep_outputs else None, counts)


def _labels(batch: Mapping[str, Tensor]) -> Tensor:
    labels = batch.get("labels")
    labels = batch.get("input_ids") if labels is None else labels
    if labels is None or labels.dim() != 2:
        shapes = {name: tuple(tensor.shape) for name, tensor in batch.items()}
        raise ModelError(
            f"predicting the next token needs input_ids (B, T), and labels of the same shape; the batch has {shapes}"
        )
    return labels


class TrainedModule(nn.Module):
    """Model and objective as one module, so that whatever wraps a module (mixed precision, several devices) wraps both."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self._objective, self._call = objective, ModelCall(model)

    def forward(self, batch: Batch, keep_outputs: bool = False) -> Loss:
        return self._objective(self._call, batch, keep_outputs)


# Task type -> its objective, made from the task and the label smoothing.
_OBJECTIVES: dict[str, Callable[[TaskSpec, float], Objective]] = {
    "causal_lm": lambda task_spec, smoothing: CausalLM(task_spec.vocab_size, smoothing),
}


def make_objective(task_spec: TaskSpec, label_smoothing: float) -> Objective:
    """The objective of `task_spec.task_type`. Raises `ConfigError` that lists the tasks there are."""
    make = _OBJECTIVES.get(task_spec.task_type or "")
    if make is None:
        raise ConfigError(
            f"task_type={task_spec.task_type!r} of task {task_spec.name!r} cannot be trained by this version; "
            f"available: {', '.join(_OBJECTIVES)}"
        )
    return make(task_spec, label_smoothing)
