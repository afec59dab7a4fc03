"""Sums over targets while an epoch runs, and the metrics they become."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils.errors import ModelError

if TYPE_CHECKING:
    from utils.training.engine.loss.objective import Objective

# What an objective counts: name -> how many numbers that are (1 for a scalar, C for one a class).
CountSizes = Mapping[str, int]

#: The count of the model's auxiliary loss times the targets, and the name of its metric.
AUXILIARY = "aux_loss"


@dataclass
class Sums:
    """Running sums of a stretch of training or of a validation. Values are Python floats: double precision, exact to store.

    Attributes:
        loss: sum of the losses of all targets; targets: how many there were.
        grad_norm: sum of the steps' gradient norms; steps: how many there were.
        counts: what else the objective counts, by name (`Loss.counts`): one float for a scalar, else one an entry.
    """

    loss: float = 0.0
    targets: int = 0
    grad_norm: float = 0.0
    steps: int = 0
    counts: dict[str, list[float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values."""
        return {**vars(self), "counts": {name: list(values) for name, values in self.counts.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Sums:
        """The inverse of `to_dict`."""
        # Before there were other tasks, "correct" stood alone.
        alone = {"correct": [values["correct"]]} if "correct" in values else {}
        counted = values.get("counts", alone)
        values = {**vars(cls()), **values}
        counts = {str(name): [float(value) for value in found] for name, found in counted.items()}
        loss, grad_norm = float(values["loss"]), float(values["grad_norm"])
        return cls(loss, int(values["targets"]), grad_norm, int(values["steps"]), counts)

    def add(
        self, loss_sum: float, num_targets: int, counts: Mapping[str, Sequence[float]], grad_norm: float | None = None
    ) -> None:
        """One more micro-batch or step."""
        self.loss += loss_sum
        self.targets += num_targets
        for name, values in counts.items():
            known = self.counts.get(name)
            self.counts[name] = list(values) if known is None else [a + b for a, b in zip(known, values, strict=True)]
        if grad_norm is not None:
            self.grad_norm += grad_norm
            self.steps += 1

    def count(self, name: str) -> float:
        """A scalar count; 0 where nothing was counted."""
        values = self.counts.get(name, [0.0])
        assert len(values) == 1, f"{name} is no scalar"
        return values[0]

    @property
    def mean_loss(self) -> float | None:
        """Loss per target; None when there was no target."""
        return self.loss / self.targets if self.targets else None

    @property
    def mean_grad_norm(self) -> float | None:
        """Gradient norm per step; None when there was no step with a target."""
        return self.grad_norm / self.steps if self.steps and self.targets else None


def metrics_of(sums: Sums, objective: Objective, prefix: str) -> dict[str, float]:
    """The loss per target and the objective's metrics of its sums, under `prefix`; in training also the model's auxiliary
    loss (mean over targets) and the mean gradient norm. Empty when nothing was counted.

    Raises:
        ModelError: the objective's `metrics` failed, or a value is no number.
    """
    if sums.targets == 0:
        return {}
    # A task may compute a loss of its own, such as one without label smoothing.
    metrics = {"loss": sums.loss / sums.targets, **_of_objective(sums, objective)}
    found = {f"{prefix}/{name}": value for name, value in metrics.items()}
    if AUXILIARY in sums.counts:
        found[f"{prefix}/{AUXILIARY}"] = sums.count(AUXILIARY) / sums.targets
    return found if sums.mean_grad_norm is None else {**found, f"{prefix}/grad_norm": sums.mean_grad_norm}


def _of_objective(sums: Sums, objective: Objective) -> dict[str, float]:
    name = type(objective).__name__
    try:
        metrics = objective.metrics(sums)
        return {key: float(value) for key, value in metrics.items()}
    except Exception as error:
        raise ModelError(
            f"{name}.metrics failed with {type(error).__name__}: {error}. It gets `sums` with loss and targets (totals of an "
            "epoch), count(name) for a count of size 1 and counts[name], a list, for longer ones; it returns numbers by name."
        ) from error


def widest(tensor: Tensor) -> Tensor:
    """Convert to the widest float of the device: fp64, in which counts of any size add up exactly, or fp32 on Apple's GPUs."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def pack_counts(counts: Mapping[str, Tensor], sizes: CountSizes, like: Tensor) -> Tensor:
    """Concatenate all counts in the order of `sizes`, to transfer them together; 0 for missing ones.

    Args:
        like: a tensor on the same device.
    Returns:
        fp64, shape (sum of sizes,).
    Raises:
        ModelError: a count that `sizes` does not name, or of another size.
    """
    if len(counts) == len(sizes) == 1:  # nearly every step of a language model
        ((name, count),) = counts.items()
        if sizes.get(name) == count.numel() == 1:
            return widest(count.detach()).reshape(1)
    strange = [name for name, count in counts.items() if count.numel() != sizes.get(name)]
    if strange:
        found = {name: counts[name].numel() for name in strange}
        raise ModelError(
            f"an objective counted {found}, which its count_sizes {dict(sizes)} does not say. Name them there."
        )
    rows = [
        widest(counts[name].detach()).reshape(-1) if name in counts else widest(like).new_zeros(size)
        for name, size in sizes.items()
    ]
    return torch.cat(rows) if rows else widest(like).new_zeros(0)


def unpack_counts(values: Sequence[float], sizes: CountSizes) -> dict[str, list[float]]:
    """The inverse of `pack_counts`, for a row that was read from the device."""
    found, start = {}, 0
    for name, size in sizes.items():
        found[name] = list(values[start : start + size])
        start += size
    return found


def perplexity(loss: float) -> float:
    """exp(loss), infinite when that is too large for a float; never clipped."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def gradient_norm(parameters: list[Tensor]) -> Tensor:
    """L2 norm of all gradients together: scalar fp32 tensor, 0 when there are none."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = torch.nn.utils.get_total_norm(gradients)
    # Of sharded gradients each process has only its parts' norm until they are put together.
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
