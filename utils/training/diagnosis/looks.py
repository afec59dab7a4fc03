"""Looks at the parameters around single steps: how large weights, gradients and updates are, tensor by tensor.

A look takes samples of each tensor before and after a step, and the gradient that the optimizer got. On a GPU nothing waits for
it but the look itself, of which a run has few.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: Values of a tensor that are compared before and after a step.
_VALUES = 4096
#: Tensors that are looked at, the largest first.
_MOST_TENSORS = 256

_UNITS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class ParameterLooks:
    """Looks at the parameters of `model` that are trained.

    Args:
        model: its parameters must not be sharded; held: those that the optimizer changes.
    """

    def __init__(self, model: nn.Module, held: Sequence[Tensor]) -> None:
        owners = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
        changed = {id(parameter) for parameter in held}
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad and p.numel() and id(p) in changed]
        self._left_out = [(n, p) for n, p in model.named_parameters() if p.requires_grad and id(p) not in changed]
        named.sort(key=lambda pair: -pair[1].numel())
        self._named = named[:_MOST_TENSORS]
        self._has_units = [isinstance(owners[id(p)], _UNITS) and p.dim() > 1 for _, p in self._named]
        self._before: list[Tensor] = []
        self._step = 0

    @property
    def waiting(self) -> bool:
        """Whether a look has begun."""
        return bool(self._before)

    def left_out(self) -> dict[str, int]:
        """Parameters with a gradient that the optimizer does not change, and their sizes."""
        return {name: p.numel() for name, p in self._left_out if p.grad is not None}

    @torch.no_grad()
    def begin(self, step: int) -> None:
        """Take the parameters as they are after `step` steps."""
        self._before = [_sample(parameter.detach()).clone() for _, parameter in self._named]
        self._step = step

    @torch.no_grad()
    def finish(self, step: int) -> list[dict[str, Any]]:
        """The look, after at least one more step: a row for each tensor.

        Each has weight, update (root mean squares; the update is for one step), grad (root mean square of what the optimizer
        got, None where there was no gradient), lost (share of the values that a gradient did not change), and for linear layers
        and convolutions silent (share of the units without any gradient).
        """
        before, self._before = self._before, []
        if step <= self._step:
            return []
        columns = []
        for (_, parameter), old, units in zip(self._named, before, self._has_units, strict=True):
            new = _sample(parameter.detach())
            change, grad = new.float() - old.float(), parameter.grad
            zero = torch.zeros((), device=new.device)
            row = [_rms(old.float()), _rms(change), zero, zero, zero]
            if grad is not None:
                pulled = _sample(grad) != 0
                row[2] = _rms(grad.float())
                row[3] = ((change == 0) & pulled).sum() / pulled.sum().clamp(min=1)
                if units:
                    row[4] = (grad.flatten(1).abs().amax(1) == 0).float().mean()
            columns.append(torch.stack(row))
        numbers = torch.stack([column.to(columns[0].device) for column in columns]).tolist() if columns else []
        return [
            {
                "name": name, "size": p.numel(), "matrix": p.dim() > 1, "format": str(p.dtype)[6:],
                "weight": weight, "update": update / (step - self._step), "grad": None if p.grad is None else grad,
                "lost": lost, **({"silent": silent} if units and p.grad is not None else {}),
            }
            for (name, p), units, (weight, update, grad, lost, silent) in zip(
                self._named, self._has_units, numbers, strict=True
            )
        ]  # fmt: skip


def _sample(values: Tensor) -> Tensor:
    """At most `_VALUES` of the values, evenly spaced."""
    flat = values.reshape(-1)
    return flat[:: max(1, -(-flat.numel() // _VALUES))]


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()
