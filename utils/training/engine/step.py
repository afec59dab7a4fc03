"""The arithmetic: one optimizer update, and one pass over validation data. Plain functions, no state of their own.

Shape suffixes in this package: B batch, T positions, V vocabulary, N rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils.data.examples import Batch
from utils.training.engine.metrics import Sums, gradient_norm
from utils.training.engine.parts import Parts
from utils.training.engine.watch import StepWatch


@dataclass
class StepResult:
    """What one optimizer step did.

    Attributes:
        loss_sum: sum over targets, scalar; correct: targets predicted right, scalar.
        num_targets: targets of the whole step, of all processes.
        grad_norm: L2 norm of the mean gradient before clipping, scalar.
        updated: whether the parameters were changed; False for a step without targets or with non-finite numbers.
        finite: whether loss and gradient norm were finite.
    """

    loss_sum: Tensor
    correct: Tensor
    num_targets: int
    grad_norm: Tensor
    updated: bool
    finite: bool = True


def train_step(
    parts: Parts, micro_batches: list[Batch], max_grad_norm: float, watch: StepWatch | None = None
) -> StepResult:
    """One optimizer update from the mean gradient over every target of `micro_batches`.

    The divisor is the number of targets of the whole step, so a target weighs the same in whichever micro-batch it stands,
    and a ragged last micro-batch is neither over- nor underweighted. Non-finite numbers leave parameters and optimizer as
    they were. Of several processes each has its own micro-batches, or none; the step is that of all of them.
    """
    watch = watch or StepWatch()
    own_targets = sum(parts.objective.count_targets(batch) for batch in micro_batches)
    num_targets = int(parts.world.totals(own_targets)[0])
    loss_sum, correct = torch.zeros((), device=parts.fabric.device), torch.zeros((), device=parts.fabric.device)
    parts.optimizer.zero_grad(set_to_none=True)
    for batch in micro_batches:
        watch.batch_begin(batch)
        loss = parts.forward(batch, watch.wants_outputs)
        parts.backward(loss.loss_sum / max(num_targets, 1))
        watch.backward_end()
        loss_sum += loss.loss_sum.detach()
        correct += loss.counts.get("correct", torch.zeros(()))
        watch.batch_end(batch, loss, num_targets)
    parts.sum_over_processes(loss_sum, correct)
    if num_targets == 0:
        # Nothing to learn from: no update either, or weight decay would still pull on the weights.
        return StepResult(loss_sum, correct, 0, torch.zeros(()), updated=False)
    return _update(parts, loss_sum, correct, num_targets, max_grad_norm)


def _update(parts: Parts, loss_sum: Tensor, correct: Tensor, num_targets: int, max_grad_norm: float) -> StepResult:
    if parts.scaler is not None:
        parts.scaler.unscale_(parts.optimizer)
    norm = gradient_norm(parts.parameters)
    finite = bool(torch.isfinite(loss_sum) & torch.isfinite(norm))
    if parts.scaler is not None and torch.isfinite(loss_sum) and not finite:
        # fp16 overflowed: the scaler leaves the step out and lowers its scale. That is its work, not a fault.
        parts.stepper.step()
        parts.scaler.update()
        return StepResult(loss_sum, correct, num_targets, torch.zeros(()), updated=False)
    if not finite:
        return StepResult(loss_sum, correct, num_targets, norm, updated=False, finite=False)
    if max_grad_norm > 0 and norm > max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(parts.parameters, max_grad_norm, norm)
    parts.updating = True  # until it is done, parameters may be torn between two steps and must not be saved
    parts.stepper.step()
    parts.updating = False
    if parts.scaler is not None:
        parts.scaler.update()
    return StepResult(loss_sum, correct, num_targets, norm, updated=True)


def evaluate(parts: Parts, batches: Iterable[Batch | None], poll: Callable[[], None] = lambda: None) -> Sums:
    """Sums over the targets of `batches`, of all processes, in evaluation mode and without gradients; the model's mode is put
    back.

    Args:
        batches: this process's; None where another one has one more.
        poll: called before each batch; may raise to give up.
    """
    sums = Sums()
    with modes_kept(parts.trained), torch.no_grad():
        parts.trained.eval()
        for batch in batches:
            poll()
            if batch is None:
                continue
            loss = parts.forward(batch)
            correct = loss.counts.get("correct")
            sums.add(float(loss.loss_sum), int(loss.num_targets), 0.0 if correct is None else float(correct))
    loss_sum, targets, right = parts.world.totals(sums.loss, sums.targets, sums.correct)
    return Sums(loss_sum, int(targets), right)


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Every submodule is in the mode (training or evaluation) that it was in, after the block."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
