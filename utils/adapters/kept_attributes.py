"""Plain attributes of a model's modules, put back after the model was tried out: numbers, tensors, entries of containers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

#: Attributes that nn.Module itself keeps; modes and buffers are put back by name elsewhere.
_INTERNALS = frozenset({*vars(nn.Module()), "training"})


@contextlib.contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Restore plain attributes of all modules after the block: objects, values of tensors, entries of lists, dicts and
    sets."""
    kept = [KeptAttributes(module) for module in model.modules()]
    try:
        yield
    finally:
        with torch.no_grad():
            for attributes in kept:
                attributes.restore()


class KeptAttributes:
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
