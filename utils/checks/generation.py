"""Whether a key/value cache changes what the model says."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from utils.adapters.forward import logits_of
from utils.check_result import Finding
from utils.checks.probe import Probe, relative

_LENGTH, _PROMPT, _PADS = 10, 4, 3


def key_value_cache(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Logits computed token by token from a cache, against those of one pass, at every position; then after left padding."""
    names = inspect.signature(found.model.forward).parameters
    if not found.causal or not {"past_key_values", "use_cache"} <= set(names) or found.max_length < _LENGTH + _PADS:
        return
    found.model.eval()
    ids_BT = found.batch(2, _LENGTH, seed=3)["input_ids"]
    for pads in (0, _PADS) if {"attention_mask", "position_ids"} <= set(names) else (0,):
        mask_BT = torch.ones_like(ids_BT)
        mask_BT[1, :pads] = 0
        at_once = _full(found, ids_BT, mask_BT, names)
        cached = _step_by_step(found, ids_BT, mask_BT, names)
        if cached is None:
            return
        seen = mask_BT.bool()
        difference = relative(at_once[seen], cached[seen])
        measured["cache_difference_after_left_padding" if pads else "cache_difference"] = difference
        if not difference <= found.tolerance:
            where = "after left padding " if pads else ""
            first = _first_position(at_once, cached, seen, found.tolerance)
            yield Finding(
                "cache", "fail",
                f"With a key/value cache the logits {where}differ from those without by {difference:.2g} of their size, "
                f"from position {first} on: generation does not continue the text that the model was given.",
                "Advance positions by the cache's length, append keys and values in order, and mask cached padding.",
            )  # fmt: skip
            return


def _extras(mask_BT: Tensor, first: int, end: int, names: Any) -> dict[str, Tensor]:
    """Attention mask up to `end`, and positions of [first, end), where the model takes them."""
    extras = {}
    if "attention_mask" in names:
        extras["attention_mask"] = mask_BT[:, :end]
    if "position_ids" in names:
        extras["position_ids"] = (mask_BT.cumsum(1) - 1).clamp_min(0)[:, first:end]
    return extras


def _full(found: Probe, ids_BT: Tensor, mask_BT: Tensor, names: Any) -> Tensor:
    with torch.no_grad():
        outputs = found.model(ids_BT, use_cache=False, **_extras(mask_BT, 0, ids_BT.shape[1], names))
    return logits_of(outputs, found.model).float()


def _step_by_step(found: Probe, ids_BT: Tensor, mask_BT: Tensor, names: Any) -> Tensor | None:
    """Logits (B, T, V), the first `_PROMPT` in one call and one position a call after that; None: there is no cache."""
    logits, past, first = [], None, 0
    with torch.no_grad():
        for end in range(_PROMPT, ids_BT.shape[1] + 1):
            outputs = found.model(
                ids_BT[:, first:end], use_cache=True, past_key_values=past, **_extras(mask_BT, first, end, names)
            )
            past = (
                outputs.get("past_key_values")
                if isinstance(outputs, dict)
                else getattr(outputs, "past_key_values", None)
            )
            if past is None:
                return None
            logits.append(logits_of(outputs, found.model).float())
            first = end
    return torch.cat(logits, dim=1)


def _first_position(at_once: Tensor, cached: Tensor, seen: Tensor, tolerance: float) -> int:
    wrong_BT = ((at_once - cached).abs().amax(-1) > tolerance * at_once.abs().max()) & seen
    return int(wrong_BT.any(0).nonzero()[0]) if bool(wrong_BT.any()) else 0
