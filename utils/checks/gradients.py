"""Whether every part of the model learns: gradients of one backward pass."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from utils.adapters.forward import ModelCall
from utils.check_result import CheckResult, Limit, Verdict
from utils.checks.bookkeeping import frozen_by_mistake, unregistered
from utils.checks.checking import check
from utils.checks.depth import GRADIENT_LIMITS, gradients_through_depth
from utils.checks.limits import OWN_CHOICE
from utils.checks.probe import Probe, counted, few, is_stock
from utils.checks.reach import gradients_between_positions
from utils.checks.siblings import stacks_of_copies
from utils.checks.slope import SLOPE_LIMITS, recomputed_activations, recomputed_alike, slope

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "gradient flow"

# A matrix whose gradient is this much smaller than the median one stands still beside the others: in fp16, whose range
# spans about 1e-8 to 6e4, it is lost. The project's own choice.
VANISHING_SHARE = 1e-6
# Largest L2 norm of all gradients of a mean loss; healthy models at any stage stay below about 100. The project's own.
# For cross-entropy: the gradient of a squared error has the targets' scale, and no limit fits all.
EXPLODING_NORM = 1000.0
# Root mean square that a tensor of zeros is moved to for a second look: GPT-2's initial one.
_NUDGE_STD = 0.02
# Draws of noise on the weights, after which a router sends inputs elsewhere.
_OTHER_WEIGHTS = 8
# Rows of the batch whose gradients are looked at, and of one that batch normalisation has to see.
_ROWS, _ROWS_TO_NORMALISE = 2, 32
# Share of parameters without a gradient up to which an unchanged stock model holds them for other uses.
_MINORITY = 0.25
# A head of zeros hides residual projections of zeros, and those hide what is before them.
_NUDGES = 3

#: Limits of the measured values, and where each is from.
_LIMITS = (
    Limit("total_norm", at_most=EXPLODING_NORM,
          source=f"healthy models stay below about 100 at any stage; {OWN_CHOICE}; for cross-entropy only"),
    Limit("smallest gradient of a matrix / median", at_least=VANISHING_SHARE,
          source=f"fp16 spans about 1e-8 to 6e4; {OWN_CHOICE}"),
    *SLOPE_LIMITS,
    *GRADIENT_LIMITS,
)  # fmt: skip


@check(
    NAME,
    (
        unregistered, frozen_by_mistake, slope, recomputed_activations, recomputed_alike, gradients_through_depth,
        gradients_between_positions,
    ),
    limits=_LIMITS,
)  # fmt: skip
def test_gradient_flow(found: Probe) -> CheckResult:
    """One backward pass on random inputs, in training mode.

    Called as (model, config=None, *, task_spec=None). Fails on NaN or infinite gradients, on trainable parameters that get
    none or, for matrices, exactly zero, and on a total norm above 1000; warns when a matrix gets a millionth of the median.
    Vectors are not judged by size: an attention key's bias has a gradient of zero by construction (softmax does not change
    when all its inputs shift). Frozen parameters are named apart. Tied tensors count once.

    Tensors of zeros are no alarm by themselves: residual projections, their scales and heads may start there, and hide what
    is before them in the first step only. When they do, each that gets a gradient is moved along it, as training would, and the
    gradients are looked at again. What stays without one is dead. The total norm leaves out tensors of zeros: LayerNorm's
    derivative at a vector of zeros, where some image models start their tokens, is 1/sqrt(eps). For the same reason a tensor
    whose norm is below 1 counts by its gradient times that norm: an embedding of 1e-4 before a LayerNorm, as RWKV has it,
    changes the loss much by a step of fixed length, and little by one of its own size. Experts that no token was sent to are
    no alarm either: with noise on the weights the router sends them some.
    """
    model = found.model
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        return CheckResult(
            NAME, "fail", "No parameter is trainable.", remedy="Set requires_grad=True on the parameters to train."
        )
    model.train()
    loss, sizes = _gradients(found, trainable)
    zeros = {name for name, p in trainable.items() if not bool(p.any())}
    woken = _dead(trainable, sizes) - _dead_when_zeros_move(found, trainable, sizes, zeros)
    dead = _dead(trainable, sizes) - woken
    recurrent = _of_single_steps(found, dead)
    passed_over = _passed_over(found, dead - recurrent) | _for_other_uses(found, dead - recurrent, sizes)
    passed_over |= _for_larger_images(found, trainable, dead - recurrent - passed_over)
    left = {name: size for name, size in sizes.items() if name not in passed_over | recurrent}
    return _judged(found, loss, left, zeros, woken, passed_over, recurrent)


Sizes = Mapping[str, float | None]


def _gradients(found: Probe, trainable: Mapping[str, nn.Parameter]) -> tuple[float, Sizes]:
    """The loss, and the root mean square of each gradient, or None. Leaves them in `.grad`."""
    for parameter in trainable.values():
        parameter.grad = None
    with torch.enable_grad():
        loss = found.loss(found.batch(_rows(found), min(32, found.max_length)))
        loss.backward()  # type: ignore[no-untyped-call]
    sizes = {
        name: None if p.grad is None else float(p.grad.float().square().mean().sqrt()) for name, p in trainable.items()
    }
    return float(loss.detach()), sizes


def _rows(found: Probe) -> int:
    """Rows of the batch: batch normalisation of two values leaves their signs only, and divides by next to nothing."""
    normalised = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in found.model.modules())
    return _ROWS_TO_NORMALISE if normalised and not found.over_tokens else _ROWS


def _dead(trainable: Mapping[str, nn.Parameter], sizes: Sizes) -> set[str]:
    return {name for name, size in sizes.items() if size is None or (size == 0 and trainable[name].dim() > 1)}


def _dead_when_zeros_move(
    found: Probe, trainable: Mapping[str, nn.Parameter], sizes: Sizes, zeros: set[str]
) -> set[str]:
    """Names of tensors without a gradient even after zero-initialised tensors took a step; they are zeroed again
    afterwards."""
    moved: set[str] = set()
    try:
        for _ in range(_NUDGES):
            ready = {name for name in zeros - moved if (sizes[name] or 0) > 0}
            if not ready or not _dead(trainable, sizes):
                break
            with torch.no_grad():
                for name in ready:
                    gradient = trainable[name].grad
                    assert gradient is not None
                    trainable[name].add_(gradient, alpha=-_NUDGE_STD / (sizes[name] or 1.0))
            moved |= ready
            _, sizes = _gradients(found, trainable)
    finally:
        with torch.no_grad():
            for name in moved:
                trainable[name].zero_()
    return _dead(trainable, sizes)


def _passed_over(found: Probe, dead: set[str]) -> set[str]:
    """Members of `dead` whose module got no input in this pass, but is used with other weights: experts without a token.

    A router decides on weights and inputs; what is detached, or not used at all, gets no gradient with any weights.
    """
    owners = {name: found.model.get_submodule(name.rpartition(".")[0]) for name in dead}
    idle = set(owners.values()) - _fed(found, set(owners.values()))
    left = {name for name in dead if owners[name] in idle}
    if not left:
        return set()
    twin = copy.deepcopy(found.model).train()
    other = replace(found, model=twin, call=ModelCall(twin))
    used: set[str] = set()
    before = {name: p.detach().clone() for name, p in twin.named_parameters()}
    for seed in range(_OTHER_WEIGHTS):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.copy_(before[name] + noise * before[name].std(unbiased=False))
        _, sizes = _gradients(other, {name: twin.get_parameter(name) for name in left})
        used |= {name for name in left if sizes[name]}
        if used == left:
            break
    return used


def _of_single_steps(found: Probe, dead: set[str]) -> set[str]:
    """Members of `dead` that are recurrent weights of layers whose input has one step: they multiply a state of zeros."""
    owners = {name: found.model.get_submodule(name.rpartition(".")[0]) for name in dead if "weight_hh" in name}
    steps: dict[nn.Module, int] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if inputs and isinstance(inputs[0], torch.Tensor) and isinstance(module, nn.RNNBase):
            time = inputs[0].dim() - 2 if module.batch_first else 0
            steps[module] = max(steps.get(module, 0), inputs[0].shape[time])

    layers = {owner for owner in owners.values() if isinstance(owner, nn.RNNBase)}
    if layers:
        _watch_a_pass(found, layers, note)
    return {name for name, owner in owners.items() if steps.get(owner) == 1}


def _for_other_uses(found: Probe, dead: set[str], sizes: Sizes) -> set[str]:
    """Members of `dead` that models of transformers hold for other uses: the pooler of other heads, the token of masked patches
    in image models, which are masked in pretraining only. Of unchanged stock models also a minority that this call does not use
    at all, and projections for local or global attention, of which a classifier's last layer needs one kind."""
    if not type(found.model).__module__.startswith("transformers."):
        return set()
    others = {name for name in dead if ".pooler." in name or name.endswith("embeddings.mask_token")}
    if is_stock(found.model):
        others |= {name for name in dead if _has_global_twin(found.model, name)}
        if len(dead) < _MINORITY * sum(p.requires_grad for p in found.model.parameters()):
            others |= {name for name in dead if sizes[name] is None}
    return others


