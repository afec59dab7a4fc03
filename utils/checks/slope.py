"""Whether gradients are what they should be: the loss's slope, also where activations are recomputed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from utils.adapters.forward import ModelCall
from utils.check_result import Finding, Limit
from utils.checks.probe import Probe, few
from utils.training.engine import rng

# Largest model that is copied in fp64: 160 MB.
_LARGEST = 20_000_000
# Steps along a direction, as shares of each parameter's root mean square; the error of a central difference is the square.
# The first suits most models; small ones miss the kinks of deep networks, and large ones what rounding hides.
_STEPS = (1e-3, 1e-4, 1e-2, 1e-5, 1e-6, 1e-7)
# Disagreement that needs no second look with another step.
_AGREEMENT = 0.01
# A step that changes nothing but the rounding.
_ROUNDING_STEP = 1e-9
_DIRECTIONS = 3
# Relative disagreement of slope and gradient, beyond rounding.
_DISAGREEMENT = 0.05

#: Limits of what is measured here, and where each is from.
SLOPE_LIMITS = (
    *(Limit(name, at_most=_DISAGREEMENT,
            source="central differences in fp64 agree to the square of their step; the rest is room for kinks")
      for name in ("slope_disagreement", "slope_disagreement_in_training")),
)  # fmt: skip


def slope(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Directional derivatives of the loss by central differences, against the gradient, in an fp64 copy in evaluation mode.

    A gradient that is cut off, scaled or reversed on the way trains towards something else than the loss's minimum. Not
    covered: models with an operation that has no fp64 kernel; fp32 rounds too coarsely for small steps.
    """
    trained = sum(p.numel() for p in found.model.parameters() if p.requires_grad)
    if not trained or sum(p.numel() for p in found.model.parameters()) > _LARGEST:
        return
    if (by := _disagreement_beyond_limit(found, measured, "slope_disagreement")) is not None:
        yield Finding(
            "gradient", "fail", f"The gradient is not the slope of the loss: along random directions they differ by {by}.",
            "Look for detach() or no_grad() on a part of the path, gradient hooks, and backward() of custom functions.",
        )  # fmt: skip


def _disagreement_beyond_limit(
    found: Probe, measured: dict[str, Any], name: str, *, training: bool = False
) -> str | None:
    """Measure the disagreement under `name`; where it is too large, its size and the parameters, in words."""
    disagreements = _disagreements(found, training)
    worst = measured[name] = max(disagreements.pop(""), 0.0)
    if worst <= _DISAGREEMENT:
        return None
    return f"{worst:.0%}" + (f" (parameters {few(list(disagreements))})" if disagreements else "")


def _disagreements(found: Probe, training: bool = False) -> dict[str, float]:
    """Disagreement over all parameters, under "", and of each parameter where that is too large.

    Args:
        training: the mode; each pass starts from the same random state.
    """
    model = copy.deepcopy(found.model).double().train(training)
    exact = replace(found, model=model, call=ModelCall(model))
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad and p.is_floating_point()}
    batch = {
        name: value.double() if value.is_floating_point() else value
        for name, value in found.batch(2, min(16, found.max_length), seed=2).items()
    }

    def loss() -> Tensor:
        rng.seed_all(0)
        with sdpa_kernel(
            SDPBackend.MATH
        ):  # the fused kernel of CPUs misreads fp32 masks beside fp64 queries (torch 2.13)
            return exact.loss(batch)

    with torch.enable_grad():
        gradients = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
    by_name = {name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}
    found_apart = {
        "": max(_disagreement(loss, parameters, by_name, list(parameters), seed) for seed in range(_DIRECTIONS))
    }
    if found_apart[""] > _DISAGREEMENT and (held := _detached_norms(exact, loss, batch)):
        plain = loss

        def loss() -> Tensor:
            with _Detached(held):
                return plain()

        found_apart[""] = max(
            _disagreement(loss, parameters, by_name, list(parameters), seed) for seed in range(_DIRECTIONS)
        )
    if found_apart[""] > _DISAGREEMENT:
        each = {name: _disagreement(loss, parameters, by_name, [name], 0) for name in list(parameters)[:60]}
        found_apart |= {name: value for name, value in each.items() if value > _DISAGREEMENT}
    return found_apart


class _Detached(TorchFunctionMode):
    """Sees what detach() returns, in order; given `held`, returns its value for those calls instead."""

    def __init__(self, held: Mapping[int, Tensor] | None = None) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self._held = held or {}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = function(*args, **(kwargs or {}))
        if function in (Tensor.detach, torch.detach):
            self.seen.append(given)
            return self._held.get(len(self.seen) - 1, given)
        return given


