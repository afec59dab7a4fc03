"""Ten models as users bring them, each with one thing wrong that training must not pass over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.kit.checked_models import Block, TakesFewerPositions


class Pooled(Block):
    """One prediction a row: (B, V)."""

    def forward(self, ids_BT: Tensor) -> Tensor:
        return super().forward(ids_BT).mean(1)


class ScoresTooFew(Block):
    """An output layer of 24 tokens for 32."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16, 24)


class ReturnsHidden(Block):
    """A dict without logits."""

    def forward(self, ids_BT: Tensor) -> Any:
        return {"hidden": self.mixed(self.embedding(ids_BT)), "scores": super().forward(ids_BT)}


class ReturnsWrongFirst(Block):
    """A tuple whose first tensor is something else."""

    def forward(self, ids_BT: Tensor) -> Any:
        return self.mixed(self.embedding(ids_BT)), super().forward(ids_BT)


class NeedsMore(Block):
    """Asks for something that no batch has."""

    def forward(self, ids_BT: Tensor, lengths: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(ids_BT) * scale + 0 * lengths.sum()


class Detached(Block):
    """Cut off from its parameters."""

    def forward(self, ids_BT: Tensor) -> Tensor:
        return super().forward(ids_BT).detach()


class Frozen(Block):
    """Nothing to train."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Seeds(Block):
    """Seeds the generator in forward, so every step drops the same."""

    def forward(self, ids_BT: Tensor) -> Tensor:
        torch.manual_seed(0)
        return nn.functional.dropout(super().forward(ids_BT), 0.1, self.training)


class SwitchesItself(Block):
    """Goes to evaluation mode in forward, so nothing is dropped from the second pass on."""

    def forward(self, ids_BT: Tensor) -> Tensor:
        self.eval()
        return super().forward(ids_BT)


class Breaks(Block):
    """Multiplies what does not fit."""

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.layer(super().forward(ids_BT))


#: Name -> (model, what tier 1 says, what training says; None: it trains, and only the check tells).
MISFITS: dict[str, tuple[Callable[[], nn.Module], str, str | None]] = {
    "one prediction a row": (Pooled, "(1, 1) gave (1, 32), not ", "logits of shape (4, 32)"),
    "too few scores": (ScoresTooFew, "gave (1, 1, 24), not (1, 1, 32)", "scores 24 tokens"),
    "a dict without logits": (ReturnsHidden, "returned a dict with keys ['hidden', 'scores']", "keys ['hidden', 'scores']"),
    "a tuple of other things first": (ReturnsWrongFirst, "gave (1, 1, 16), not (1, 1, 32)", "scores 16 tokens"),
    "an argument that nobody has": (NeedsMore, "needs ['lengths']", "needs ['lengths']"),
    "no gradient": (Detached, "without a gradient", "without a gradient"),
    "nothing trainable": (Frozen, "No parameter is trainable", "nothing to train"),
    "seeds in forward": (Seeds, "seeds the random generator", None),
    "leaves training mode": (SwitchesItself, "evaluation mode", None),
    "raises": (Breaks, "mat1 and mat2 shapes cannot be multiplied", "mat1 and mat2 shapes cannot be multiplied"),
}  # fmt: skip

__all__ = ["MISFITS", "TakesFewerPositions"]
