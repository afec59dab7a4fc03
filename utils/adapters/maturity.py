"""Whether a model has been trained: limits for initial weights do not hold for trained ones."""

from __future__ import annotations

import math

import torch
from torch import nn

# Weights from which on the largest tells a uniform distribution from others.
_LEAST_WEIGHTS = 256

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def is_untrained(model: nn.Module, apart_from: nn.Module | None = None) -> bool:
    """Whether the weights look as an initialisation leaves them.

    Normalisation scales start at one constant and move with the first updates, so they decide where there are any; else
    biases, which start at zero or uniformly within 1/sqrt(inputs) (torch's default) and leave that range in training. A model
    with neither counts as untrained: nothing speaks against it. Batch normalisation counts the batches that it has seen.

    Args:
        apart_from: a layer whose bias says nothing, as it is what is examined.
    """
    if any(int(getattr(module, "num_batches_tracked", None) or 0) > 0 for module in model.modules()):
        return False
    scales = [
        parameter.detach()
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 1
        and (name == "weight" if _is_norm(module) else _looks_like_scales(module, name, parameter))
    ]
    if scales:
        return all(bool((scale == scale.flatten()[0]).all()) for scale in scales)
    return not any(_is_moved_bias(module) for module in model.modules() if module is not apart_from)


def looks_initial(layer: nn.Module) -> bool:
    """Whether the weight of a linear layer or convolution is uniformly distributed around zero, as torch's default leaves it.

    The largest magnitude of a uniform distribution is sqrt(3) standard deviations. Training moves weights unequally, so that
    the largest of a trained layer is at three standard deviations and more. Initialisation from a normal distribution looks
    like trained weights, and does not count; neither do layers of fewer than 256 weights.
    """
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.numel() < _LEAST_WEIGHTS:
        return False
    values = weight.detach().float()
    spread = float(values.std(unbiased=False))
    if not spread > 0 or abs(float(values.mean())) > 0.2 * spread:
        return False
    return math.sqrt(3) * 0.9 < float(values.abs().max()) / spread < math.sqrt(3) * 1.05


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _NORMS) or "norm" in type(module).__name__.lower()


def _looks_like_scales(module: nn.Module, name: str, parameter: torch.Tensor) -> bool:
    """Whether a vector is the scale of a normalisation of any class and name: around 1, and no weights beside it."""
    alone = next(module.children(), None) is None and all(p.dim() == 1 for p in module.parameters(recurse=False))
    values = parameter.detach().float()
    return alone and parameter.numel() > 1 and "bias" not in name and bool((values > 0.2).all() and (values < 5).all())


def _is_moved_bias(module: nn.Module) -> bool:
    bias, weight = getattr(module, "bias", None), getattr(module, "weight", None)
    if not isinstance(bias, torch.Tensor) or not isinstance(weight, torch.Tensor) or weight.dim() < 2:
        return False
    if bool((bias == bias.flatten()[0]).all()):  # any constant is an initialisation, a fault of one included
        return False
    return float(bias.detach().abs().max()) > 1.001 / math.sqrt(weight[0].numel())
