"""Preparations before the run's clock starts: choose the compute dtype, find the micro-batch size, and compile."""

from __future__ import annotations

import dataclasses
import math

from utils.data.batch import Batch
from utils.data.module import UniversalDataModule
from utils.data.sources import StreamSource
from utils.training.engine.compute.assembly import Parts
from utils.training.engine.compute.compiling import compile_now
from utils.training.engine.compute.precision_probe import (
    SHARE,
    Measured,
    TimePass,
    affordable_pairs,
    compare_formats,
    time_pass,
)
from utils.training.engine.facade import Notice
from utils.training.engine.hardware.memory import largest_that_fits, rows_of, split
from utils.training.engine.hardware.precision import FULL, ResolvedPrecision, needs_half_precision
from utils.training.engine.plan import RunPlan
from utils.training.engine.sanity.compatibility import normalises_over_batch
from utils.training.engine.state import TrainState


def choose_precision(plan: RunPlan, parts: Parts, notice: Notice, seconds: TimePass = time_pass) -> None:
    """With precision="auto" on a device that has half precision: measure whether it is faster than fp32 for this model and its
    first batch, and compute in what is. Several processes compute in what the main one's measurement says.

    The hardware decides, as it does without a measurement, where that would take more than 2 % of the run, where a timing
    must not decide (`deterministic`), and where the passes cannot be had for nothing: streams, compiled and sharded models, and
    `auto_batch_size`. `ResolvedPrecision.reason` says what decided.

    Args:
        seconds: times one pass; called with the parts set to each format in turn.
    """
    half = parts.precision
    if plan.config.precision != "auto":
        return
    formats = set(
        plan.world.gather(half.compute)
    )  # hosts may differ, and all have to take part in what follows, or none
    if formats == {FULL}:
        return
    obstacle = _not_to_be_measured(plan, parts)
    if len(formats) > 1:
        obstacle = f"the processes' devices differ ({', '.join(sorted(formats))})"
    num_passes = (plan.total_steps or 0) * plan.accumulation
    pairs = affordable_pairs(num_passes)
    if obstacle is None and not pairs:
        obstacle = "the run is too short to measure" if plan.total_steps else "the length of the run is unknown"
    if obstacle is not None:
        parts.precision = dataclasses.replace(half, reason=f"by hardware: {obstacle}")
        return

    def measure() -> Measured | None:
        batch = _first_batch(plan.data)
        hours = plan.config.max_time_hours
        limit_s = math.inf if hours is None else SHARE * hours * 3600
        return compare_formats(parts, batch, pairs, num_passes, limit_s, seconds)

    measured = plan.world.from_main(measure)
    if measured is None:
        parts.precision = dataclasses.replace(half, reason="by hardware: the measurement was not conclusive")
        return
    sentence = measured.sentence(half.compute)
    notice(sentence)
    if measured.half_is_faster:
        parts.precision = dataclasses.replace(half, reason="measured")
    else:
        parts.precision, parts.scaler = ResolvedPrecision(FULL, reason="measured"), None


def _not_to_be_measured(plan: RunPlan, parts: Parts) -> str | None:
    """Why timed passes are not to be had, or must not decide; None when they may."""
    config = plan.config
    obstacles = {
        "deterministic=True leaves no choice to a timing": config.deterministic,
        "a stream's first batch cannot be read twice": isinstance(plan.data.train, StreamSource),
        "the model is compiled for one format": config.compile_mode is not None,
        "the layers are sharded": parts.sharded,
        "auto_batch_size looks for what fits in it": config.auto_batch_size,
        "the attention has no fp32": needs_half_precision(parts.model),
        "passes are not timed on this device": parts.device.kind not in ("cpu", "cuda"),
    }
    return next((words for words, applies in obstacles.items() if applies), None)


def find_batch_size(plan: RunPlan, parts: Parts, state: TrainState, notice: Notice) -> None:
    """With `auto_batch_size`: as many samples at once as fit; a step has as many in all as the config says."""
    if not plan.config.auto_batch_size or state.step or isinstance(plan.data.train, StreamSource):
        return
    batch = _first_batch(plan.data)
    # Gradients, and Adam's two averages (Kingma & Ba 2014).
    fixed = sum(3 * p.numel() * p.element_size() for p in parts.parameters)
    found = largest_that_fits(
        batch, parts.rehearse, on_cpu=parts.device.kind == "cpu", fixed_bytes=fixed,
        fewest=2 if normalises_over_batch(parts.model) else 1,
    )  # fmt: skip
    rows = rows_of(batch)
    state.pieces.most = found if found < rows else None
    notice(f"auto_batch_size: {found} samples go through the model at once, of {rows} a step.")


def compile_model(plan: RunPlan, parts: Parts, state: TrainState, notice: Notice) -> None:
    """Compile, where the config asks for it. A stream's first batch cannot be had twice: there the first step does it."""
    if plan.config.compile_mode is None:
        return
    if isinstance(plan.data.train, StreamSource):
        notice("The model is compiled in the first step, which takes the longer.")
        return
    seconds = compile_now(parts, split([_first_batch(plan.data)], state.pieces.most)[0])
    notice(f"Compiled in {seconds:.1f} s, not counted in the training time.")


def _first_batch(data: UniversalDataModule) -> Batch:
    """The first samples, as many as a batch has."""
    assert not isinstance(data.train, StreamSource)
    return data.train.take(list(range(min(data.batch_size, len(data.train)))))
