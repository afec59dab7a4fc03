"""What a checkpoint of a LoRA run holds: the trained weights, and a record of the base model that they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from utils.errors import CheckpointError

# Attribute of a model with adapters: what identifies the base model that its checkpoints do not hold.
_RECORD = "_trainbook_base"


def base_of(model: nn.Module) -> nn.Module:
    """The model inside a peft model; any other model itself."""
    inside = getattr(model, "get_base_model", None)
    found: nn.Module = inside() if callable(inside) else model
    return found


def note_base(model: nn.Module, new_tokens: Sequence[int] = ()) -> None:
    """Record in `model` what identifies the base model of its adapters, once.

    Args:
        new_tokens: ids of the tokens whose rows are trained beside the adapters.
    """
    if _RECORD in model.__dict__:
        return
    # What stands in for a module that is trained whole is never used.
    frozen = sorted(
        (name, p) for name, p in model.named_parameters() if not p.requires_grad and ".original_module." not in name
    )
    digest = hashlib.blake2b(digest_size=20)
    for name, parameter in frozen:
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        plain = parameter.detach().cpu().contiguous().reshape(-1)
        if plain.numel():
            digest.update(plain.view(torch.uint8).numpy().data)
    base = base_of(model)
    name = getattr(getattr(base, "config", None), "_name_or_path", "") or ""
    model.__dict__[_RECORD] = {"class": type(base).__name__, "name": str(name), "digest": digest.hexdigest()}
    if new_tokens:
        model.__dict__[_RECORD]["new_tokens"] = list(new_tokens)


def base_record(model: nn.Module) -> dict[str, Any] | None:
    """{"class", "name", "digest"} of the base model that checkpoints of `model` refer to, and the "new_tokens" whose rows they
    hold where there are any; None: they hold the whole model."""
    found: dict[str, Any] | None = model.__dict__.get(_RECORD)
    return None if found is None else dict(found)


def checkpoint_state(model: nn.Module) -> dict[str, Any]:
    """The entries of the state dict that a checkpoint of `model` holds: all, or without the frozen weights of a LoRA run."""
    state: dict[str, Any] = model.state_dict()
    if base_record(model) is None:
        return state
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {name: value for name, value in state.items() if name not in frozen}


def check_base(checkpoint: Mapping[str, Any], model: nn.Module, source: str) -> None:
    """Refuse a checkpoint of adapters whose base model is another one than `model`'s. Raises `CheckpointError`."""
    there, here = checkpoint.get("base_model"), base_record(model)
    if not isinstance(there, Mapping):
        return
    if here is None:
        raise CheckpointError(
            f"{source} holds adapters of {_named(there)} and not the model itself. Resume with finetune='lora' and that base "
            "model."
        )
    if (tokens := there.get("new_tokens", [])) != here.get("new_tokens", []):
        raise CheckpointError(
            f"{source} holds the rows of the new tokens {tokens}, and the model trains those of {here.get('new_tokens', [])}. "
            "Extend the vocabulary as the run did, or call utils.training.note_new_tokens(model, ids) before training."
        )
    if there.get("digest") != here["digest"]:
        raise CheckpointError(
            f"{source} holds adapters of the base model {_named(there)}; got {_named(here)}, whose weights differ. Load the "
            "base model that the run started from."
        )


def _named(record: Mapping[str, Any]) -> str:
    name = f" from {record.get('name')}" if record.get("name") else ""
    return f"{record.get('class')}{name} (digest {str(record.get('digest'))[:12]})"
