"""Auxiliary losses that a model returns beside its logits, such as the load balancing of mixture-of-experts routers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from utils.adapters.inputs import unwrapped
from utils.errors import ModelError

# Entry of a model's outputs -> where its coefficient is stated, in the order of preference; transformers' names.
_BALANCING = ("router_aux_loss_coef", "aux_loss_coef")
_Z_LOSS = ("router_z_loss_coef", "z_loss_coef", "z_loss_coefficient")
_COEFFICIENTS = {
    "aux_loss": _BALANCING, "auxiliary_loss": _BALANCING, "encoder_aux_loss": _BALANCING, "decoder_aux_loss": _BALANCING,
    "z_loss": _Z_LOSS, "encoder_z_loss": _Z_LOSS, "decoder_z_loss": _Z_LOSS,
}  # fmt: skip


def auxiliary_loss_of(outputs: Any, model: nn.Module) -> Tensor | None:
    """The sum of the auxiliary losses in a model's outputs, each times its coefficient, or None.

    transformers models add theirs to the loss only when they compute it themselves, from labels. The coefficient is an
    attribute of the model or of its config; a module that states none has 1.

    Returns:
        scalar fp32, with graph.
    Raises:
        ModelError: an auxiliary loss is not a scalar.
    """
    total: Tensor | None = None
    for name, coefficients in _COEFFICIENTS.items():
        value = outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)
        if not isinstance(value, Tensor):
            continue
        if value.numel() != 1:
            raise ModelError(
                f"{type(model).__name__}.forward returned {name} of shape {tuple(value.shape)}; expected a scalar. Return its "
                "mean or sum."
            )
        scaled = value.float().reshape(()) * _coefficient(model, coefficients)
        total = scaled if total is None else total + scaled
    return total


def _coefficient(model: nn.Module, names: tuple[str, ...]) -> float:
    for module in unwrapped(model):
        config = getattr(module, "config", None)
        for source in (module, config, getattr(config, "text_config", None)):
            for name in names:
                value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    return float(value)
    return 1.0
