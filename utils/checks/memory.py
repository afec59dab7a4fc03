"""Whether training fits into the memory of the device, from counted and measured bytes."""

from __future__ import annotations

import torch
from torch import nn

from utils.check_result import CheckResult, Limit
from utils.checks.bookkeeping import growth_between_calls
from utils.checks.checking import check
from utils.checks.growth import GROWTH_LIMITS, largest_tensor
from utils.checks.limits import PAIRS_OF_POSITIONS
from utils.checks.probe import Probe
from utils.environment import free_memory_bytes
from utils.training.engine.compute.master_weights import bytes_in_training
from utils.training.engine.hardware.memory import KeptForBackward

NAME = "memory footprint"

# AdamW keeps two fp32 averages of each trainable parameter (Kingma & Ba 2014).
_ADAMW_BYTES = 8
_MIB = 2**20
_MEASURED_LENGTH = 256

# Share of the free memory that may be planned for: the rest is for fragments, kernels and whatever else runs.
_USABLE = 0.9
# Each further row of a batch may add this many times what the row before added.
_GROWTH = 1.25

#: Limits of the measured values, and where each is from.
_LIMITS = (
    Limit("total_mib / free_mib", at_most=_USABLE, source="the rest is for fragments and workspaces of kernels"),
    Limit("memory of a further row / of the row before", at_most=_GROWTH,
          source="memory is linear in the batch; the rest is room for kernels that differ with it"),
    Limit("exponent_in_length", at_most=2.2, source=PAIRS_OF_POSITIONS),
    Limit("exponent_in_batch", at_most=1.2, source="rows do not meet each other"),
    *GROWTH_LIMITS,
)  # fmt: skip


@check(NAME, (largest_tensor, growth_between_calls), limits=_LIMITS)
def test_memory_footprint(found: Probe, free_bytes: int | None = None) -> CheckResult:
    """Bytes of parameters, gradients, AdamW's averages and activations, against the device's free memory.

    Called as (model, config=None, *, task_spec=None, free_bytes=None). Activations are what autograd keeps for the backward
    pass, measured at batches of 1, 2 and 4 and at most 256 positions, and extended in proportion to the training's batch
    size and length; a storage counts once and parameters not at all. Fails when that is more than 90 % of the free memory
    and says which batch size would fit; warns when a row adds more memory the more rows there are. Not covered: workspaces
    of kernels, memory of the data, activations in another format than the model's weights, attention that keeps its T x T
    scores beyond 256 positions. Half-precision weights count as the fp32 master weights that training makes of them.

    Args:
        free_bytes: memory that may be used; None: what the device, or for a CPU the system, has free now.
    """
    parameters = list(found.model.parameters())
    trainable = [p for p in parameters if p.requires_grad]
    sizes = bytes_in_training(found.model)
    weights = sum(sizes.values())
    gradients = sum(sizes[p] for p in trainable)
    optimizer = sum(p.numel() * _ADAMW_BYTES for p in trainable)
    length = min(found.length, _MEASURED_LENGTH)
    found.model.train()
    # Batch normalisation needs two rows to train on.
    unit = 2 if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in found.model.modules()) else 1
    small, middle, large = (_kept_for_backward(found, rows * unit, length) for rows in (1, 2, 4))
    second, later = (middle - small) / unit, (large - middle) / (2 * unit)
    per_row = max(second, later)
    longer = found.length / length if found.over_tokens else 1.0
    activations = round(longer * (small + per_row * (found.batch_size - unit)))
    fixed = weights + gradients + optimizer
    device = found.device
    free = free_memory_bytes(device.type, device.index) if free_bytes is None else free_bytes
    needed = fixed + activations
    measured = {
        "parameters_mib": weights / _MIB, "gradients_mib": gradients / _MIB, "optimizer_mib": optimizer / _MIB,
        "activations_mib": activations / _MIB, "activations_per_row_mib": per_row / _MIB, "batch_size": found.batch_size,
        "length": found.length, "measured_length": length, "total_mib": needed / _MIB,
        "free_mib": None if free is None else free / _MIB,
    }  # fmt: skip
    thresholds = {"usable_share_of_free": _USABLE, "growth_per_row": _GROWTH}
    size = f"{_amount(needed)} MiB for a batch of {found.batch_size} ({_amount(fixed)} of them whatever the batch size)"
    if free is not None and needed > _USABLE * free:
        largest = int((_USABLE * free - fixed - longer * small) // max(longer * per_row, 1)) + unit
        fits = f"set batch_size to {largest} or less (an estimate)" if largest >= 1 else "even one row does not fit"
        return CheckResult(
            NAME, "fail", f"Training needs about {size}; {free / _MIB:,.0f} MiB are free.", measured, thresholds,
            f"{fits[0].upper()}{fits[1:]}, shorten max_length, use gradient_checkpointing=True or a smaller model.",
        )  # fmt: skip
    grows = later > _GROWTH * second
    # Kernels differ between one row and several, so one more doubling decides.
    if grows and (_kept_for_backward(found, 8 * unit, length) - large) / (4 * unit) > _GROWTH * later:
        return CheckResult(
            NAME, "warn", f"The second row of a batch adds {_amount(second)} MiB, later ones {_amount(later)} each.",
            measured, thresholds, "Look for an operation that pairs rows of the batch with each other.",
        )  # fmt: skip
    known = "what is free is not known here" if free is None else f"{free / _MIB:,.0f} MiB are free"
    return CheckResult(
        NAME, "warn" if free is None else "pass", f"Training needs about {size}; {known}.", measured, thresholds,
        "Compare with the machine's memory yourself." if free is None else "",
    )  # fmt: skip


def _amount(count: float) -> str:
    mib = count / _MIB
    return f"{mib:,.0f}" if mib >= 10 else f"{mib:.2g}"


def _kept_for_backward(found: Probe, rows: int, length: int) -> int:
    """Bytes that autograd keeps for a batch of `rows`."""
    tensors = [*found.model.parameters(), *found.model.buffers()]
    known = frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors)
    with torch.enable_grad(), KeptForBackward(known) as kept:
        found.loss(found.batch(rows, length))
    return kept.num_bytes
