"""Sources that several limits share, and the limits of a check with its thresholds filled in.

Each module declares its limits beside its constants: those of a check are given to `check`, those of a detector stand in the
detector's module. Reports show them beside the measured values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from utils.check_result import Limit

ROUNDING = "1,000 units in the last place of the model's number format (0.1 in half precision)"
OWN_CHOICE = "this project's choice"
PAIRS_OF_POSITIONS = "attention pairs positions, which is at most quadratic in the length"


def limits_of(declared: Iterable[Limit], thresholds: Mapping[str, Any]) -> tuple[Limit, ...]:
    """The declared limits, with named thresholds replaced by their values; without a value a limit is left out.

    `Limit(measured="x", at_most="y")` reads the threshold called y.
    """
    found = []
    for limit in declared:
        values = {side: _value(getattr(limit, side), thresholds) for side in ("at_least", "at_most")}
        if any(value is not None for value in values.values()):
            found.append(Limit(limit.measured, source=limit.source, **values))
    return tuple(found)


def _value(limit: float | str | None, thresholds: Mapping[str, Any]) -> Any:
    return thresholds.get(limit) if isinstance(limit, str) else limit
