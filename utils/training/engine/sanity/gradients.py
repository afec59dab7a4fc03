"""Rules on the gradients of the first samples: which parameters get none, which are not trained, and what the settings make of
them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.maturity import is_untrained, looks_initial
from utils.training.engine.compute.user_supplied import parameters_of
from utils.training.engine.sanity.trial import Trial

# Samples in a backward pass: it takes as much memory as a step.
_ROWS = 8
# Parameters without a gradient that are tried one by one, to say which of them matter.
_TRIED_ALONE = 16
# Size to which a tensor of zeros is moved to see whether it matters: GPT-2's initial one.
_NUDGE = 0.02
# Relative change of the loss that is none: 100 times the rounding of fp32.
_CHANGED = 1e-5
# The largest in use for transformers: torch's default is 1e-8, RoBERTa's 1e-6 (Liu et al. 2019).
_USUAL_EPS = 1e-5
# The largest momentum in common use (Sutskever et al. 2013).
_USUAL_MOMENTUM = 0.99
# Share of the learning rate that is left of Adam's steps, g / (g + eps), below which eps decides and not the gradient.
_SHARE_LEFT = 0.1
# The most that all steps of a run together may move the weights, as a share of their size, to count as not moving them. Below
# it, bf16 (8 bits) would round the sum of all steps away.
_HARDLY_MOVES = 2.0**-9


def gradients_reach_parameters(trial: Trial) -> Iterator[str]:
    """Parameters that the loss depends on and that get no gradient, parameters outside the optimizer, and settings that leave
    nothing of the gradients."""
    rows = min(_ROWS, trial.rows)
    loss = trial.backward(rows)
    trainable = {name: p for name, p in trial.model.named_parameters() if p.requires_grad}
    gradients = {name: p.grad for name, p in trainable.items()}
    if not math.isfinite(loss) or any(g is not None and not bool(g.isfinite().all()) for g in gradients.values()):
        return  # the first step reports it, with all it knows
    yield from _nothing_to_learn(trial, loss, gradients)
    yield from _not_in_optimizer(trial, trainable, gradients)
    yield from _settings(trial, trainable, gradients)
    yield from _cut_off(trial, rows, loss, {n: p for n, p in trainable.items() if gradients[n] is None})


def enough_is_trained(trial: Trial) -> Iterator[str]:
    """Whether anything but normalisations is trained. Heads, adapters and LoRA have matrices; BitFit trains biases and no
    scales; a temperature is no part of a normalisation."""
    parameters = list(trial.model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    norms = [m for m in trial.model.modules() if "norm" in type(m).__name__.lower()]
    scales = {id(m.weight) for m in norms if isinstance(getattr(m, "weight", None), nn.Parameter)}
    biases = {id(p) for name, p in trial.model.named_parameters() if name.endswith("bias")}
    if len(trained) == len(parameters) or not any(id(p) in scales for p in trained):
        return
    if any(id(p) not in scales | biases for p in trained) or all(p.dim() < 2 for p in parameters):
        return
    count, total = sum(p.numel() for p in trained), sum(p.numel() for p in parameters)
    yield (
        f"Nearly all parameters are frozen: {count:,} of {total:,} ({count / total:.1%}) are trained, only "
        "normalisations and biases. If that is not intended, set requires_grad=True on the weights (unfreeze_layers)."
    )


def frozen_layers_were_trained(trial: Trial) -> Iterator[str]:
    """Whether most of a model is frozen at initial random weights, with nothing but other layers trained on top of them.

    Adapters are left alone, and so are models that name what they were loaded from. A layer counts when its weights are
    uniformly distributed, as torch's default leaves them; any layer, when scales of frozen normalisations are still constant.
    """
    frozen = {name: p for name, p in trial.model.named_parameters() if not p.requires_grad}
    total, count = (sum(p.numel() for p in some) for some in (trial.model.parameters(), frozen.values()))
    loaded_from = getattr(getattr(trial.model, "config", None), "_name_or_path", "")  # as transformers notes it
    adapted = any(_is_adapter(name, p) for name, p in trial.model.named_parameters() if p.requires_grad)
    if count <= total / 2 or loaded_from or adapted:
        return
    scales = [m.weight for m in trial.model.modules() if "norm" in type(m).__name__.lower() and hasattr(m, "weight")]
    if not (is_untrained(trial.model) and any(isinstance(s, Tensor) and not s.requires_grad for s in scales)):
        frozen = {
            name: p for name, p in frozen.items() if looks_initial(trial.model.get_submodule(name.rpartition(".")[0]))
        }
        count = sum(p.numel() for p in frozen.values())
    if count > total / 2:
        yield (
            f"Most of the model is frozen at its initial random weights: {count:,} of {total:,} parameters have "
            f"requires_grad=False and look as an initialisation leaves them ({_few(list(frozen))}). Load pretrained weights "
            "into them, or train them."
        )


def _is_adapter(name: str, parameter: nn.Parameter) -> bool:
    """Whether a trained tensor is an adapter's, by its name or as a matrix of zeros, with which adapters start."""
    named = any(word in name.lower() for word in ("lora", "adapter", "prompt", "prefix"))
    return named or (parameter.dim() > 1 and not bool(parameter.any()))


