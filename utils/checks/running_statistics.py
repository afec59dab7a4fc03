"""Give batch normalisation that has seen no batch the statistics of random inputs, while a check looks at the model.

A normalisation that has seen nothing passes its input on in evaluation mode, as its mean is 0 and its variance 1. Through many
such layers activations vanish or explode, which the first steps of training would end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from utils.checks.probe import Probe, left_as_it_was

# Batches that the statistics are averaged over, and their rows.
_BATCHES, _ROWS = 2, 16


@contextlib.contextmanager
def settled(found: Probe) -> Iterator[None]:
    """Inside the block, running statistics that were never updated are those of random inputs; `num_batches_tracked` stays 0,
    by which models that have not been trained are recognised."""
    fresh = [module for module in found.model.modules() if _is_fresh(module)]
    if not fresh:
        yield
        return
    before = [(tensor, tensor.clone()) for module in fresh for tensor in _statistics(module)]
    after = _measured(found, fresh)
    try:
        _put(after)
        yield
    finally:
        _put(before)


def _measured(found: Probe, fresh: list[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """The statistics of random inputs, beside the tensors that they belong into; nothing where the model raises."""
    momenta = [(module, module.momentum) for module in fresh]
    try:
        with left_as_it_was(found.model), torch.no_grad():
            for module in fresh:
                module.momentum = None  # type: ignore[assignment]  # the mean over all batches
            found.model.train()
            for seed in range(_BATCHES):
                found.call(found.batch(_ROWS, min(16, found.max_length), seed))
            return [(tensor, tensor.clone()) for module in fresh for tensor in _statistics(module)]
    except Exception:  # noqa: BLE001 - the checks report what the model raises
        return []
    finally:
        for module, momentum in momenta:
            module.momentum = momentum


def _put(values: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for tensor, value in values:
            tensor.copy_(value)


def _is_fresh(module: nn.Module) -> bool:
    """Whether it is a batch normalisation with running statistics of 0 and 1, and has counted no batch."""
    if not isinstance(module, nn.modules.batchnorm._BatchNorm) or len(_statistics(module)) != 2:
        return False
    mean, variance = _statistics(module)
    return int(module.num_batches_tracked or 0) == 0 and not bool(mean.any()) and bool((variance == 1).all())


def _statistics(module: nn.Module) -> list[Tensor]:
    values = [getattr(module, "running_mean", None), getattr(module, "running_var", None)]
    return [value for value in values if isinstance(value, Tensor)]