def _has_global_twin(model: nn.Module, name: str) -> bool:
    """Whether a parameter is of a projection that its module has once for local and once for global attention."""
    place, _, projection = name.rpartition(".")[0].rpartition(".")
    module = model.get_submodule(place)
    local = projection.removesuffix("_global")
    return hasattr(module, local) and hasattr(module, f"{local}_global")


def _for_larger_images(found: Probe, trainable: Mapping[str, nn.Parameter], dead: set[str]) -> set[str]:
    """Members of `dead` that get a gradient from images four times as large: attention to a single place has one weight, 1."""
    if found.image_shape is None or not dead:
        return set()
    channels, height, width = found.image_shape
    try:
        _, sizes = _gradients(replace(found, image_shape=(channels, 4 * height, 4 * width)), trainable)
    except Exception:  # noqa: BLE001 - most models take one size only
        return set()
    return {name for name in dead if sizes[name]}


def _fed(found: Probe, modules: set[nn.Module]) -> set[nn.Module]:
    """Members of `modules` that get a non-empty input in a forward pass in training mode."""
    fed: set[nn.Module] = set()

    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        tensors = [value for value in (*inputs, *named.values()) if isinstance(value, torch.Tensor)]
        if any(tensor.numel() for tensor in tensors) or not tensors:
            fed.add(module)

    _watch_a_pass(found, modules, hook)
    return fed


