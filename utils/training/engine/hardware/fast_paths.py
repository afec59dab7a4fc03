"""The same mathematics by a faster route on a CPU, for as long as a training lasts.

- fp32 matrix products through oneDNN instead of MKL, which takes a slow route on AMD processors: 2x there, and the results
  differ by what fp32 rounding differs anyway.
- GELU's tanh form in one kernel instead of the eight operations that transformers spells it with.
- Memory that a step gives back is kept for the next one (`memory.freed_memory_kept`).

Which route is taken depends on hardware and versions alone, never on a timing: a resumed run must arrive at the same one.
`TRAINBOOK_FAST_PATHS=0` turns all of it off.
"""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.training.engine.hardware.memory import freed_memory_kept

# Multiplications from which the route through oneDNN gains more than it costs to get there (about 20 us a product).
_WORTH_IT = 1 << 23
_MOST_ROWS = 1 << 9  # for a small layer, rows in a batch for which the way is not worth it all the same
# Relative error of an fp32 product over 256 terms; both libraries are at 4e-7, bf16 would be at 4e-3.
_FP32_ROUNDING = 1e-5


def enabled() -> bool:
    """Whether fast paths may be taken (the environment variable)."""
    return os.environ.get("TRAINBOOK_FAST_PATHS", "1") != "0"


@functools.cache
def _onednn_is_faster() -> bool:
    """Whether this processor's fp32 products are faster in oneDNN, and as exact: AMD, with a torch that is built with MKL."""
    libraries: tuple[Any, ...] = (torch.backends.mkl, torch.backends.mkldnn)  # untyped in torch
    if not (all(library.is_available() for library in libraries) and _is_amd()):
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(64, 256, generator=generator), torch.randn(256, 64, generator=generator)
    exact = a.double() @ b.double()
    return bool((_onednn(a, b).double() - exact).abs().max() < _FP32_ROUNDING * exact.abs().max())


def _is_amd() -> bool:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux: the plain route is right everywhere
        return "AuthenticAMD" in platform.processor()


def uses_onednn() -> bool:
    """Whether fp32 products of a training go through oneDNN here."""
    return enabled() and _onednn_is_faster()


def taken() -> str:
    """The routes in a word ("off", "torch", "onednn"): part of what exact resume depends on."""
    if not enabled():
        return "off"
    return "onednn" if uses_onednn() else "torch"


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (M, K) @ b (K, N) + bias (N,), whatever the strides."""
    if torch.compiler.is_compiling():
        # As one step of a compiled program, which would take torch's own operation apart.
        return torch.ops.trainbook.matmul_fp32(a, b, bias)  # type: ignore[no-any-return]
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")  # type: ignore[no-any-return]


@torch.library.custom_op("trainbook::matmul_fp32", mutates_args=())
def _matmul_fp32(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")
    return product


@_matmul_fp32.register_fake
def _(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) @ b (K, N) without a graph, by the faster route for its format and device."""
    if a.dtype == torch.float32 and a.device.type == "cpu" and a.numel() * b.shape[1] >= _WORTH_IT and uses_onednn():
        return _onednn(a, b)
    return a @ b


class _Linear(torch.autograd.Function):
    """x (N, I) @ weight (I, O) + bias (O,) in fp32 through oneDNN, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        grad_weight = None
        if wanted[1]:
            # oneDNN is up to 3x faster when the result has fewer rows than columns.
            wide = weight.shape[0] <= weight.shape[1]
            grad_weight = _onednn(x.t(), grad) if wide else _onednn(grad.t(), x).t()
        return _onednn(grad, weight.t()) if wanted[0] else None, grad_weight, grad.sum(0) if wanted[2] else None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, plain: Callable[[], Tensor]) -> Tensor:
    """x (..., I) @ weight (I, O) + bias; `plain` computes it where the fast route does not fit."""
    fits = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if not fits or x.numel() * weight.shape[1] < _WORTH_IT:
        return plain()
    product: Tensor = _Linear.apply(x.reshape(-1, weight.shape[0]), weight, bias)  # type: ignore[no-untyped-call]
    return product.view(*x.shape[:-1], weight.shape[1])


def _linear_forward(layer: nn.Linear, x: Tensor) -> Tensor:
    return _linear(x, layer.weight.t(), layer.bias, lambda: F.linear(x, layer.weight, layer.bias))


def _conv1d_forward(layer: Any, x: Tensor) -> Tensor:
    return _linear(x, layer.weight, layer.bias, lambda: type(layer).forward(layer, x))


def _gelu_forward(_layer: nn.Module, x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


# By name, so that transformers need not be imported where no model of it is trained.
_ROUTES: dict[str, Callable[..., Tensor]] = {
    "torch.nn.modules.linear.Linear": _linear_forward,
    "transformers.pytorch_utils.Conv1D": _conv1d_forward,
    "transformers.activations.NewGELUActivation": _gelu_forward,
}


def _is_large(module: nn.Module) -> bool:
    """Whether a batch can make it worth the way; modules without weights count."""
    weight = getattr(module, "weight", None)
    return not isinstance(weight, Tensor) or weight.numel() * _MOST_ROWS >= _WORTH_IT


@contextlib.contextmanager
def fast_paths(model: nn.Module) -> Iterator[None]:
    """`model` (on a CPU) takes the fast routes inside the block; nothing is left of them afterwards.

    Only layers of exactly the known classes are touched: a subclass may compute something else.
    """
    on_cpu = enabled() and all(p.device.type == "cpu" for p in model.parameters())
    routes = dict(_ROUTES) if on_cpu else {}
    if routes and not uses_onednn():
        routes = {name: route for name, route in routes.items() if route is _gelu_forward}
    touched = []
    for module in model.modules():
        kind = type(module)
        route = routes.get(f"{kind.__module__}.{kind.__qualname__}")
        if route is not None and "forward" not in vars(module) and _is_large(module):
            vars(module)["forward"] = functools.partial(route, module)
            touched.append(module)
    try:
        with freed_memory_kept() if on_cpu else contextlib.nullcontext():
            yield
    finally:
        for module in touched:
            del vars(module)["forward"]
