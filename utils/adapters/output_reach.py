"""The range of a model's outputs: operations behind its last layer, found by driving that layer's output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# What the last layer's output is replaced with: far enough for any squashing function to saturate, and near enough for one that
# only clips to be told from one that saturates (torch's exp overflows at 88).
_FAR, _NEAR = 1e4, 3.0
# Share of the outputs that must lie at a bound for it to be one: noise is negative half of the time.
_SHARE_AT_BOUND = 0.2


@dataclass(frozen=True)
class Reach:
    """The range of a model's outputs, whatever its weights.

    Attributes:
        bottom, top: the bounds; infinite without a bound.
        cuts: whether outputs are exactly at the lower bound for moderate inputs too, as with ReLU, where no gradient flows; a
            function such as softplus or sigmoid only approaches it.
    """

    bottom: float
    top: float
    cuts: bool

    @property
    def bounded(self) -> bool:
        """Whether there is a bound on either side."""
        return self.bottom > -float("inf") or self.top < float("inf")


def last_layer(model: nn.Module, call: Callable[[], object]) -> nn.Module | None:
    """The linear layer or convolution that `call()` uses last; None without one, or when it is used more than once."""
    calls: list[nn.Module] = []
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    hooks = [layer.register_forward_hook(lambda module, inputs, output: calls.append(module)) for layer in layers]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return calls[-1] if calls and calls.count(calls[-1]) == 1 else None


def output_reach(model: nn.Module, call: Callable[[], Tensor]) -> Reach | None:
    """The bounds of the outputs that `call()` returns; None where the last layer is not known.

    The output of the last layer is replaced by noise of both signs, large and moderate. A bound is a value that a large share
    of the outputs takes exactly: a product with another layer's output has no common bound, and counts as unbounded.
    """
    layer = last_layer(model, call)
    if layer is None:
        return None
    far, near = (_driven(layer, call, size) for size in (_FAR, _NEAR))
    if not bool(far.isfinite().all()) and not bool(near.isfinite().all()):
        return None
    bottom, top = far.min(), far.max()
    scale = float(far.abs().max().clamp_min(1e-12))
    tolerance = 1e-3 * max(abs(float(bottom)), min(scale, 1.0))
    at_bottom = float((far <= bottom + tolerance).float().mean())
    at_top = float((far >= top - 1e-3 * abs(float(top))).float().mean())
    is_bottom, is_top = at_bottom >= _SHARE_AT_BOUND, at_top >= _SHARE_AT_BOUND and float(top) < _FAR / 100
    cuts = is_bottom and float((near == bottom).float().mean()) >= _SHARE_AT_BOUND
    return Reach(float(bottom) if is_bottom else -float("inf"), float(top) if is_top else float("inf"), cuts)


def _driven(layer: nn.Module, call: Callable[[], Tensor], size: float) -> Tensor:
    """Outputs while the layer's own output is noise of the given size."""
    generator = torch.Generator().manual_seed(0)

    def replace(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return (size * torch.randn(output.shape, generator=generator)).to(output)

    hook = layer.register_forward_hook(replace)
    try:
        return call().detach().float()
    finally:
        hook.remove()
