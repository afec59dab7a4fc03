"""precision="auto" by measurement: passes over a real batch in half precision and in fp32, in turn.

On a small model the conversions of autocast cost more than half precision gains, so the faster format cannot be looked up.
Both formats do the same update on the same fp32 weights: what differs is the forward and the backward pass, and these are
timed. Nothing is left of a pass (`Parts.rehearse`), so a run continues as if its format had been given.
"""

from __future__ import annotations

import contextlib
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from utils.adapters.left_as_found import attributes_kept
from utils.data.batch import Batch
from utils.training.engine.compute.assembly import Parts
from utils.training.engine.hardware.memory import free_memory, is_out_of_memory
from utils.training.engine.hardware.precision import FULL, ResolvedPrecision

log = logging.getLogger("trainbook.engine")

#: Seconds of one forward and backward pass over a batch in the format that the parts are set to.
TimePass = Callable[[Parts, Batch], float]

#: Share of the planned run that the measurement may take.
SHARE = 0.02
#: Pairs of passes: fewer say too little beside the noise of a shared machine, more add nothing.
FEWEST_PAIRS, MOST_PAIRS = 3, 15
#: Half precision is taken when fp32 takes at least this many times as long: rounding should buy something.
WORTH_IT = 1.05
#: From this ratio on a single pair decides.
CLEAR = 2.0
_WARM_UP_PASSES = 2  # one in each format


@dataclass(frozen=True)
class Measured:
    """How long fp32 takes beside half precision.

    Attributes:
        ratio: time of a pass in fp32 over that in half precision, the median of the pairs; inf where fp32 does not fit in
            memory.
        pairs: how many pairs of passes were timed.
    """

    ratio: float
    pairs: int

    @property
    def half_is_faster(self) -> bool:
        """Whether half precision is worth its rounding."""
        return self.ratio >= WORTH_IT

    def sentence(self, half: str) -> str:
        """What was chosen and why, for the user."""
        found = f"precision='auto' chose {half if self.half_is_faster else 'fp32'}: "
        if math.isinf(self.ratio):
            return f"{found}in fp32 the first batch does not fit in memory."
        times = f"a forward and backward pass in {half} takes {1 / self.ratio:.2f} times as long as in fp32"
        return f"{found}{times} (median of {self.pairs} interleaved pair{'s' * (self.pairs > 1)})."


def time_pass(parts: Parts, batch: Batch) -> float:
    """Seconds of one forward and backward pass, by the clock of this machine."""
    began = time.perf_counter()
    parts.rehearse(batch)
    return time.perf_counter() - began


def affordable_pairs(num_passes: int) -> int:
    """Pairs of passes that `SHARE` of a run of `num_passes` micro-batches pays for; 0 where they are fewer than
    `FEWEST_PAIRS`. Counted, not timed: the same for the same run on every machine."""
    pairs = int((SHARE * num_passes - _WARM_UP_PASSES) // 2)
    return 0 if pairs < FEWEST_PAIRS else min(pairs, MOST_PAIRS)


def compare_formats(
    parts: Parts, batch: Batch, pairs: int, num_passes: int, limit_s: float, seconds: TimePass = time_pass
) -> Measured | None:
    """Time both formats in turn; weights, optimizer, buffers, random state and the format are as before afterwards.

    Args:
        parts: set to half precision.
        pairs: at most so many; fewer where the first is `CLEAR`, or where the time is spent.
        num_passes: micro-batches of the run: `SHARE` of the time that they take in the faster format may be spent.
        limit_s: seconds that may be spent at most; one pair is always timed.
    Returns:
        None when time ran out before `FEWEST_PAIRS`, or a pass failed in a way that training itself will report.
    """
    ratios: list[float] = []
    spent = 0.0
    try:
        with attributes_kept(parts.model):
            seconds(parts, batch)
            with _in_fp32(parts):
                if not _fits(parts, batch, seconds):
                    return Measured(math.inf, 0)
            for number in range(pairs):
                half, full = _pair(parts, batch, seconds, half_first=number % 2 == 0)
                ratios.append(full / max(half, 1e-9))
                spent += half + full
                affordable_s = min(limit_s, SHARE * num_passes * min(half, full))
                if not 1 / CLEAR < ratios[0] < CLEAR or spent + half + full > affordable_s:
                    break
    except Exception as error:  # noqa: BLE001 - code of the caller's; the first step raises the same with all it knows
        log.debug("The precisions could not be compared: %s", error)
        return None
    if len(ratios) < FEWEST_PAIRS and 1 / CLEAR < ratios[0] < CLEAR:
        return None
    return Measured(statistics.median(ratios), len(ratios))


def _pair(parts: Parts, batch: Batch, seconds: TimePass, *, half_first: bool) -> tuple[float, float]:
    """Seconds in half precision and in fp32; which comes first alternates, so that neither always follows the other."""
    half = seconds(parts, batch) if half_first else 0.0
    with _in_fp32(parts):
        full = seconds(parts, batch)
    return half if half_first else seconds(parts, batch), full


def _fits(parts: Parts, batch: Batch, seconds: TimePass) -> bool:
    try:
        seconds(parts, batch)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    else:
        return True
    free_memory()  # out of the except block, whose error holds tensors
    return False


@contextlib.contextmanager
def _in_fp32(parts: Parts) -> Iterator[None]:
    before, scaler = parts.precision, parts.scaler
    parts.precision, parts.scaler = ResolvedPrecision(FULL), None
    try:
        yield
    finally:
        parts.precision, parts.scaler = before, scaler
