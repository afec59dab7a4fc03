"""What each value of `TrainingConfig.optimizer` needs and keeps: for the memory plan, resuming, and what the settings allow.

How each is made stands in `utils.training.engine.compute.optim`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerKind:
    """One optimizer.

    Attributes:
        trained_bytes: bytes of a matrix element's gradient and of the optimizer's state for it, in fp32.
        entries: what it keeps for every parameter that it has changed.
        unsharded_because: why it cannot update matrices that are split over processes, or None if it can.
    """

    trained_bytes: int
    entries: tuple[str, ...] = ()
    unsharded_because: str | None = None


_ADAM = OptimizerKind(12, ("exp_avg", "exp_avg_sq", "step"))

#: Value of `TrainingConfig.optimizer` -> what it needs.
OPTIMIZERS: dict[str, OptimizerKind] = {
    "adamw": _ADAM,
    "adam": _ADAM,
    "sgd": OptimizerKind(8),  # its momentum is None before the first step, and absent at momentum 0
    # Muon's matrices have momentum only; AdamW's parameters beside them are few.
    "muon": OptimizerKind(8, ("step",), "splits the matrices that Muon needs whole"),
    # A matrix of m x n has m + n numbers of state.
    "adafactor": OptimizerKind(4, ("step",), "splits the matrices over whose rows and columns Adafactor averages"),
}