def output_layer_is_trained(trial: Trial) -> Iterator[str]:
    """Whether a new output layer is frozen at its random weights while what is before it is trained.

    Trained models are left alone, and so are adapters and heads that share their weight with an embedding.
    """
    layers = [m for m in trial.model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    parameters = list(trial.model.parameters())
    trained, total = (sum(p.numel() for p in some) for some in ([p for p in parameters if p.requires_grad], parameters))
    if len(layers) < 2 or layers[-1].weight.requires_grad or trained < total / 2 or not is_untrained(trial.model):
        return
    shared = any(isinstance(m, nn.Embedding) and m.weight is layers[-1].weight for m in trial.model.modules())
    if not shared and len(layers[-1].weight) == trial.outputs.shape[-1]:
        name = next(name for name, module in trial.model.named_modules() if module is layers[-1])
        yield (
            f"The output layer {name} is frozen at its initial random weights (requires_grad=False), while the layers before "
            "it are trained. Freeze the other layers instead, or set requires_grad=True on it."
        )


def _nothing_to_learn(trial: Trial, loss: float, gradients: dict[str, Tensor | None]) -> Iterator[str]:
    """Every gradient is exactly zero while there is a loss."""
    known = [gradient for gradient in gradients.values() if gradient is not None]
    if not known or loss == 0 or any(bool(gradient.any()) for gradient in known):
        return
    rows = trial.outputs.reshape(len(trial.outputs), -1)
    same = len(rows) > 1 and bool((rows == rows[:1]).all())
    if same and rows.shape[1] == 1 and float(rows[0]) == 1:
        yield (
            "The output is 1 for every input: softmax over one unit is always 1. Use sigmoid for a yes or no, and no activation"
            " for an amount. Every gradient is zero, so nothing is learned."
        )
    elif same:
        yield (
            f"The output is the same for every input ({float(rows[0, 0]):.3g}), and every gradient is zero, so nothing is "
            "learned. Look for units that are dead or saturated on the way to it."
        )
    else:
        yield (
            "Every gradient of the first samples is exactly zero, so nothing is learned. Look for units that are dead or "
            "saturated, and for rounding or argmax on the way to the loss."
        )


def _not_in_optimizer(
    trial: Trial, trainable: dict[str, nn.Parameter], gradients: dict[str, Tensor | None]
) -> Iterator[str]:
    held = {id(parameter) for parameter in parameters_of(trial.optimizer)}
    missing = [name for name, p in trainable.items() if gradients[name] is not None and id(p) not in held]
    if missing:
        count = sum(trainable[name].numel() for name in missing)
        yield (
            f"{len(missing)} of {len(trainable)} parameters that need gradients are not in the optimizer and stay as they are: "
            f"{_few(missing)} ({count:,} numbers). Make it from model.parameters(), or freeze them with requires_grad_(False)."
        )


def _cut_off(trial: Trial, rows: int, loss: float, without: dict[str, nn.Parameter]) -> Iterator[str]:
    """Parameters without a gradient that change the loss all the same. What the loss does not depend on (a pooler or an expert
    that was not used) needs none."""
    if not without or not _changes_loss(trial, rows, loss, list(without.values())):
        return
    names = list(without)
    if len(names) <= _TRIED_ALONE:
        names = [name for name in names if _changes_loss(trial, rows, loss, [without[name]])] or names
    yield (
        f"No gradient reaches {len(names)} parameters that the loss depends on, so they are not trained: {_few(names)}. Remove "
        "detach(), no_grad() or .data on the way from them to the loss, or freeze them with requires_grad_(False)."
    )


def _changes_loss(trial: Trial, rows: int, loss: float, parameters: list[nn.Parameter]) -> bool:
    """Whether the loss is another one when these parameters are."""
    before = [parameter.detach().clone() for parameter in parameters]
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.no_grad():
            for parameter in parameters:
                size = float(parameter.float().square().mean().sqrt()) or _NUDGE
                parameter.add_((size * torch.randn(parameter.shape, generator=generator)).to(parameter))
        changed = trial.loss(rows)
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
    again = trial.loss(rows)
    return abs(changed - loss) > _CHANGED * abs(loss) and abs(again - loss) <= 0.1 * _CHANGED * abs(loss)


def _settings(trial: Trial, trainable: dict[str, nn.Parameter], gradients: dict[str, Tensor | None]) -> Iterator[str]:
    """Report optimizer settings that do not suit gradients of this size."""
    held = {id(parameter): group for group in trial.optimizer.param_groups for parameter in group["params"]}
    moved = [(p, g, held[id(p)]) for n, p in trainable.items() if (g := gradients[n]) is not None and id(p) in held]
    norm = math.sqrt(sum(float(g.float().square().sum()) for _, g, _ in moved))
    if not norm:
        return
    clipped = min(1.0, trial.max_grad_norm / norm) if trial.max_grad_norm > 0 else 1.0
    groups = trial.optimizer.param_groups
    decay = max((float(group.get("weight_decay", 0.0)) for group in groups), default=0.0)
    if decay >= 1:
        yield (
            f"weight_decay={decay:g} is out of range: it is a share per unit of learning rate, and values from 0 to 0.1 are "
            "usual. Weights are pulled to zero faster than they learn."
        )
    yield from _momentum(trial)
    if _is_adam(trial.optimizer):
        yield from _adams_eps(trial, moved, norm, clipped)
        yield from _adams_rate(trial, moved)
    elif isinstance(trial.optimizer, torch.optim.SGD):
        yield from _clipping(trial, moved, norm, clipped)


def _momentum(trial: Trial) -> Iterator[str]:
    """Momentum that averages over more steps than the run has: a step hardly follows the gradient, and overshoots for long."""
    groups = trial.optimizer.param_groups
    momentum = max((float(group.get("momentum") or group.get("betas", (0.0,))[0]) for group in groups), default=0.0)
    if momentum <= _USUAL_MOMENTUM or trial.total_steps is None:
        return
    steps = 1 / (1 - momentum) if momentum < 1 else math.inf
    if steps > trial.total_steps:
        yield (
            f"momentum={momentum:g} averages gradients over {steps:,.0f} steps, and the run has {trial.total_steps:,}: steps "
            "follow gradients of long ago. Set it to 0.9 (0.99 at most)."
        )


def _adams_eps(
    trial: Trial, moved: list[tuple[nn.Parameter, Tensor, Any]], norm: float, clipped: float
) -> Iterator[str]:
    """Share of the learning rate that Adam's step keeps, |g| / (|g| + eps), at the median gradient that is not zero."""
    eps = max(float(group.get("eps", 0.0)) for _, _, group in moved)
    sizes = torch.cat([g.detach().float().abs().flatten()[:4096] for _, g, _ in moved])
    size = float(sizes[sizes > 0].median())
    if eps > _USUAL_EPS and size / (size + eps) < _SHARE_LEFT:
        yield (
            f"eps={eps:g} is far above the gradients (median {size:.2g}), so it decides the size of Adam's steps: they are "
            f"{size / (size + eps):.1%} of the learning rate. Set eps=1e-8."
        )
    elif clipped < 1e-3 and clipped * size < eps:
        yield (
            f"max_grad_norm={trial.max_grad_norm:g} cuts gradients of norm {norm:.3g} down to the size of eps, so that Adam's "
            "steps shrink. Set max_grad_norm=1.0."
        )


def _adams_rate(trial: Trial, moved: list[tuple[nn.Parameter, Tensor, Any]]) -> Iterator[str]:
    """Adam's first steps change each weight by about the learning rate (Kingma & Ba 2014): less than the weights."""
    sizes = [float(p.detach().float().square().mean().sqrt()) for p, _, _ in moved if p.dim() > 1]
    sizes = [size for size in sizes if size > 0]
    rate = trial.learning_rate
    if len(sizes) < 2:
        return
    size = statistics.median(sizes)
    if rate > size:
        yield (
            f"The learning rate is far too high: Adam's first steps change each weight by about {rate:g}, and the weights "
            f"are about {size:.2g} in size. Set learning_rate to {size / 50:.0e} or lower, or search it (find_learning_rate)."
        )


def _clipping(
    trial: Trial, moved: list[tuple[nn.Parameter, Tensor, Any]], norm: float, clipped: float
) -> Iterator[str]:
    """Distance that SGD can cover with clipped steps: at most rate x norm x steps / (1 - momentum), if all point one way."""
    size = math.sqrt(sum(float(p.detach().float().square().sum()) for p, _, _ in moved))
    if clipped == 1 or trial.total_steps is None or not size:
        return
    momentum = max(float(group.get("momentum", 0.0)) for _, _, group in moved)
    way = trial.learning_rate * trial.max_grad_norm * trial.total_steps / (1 - min(momentum, 0.999))
    if way < _HARDLY_MOVES * size and clipped < 1e-2:
        yield (
            f"Clipping cuts every step to almost nothing: with max_grad_norm={trial.max_grad_norm:g} (gradients have norm "
            f"{norm:.3g}), all {trial.total_steps:,} steps together move the weights by at most {way / size:.1e} of their size."
            " Set max_grad_norm=1.0, or 0 for none."
        )


def _is_adam(optimizer: torch.optim.Optimizer) -> bool:
    return isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam))


def _few(names: list[str], limit: int = 4) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
