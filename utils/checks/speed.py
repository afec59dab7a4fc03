"""How fast the model answers here, and whether time grows with the input as it should."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from utils.checks.probe import Probe, check
from utils.checks.result import CheckResult

NAME = "inference speed"

# A batch may take this many times what its rows take one by one: it should take less.
_BATCH_LIMIT = 2.0
# Twice the length may take this many times as long: attention's quadratic part gives 4.
_LENGTH_LIMIT = 8.0
_WARM_UP = 2


@check(NAME)
def test_inference_speed(
    found: Probe, n_trials: int = 5, clock: Callable[[], float] = time.perf_counter
) -> CheckResult:
    """Forward passes in evaluation mode at batch 1 and at the training's batch size.

    Called as (model, config=None, *, task_spec=None, n_trials=5). No speed is right or wrong on an unknown machine, so
    what is judged are ratios of the shortest of `n_trials` times, which other programs disturb least: fails when a batch
    takes more than twice as long as its rows one by one, warns when twice the length takes more than eight times as long.
    Not covered: a loop over rows in Python, which costs what its rows cost.
    """
    found.model.eval()
    batch, length = max(2, found.batch_size), min(64, found.max_length)
    with torch.no_grad():
        single = _times_s(found, 1, length, n_trials, clock)
        together = _times_s(found, batch, length, n_trials, clock)
        half = _times_s(found, 1, max(1, length // 2), n_trials, clock)
    batch_ratio = min(together) / (batch * min(single))
    length_ratio = min(single) / min(half) if found.image_shape is None and length > 1 else None
    measured: dict[str, Any] = {
        "batch_1_median_ms": 1000 * statistics.median(single), "batch_1_p95_ms": 1000 * _p95(single),
        "batch_median_ms": 1000 * statistics.median(together), "batch_size": batch, "length": length,
        "samples_per_s": batch / statistics.median(together), "batch_ratio": batch_ratio, "length_ratio": length_ratio,
        "device": str(found.device),
    }  # fmt: skip
    thresholds = {"batch_ratio": _BATCH_LIMIT, "length_ratio": _LENGTH_LIMIT}
    amount = measured["samples_per_s"] * (length if found.image_shape is None else 1)
    unit = "tokens" if found.image_shape is None else "images"
    said = (
        f"{measured['batch_1_median_ms']:.3g} ms at batch 1, {amount:,.0f} {unit}/s at batch {batch} on {found.device}"
    )
    if batch_ratio > _BATCH_LIMIT:
        return CheckResult(
            NAME, "fail", f"A batch of {batch} takes {batch_ratio:.2g} times as long as its rows one by one ({said}).",
            measured, thresholds, "Look for an operation whose cost grows with the square of the batch.",
        )  # fmt: skip
    if length_ratio is not None and length_ratio > _LENGTH_LIMIT:
        return CheckResult(
            NAME, "warn", f"Twice the length takes {length_ratio:.2g} times as long ({said}).", measured, thresholds,
            "Attention grows with the square of the length; look for a loop over positions inside another.",
        )  # fmt: skip
    return CheckResult(NAME, "pass", f"{said[0].upper()}{said[1:]}.", measured, thresholds)


def _times_s(found: Probe, rows: int, length: int, n_trials: int, clock: Callable[[], float]) -> list[float]:
    batch = found.batch(rows, length)
    times = []
    for trial in range(_WARM_UP + n_trials):
        began = clock()
        found.call(batch)
        if found.device.type == "cuda":
            torch.cuda.synchronize(found.device)
        seconds = max(clock() - began, 1e-9)
        if trial >= _WARM_UP:
            times.append(seconds)
    return times


def _p95(times: list[float]) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
