"""Measure the forward pass on this machine, and its growth with batch size and length."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from utils.check_result import CheckResult, Limit, Verdict
from utils.checks.checking import check
from utils.checks.limits import PAIRS_OF_POSITIONS
from utils.checks.probe import Probe

NAME = "inference speed"

# A batch may take this many times what its rows take one by one: it should take less.
_BATCH_LIMIT = 2.0
# Twice the length may take this many times as long: attention's quadratic part gives 4.
_LENGTH_LIMIT = 8.0
_WARM_UP = 2
# No forward pass takes less: the call of one operation takes a few microseconds.
_LEAST_WORK_S = 1e-6
# Of counted work, which no other program disturbs: a further row may not add this many operations, and four times the rows
# may take this many times the values per row (1, and less where masks are shared; 4 for what pairs rows); twice the length
# this many times the values (at most 4, for attention that keeps its scores).
_CALLS_LIMIT = 1.0
_ROW_WORK_LIMIT = 1.2
_LENGTH_WORK_LIMIT = 5.0

#: Limits of the measured values, and where each is from.
_LIMITS = (
    Limit("batch_ratio", at_most=_BATCH_LIMIT, source="a batch should cost less than its rows one by one"),
    Limit("length_ratio", at_most=_LENGTH_LIMIT, source=f"{PAIRS_OF_POSITIONS}: 4, doubled for noise"),
    Limit("operations_per_further_row", at_most=_CALLS_LIMIT, source="counted; 0 without a loop over rows"),
    Limit("values_per_row_for_four_times_the_rows", at_most=_ROW_WORK_LIMIT, source="counted; 1 without pairs"),
    Limit("values_for_twice_the_length", at_most=_LENGTH_WORK_LIMIT, source=f"counted; {PAIRS_OF_POSITIONS}: 4"),
)  # fmt: skip


@check(NAME, limits=_LIMITS)
def test_inference_speed(found: Probe, n_trials: int = 5, clock: Callable[[], float] | None = None) -> CheckResult:
    """Forward passes in evaluation mode at batch 1 and at the training's batch size.

    Called as (model, config=None, *, task_spec=None, n_trials=5). No speed is right or wrong on an unknown machine, so
    what is judged are ratios: of the shortest of `n_trials` times, and of counted operations and values, which do not
    depend on the machine. On a CPU the times are processor time, which other programs hardly disturb, measured once more
    on one thread where a ratio seems too large. Fails when a batch costs more than its rows one by one: more than twice
    the time, or more than 1.2 times the values. Warns when the number of operations grows with the batch (a loop over rows
    in Python), and when twice the length takes more than eight times as long or five times the values. Not covered: what
    happens inside one operation, and compiled models, whose operations are not counted.
    """
    found.model.eval()
    batch, length = max(2, found.batch_size), min(64, found.max_length)
    with torch.no_grad():
        times = _Times.of(found, batch, length, n_trials, clock)
        batch_ratio, length_ratio = times.batch_ratio(batch), times.length_ratio(found)
        if clock is None and (batch_ratio > _BATCH_LIMIT or (length_ratio or 0.0) > _LENGTH_LIMIT):
            # Threads that wait for each other on a busy machine count as working; one does not wait.
            with _one_thread():
                alone = _Times.of(found, batch, length, n_trials, None)
            batch_ratio, length_ratio = alone.batch_ratio(batch), alone.length_ratio(found)
        work = _growth(found)
    single, together = times.single, times.together
    measured: dict[str, Any] = {
        "batch_1_median_ms": 1000 * statistics.median(single), "batch_1_p95_ms": 1000 * _p95(single),
        "batch_median_ms": 1000 * statistics.median(together), "batch_size": batch, "length": length,
        "samples_per_s": batch / statistics.median(together), "batch_ratio": batch_ratio, "length_ratio": length_ratio,
        "device": str(found.device), **work,
    }  # fmt: skip
    thresholds = {
        "batch_ratio": _BATCH_LIMIT, "length_ratio": _LENGTH_LIMIT, "operations_per_further_row": _CALLS_LIMIT,
        "values_per_row_for_four_times_the_rows": _ROW_WORK_LIMIT, "values_for_twice_the_length": _LENGTH_WORK_LIMIT,
    }  # fmt: skip
    amount = measured["samples_per_s"] * (length if found.over_tokens else 1)
    unit = "tokens" if found.over_tokens else "images" if found.image_shape else "rows"
    said = (
        f"{measured['batch_1_median_ms']:.3g} ms at batch 1, {amount:,.0f} {unit}/s at batch {batch} on {found.device}"
    )
    if batch_ratio > _BATCH_LIMIT:
        return CheckResult(
            NAME, "fail", f"A batch of {batch} takes {batch_ratio:.2g} times as long as its rows one by one ({said}).",
            measured, thresholds, "Look for an operation whose cost grows with the square of the batch.",
        )  # fmt: skip
    problem = _problem(work)
    if problem is not None:
        return CheckResult(NAME, problem[0], f"{problem[1]} ({said}).", measured, thresholds, problem[2])
    if length_ratio is not None and length_ratio > _LENGTH_LIMIT:
        return CheckResult(
            NAME, "warn", f"Twice the length takes {length_ratio:.2g} times as long ({said}).", measured, thresholds,
            "Attention grows with the square of the length; look for a loop over positions inside another.",
        )  # fmt: skip
    return CheckResult(NAME, "pass", f"{said[0].upper()}{said[1:]}.", measured, thresholds)


@dataclass(frozen=True)
class _Times:
    """Seconds of each trial at batch 1 and at the training's batch size, and the least seconds of work for each shape."""

    single: list[float]
    together: list[float]
    single_work: float
    together_work: float
    half_work: float

    @classmethod
    def of(cls, found: Probe, batch: int, length: int, n_trials: int, clock: Callable[[], float] | None) -> _Times:
        """Measure them; `half_work` is at batch 1 and half the length."""
        single, single_work = _times_s(found, 1, length, n_trials, clock)
        together, together_work = _times_s(found, batch, length, n_trials, clock)
        _, half_work = _times_s(found, 1, max(1, length // 2), n_trials, clock)
        return cls(single, together, min(single_work), min(together_work), min(half_work))

    def batch_ratio(self, batch: int) -> float:
        """Work of a batch against that of its rows one by one."""
        return self.together_work / (batch * self.single_work)

    def length_ratio(self, found: Probe) -> float | None:
        """Work at twice the length. None without a length to halve."""
        return self.single_work / self.half_work if found.over_tokens and found.max_length > 1 else None


@contextmanager
def _one_thread() -> Iterator[None]:
    """One CPU thread for torch's operations inside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass
class _Work:
    calls: int = 0
    values: int = 0


class _Counting(TorchDispatchMode):
    """Counts the operations that run inside, and the values that they give."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work: _Work = _Work()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = operation(*args, **(kwargs or {}))
        self.work.calls += 1
        self.work.values += sum(leaf.numel() for leaf in tree_leaves(given) if isinstance(leaf, Tensor))
        return given


def _growth(found: Probe) -> dict[str, float | None]:
    """Growth of operations and values with rows and length. None where they cannot be counted, or there is no length."""
    names = ("operations_per_further_row", "values_per_row_for_four_times_the_rows", "values_for_twice_the_length")
    if any(hasattr(module, "_orig_mod") or module._compiled_call_impl for module in found.model.modules()):
        return dict.fromkeys(names)
    length = min(16, found.max_length)
    few, many, most = (_work(found, rows, length) for rows in (2, 8, 14))
    longer = None
    if found.over_tokens and length * 2 <= found.max_length:
        longer = _work(found, 2, 2 * length).values / few.values
    # Operations that each further row adds; routing to experts varies their number, and not by the same for every row.
    first, second = (many.calls - few.calls) / 6, (most.calls - many.calls) / 6
    per_row = min(first, second) if first == second else 0.0
    return dict(zip(names, (per_row, many.values / few.values / 4, longer), strict=True))


def _work(found: Probe, rows: int, length: int) -> _Work:
    batch = found.batch(rows, length)
    counting = _Counting()
    with counting:
        found.call(batch)
    return counting.work


def _problem(work: dict[str, float | None]) -> tuple[Verdict, str, str] | None:
    """The verdict, what is wrong and what to do; None when the work grows as it should."""
    calls, per_row, longer = work.values()
    if per_row is not None and per_row > _ROW_WORK_LIMIT:
        return (
            "fail", f"Each row of a batch of 8 takes {per_row:.2g} times the values that it takes in a batch of 2",
            "Look for an operation that pairs rows of the batch with each other.",
        )  # fmt: skip
    if calls is not None and calls >= _CALLS_LIMIT:
        return (
            "warn", f"Each further row of a batch takes {calls:.0f} more operations: there is a loop over rows",
            "Give the whole batch to each layer at once.",
        )  # fmt: skip
    if longer is not None and longer > _LENGTH_WORK_LIMIT:
        return (
            "warn", f"Twice the length takes {longer:.2g} times the values",
            "Attention grows with the square of the length; look for what pairs or repeats positions once more.",
        )  # fmt: skip
    return None


def _times_s(
    found: Probe, rows: int, length: int, n_trials: int, clock: Callable[[], float] | None
) -> tuple[list[float], list[float]]:
    """Elapsed seconds of each trial, and seconds of work: processor time on a CPU, elapsed time on other devices.

    Args:
        clock: tells both; None: the system's clocks.
    """
    batch = found.batch(rows, length)
    elapsed, worked = [], []
    for trial in range(_WARM_UP + n_trials):
        began, began_work = (clock(), 0.0) if clock else (time.perf_counter(), time.process_time())
        found.call(batch)
        if found.device.type == "cuda":
            torch.cuda.synchronize(found.device)
        ended, ended_work = (clock(), 0.0) if clock else (time.perf_counter(), time.process_time())
        if trial >= _WARM_UP:
            elapsed.append(max(ended - began, 1e-9))
            # The processor's clock of a busy virtual machine may stand still during a pass: that is no time of work.
            work = ended_work - began_work
            worked.append(work if work > _LEAST_WORK_S else elapsed[-1])
    return elapsed, worked if clock is None and found.device.type == "cpu" else elapsed


def _p95(times: list[float]) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
