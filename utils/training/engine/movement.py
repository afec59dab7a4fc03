"""Whether every parameter that is to be trained did move, and what the optimizer takes for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from utils.training.engine.callbacks import Callback, Logs

if TYPE_CHECKING:
    from utils.training.engine.trainer import Trainer

# LoRA's first matrices move from the second step on: the gradient of A is 0 as long as B is.
_STEPS = 5
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class MovementCallback(Callback):
    """Compares every trained tensor after the first steps, bit by bit, with what it was, and names those that did not move.

    It keeps one number a tensor, not a copy. Where fewer steps are done, it compares when training ends.

    Attributes:
        unmoved: names of the trained tensors that did not change; None before they were compared.
    """

    may_be_late = True

    def __init__(self, facts: dict[str, Any]) -> None:
        self._facts = facts
        self.unmoved: list[str] | None = None
        self._before: dict[str, int] = {}
        self._since = 0

    def on_train_begin(self, trainer: Trainer, logs: Logs | None = None) -> None:
        self.unmoved, self._since = None, trainer.state.step
        self._before = _checksums(trainer)

    def on_step_end(self, step: int, trainer: Trainer, logs: Logs | None = None) -> None:
        if self.unmoved is None and step - self._since >= _STEPS:
            self._compare(trainer)

    def on_train_end(self, trainer: Trainer, logs: Logs | None = None) -> None:
        if self.unmoved is None and trainer.state.step - self._since >= 2:
            self._compare(trainer)
        used = _state_bytes(trainer)
        self._facts["optimizer_bytes"] = used
        if used and self._facts["trained"]:
            whole = int(used / self._facts["trained"] * self._facts["total"])
            trainer.notice(
                f"The optimizer's state takes {used / 2**20:,.2f} MiB; with every parameter trained it would take "
                f"{whole / 2**20:,.2f} MiB."
            )

    def _compare(self, trainer: Trainer) -> None:
        now = _checksums(trainer)
        self.unmoved = self._facts["unmoved"] = [
            name for name, before in self._before.items() if now.get(name) == before
        ]
        if self.unmoved:
            more = f" and {len(self.unmoved) - 5} more" if len(self.unmoved) > 5 else ""
            trainer.notice(
                f"{len(self.unmoved)} of {len(self._before)} trained tensors did not change in the first steps: "
                f"{', '.join(self.unmoved[:5])}{more}. No gradient reaches them, or the learning rate is too small."
            )


def _checksums(trainer: Trainer) -> dict[str, int]:
    return {name: _checksum(p) for name, p in trainer.model.named_parameters() if p.requires_grad}


def _checksum(parameter: Tensor) -> int:
    plain = parameter.detach()
    if plain.is_complex():
        plain = torch.view_as_real(plain)
    bits = plain.contiguous().view(_BITS[plain.element_size()])
    return int(bits.sum(dtype=torch.int64)) if bits.numel() else 0


def _state_bytes(trainer: Trainer) -> int:
    optimizer = trainer.optimizer
    states = [] if optimizer is None else list(optimizer.state.values())
    return sum(v.numel() * v.element_size() for state in states for v in state.values() if isinstance(v, Tensor))
