"""Sums over targets while an epoch runs, and the metrics they become."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor


@dataclass
class Sums:
    """Running sums of a stretch of training or of a validation. Values are Python floats: double precision, exact to store."""

    loss: float = 0.0
    targets: int = 0
    correct: float = 0.0
    grad_norm: float = 0.0
    steps: int = 0

    def to_dict(self) -> dict[str, float]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> Sums:
        """The inverse of `to_dict`."""
        kinds = {entry.name: entry.type for entry in fields(cls)}
        return cls(**{name: int(value) if kinds[name] == "int" else float(value) for name, value in values.items()})  # type: ignore[arg-type]

    def add(self, loss_sum: float, num_targets: int, correct: float, grad_norm: float | None = None) -> None:
        """One more micro-batch or step."""
        self.loss += loss_sum
        self.targets += num_targets
        self.correct += correct
        if grad_norm is not None:
            self.grad_norm += grad_norm
            self.steps += 1

    def metrics(self, prefix: str) -> dict[str, float]:
        """`loss` (nats per target), `perplexity` and `accuracy` (0-1) under `prefix`; empty when nothing was counted."""
        if self.targets == 0:
            return {}
        loss = self.loss / self.targets
        found = {
            f"{prefix}/loss": loss,
            f"{prefix}/perplexity": perplexity(loss),
            f"{prefix}/accuracy": self.correct / self.targets,
        }
        if self.steps:
            found[f"{prefix}/grad_norm"] = self.grad_norm / self.steps
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
