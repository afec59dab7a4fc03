"""Run a model on a few sampled rows: does it normalise its inputs, and how large are its outputs?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from utils.adapters.forward import ModelCall
from utils.adapters.left_as_found import state_kept
from utils.data.batch import Batch

log = logging.getLogger("trainbook.data")

_NORMALISING = (_NormBase, nn.LayerNorm, nn.GroupNorm)
# Root mean square of what reaches the first layer with weights, up to which the model has normalised it.
_NORMALISED = 10.0
# Scale factors of the inputs: an unbounded output changes its sign under at least one of them.
_DRIVES = (1.0, -1.0, 30.0, -30.0, 1000.0, -1000.0)


def normalises_inputs(model: nn.Module, batch: Batch) -> bool:
    """Whether a model scales its inputs before its first layer with weights, or right after it by batch normalisation."""
    calls: list[tuple[nn.Module, Tensor]] = []

    def record(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments and isinstance(arguments[0], Tensor) and len(calls) < 2:
            calls.append((module, arguments[0]))

    hooks = [
        module.register_forward_pre_hook(record)
        for module in model.modules()
        if isinstance(module, _NORMALISING)
        or (not list(module.children()) and next(iter(module.parameters(recurse=False)), None) is not None)
    ]
    try:
        outputs = answers(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if outputs is None or not calls:
        return False
    if any(isinstance(module, _NORMALISING) for module, _ in calls[:1]) or isinstance(calls[-1][0], _NormBase):
        return True
    return bool(calls[0][1].float().square().mean().sqrt() <= _NORMALISED)


def outputs_of(model: nn.Module, batch: Batch, *, driven: bool = False) -> np.ndarray | None:
    """The model's outputs for a batch as a flat array; None where it cannot be called with it.

    Args:
        driven: for enlarged and negated inputs too, where the inputs are numbers.
    """
    found = [
        answers(model, {name: value * drive if value.is_floating_point() and name != "labels" else value
                         for name, value in batch.items()})
        for drive in (_DRIVES if driven else (1.0,))
    ]  # fmt: skip
    flat = [np.asarray(outputs.float().cpu().numpy()).ravel() for outputs in found if outputs is not None]
    joined = np.concatenate(flat) if flat else np.zeros(0)
    return joined if joined.size and bool(np.isfinite(joined).all()) else None


def answers(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor | None:
    """The model's outputs for a batch, in evaluation mode; None where it cannot be called with it."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    try:
        with state_kept(model):
            return ModelCall(model).uncounted({name: value.to(device) for name, value in batch.items()})
    except Exception as error:  # noqa: BLE001 - the user's model; training itself reports why it cannot be called
        log.debug("%s could not be called with sampled examples: %s", type(model).__name__, error)
        return None


def takes_only_integers(model: nn.Module, batch: Batch) -> bool:
    """Whether a model fails with the batch's floats and answers for the same numbers as integers: an embedding comes first."""
    if answers(model, batch) is not None:
        return False
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return answers(model, {name: value.long() for name, value in inputs.items()}) is not None
