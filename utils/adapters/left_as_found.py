"""Context managers that restore a model after a trial: modes, buffers, gradients, plain attributes, random state.

Each part is a context manager of its own; `state_kept` puts those together that a forward pass needs.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

#: Attributes that nn.Module itself keeps; modes and buffers have context managers of their own.
_INTERNALS = frozenset({*vars(nn.Module()), "training"})


@contextlib.contextmanager
def state_kept(model: nn.Module, *, evaluation: bool = True) -> Iterator[None]:
    """For forward passes: no gradients inside; modes, buffers and random state are as before afterwards.

    Args:
        evaluation: the model is in evaluation mode inside; False: in the mode that it is in.
    """
    with modes_kept(model), buffers_kept(model), random_state_kept(model), torch.no_grad():
        if evaluation:
            model.eval()
        yield


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Every submodule is in the mode (training or evaluation) that it was in, after the block."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore all buffers after the block: their values, and the tensors themselves where forward put others in their place."""
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is None or not is_lazy(buffer)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer
                if buffer is not None and before is not None:
                    buffer.copy_(before)


@contextlib.contextmanager
def gradients_kept(model: nn.Module) -> Iterator[None]:
    """Every parameter has the `.grad` that it had, the same tensor, after the block; its values are not copied."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextlib.contextmanager
def random_state_kept(model: nn.Module) -> Iterator[None]:
    """For models that draw, even in evaluation mode: the global generators of Python, numpy and torch, on the CPU and the
    model's GPUs, are as before after the block."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - a model may draw from the global generators
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextlib.contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Restore plain attributes of all modules after the block: objects, values of tensors, entries of lists, dicts and
    sets."""
    kept = [_Attributes(module) for module in model.modules()]
    try:
        yield
    finally:
        with torch.no_grad():
            for attributes in kept:
                attributes.restore()


class _Attributes:
    """Snapshot of a module's plain attributes, to be restored."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._held = {name: value for name, value in vars(module).items() if name not in _INTERNALS}
        self._tensors = [(t, t.detach().clone()) for t in self._held.values() if isinstance(t, Tensor)]
        self._containers = [(c, c.copy()) for c in self._held.values() if type(c) in (list, dict, set)]

    def restore(self) -> None:
        """Put everything back. Call it without gradients."""
        own = vars(self._module)
        for name in [name for name in own if name not in _INTERNALS and name not in self._held]:
            del own[name]
        own.update(self._held)
        for tensor, before in self._tensors:
            if not torch.equal(tensor, before):
                tensor.copy_(before)
        for container, entries in self._containers:
            container.clear()
            container.extend(entries) if isinstance(container, list) else container.update(entries)
