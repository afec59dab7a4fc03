"""fp32 master weights for models whose parameters are in half precision.

An update is usually smaller than the spacing of half-precision numbers around a weight, so updating such weights in place
loses most of it (Micikevicius et al. 2018, "Mixed Precision Training"). The masters take the place of the weights while the
model is trained; forward passes compute in the config's `precision`, as for any fp32 model.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import ModelError

log = logging.getLogger("trainbook.engine")

HALF = (torch.float16, torch.bfloat16)
_TRAINABLE = (*HALF, torch.float32, torch.float64, torch.complex64, torch.complex128)


@contextlib.contextmanager
def fp32_weights(
    model: nn.Module, optimizer: torch.optim.Optimizer | None = None, notice: Callable[[str], None] = log.info
) -> Iterator[None]:
    """Keep half-precision parameters and buffers of `model` in fp32 inside the block, and restore their formats after it.

    Nothing happens when no trainable parameter is in half precision. Tensors keep their identity: tied weights stay tied, and
    an optimizer that was made from them stays valid. What is left at the end of the block, by whichever way, is rounded.

    Args:
        optimizer: one that already exists; its state follows the format of the parameters.
        notice: called with a sentence for the user when weights were converted, or do not fit into their format afterwards.
    Raises:
        ModelError: a trainable parameter is in a format that cannot be trained, such as float8.
    """
    _refuse_untrainable(model)
    formats = _half_precision_formats(model)
    if not formats:
        yield
        return
    kinds = " and ".join(sorted({_name(dtype) for dtype in formats.values()}))
    notice(
        f"The model's weights are in {kinds}. They are kept in fp32 while they are trained, which takes more memory, and "
        f"are converted back to {kinds} afterwards; checkpoints hold the fp32 weights."
    )
    try:
        _convert(model, dict.fromkeys(formats, torch.float32), optimizer)
        _flatten_recurrent(model)
        yield
    finally:
        too_large = _convert(model, formats, optimizer)
        _flatten_recurrent(model)
        if too_large:
            notice(
                f"Trained weights are too large for their format and became infinite in the model: {', '.join(too_large)}. "
                "The checkpoints hold them in fp32: call model.float() and load one."
            )


def in_formats_of(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """`weights`, a state_dict, with each floating-point tensor in the format that `model` has under the same name."""
    own = model.state_dict()
    return {
        name: tensor.to(own[name].dtype) if name in own and _is_floating(tensor) and _is_floating(own[name]) else tensor
        for name, tensor in weights.items()
    }


def bytes_in_training(model: nn.Module) -> dict[nn.Parameter, int]:
    """Bytes of each parameter while `model` is trained."""
    converted = bool(_half_precision_formats(model))
    return {
        parameter: parameter.numel() * (4 if converted and parameter.dtype in HALF else parameter.element_size())
        for parameter in model.parameters()
    }


def _refuse_untrainable(model: nn.Module) -> None:
    wrong = [(name, p.dtype) for name, p in model.named_parameters() if p.requires_grad and p.dtype not in _TRAINABLE]
    if wrong:
        name, dtype = wrong[0]
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ModelError(
            f"{name}{more}: got trainable weights in {_name(dtype)}, which no optimizer here can update. Convert them, for "
            "example with model.float(), or freeze them with requires_grad_(False)."
        )


def _half_precision_formats(model: nn.Module) -> dict[str, torch.dtype]:
    """Name -> format of everything to convert. One trainable half-precision parameter converts all of the model's: without
    autocast, layers of different formats do not compute together."""
    if not any(p.requires_grad and p.dtype in HALF for p in model.parameters()):
        return {}
    return {name: tensor.dtype for name, tensor in _floating_tensors(model) if tensor.dtype in HALF}


def _floating_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name, each once."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _convert(model: nn.Module, formats: dict[str, torch.dtype], optimizer: torch.optim.Optimizer | None) -> list[str]:
    """Convert the named tensors in place, one at a time. Returns the names of those with numbers that became infinite."""
    too_large = []
    for name, tensor in _floating_tensors(model):  # by name: moving a model to a device replaces its buffers
        dtype = formats.get(name)
        if dtype is None:
            continue
        if _overflows(tensor, dtype):
            too_large.append(name)
        gradient, tensor.grad = tensor.grad, None
        tensor.data = tensor.data.to(dtype)
        if gradient is not None:
            tensor.grad = gradient.to(dtype)
        if optimizer is not None:
            _convert_state(optimizer.state.get(tensor, {}), tensor)
    return too_large


def _convert_state(state: dict[str, Any], parameter: Tensor) -> None:
    for name, entry in state.items():
        # Not the step count, which is fp32 for parameters of every format.
        if name != "step" and isinstance(entry, Tensor) and entry.is_floating_point():
            state[name] = entry.to(parameter.dtype)


def _overflows(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether numbers of `tensor` that are finite would not be in `dtype`."""
    if dtype != torch.float16 or not tensor.numel():  # bf16 has the range of fp32
        return False
    return bool((tensor.isfinite() & tensor.to(dtype).isinf()).any())


def _flatten_recurrent(model: nn.Module) -> None:
    """cuDNN wants the weights of a recurrent layer in one piece of memory."""
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()


def _is_floating(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _name(dtype: torch.dtype) -> str:
    return {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(dtype, str(dtype).removeprefix("torch."))
