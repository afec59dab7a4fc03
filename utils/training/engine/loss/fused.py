"""The output layer and its cross-entropy in one, a chunk of rows at a time: the logits of a batch never exist as a whole.

For a vocabulary of 50,257 the logits are most of a training step's memory, and every pass over them leaves the processor's
cache. Here each chunk of them is made, turned into its gradient and used up while it is still there. The gradients are made
in the forward pass, because the loss of a step is a plain sum: the backward pass only scales them.

Shapes: N rows (positions that are scored), D width of the hidden states, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from utils.training.engine.hardware.fast_paths import matmul

# Bytes of logits that are worked on at once. On a CPU they stay in the third-level cache, and below the size from which the
# allocator asks the system for fresh pages each time (32 MiB in glibc); a GPU wants large matrix products.
_CHUNK_BYTES = {"cpu": 24 << 20, "cuda": 512 << 20}
# Bytes of logit gradients kept for one product with the hidden states: fewer, larger products add up the weight's gradient
# in fewer passes over it.
_BLOCK_BYTES = {"cpu": 96 << 20, "cuda": 512 << 20}
_ANY_DEVICE = 64 << 20

#: Rows x vocabulary from which the fused path is faster on a CPU (measured at widths 64 to 768).
WORTH_IT = 1 << 20


@dataclass(frozen=True)
class FusedLoss:
    """Result of the fused loss.

    Attributes:
        loss_sum: scalar fp32, with graph; the sum over rows of the cross-entropy in nats, label smoothing included.
        plain_sum: the same without label smoothing, and without graph.
        correct: scalar int64: rows whose target has the largest logit.
    """

    loss_sum: Tensor
    plain_sum: Tensor
    correct: Tensor


def linear_cross_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, label_smoothing: float = 0.0
) -> FusedLoss:
    """Sum over rows of cross_entropy(hidden @ weight.T + bias, target), and how many rows are right.

    Inside autocast the products are made in its half-precision format, as a linear layer there would; everything else is
    fp32 (fp64 for fp64 inputs). Every row needs a target from 0 to V - 1.
    """
    kind = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ND.dtype
    apply: Any = _LinearCrossEntropy.apply  # untyped in torch
    loss_sum, plain_sum, correct = apply(hidden_ND, weight_VD, bias_V, targets_N, label_smoothing, dtype)
    return FusedLoss(loss_sum, plain_sum, correct)


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass over the rows; see the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        smoothing: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = tuple(ctx.needs_input_grad[:3])
        work = _Work(
            hidden.detach(), weight.detach(), None if bias is None else bias.detach(), targets, smoothing, dtype
        )
        loss_sum, plain_sum, correct, gradients = work.run(wanted)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(plain_sum, correct)
        return loss_sum, plain_sum, correct

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _grad_plain: Tensor, _grad_correct: Tensor) -> tuple[Any, ...]:
        # In place: the tensors were made for this and nobody else has them.
        scaled = [
            None if gradient is None else gradient.mul_(grad_loss.to(gradient.dtype)) for gradient in ctx.saved_tensors
        ]
        return *scaled, None, None, None


class _Work:
    """One call: its operands in the format of the products, and the sums so far."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float, dtype: torch.dtype
    ) -> None:
        self.given = hidden, weight, bias
        self.hidden, self.weight = hidden.to(dtype), weight.to(dtype)
        self.bias = None if bias is None else bias.to(dtype)
        self.targets, self.smoothing = targets, smoothing
        # Losses are summed, and softmax is taken, in this format.
        self.exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        kind, row_bytes = hidden.device.type, weight.shape[0] * dtype.itemsize
        self.chunk = max(1, _CHUNK_BYTES.get(kind, _ANY_DEVICE) // (weight.shape[0] * self.exact.itemsize))
        block = max(1, _BLOCK_BYTES.get(kind, _ANY_DEVICE) // row_bytes)
        self.block = max(self.chunk, block - block % self.chunk)

    def run(self, wanted: tuple[bool, ...]) -> tuple[Tensor, Tensor, Tensor, list[Tensor | None]]:
        """Loss sum, the same without smoothing, rows that are right, and the gradients of hidden, weight and bias where
        wanted."""
        hidden, weight, bias = self.given
        rows, vocabulary = hidden.shape[0], weight.shape[0]
        loss_sum = torch.zeros((), dtype=self.exact, device=hidden.device)
        plain_sum = torch.zeros_like(loss_sum)
        correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if wanted[0] else None
        grad_weight_DV: Tensor | None = None
        grad_bias = weight.new_zeros(vocabulary, dtype=self.exact) if wanted[2] else None
        size = min(self.block, rows)
        kept = self.hidden.new_empty(size, vocabulary) if any(wanted) else None
        for first in range(0, rows, self.block):
            last = min(first + self.block, rows)
            for start in range(first, last, self.chunk):
                end = min(start + self.chunk, last)
                logits = self._logits(start, end)
                into = None if kept is None else kept[start - first : end - first]
                loss, plain, right = self._score(logits, self.targets[start:end], into)
                loss_sum += loss
                plain_sum += plain
                correct += right
                if into is not None and grad_hidden is not None:
                    grad_hidden[start:end] = matmul(into, self.weight)
            if kept is not None and wanted[1]:
                part = matmul(self.hidden[first:last].t(), kept[: last - first])
                grad_weight_DV = part.to(self.exact) if grad_weight_DV is None else grad_weight_DV.add_(part)
            if kept is not None and grad_bias is not None:
                grad_bias += kept[: last - first].sum(0, dtype=self.exact)
        gradients = [
            grad_hidden,
            None
            if grad_weight_DV is None
            else grad_weight_DV.t().to(weight.dtype, memory_format=torch.contiguous_format),
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
        ]
        return loss_sum, plain_sum, correct, gradients

    def _logits(self, start: int, end: int) -> Tensor:
        logits = matmul(self.hidden[start:end], self.weight.t())
        return logits if self.bias is None else logits.add_(self.bias)

    def _score(self, logits: Tensor, targets: Tensor, into: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The chunk's loss, the same without smoothing, and right rows; the gradient of its logits goes into `into`."""
        logits = logits.to(self.exact)
        of_target = logits.gather(1, targets[:, None])[:, 0]
        largest = logits.amax(1)
        right = _right_rows(logits, targets, of_target, largest)
        mean = logits.mean(1) if self.smoothing else None
        probabilities = torch.softmax(logits, 1, out=into if into is not None and into.dtype == self.exact else None)
        # softmax's largest entry is 1 / sum(exp(logits - largest)): at least 1 / V, so its logarithm is exact enough.
        log_sum = largest - probabilities.amax(1).log()
        losses = log_sum - (1 - self.smoothing) * of_target
        if mean is not None:
            losses -= self.smoothing * mean
        if into is not None:
            if self.smoothing:
                probabilities -= self.smoothing / logits.shape[1]
            ones = probabilities.new_full((len(targets), 1), self.smoothing - 1)
            probabilities.scatter_add_(1, targets[:, None], ones)
            if into is not probabilities:
                into.copy_(probabilities)
        loss = losses.sum()
        return loss, (log_sum - of_target).sum() if self.smoothing else loss, right


def _right_rows(logits: Tensor, targets: Tensor, of_target: Tensor, largest: Tensor) -> Tensor:
    """Count the rows whose largest logit is at the target: as `argmax` would, which is slow on a CPU."""
    if logits.device.type != "cpu":
        return (logits.argmax(1) == targets).sum()
    candidates = (of_target == largest).nonzero()[:, 0]
    # Of equal logits the first counts, or a model that says nothing would be right everywhere.
    return (logits[candidates].argmax(1) == targets[candidates]).sum()
