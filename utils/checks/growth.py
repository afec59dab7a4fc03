"""Measure how the largest intermediate tensor grows with batch size and length."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from utils.check_result import Finding, Limit
from utils.checks.probe import Probe

# Numbers for each pair of positions in the largest tensor. Attention scores have one for each head, and heads are 16 wide
# or wider in every design in use; a whole vector for each pair is T x T x d.
_NARROWEST_HEAD = 4

#: Limits of what is measured here, and where each is from.
GROWTH_LIMITS = (
    Limit("numbers for each pair of positions / width", at_most=1 / _NARROWEST_HEAD,
          source="attention scores have one for each head, and heads are 16 wide or wider"),
)  # fmt: skip


def largest_tensor(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Exponents of the largest tensor that a forward pass makes, in B and in T; names tensors with a vector for each pair."""
    if not found.over_tokens or any(hasattr(module, "_orig_mod") for module in found.model.modules()):
        return
    found.model.eval()
    length = min(64, found.max_length // 2)
    if length < 8:
        return
    base, wider, longer = (_largest(found, *size) for size in ((2, length), (4, length), (2, 2 * length)))
    by_batch, by_length = math.log2(_count(wider) / _count(base)), math.log2(_count(longer) / _count(base))
    measured |= {"largest_tensor": list(longer), "exponent_in_batch": by_batch, "exponent_in_length": by_length}
    per_pair = _count(longer) / (2 * (2 * length) ** 2)
    if by_length > 1.8 and per_pair > max(8.0, _width(found) / _NARROWEST_HEAD):
        yield Finding(
            "T x T x d", "warn",
            f"The largest tensor, of shape {longer}, holds {per_pair:.0f} numbers for each pair of positions: memory grows "
            f"with the length to the power of {by_length:.1f}.",
            "Contract the width before positions are paired, as the product of queries and keys does.",
        )  # fmt: skip
    elif by_length > 2.2:
        yield Finding(
            "growth with length", "warn",
            f"The largest tensor, of shape {longer}, grows with the length to the power of {by_length:.1f}.",
            "Attention needs pairs of positions at most; look for a tensor of triples.",
        )  # fmt: skip
    elif by_batch > 1.2:
        yield Finding(
            "growth with batch", "warn",
            f"The largest tensor, of shape {wider}, grows with the batch to the power of {by_batch:.1f}.",
            "Look for an operation that pairs rows of the batch with each other.",
        )  # fmt: skip


class _Watch(TorchDispatchMode):
    """Remembers the shape of the largest tensor that is made inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest: tuple[int, ...] = ()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(given):
            if isinstance(leaf, Tensor) and _stored(leaf) > _count(self.largest):
                self.largest = tuple(leaf.shape)
        return given


def _largest(found: Probe, rows: int, length: int) -> tuple[int, ...]:
    watch = _Watch()
    with torch.no_grad(), watch:
        found.call(found.batch(rows, length))
    return watch.largest


def _stored(tensor: Tensor) -> int:
    """Numbers in memory: an expanded view holds fewer than it shows."""
    return min(tensor.numel(), tensor.untyped_storage().nbytes() // max(tensor.element_size(), 1))


def _count(shape: tuple[int, ...]) -> int:
    return math.prod(shape) if shape else 1


def _width(found: Probe) -> int:
    """Width of the token embedding."""
    tables = [module for module in found.model.modules() if isinstance(module, torch.nn.Embedding)]
    return int(tables[0].embedding_dim) if tables else 64