def _detached_norms(found: Probe, loss: Callable[[], Tensor], batch: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """Detached vectors of norms of weights, by the number of the call: what DoRA holds constant on purpose (Liu et al. 2024,
    4.3). They are positive, one for each row of a matrix, and the same for every input."""
    with torch.no_grad(), _Detached() as first:
        loss()
    other = {name: value.flip(-1) for name, value in batch.items()}
    with torch.no_grad(), _Detached() as second, sdpa_kernel(SDPBackend.MATH):
        rng.seed_all(0)
        found.loss(other)
    if len(first.seen) != len(second.seen):
        return {}
    return {
        place: value.clone() for place, (value, again) in enumerate(zip(first.seen, second.seen, strict=True))
        if 1 < value.numel() == max(value.shape, default=0) and value.is_floating_point() and bool((value > 0).all())
        and value.shape == again.shape and torch.equal(value, again)
    }  # fmt: skip


def _disagreement(
    loss: Any, parameters: dict[str, nn.Parameter], gradients: dict[str, Tensor], names: Sequence[str], seed: int
) -> float:
    """Relative difference of slope and gradient along one direction: with the first step that agrees, else the smallest over
    the steps, as a kink may lie in one."""
    generator = torch.Generator().manual_seed(seed)
    direction = {}
    for name in names:
        noise = torch.randn(parameters[name].shape, generator=generator, dtype=torch.float64).to(parameters[name])
        scale = float(parameters[name].detach().square().mean().sqrt()) or 0.02
        direction[name] = noise * scale
    products = [(gradients[name] * direction[name]).flatten() for name in names if name in gradients]
    by_gradient: float = sum(float(product.sum()) for product in products)
    parts = math.sqrt(sum(float(product.square().sum()) for product in products))
    differences: list[float] = []
    rounding = 0.0
    for step in _STEPS:
        with torch.no_grad():
            up = _loss_at(loss, parameters, direction, step)
            down = _loss_at(loss, parameters, direction, -step)
        by_difference = (up - down) / (2 * step)
        apart = max(0.0, abs(by_difference - by_gradient) - 4 * rounding / step)
        size = max(abs(by_difference), abs(by_gradient), 0.1 * parts)
        differences.append(apart / size if size > 0 else 0.0)
        if min(differences) <= _AGREEMENT:
            break
        if (
            not rounding
        ):  # casts to fp32 inside the model round: measured, so that rounding is not taken for a difference
            with torch.no_grad():
                around = [_loss_at(loss, parameters, direction, sign * _ROUNDING_STEP) for sign in (-2, -1, 0, 1, 2)]
            rounding = max(around) - min(around) + 1e-12
    return min(differences)


def _loss_at(loss: Any, parameters: dict[str, nn.Parameter], direction: dict[str, Tensor], step: float) -> float:
    for name, change in direction.items():
        parameters[name].add_(change, alpha=step)
    value = float(loss())
    for name, change in direction.items():
        parameters[name].sub_(change, alpha=step)
    return value


def recomputed_activations(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Gradients with and without gradient checkpointing, from the same random state, where the model supports it."""
    switches = ("gradient_checkpointing_enable", "gradient_checkpointing_disable")
    switchable = all(callable(getattr(found.model, name, None)) for name in switches)
    supported = getattr(found.model, "supports_gradient_checkpointing", switchable) and switchable
    if not supported or sum(p.numel() for p in found.model.parameters()) > _LARGEST:
        return
    model: Any = copy.deepcopy(found.model).train()  # switching registers hooks, which stay
    if hasattr(getattr(model, "config", None), "use_cache"):
        model.config.use_cache = False  # transformers would switch it off for each pass, and warn
    twin = replace(found, model=model, call=ModelCall(model))
    model.gradient_checkpointing_disable()
    plain = _gradients(twin)
    model.gradient_checkpointing_enable()
    recomputed = _gradients(twin)
    scale = max(max((float(g.abs().max()) for g in plain.values()), default=0.0), 1e-12)
    differing = [
        name for name in plain
        if name not in recomputed or not float((plain[name] - recomputed[name]).abs().max()) <= 10 * found.tolerance * scale
    ]  # fmt: skip
    measured["gradients_that_checkpointing_changes"] = len(differing)
    if differing:
        yield Finding(
            "gradient checkpointing", "fail",
            f"Gradient checkpointing changes the gradients of {few(differing)}.",
            "Recompute with the same random state and inputs: torch.utils.checkpoint with use_reentrant=False.",
        )  # fmt: skip


def recomputed_alike(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """The slope once more, in training mode, for models that run modules again in the backward pass by themselves.

    What `torch.utils.checkpoint` computes again belongs to the loss only if it is what it was, dropout included.
    """
    if sum(p.numel() for p in found.model.parameters()) > _LARGEST or not _runs_again(found):
        return
    if (by := _disagreement_beyond_limit(found, measured, "slope_disagreement_in_training", training=True)) is not None:
        yield Finding(
            "gradient checkpointing", "fail",
            "Modules run again in the backward pass and compute something else than in the forward pass: in training mode the "
            f"gradient differs from the slope of the loss by {by}.",
            "Keep the random state when recomputing (preserve_rng_state=True of torch.utils.checkpoint), and let nothing "
            "change between the two passes.",
        )  # fmt: skip


def _runs_again(found: Probe) -> bool:
    """Whether a module is called in the backward pass of training."""
    model, called = found.model.train(), False

    def note(module: nn.Module, args: Any) -> None:
        nonlocal called
        called = True

    with torch.enable_grad():
        loss = found.loss(found.batch(2, min(16, found.max_length)))
        hooks = [module.register_forward_pre_hook(note) for module in model.modules()]
        try:
            torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
        finally:
            for hook in hooks:
                hook.remove()
    return called


def _gradients(found: Probe) -> dict[str, Tensor]:
    for parameter in found.model.parameters():
        parameter.grad = None
    rng.seed_all(0)
    with torch.enable_grad():
        found.loss(found.batch(2, min(16, found.max_length))).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.detach().float().clone() for name, p in found.model.named_parameters() if p.grad is not None}
