"""A model's buffers as they were before a step: forward passes change them, whatever becomes of the step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class KeptBuffers:
    """Copies of all buffers of `model`, such as a batch norm's running statistics, to restore them by.

    Replacing a buffer (`self.count = self.count + 1`) is undone as well as changing it in place.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = [(module, name) for module in model.modules() for name in module._buffers]
        self._before: list[Tensor | None] = []
        self._copies: list[Tensor | None] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the buffers as they are now."""
        self._before = [module._buffers.get(name) for module, name in self._places]
        if len(self._copies) != len(self._before):
            self._copies = [None] * len(self._before)
        # One kernel for all buffers of a kind: a model may have hundreds of them.
        kinds: dict[tuple[torch.dtype, torch.device], tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        for index, (buffer, copy) in enumerate(zip(self._before, self._copies, strict=True)):
            if buffer is None:
                self._copies[index] = None
            elif copy is None or (copy.shape, copy.dtype, copy.device) != (buffer.shape, buffer.dtype, buffer.device):
                self._copies[index] = buffer.clone()
            else:
                copies, buffers = kinds[buffer.dtype, buffer.device]
                copies.append(copy)
                buffers.append(buffer)
        for copies, buffers in kinds.values():
            torch._foreach_copy_(copies, buffers)

    @torch.no_grad()
    def restore(self, where: Tensor | None = None) -> None:
        """Make the buffers those of the last `keep`; nothing happens when there was none.

        Args:
            where: bool scalar on the buffers' device: restore only if it is true, without reading it on the host. A buffer that
                was replaced by one of another shape is left as it is then.
        """
        if not self._before:
            return
        for (module, name), before, copy in zip(self._places, self._before, self._copies, strict=True):
            if where is None:
                if before is not None and copy is not None:
                    before.copy_(copy)
                module._buffers[name] = before
            else:
                now = module._buffers.get(name)
                if copy is not None and now is not None and (now.shape, now.dtype) == (copy.shape, copy.dtype):
                    torch.where(where, copy, now, out=now)


def run_states(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Collect state that modules carry from batch to batch outside `state_dict`: module name -> its `run_state_dict()`,
    where it has one."""
    return {
        name: module.run_state_dict()
        for name, module in model.named_modules()
        if callable(getattr(module, "run_state_dict", None)) and callable(getattr(module, "load_run_state_dict", None))
    }  # fmt: skip


def load_run_states(model: nn.Module, saved: Mapping[str, Any]) -> None:
    """The inverse of `run_states`; modules without an entry keep their state, entries without a module are ignored."""
    for name, module in model.named_modules():
        if name in saved and callable(getattr(module, "load_run_state_dict", None)):
            module.load_run_state_dict(saved[name])
