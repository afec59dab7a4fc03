"""Find the output layer: the linear layer whose output the model returns unchanged, observed in one call.

Nothing is assumed about the model's class or names. A layer counts only when the very tensor that it makes is what the model
returns: then whatever comes after it (a scale, a cap, a cast, a slice) is known to be nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from utils.adapters.left_as_found import state_kept
from utils.errors import ModelError

#: Why a layer is not used though it is the output layer.
WATCHED = "its output layer, or a module around it, has hooks or a parametrization"


def find_output_layer(model: nn.Module, call: Callable[[], Tensor]) -> tuple[nn.Linear | None, str]:
    """The `nn.Linear` of `model` whose output `call()` returns, or None with the reason why it cannot be used.

    Args:
        call: runs the model on a small batch and returns its logits. Called at most twice, without gradients; weights,
            buffers and random state are as before afterwards.
    Returns:
        (layer, "") or (None, reason).
    """
    outputs: list[tuple[nn.Linear, Any]] = []
    hooks = [
        module.register_forward_hook(lambda layer, inputs, output: outputs.append((layer, output)))
        for module in model.modules()
        if type(module) is nn.Linear
    ]
    try:
        with state_kept(model, evaluation=False):
            logits = call()
    finally:
        for hook in hooks:
            hook.remove()
    layer = next((layer for layer, output in outputs if output is logits), None)
    if layer is None:
        return None, "what the model returns is not the untouched output of a linear layer"
    if sum(other is layer for other, _ in outputs) > 1:
        return None, "its output layer is used more than once in a forward pass"
    if is_watched(layer, modules_around(model, layer)):
        return None, WATCHED
    with state_kept(model, evaluation=False), hidden_states_of(layer) as taken:
        passed_on = call()
    if taken.hidden is not passed_on:
        return None, "the model does something to the output of its output layer"
    return layer, ""


def modules_around(model: nn.Module, layer: nn.Module) -> tuple[nn.Module, ...]:
    """The modules that contain `layer`, the model among them: what the layer returns passes through them."""
    return tuple(module for module in model.modules() if module is not layer and layer in set(module.modules()))


def is_watched(layer: nn.Module, around: tuple[nn.Module, ...]) -> bool:
    """Whether somebody sees or changes what the layer returns: by a hook on it or on a module around it, or by a
    parametrization. Hooks can be added at any time, so this is asked before each use."""
    hooks: list[Any] = [layer._forward_pre_hooks]
    for module in (layer, *around):
        hooks += [module._forward_hooks, module._backward_hooks, module._backward_pre_hooks]
    return any(hooks) or hasattr(layer, "parametrizations")


class Taken:
    """Input of the output layer, captured in one call of the model.

    Attributes:
        hidden: its input, (..., D); None before the call.
    """

    def __init__(self) -> None:
        self.hidden: Tensor | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        self.hidden = hidden
        return hidden

    def checked(self, returned: Tensor, model: nn.Module) -> Tensor:
        """`returned`, which must be the hidden states. Raises `ModelError` when the model did something to them."""
        if returned is not self.hidden:
            raise ModelError(
                f"{type(model).__name__} returns its output layer's result in one call and something else in another, so the "
                "loss cannot be fused with that layer. Set fused_loss='off'."
            )
        return returned


@contextlib.contextmanager
def hidden_states_of(layer: nn.Linear) -> Iterator[Taken]:
    """Inside the block `layer` passes its input on unchanged, so that a model returns hidden states where it had logits."""
    taken = Taken()
    with _forward_replaced(layer, taken):
        yield taken


@contextlib.contextmanager
def passing_on(layer: nn.Linear) -> Iterator[None]:
    """The same for a compiled model: always the same function, or it would be compiled anew in each call."""
    with _forward_replaced(layer, _pass_on):
        yield


def _pass_on(hidden: Tensor) -> Tensor:
    return hidden


@contextlib.contextmanager
def _forward_replaced(layer: nn.Linear, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    before = vars(layer).get("forward")
    vars(layer)["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del vars(layer)["forward"]
        else:
            vars(layer)["forward"] = before
