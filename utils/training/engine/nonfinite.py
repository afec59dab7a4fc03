"""Steps whose loss or gradient is not finite: which are skipped, and the error for the one that ends the run."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from torch import nn

from utils.errors import NonFiniteError
from utils.training.engine.compute.assembly import NO_SKIPS, SkipLimits
from utils.training.engine.state import TrainState

log = logging.getLogger("trainbook.engine")

_SKIPS_IN_A_ROW = 3
_SKIPS_SHARE = 0.01


class SkipRule:
    """Counts steps that are left out, within limits.

    Args:
        skip: whether such steps are left out at all (`on_nonfinite="skip"`).
        state: counts them.
    """

    def __init__(self, skip: bool, state: TrainState) -> None:
        self._skip, self._state = skip, state

    def limits(self, step: int) -> SkipLimits:
        """The limits after `step` steps."""
        if not self._skip:
            return NO_SKIPS
        return SkipLimits(_SKIPS_IN_A_ROW, max(_SKIPS_IN_A_ROW, _SKIPS_SHARE * step))

    def try_skip(self, step: int, sample_ids: Sequence[int]) -> bool:
        """Skip step `step + 1`. Returns False, and counts nothing, where a limit is reached."""
        limits = self.limits(step)
        if self._state.skipped_in_a_row >= limits.in_a_row or self._state.skipped_steps >= limits.in_all:
            return False
        self._state.skipped_steps += 1
        self._state.skipped_in_a_row += 1
        log.warning("Step %d skipped: loss or gradient is not finite (samples %s).", step + 1, _few(sample_ids))
        return True

    def error(
        self, model: nn.Module, step: int, loss: float, norm: float, rate: float, sample_ids: Sequence[int]
    ) -> NonFiniteError:
        """Error that ends the run in the step after `step` steps, with everything that helps to find the cause."""
        skips = self._state.skipped_steps
        skipped = f" (after {skips} skipped steps)" if skips else ""
        return NonFiniteError(
            f"step {step + 1}{skipped}: loss is {loss:.4g}, gradient norm is {norm:.4g} "
            f"(learning rate {rate:.3g}, samples {_few(sample_ids)}). {_worst_gradient(model)} "
            "The parameters are those of the step before. Lower learning_rate, lengthen the warm-up, look at these samples, "
            "or set on_nonfinite='skip'."
        )


def _worst_gradient(model: nn.Module) -> str:
    """The parameter with the first non-finite gradient, else the one with the largest."""
    worst, largest = "", -1.0
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        size = float(parameter.grad.detach().abs().max())
        if not math.isfinite(size):
            return f"First non-finite gradient: {name}."
        if size > largest:
            worst, largest = name, size
    return f"Largest gradient: {worst} ({largest:.4g})." if worst else ""


def _few(sample_ids: Sequence[int], limit: int = 8) -> str:
    more = f" and {len(sample_ids) - limit} more" if len(sample_ids) > limit else ""
    return ", ".join(map(str, sample_ids[:limit])) + more
