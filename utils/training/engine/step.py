"""The arithmetic: one optimizer update, and one pass over validation data. Plain functions, no state of their own.

Shape suffixes in this package: B batch, T positions, V vocabulary, N rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils.adapters.left_as_found import modes_kept
from utils.data.batch import Batch
from utils.training.engine.compute.assembly import NO_SKIPS, Parts, SkipLimits
from utils.training.engine.hardware.memory import Pieces
from utils.training.engine.metrics import Sums, gradient_norm, pack_counts, unpack_counts, widest
from utils.training.engine.watch import StepWatch

# Outcomes of a step: a number was not finite; the parameters were updated (or there was nothing to learn); the loss scale was
# too large and is lowered.
FAULT, UPDATED, OVERFLOWED = 0, 1, 2


class StepNumbers(NamedTuple):
    """What one optimizer step measured, over all processes.

    Attributes:
        loss_sum: sum of the losses over the targets.
        counts: what else the objective counted, and last the auxiliary loss times the targets (see `Parts.pack_counts`).
        norm: L2 norm of the mean gradient before clipping.
        outcome: `FAULT`, `UPDATED` or `OVERFLOWED`.
    """

    loss_sum: float
    counts: tuple[float, ...]
    norm: float
    outcome: int

    @classmethod
    def unpack(cls, row: Sequence[float]) -> StepNumbers:
        """From one row as `_update_on_device` packs it: loss sum, counts, norm, outcome."""
        loss_sum, *counts, norm, outcome = row
        return cls(loss_sum, tuple(counts), norm, int(outcome))


@dataclass
class StepResult:
    """Result of one optimizer step.

    Attributes:
        numbers: what was measured; or, while it is still on the device, one fp64 tensor for `StepNumbers.unpack`.
        num_targets: targets of the whole step, of all processes.
    """

    numbers: StepNumbers | Tensor
    num_targets: int


def train_step(
    parts: Parts, micro_batches: list[Batch], max_grad_norm: float, watch: StepWatch | None = None,
    limits: SkipLimits = NO_SKIPS, num_targets: int | None = None,
) -> StepResult:  # fmt: skip
    """One optimizer update from the mean gradient over every target of `micro_batches`.

    The divisor is the number of targets of the whole step, so a target weighs the same in whichever micro-batch it stands,
    and a ragged last micro-batch is neither over- nor underweighted. Non-finite numbers leave parameters and optimizer as
    they were, and so does a step without targets. With `parts.guard` nothing here waits for the device. Of several processes
    each has its own micro-batches, or none; the step is that of all of them.

    Args:
        limits: how many steps may be skipped for numbers that are not finite before updates are disabled; only needed where
            the numbers are not looked at after each step.
        num_targets: targets of all processes' micro-batches; None: these are all.
    """
    watch = watch or StepWatch()
    targets = [parts.objective.count_targets(batch) for batch in micro_batches]
    num_targets = sum(targets) if num_targets is None else num_targets
    losses: list[Tensor] = []
    counts: list[Tensor] = []
    parts.optimizer.zero_grad(set_to_none=True)
    for batch, count in zip(micro_batches, targets, strict=True):
        watch.batch_begin(batch)
        loss = parts.forward(batch, watch.wants_outputs, count)
        parts.backward(loss.minimised / max(num_targets, 1))
        watch.backward_end()
        losses.append(loss.loss_sum.detach())
        counts.append(parts.pack_counts(loss))
        watch.batch_end(batch, loss, num_targets)
    if num_targets == 0:
        # Nothing to learn from: no update either, or weight decay would still pull on the weights.
        return StepResult(StepNumbers(0.0, (0.0,) * (parts.num_counts + 1), 0.0, UPDATED), 0)
    losses, counts = parts.sum_over_processes(losses, counts)
    if parts.scaler is not None:
        parts.scaler.unscale_(parts.optimizer)
    norm = gradient_norm(parts.parameters)
    counted = counts[0] if len(counts) == 1 else torch.stack(counts).sum(0)
    if parts.guard is None:
        return StepResult(_update_on_host(parts, losses, counted, norm, max_grad_norm), num_targets)
    return StepResult(_update_on_device(parts, losses, counted, norm, max_grad_norm, limits), num_targets)


def _update_on_host(
    parts: Parts, losses: list[Tensor], counts: Tensor, norm: Tensor, max_grad_norm: float
) -> StepNumbers:
    """The update, decided here."""
    loss_sum, size, counted = sum(map(float, losses)), float(norm), tuple(counts.tolist())
    finite = math.isfinite(loss_sum) and math.isfinite(size)
    if finite and 0 < max_grad_norm < size:
        torch.nn.utils.clip_grads_with_norm_(parts.parameters, max_grad_norm, norm)
    parts.update(finite)
    if finite:
        return StepNumbers(loss_sum, counted, size, UPDATED)
    # Under fp16 a gradient that overflows is the scaler's business; only the loss itself tells of a fault.
    overflowed = parts.scaler is not None and math.isfinite(loss_sum)
    return (
        StepNumbers(loss_sum, counted, 0.0, OVERFLOWED) if overflowed else StepNumbers(loss_sum, counted, size, FAULT)
    )


def _update_on_device(
    parts: Parts, losses: list[Tensor], counts: Tensor, norm: Tensor, max_grad_norm: float, limits: SkipLimits
) -> Tensor:
    """The same, decided on the device without a host-device sync: every outcome is prepared. Returns the numbers, packed."""
    loss_sum, norm = torch.stack(losses).double().sum(), norm.double()
    loss_is_finite = torch.isfinite(loss_sum)
    finite = loss_is_finite & torch.isfinite(norm)
    usable = finite if parts.scaler is None else loss_is_finite
    overflowed = usable & ~finite
    # The kernels divide gradients by this: the formula of torch's clip_grad_norm_.
    clip_divisor = ((norm.float() + 1e-6) / max_grad_norm).clamp(min=1.0) if max_grad_norm > 0 else None
    parts.update_on_device(finite, usable, clip_divisor, limits)
    outcome = torch.where(overflowed, float(OVERFLOWED), torch.where(usable, float(UPDATED), float(FAULT)))
    last = torch.stack([norm.masked_fill(overflowed, 0.0), outcome.double()])
    return torch.cat([loss_sum[None], counts, last])


def validation_sums(
    parts: Parts, batches: Iterable[Batch | None], poll: Callable[[], None] = lambda: None, pieces: Pieces | None = None
) -> Sums:
    """Sums over the targets of `batches`, of all processes, in evaluation mode and without gradients; the model's mode and
    buffers are restored.

    Args:
        batches: this process's; None where another one has one more.
        poll: called before each batch; may raise to give up.
        pieces: how many samples fit at once; made smaller when memory runs out.
    """
    pieces = pieces or Pieces()
    read: list[tuple[Tensor, int]] = []
    with modes_kept(parts.trained), torch.no_grad():
        parts.trained.eval()
        parts.buffers.keep()
        try:
            for batch in batches:
                poll()
                if batch is not None:
                    read += pieces.run(
                        [batch], lambda some: [_score(parts, piece) for piece in some], "a validation batch",
                        split_up=not parts.sharded,
                    )  # fmt: skip
        finally:
            # A model that carries a state from batch to batch trains on as if nothing had been validated.
            parts.buffers.restore()
    # Read in one go: on a GPU each number that is read on its own waits for the device.
    rows = torch.stack([numbers for numbers, _ in read]).tolist() if read else []
    totals = [0.0] * (2 + parts.num_counts)
    for (loss_sum, *counts), (_, targets) in zip(rows, read, strict=True):
        totals = [total + value for total, value in zip(totals, (loss_sum, targets, *counts), strict=True)]
    loss_sum, num_targets, *counts = parts.world.totals(*totals)
    return Sums(loss_sum, int(num_targets), counts=unpack_counts(counts, parts.objective.count_sizes))


def _score(parts: Parts, batch: Batch) -> tuple[Tensor, int]:
    """Loss sum and counts in one fp64 row, and the number of targets."""
    count = parts.objective.count_targets(batch)
    loss = parts.forward(batch, num_targets=count)
    counts = pack_counts(loss.counts, parts.objective.count_sizes, loss.loss_sum)
    return torch.cat([widest(loss.loss_sum.detach())[None], counts]), count


def switch_to_training(model: nn.Module, notice: Callable[[str], None] = lambda sentence: None) -> None:
    """`model.train()`, except that frozen modules in evaluation mode stay there.

    A module stays in evaluation mode when it is in it and all of its parameters are frozen. One without parameters (dropout,
    a normalisation without scale and shift) follows the module around it, unless it alone is in evaluation mode.

    Args:
        notice: called with a sentence for the user when a module stays that behaves differently in evaluation mode.
    """
    kept = _frozen_in_evaluation(model, inside=False)
    model.train()
    names = []
    for name, module in model.named_modules():
        if module in kept:
            module.training = False
            if _mode_matters(module):
                names.append(name)
    if names:
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        notice(
            f"{', '.join(names[:4])}{more}: stays in evaluation mode during training (running statistics fixed, dropout off), "
            "because it was in evaluation mode with all parameters frozen. If that is not intended, call model.train() first."
        )


def _frozen_in_evaluation(module: nn.Module, inside: bool, parent_in_training: bool = False) -> set[nn.Module]:
    """The modules that stay in evaluation mode. `inside`: whether the module around this one is among them."""
    frozen = [not parameter.requires_grad for parameter in module.parameters()]
    stays = not module.training and (all(frozen) if frozen else inside or parent_in_training)
    kept = {module} if stays else set()
    return kept.union(*(_frozen_in_evaluation(child, stays, module.training) for child in module.children()))


def _mode_matters(module: nn.Module) -> bool:
    if isinstance(module, nn.RNNBase):
        return module.dropout > 0
    return bool(getattr(module, "track_running_stats", False)) or (
        isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    )
