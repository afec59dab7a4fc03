"""Compare signals and gradients of the first and last layers of a stack."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from utils.adapters.maturity import is_untrained
from utils.check_result import Finding, Limit
from utils.checks.probe import Probe, few

# Gradient of the first block of a stack against that of the last: residual and normalised stacks stay within 30, plain ones
# of well-scaled layers within 100 (He et al. 2015); a thousand leaves the early layers, or the late ones, untrained.
_GRADIENT_RATIO = 1000.0
# The same for the size of what the blocks put out.
_ACTIVATION_RATIO = 1000.0
# Share of a layer's units that are zero for every input; random ReLU layers leave about 0 to 5 % on a batch of this size.
_DEAD_SHARE = 0.9
_LEAST_BLOCKS = 3
_LEAST_POSITIONS = 4

#: Limits of gradients through depth, and their sources.
GRADIENT_LIMITS = (
    Limit("gradient_first_to_last", at_least=1 / _GRADIENT_RATIO, at_most=_GRADIENT_RATIO,
          source="well-scaled stacks stay within 100 (He et al. 2015); before training only"),
)  # fmt: skip

#: Limits of activations through depth and of dead units, and their sources.
ACTIVATION_LIMITS = (
    Limit("activation_last_to_first", at_least=1 / _ACTIVATION_RATIO, at_most=_ACTIVATION_RATIO,
          source="variance-keeping initialisation (He et al. 2015); before training only"),
    Limit("share of dead units in a ReLU layer", at_most=_DEAD_SHARE,
          source="random ReLU layers leave 0 to 5 %"),
)  # fmt: skip


def gradients_through_depth(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Gradient that reaches the output of each block of a stack, from first to last.

    Taken at the outputs rather than at the weights: a branch that starts at zero leaves its weights without a gradient for a
    step, and the path beside it intact.
    """
    stacks = stacks_of(found.model)
    if not stacks or not is_untrained(found.model):
        return
    found.model.train()
    outputs: dict[nn.Module, Tensor] = {}
    with torch.enable_grad(), outputs_of(stacks, lambda block, output: outputs.__setitem__(block, output)):
        loss = found.loss(found.batch(4, min(32, found.max_length)))
    watched = {block: output for block, output in outputs.items() if output.requires_grad}
    gradients = torch.autograd.grad(loss, list(watched.values()), allow_unused=True) if watched else ()
    sizes = {block: _rms(g) * g[0].numel() ** 0.5 for block, g in zip(watched, gradients, strict=True) if g is not None}
    for name, blocks in stacks.items():
        known = [sizes[block] for block in blocks if sizes.get(block)]
        if len(known) < _LEAST_BLOCKS or len(known) < len(blocks):
            continue
        ratio = known[0] / known[-1]
        measured[f"gradient_first_to_last of {name}"] = ratio
        if ratio < 1 / _GRADIENT_RATIO:
            yield Finding(
                "vanishing gradients", "fail",
                f"The gradient of the first of {len(known)} blocks in {name} is {ratio:.1g} times that of the last: it "
                "vanishes on the way.",
                "Add residual connections and normalisation, use ReLU or GELU instead of sigmoid or tanh, or scale the "
                "initial weights to keep the variance (He or Xavier).",
            )  # fmt: skip
        elif ratio > _GRADIENT_RATIO:
            yield Finding(
                "exploding gradients", "fail",
                f"The gradient of the first of {len(known)} blocks in {name} is {ratio:.2g} times that of the last: it "
                "explodes on the way.",
                "Normalise each block's input, scale residual branches, and make the initial weights smaller.",
            )  # fmt: skip