def _watch_a_pass(
    found: Probe, modules: Iterable[nn.Module], hook: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
) -> None:
    """Call `hook` with the inputs of these modules in one forward pass."""
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules]
    try:
        with torch.no_grad():
            found.call(found.batch(2, min(32, found.max_length)))
    finally:
        for handle in handles:
            handle.remove()


def _judged(
    found: Probe,
    loss: float,
    sizes: Sizes,
    zeros: set[str],
    woken: set[str],
    passed_over: set[str],
    recurrent: set[str],
) -> CheckResult:
    parameters = dict(found.model.named_parameters())
    matrices = {name: size for name, size in sizes.items() if size is not None and parameters[name].dim() > 1}
    bad = [name for name, size in sizes.items() if size is not None and not size < float("inf")]
    dead = [name for name in sizes if name in _dead(parameters, sizes) - woken]
    middle = statistics.median(matrices.values()) if matrices else 0.0
    weak = [name for name, size in matrices.items() if 0 < size < VANISHING_SHARE * middle]
    counting = {name: size for name, size in sizes.items() if size and name not in zeros}
    norm = sum((size * _reach(parameters[name])) ** 2 for name, size in counting.items()) ** 0.5
    frozen_names = [name for name in parameters if name not in sizes and name not in passed_over | recurrent]
    measured = {
        "loss_nats": loss, "total_norm": norm, "median_rms": middle,
        "trainable": len(sizes) + len(passed_over) + len(recurrent),
        "frozen": len(frozen_names), "frozen_names": frozen_names, "without_gradient": dead, "behind_zeros": sorted(woken),
        "passed_over": sorted(passed_over), "recurrent_of_one_step": sorted(recurrent), "vanishing": weak,
        "not_finite": bad,
    }  # fmt: skip
    thresholds = {"vanishing_share_of_median": VANISHING_SHARE, "exploding_norm": EXPLODING_NORM}
    figure = None if bad else _figure(sizes)

    def result(verdict: Verdict, summary: str, remedy: str = "") -> CheckResult:
        return CheckResult(NAME, verdict, summary, measured, thresholds, remedy, figure)

    if bad or not loss < float("inf"):
        return result(
            "fail", f"NaN or infinite: {few(bad) or 'the loss'}.",
            "Look for a division by zero, a log of zero or an overflow in this layer; check the weights for NaN.",
        )  # fmt: skip
    if dead:
        return result(
            "fail", f"{len(dead)} of {counted(len(sizes), 'trainable parameter')} get no gradient: {few(dead)}.",
            "Use them in forward, remove a detach() or no_grad() before them, or freeze them with requires_grad=False.",
        )  # fmt: skip
    if norm > EXPLODING_NORM and found.output != "numbers":
        return result(
            "fail", f"The gradients' total norm is {norm:,.0f}, above {EXPLODING_NORM:,.0f}.",
            "Make initial weights smaller, normalise activations, or scale attention scores by 1/sqrt(head width).",
        )  # fmt: skip
    if recurrent:
        return result(
            "warn", f"{counted(len(recurrent), 'recurrent weight')} get no gradient, as each sample has one step and the state "
            f"before it is zero: {few(sorted(recurrent))}. Nothing is carried from step to step.",
            "Give series of several steps (B, T, F), with time in the dimension that batch_first says; for samples of one step "
            "take linear layers.",
        )  # fmt: skip
    if weak:
        copied = stacks_of_copies(found.model)
        upcycled = (
            f" The blocks of {few(copied)} are copies of one, as upcycling makes them: what chooses between them has nothing "
            "to learn until they differ."
        ) if copied else ""  # fmt: skip
        return result(
            "warn", f"{counted(len(weak), 'matrix')} with less than a millionth of the median gradient: {few(weak)}.{upcycled}",
            "Add residual connections or normalisation, or look for saturated activations before them.",
        )  # fmt: skip
    frozen = f", {measured['frozen']} are frozen" if measured["frozen"] else ""
    later = f", {len(woken)} of them once the tensors of zeros after them have moved" if woken else ""
    idle = f", {len(passed_over)} more belong to parts that no input went through" if passed_over else ""
    return result(
        "pass",
        f"All {counted(len(sizes), 'trainable parameter')} get gradients{later}{idle}{frozen}; total norm {norm:.3g}.",
    )


def _reach(parameter: torch.Tensor) -> float:
    """Factor from the root mean square of a gradient to its norm, at most to the norm of gradient times weights."""
    return float(parameter.detach().float().norm().clamp_max(1.0)) * math.sqrt(parameter.numel())


def _figure(sizes: Sizes) -> Figure:
    """Bars of the gradients' size (root mean square), one a parameter, in the model's order."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), dpi=110, layout="constrained")
    axes = figure.subplots()
    values = [size or 0.0 for size in sizes.values()]
    axes.bar(range(len(values)), values, color="#1f4e9c", width=0.9)
    if any(values):
        axes.set_yscale("log")
    axes.set_xlabel("parameters, from input to output")
    axes.set_ylabel("gradient (RMS)")
    axes.set_title("Gradient flow")
    return figure
