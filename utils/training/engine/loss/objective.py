"""Objectives: batch -> sum of losses over targets, and the number of targets. `tasks/` has one class per task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from utils.adapters.forward import ModelCall
from utils.data.batch import Batch
from utils.errors import ConfigError, Problem
from utils.schema import nearest
from utils.training.engine.metrics import CountSizes, Sums


@dataclass
class Loss:
    """The loss of a micro-batch.

    Attributes:
        loss_sum: scalar fp32, with graph: the sum over targets, not their mean.
        num_targets: targets that count.
        outputs: the logits, where somebody asked for them; else None.
        auxiliary: what the model returned as auxiliary loss (`utils.adapters.auxiliary`), times `num_targets`, with graph; only
            in training. None where there is none.
        counts: what adds up over batches, such as "correct": scalars, or rows with a number for each class. On the model's
            device, without graph; the objective's `count_sizes` names them.
    """

    loss_sum: Tensor
    num_targets: int
    outputs: Tensor | None = None
    counts: dict[str, Tensor] = field(default_factory=dict)
    auxiliary: Tensor | None = None

    @property
    def minimised(self) -> Tensor:
        """Scalar to call backward on: the sum over targets plus the auxiliary loss."""
        return self.loss_sum if self.auxiliary is None else self.loss_sum + self.auxiliary


def output_spread(outputs: Tensor) -> Tensor:
    """Squared deviation of the outputs from their mean over the batch, summed over rows, the mean over everything else.

    0 in every batch: the model answers the same whatever its input is. Scalar fp32 or fp64, without graph.
    """
    values = outputs.detach()
    values = values if values.dtype == torch.float64 else values.float()
    if not values.dim() or not values.numel():
        return values.new_zeros(())
    rows = values.flatten(1) if values.dim() > 1 else values[:, None]
    return (rows - rows.mean(0)).square().mean(1).sum()


class Objective:
    """Base class: how one task turns a batch into a loss. Holds no parameters.

    Attributes:
        notice: a sentence that the user should know about how the loss is computed, once it is known; else None.
        left_to_right: whether a position's output depends on no later position, so that padding on the right changes nothing.
        count_sizes: what `Loss.counts` holds: name -> how many numbers (1 for a scalar). Fixed, so that processes that have no
            batch of a step know it too. Here: nothing.
    """

    notice: str | None = None
    left_to_right: ClassVar[bool] = False
    count_sizes: CountSizes = MappingProxyType({})

    def count_targets(self, batch: Batch) -> int:
        """Targets of the batch that count in the loss. Called before the batch goes to the device, so nothing waits."""
        raise NotImplementedError

    def __call__(
        self, model: ModelCall, batch: Batch, keep_outputs: bool = False, num_targets: int | None = None
    ) -> Loss:
        """The loss of `batch`, whose tensors are on the model's device.

        Args:
            keep_outputs: the logits are wanted too.
            num_targets: what `count_targets` said of it, where it is known: then nothing here waits for the device.
        """
        raise NotImplementedError

    def metrics(self, sums: Sums) -> dict[str, float]:
        """Compute metrics by name from the sums of an epoch or a validation; `sums.targets` is not 0.

        Here: `loss` (per target), and `accuracy` (0-1), the share of targets that are right, where "correct" is counted.
        """
        found = {"loss": sums.loss / sums.targets}
        return {**found, "accuracy": sums.count("correct") / sums.targets} if "correct" in sums.counts else found

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names that `metrics` can return, for checks before training. Override it together with `metrics`."""
        return ("loss", "accuracy") if "correct" in self.count_sizes else ("loss",)


# What a training row holds besides the objective's metrics; the auxiliary loss only where a model returns one.
_OF_TRAINING = ("grad_norm", "learning_rate", "aux_loss")


def check_monitor(monitor: str, objective: Objective, datasets: Sequence[str] = ()) -> None:
    """Raise `ConfigError` with the nearest name when `monitor` is no metric of the objective.

    An objective that overrides `metrics` without `metric_names` is not checked: its metrics are known only once it ran.

    Args:
        datasets: names of those of a mixture, each of which has a validation loss of its own.
    """
    for base in type(objective).__mro__:
        if "metric_names" in vars(base):
            break
        if "metrics" in vars(base):
            return
    prefix, _, name = monitor.partition("/")
    more = _OF_TRAINING if prefix == "train" else [f"loss/{one}" for one in datasets]
    known = [*dict.fromkeys(("loss", *objective.metric_names)), *more]
    if name in known:
        return
    guess = nearest(name, known)
    hint = f"; did you mean {prefix}/{guess}?" if guess else ""
    listed = ", ".join(f"{prefix}/{name}" for name in known)
    raise ConfigError.from_problems(
        "TrainingConfig",
        [Problem("monitor", f"got {monitor!r}; this run has {listed}{hint}", f"{prefix}/{guess}" if guess else None)],
    )


def with_auxiliary_loss(objective: Objective, model: ModelCall, batch: Batch, keep_outputs: bool = False,
                        num_targets: int | None = None) -> Loss:  # fmt: skip
    """The objective's loss of `batch`, with the auxiliary losses that the model returned, if it is in training.

    An auxiliary loss is a mean over a forward pass, whereas the objective's is a sum over targets that the step divides once.
    So it is multiplied by the micro-batch's targets: each micro-batch weighs by its share of the step's targets, and
    accumulation changes the result only as far as the mean of means differs from the mean.
    """
    model.take_auxiliary_loss()  # a failed pass may have left one behind
    loss = objective(model, batch, keep_outputs, num_targets)
    auxiliary = model.take_auxiliary_loss()
    if auxiliary is not None:
        loss.auxiliary = auxiliary * loss.num_targets
    return loss


class TrainedModule(nn.Module):
    """Model and objective as one module, so that whatever wraps a module (mixed precision, several devices) wraps both.

    Args:
        notice: called with a sentence that the user should know.
    """

    def __init__(
        self, model: nn.Module, objective: Objective, compile_mode: str | None = None,
        notice: Callable[[str], None] = lambda sentence: None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.model = model
        self._objective, self._call, self._notice = objective, ModelCall(model, compile_mode), notice
        self._looks_for_padding = True

    def forward(self, batch: Batch, keep_outputs: bool = False, num_targets: int | None = None) -> Loss:
        return with_auxiliary_loss(self._objective, self._call, batch, keep_outputs, num_targets)

    def look_for_padding(self, batch: Batch) -> None:
        """Report padding that the model cannot tell from text because no mask reaches it. For batches that the model was called
        with; `batch` may still be where it was loaded, so that reading its mask does not wait for a device."""
        mask = batch.get("attention_mask")
        if not self._looks_for_padding or mask is None or mask.dim() != 2:
            return
        reason = self._call.lost_mask(batch)
        # Of masks that are on a device already only the first one is read.
        self._looks_for_padding = reason is not None and mask.device.type == "cpu"
        # Padding on the right is after everything that a model which reads from left to right can see.
        seen = mask[:, 0] if self._objective.left_to_right else mask
        if reason is not None and bool((seen == 0).any()):
            self._notice(f"Batches hold padding that the model processes like text: {reason}")
            self._looks_for_padding = False