def activations_through_depth(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Compare how much the outputs of each block of an untrained stack vary with the input, from first to last."""
    stacks = stacks_of(found.model)
    if not stacks or not is_untrained(found.model):
        return
    found.model.eval()
    sizes: dict[nn.Module, float] = {}
    with torch.no_grad(), outputs_of(stacks, lambda block, output: sizes.__setitem__(block, signal(output))):
        found.call(found.batch(4, min(32, found.max_length)))
    for name, blocks in stacks.items():
        known = [sizes[block] for block in blocks if sizes.get(block)]
        if len(known) < _LEAST_BLOCKS:
            continue
        ratio = known[-1] / known[0]
        measured[f"activation_last_to_first of {name}"] = ratio
        if not 1 / _ACTIVATION_RATIO <= ratio <= _ACTIVATION_RATIO:
            word = "grow" if ratio > 1 else "shrink"
            yield Finding(
                "activations through depth", "fail",
                f"What activations say about the input {word}s by a factor of {max(ratio, 1 / ratio):.2g} through the "
                f"{len(known)} blocks of {name}.",
                "Normalise each block's input, and scale the initial weights to keep the variance.",
            )  # fmt: skip


def activations_through_time(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Layers whose outputs grow from the first position to the last, in a model not yet trained: a recurrence that explodes."""
    length = min(128, found.max_length) if found.over_tokens else (found.feature_shape or (0,))[0]
    if length < _LEAST_POSITIONS or not is_untrained(found.model):
        return
    recurrent = [(name, module) for name, module in found.model.named_modules() if _has_own_weights(module)]
    names = {module: name for name, module in recurrent}
    ratios: dict[str, float] = {}

    def take(module: nn.Module, output: Tensor) -> None:
        if output.dim() == 3 and output.shape[1] == length and output.is_floating_point():
            first, last = (_rms(output[:, place]) for place in (1, -1))
            ratios[names[module]] = last / first if first > 0 else 1.0

    found.model.eval()
    with torch.no_grad(), outputs_of({"": [module for _, module in recurrent]}, take):
        found.call(found.batch(4, length))
    worst = max(ratios, key=lambda name: ratios[name], default=None)
    if worst is None:
        return
    measured["activation_last_to_first_position"] = ratios[worst]
    if not ratios[worst] <= _ACTIVATION_RATIO:
        yield Finding(
            "activations through depth", "fail",
            f"The outputs of {worst or 'the model'} grow by a factor of {ratios[worst]:.2g} from the second position to the "
            f"last of {length}: the recurrence explodes, and so do its gradients.",
            "Scale the recurrent weights to a spectral radius of 1 or less (orthogonal initialisation), use tanh, a GRU or an "
            "LSTM, and clip gradients.",
        )  # fmt: skip


def _has_own_weights(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


def dead_units(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Outputs of ReLU that are zero for every input: their weights get no gradient and never recover."""
    found.model.eval()
    watch = _Relus()
    with torch.no_grad(), watch:
        found.call(found.batch(32, min(32, found.max_length)))
    shares = [_dead_share(output.movedim(_unit_dim(found, output), 0)) for output in watch.outputs]
    measured["dead_share_of_relu_layers"] = shares
    dead = [f"{index + 1} ({share:.0%})" for index, share in enumerate(shares) if share > _DEAD_SHARE]
    if dead:
        yield Finding(
            "dead units", "fail",
            f"Units of ReLU layer {few(dead)} are zero for every input: they are dead, and get no gradient.",
            "Start biases at zero, make initial weights smaller or centred, lower the learning rate, or use GELU or "
            "LeakyReLU.",
        )  # fmt: skip


def only_linear(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Several layers of weights that are together one linear map, for models over numbers and images."""
    layers = [m for m in found.model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    if found.over_tokens or len(layers) < 2:
        return
    found.model.eval()
    first, second = found.batch(4, 0, seed=1), found.batch(4, 0, seed=2)
    key = next(iter(first))
    zero = torch.zeros_like(first[key])
    with torch.no_grad():
        base, one, two, both = (
            found.call({key: value}).double() for value in (zero, first[key], second[key], first[key] + second[key])
        )
    difference = float(
        ((both - base) - (one - base) - (two - base)).abs().max() / (both - base).abs().max().clamp_min(1e-12)
    )
    measured["departure_from_linear"] = difference
    if difference < 1e-4:
        yield Finding(
            "linear", "warn", f"{len(layers)} layers with weights are together one linear map: activations are missing.",
            "Put a nonlinearity such as ReLU or GELU between the layers.",
        )  # fmt: skip


class _Relus(TorchDispatchMode):
    """Keeps what every ReLU gives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.outputs: list[Tensor] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = operation(*args, **(kwargs or {}))
        if operation.overloadpacket in (torch.ops.aten.relu, torch.ops.aten.relu_):
            self.outputs.append(given.detach().clone())
        return given


def _dead_share(units_first: Tensor) -> float:
    return float((units_first.flatten(1) == 0).all(1).float().mean())


def _unit_dim(found: Probe, output: Tensor) -> int:
    """The dimension of units: channels of images (B, C, H, W), else the last."""
    return 1 if output.dim() == 4 and not found.over_tokens else output.dim() - 1


def stacks_of(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Lists of equal blocks, and else the linear layers of equal width of a plain stack, by name."""
    stacks = {}
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.ModuleList)
            and len(module) >= _LEAST_BLOCKS
            and len({type(block) for block in module}) == 1
        ):
            if len({id(block) for block in module}) == len(module) and not _experts(name):
                stacks[name or "the model"] = list(module)
        elif isinstance(module, nn.Sequential):
            linear = [
                layer for layer in module if isinstance(layer, nn.Linear) and layer.in_features == layer.out_features
            ]
            if len(linear) >= _LEAST_BLOCKS:
                stacks[name or "the model"] = list(linear)
    return stacks


def _experts(name: str) -> bool:
    """Whether a list stands side by side rather than one after another."""
    return any(word in name.rsplit(".", 1)[-1].lower() for word in ("expert", "head", "branch"))


@contextlib.contextmanager
def outputs_of(stacks: Mapping[str, list[nn.Module]], take: Callable[[nn.Module, Tensor], Any]) -> Iterator[None]:
    """Inside the block, `take` gets every block of `stacks` and the first tensor of what it returns."""

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        while isinstance(output, (tuple, list)) and output:
            output = output[0]
        if isinstance(output, Tensor):
            take(module, output)

    hooks = [block.register_forward_hook(hook) for blocks in stacks.values() for block in blocks]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def signal(output: Tensor) -> float:
    """Root mean square of what varies over rows (and positions): a constant added by biases does not count."""
    values = output.detach().float()
    values = values.flatten(0, -2) if values.dim() > 1 else values
    return _rms(values - values.mean(0))


def _rms(values: Tensor) -> float:
    return float(values.detach().float().square().mean().sqrt())
