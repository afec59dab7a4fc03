"""Weights of a checkpoint for a model: whether they fit it, and under which names."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from utils.errors import CheckpointError
from utils.training.adapter_checkpoints import base_record, checkpoint_state
from utils.training.engine.checkpointing.reading import Payload

_COMPILED = "_orig_mod."  # what torch.compile puts into the names of a module's parameters


def load_model_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy `weights` into `model`; every name, shape and kind of number must fit.

    Raises:
        CheckpointError: names the first differences; the model is unchanged.
    """
    weights = fitting_weights(model, weights, source)
    whole = base_record(model) is None  # else the frozen weights stay
    # What is no tensor is kept by the module as it is, and may be a view of a mapped file.
    model.load_state_dict({
        name: value if isinstance(value, Tensor) else copy.deepcopy(value) for name, value in weights.items()
    }, strict=whole)  # fmt: skip


def weights_to_use(checkpoint: Payload) -> dict[str, Tensor]:
    """The weights that a checkpoint's model is used with: the averaged ones where they were better at the latest validation,
    else the trained ones. A run is continued from the trained ones, `checkpoint["model"]`."""
    trained: dict[str, Tensor] = checkpoint["model"]
    if not averaged_is_better(checkpoint):
        return trained
    return {**trained, **under_names_of(trained, checkpoint["averaged"]["weights"])}


def averaged_is_better(checkpoint: Payload) -> bool:
    """Whether a checkpoint holds averaged weights that were better than the trained ones at the latest validation."""
    averaged = checkpoint.get("averaged")
    return averaged is not None and bool(averaged["better"])


def fitting_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """`weights` under the names that `model` has for them: they may differ in what torch.compile adds.

    So weights of a compiled model fit the plain one, and the reverse.
    Raises:
        CheckpointError: names the first differences.
    """
    own = checkpoint_state(model)
    if differences := weight_differences(own, weights):
        more = f"\n  and {len(differences) - 5} more" if len(differences) > 5 else ""
        listed = "\n  ".join(differences[:5])
        raise CheckpointError(f"{source} is of another model; {len(differences)} entries differ:\n  {listed}{more}")
    return under_names_of(own, weights)


def weight_differences(own: Mapping[str, Any], weights: Mapping[str, Any]) -> list[str]:
    """How a checkpoint's `weights` differ from the entries that a model would have there, in names, shapes and kinds of number.

    [] when they can be loaded.

    Args:
        own: `checkpoint_state` of the model, or the same with tensors on the device "meta".
    """
    weights = under_names_of(own, weights)
    differences = [f"{name}: only in the checkpoint" for name in weights if name not in own]
    differences += [f"{name}: only in the model" for name in own if name not in weights]
    return differences + [
        f"{name}: {reason}" for name in own if name in weights and (reason := misfit(weights[name], own[name]))
    ]


def under_names_of(own: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` under the names of `own`, where they differ only in what torch.compile adds."""
    names = {plain_name(name): name for name in own}
    return {names.get(plain_name(name), name): tensor for name, tensor in weights.items()}


def plain_name(name: str) -> str:
    """A parameter's name without what torch.compile adds."""
    return name.replace(_COMPILED, "")


def check_kinds(model: torch.nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Raise `CheckpointError` where a weight has the model's name and shape and another kind of number: it is damaged."""
    own = model.state_dict()
    for name, tensor in under_names_of(own, weights).items():
        if name in own and getattr(own[name], "shape", None) == tensor.shape and (reason := misfit(tensor, own[name])):
            raise CheckpointError(
                f"{source} is damaged in its content: model.{name}: {reason}. Use an older checkpoint."
            )


def misfit(saved: Any, own: Any) -> str | None:
    """Explain how a saved tensor differs from the model's in shape or dtype; None when it fits, or is none."""
    if not isinstance(own, Tensor):
        return None
    if not isinstance(saved, Tensor):
        return f"a {type(saved).__name__} in the checkpoint, a tensor in the model"
    if saved.shape != own.shape:
        return f"{tuple(saved.shape)} in the checkpoint, {tuple(own.shape)} in the model"
    if (saved.is_complex(), saved.is_floating_point()) != (own.is_complex(), own.is_floating_point()):
        return f"{saved.dtype} in the checkpoint, {own.dtype} in the model"
    return None
