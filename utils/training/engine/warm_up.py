"""Preparations before the run's clock starts: find the micro-batch size, and compile."""

from __future__ import annotations

from utils.data.batch import Batch
from utils.data.sources import StreamSource
from utils.training.engine.compute.assembly import Parts
from utils.training.engine.compute.compiling import compile_now
from utils.training.engine.data import UniversalDataModule
from utils.training.engine.facade import Notice
from utils.training.engine.hardware.memory import largest_that_fits, rows_of, split
from utils.training.engine.plan import RunPlan
from utils.training.engine.sanity.compatibility import normalises_over_batch
from utils.training.engine.state import TrainState


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
    notice(f"Compiled in {seconds:.1f} s, which the training time does not hold.")


def _first_batch(data: UniversalDataModule) -> Batch:
    """The first samples, as many as a batch has."""
    assert not isinstance(data.train, StreamSource)
    return data.train.take(list(range(min(data.batch_size, len(data.train)))))
