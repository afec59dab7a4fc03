"""Estimate the duration of checks on this machine, from the time of one forward pass."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from utils.checks.probe import CannotProbeError, left_as_it_was, probe

#: Of each check: seconds that do not depend on the model (drawing, first use of a package), and forward passes of 4 rows of
#: at most 128 positions. Measured on a GPT of 10 M parameters and on one of 36,000, one thread.
COST: Mapping[str, tuple[float, float]] = {
    "shapes": (0.1, 18), "gradient flow": (0.7, 17), "output stability": (0.1, 4), "parameter initialisation": (0.1, 2.5),
    "memory footprint": (0.1, 4), "inference speed": (0.1, 3), "attention patterns": (0.6, 5),
    "feature attribution": (0.3, 2), "input perturbation": (0.1, 2), "calibration": (0.3, 45),
    "loss by position and frequency": (0.3, 45), "overfit one batch": (3.0, 140),
}  # fmt: skip
# Of a check that is not in the table: it trains, as a rule.
_UNKNOWN = (3.0, 300)
_ROWS, _LENGTH = 4, 128


def expected_seconds(
    checks: Iterable[str], model: Any, config: Any = None, *, task_spec: Any = None, tokenizer: Any = None
) -> float | None:
    """Estimate how long checks will take, from one timed forward pass. The model is unchanged afterwards.

    Args:
        checks: names of the checks; model, config, task_spec, tokenizer: what they will be given.
    Returns:
        Seconds; None where the model cannot be called. A machine that is busy then and idle later, or the reverse, makes the
        estimate wrong by as much.
    """
    try:
        found = probe(model, config, task_spec, tokenizer)
        with left_as_it_was(found.model), torch.no_grad():
            found.model.eval()
            batch = found.batch(_ROWS, min(_LENGTH, found.max_length))
            found.call(batch)  # the first call allocates
            began = time.perf_counter()
            found.call(batch)
            unit = time.perf_counter() - began
    except CannotProbeError:
        return None
    except Exception:  # noqa: BLE001 - the checks themselves report what is wrong with the model
        return None
    costs = [COST.get(name, _UNKNOWN) for name in checks]
    return sum(fixed + passes * unit for fixed, passes in costs)
