"""Whether padding is invisible: outputs at real positions do not depend on pads, their number or their ids.

Shapes: B batch, T positions.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from utils.check_result import Finding
from utils.checks.probe import Probe, is_stock, relative, reserved_positions

_REAL, _PADS = 6, 4


def padding(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Right and left padding with an attention mask, against the same rows without padding and with other ids as pads.

    Left padding shifts absolute positions, so rows without padding are compared only where the model takes position_ids;
    what the pads hold must never matter. Of unchanged stock models only NaN is reported: some read padding by design, with a
    recurrence, a convolution, landmarks, or positions counted from the ids.
    """
    if not found.over_tokens or found.max_length < _REAL + _PADS:
        return
    found.model.eval()
    real_BT = _real_ids(found)
    reference = _outputs(found, real_BT, torch.ones_like(real_BT))
    takes_mask = _takes(found, "attention_mask")
    measured["takes_attention_mask"] = takes_mask
    if not takes_mask and not (found.causal or _has_padding_id(found)):
        return
    for side in ("right", "left"):
        # Encoders pool at the first position, which is a pad there; RoBERTa's kind counts positions from the ids.
        if side == "left" and (not takes_mask or found.output != "tokens" or reserved_positions(found.model)):
            continue
        # A recurrence that hands its state to the caller reads every id: batches of it are padded on the right.
        if side == "left" and "state" in inspect.signature(found.model.forward).parameters:
            continue
        findings = list(_compare(found, real_BT, reference, side, measured))
        if not is_stock(found.model) or any(math.isnan(measured.get(name, 0.0)) for name in _measurements(side)):
            yield from findings


def _measurements(side: str) -> tuple[str, str]:
    return f"{side}_padding_id_difference", f"{side}_padding_difference"


def _compare(
    found: Probe, real_BT: Tensor, reference: Tensor, side: str, measured: dict[str, Any]
) -> Iterator[Finding]:
    pad = _pad_id(found)
    padded = _padded(found, real_BT, side, torch.full((len(real_BT), _PADS), pad))
    others = _padded(found, real_BT, side, _other_ids(found))
    # Classifiers of decoders pool at the last id that is not the pad id, so other ids on the right move their pooling.
    pools_by_id = found.output != "tokens" and side == "right" and _stated_pad_id(found) is not None
    if not pools_by_id and _takes(found, "attention_mask"):
        difference = relative(padded, others)
        measured[f"{side}_padding_id_difference"] = difference
        if not difference <= found.tolerance:
            yield _finding(found, side, "ids", difference)
            return
    if side == "right" or _takes(found, "position_ids"):
        if not found.causal and not _takes(found, "attention_mask") and found.max_length >= _REAL + 2 * _PADS:
            # What one pad adds, as to a maximum over time, a model learns to live with; what grows with every pad it cannot.
            reference, padded = padded, _padded(found, real_BT, side, torch.full((len(real_BT), 2 * _PADS), pad))
        difference = relative(reference, padded)
        measured[f"{side}_padding_difference"] = difference
        if not difference <= found.tolerance:
            yield _finding(found, side, "number", difference)


def _finding(found: Probe, side: str, what: str, difference: float) -> Finding:
    which = "ids" if what == "ids" else "presence"
    if difference != difference:
        text = f"With {side} padding the outputs at real positions are NaN."
    elif found.causal and not _takes(found, "attention_mask"):
        text = (
            f"Tokens appended to a row change outputs at earlier positions by {difference:.2g} of their size, and there is no "
            "mask to hide padding: outputs depend on what comes later, or on the row's length."
        )
    else:
        text = (
            f"The {which} of {side}-padding tokens changes outputs at real positions by {difference:.2g} of their size, "
            + (
                "although the attention mask hides them."
                if _takes(found, "attention_mask")
                else "and there is no mask."
            )
        )
    return Finding(
        "padding", "fail" if _takes(found, "attention_mask") else "warn", text,
        "Apply attention_mask in every layer that mixes positions, and in the pooling; give rows without any allowed "
        "position a finite score; derive positions from the mask." if _takes(found, "attention_mask")
        else "Take an attention_mask in forward and apply it, or train on rows of equal length only.",
    )  # fmt: skip


def _padded(found: Probe, real_BT: Tensor, side: str, pads: Tensor) -> Tensor:
    """Outputs at the real positions of padded rows, or of the whole row for classes."""
    pads = pads.to(real_BT)
    right = side == "right"
    ids_BT = torch.cat([real_BT, pads] if right else [pads, real_BT], dim=1)
    ones, zeros = torch.ones_like(real_BT), torch.zeros_like(pads)
    mask_BT = torch.cat([ones, zeros] if right else [zeros, ones], dim=1)
    outputs = _outputs(found, ids_BT, mask_BT)
    if found.output != "tokens" or found.encoder_decoder:
        return outputs
    length = real_BT.shape[1]
    return outputs[:, :length] if right else outputs[:, -length:]


def _outputs(found: Probe, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    batch = {"input_ids": ids_BT, "attention_mask": mask_BT}
    if found.encoder_decoder:
        batch["decoder_input_ids"] = found.batch(len(ids_BT), _REAL, seed=7)["decoder_input_ids"]
    elif _takes(found, "position_ids") and not reserved_positions(found.model):
        batch["position_ids"] = (mask_BT.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        return found.call(batch).float()


def _takes(found: Probe, name: str) -> bool:
    """Whether forward is given a tensor of this name."""
    ids, asked = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.long)
    batch = {"input_ids": ids, **({"decoder_input_ids": ids} if found.encoder_decoder else {}), name: asked}
    arguments, named = found.call.inputs(batch)
    return any(value is asked for value in [*arguments, *named.values()])


def _real_ids(found: Probe) -> Tensor:
    """ids (2, _REAL) without the pad id."""
    assert found.vocab_size is not None
    ids_BT, pad = found.batch(2, _REAL, seed=5)["input_ids"], _pad_id(found)
    return torch.where(ids_BT == pad, (ids_BT + 1) % found.vocab_size, ids_BT)


def _other_ids(found: Probe) -> Tensor:
    assert found.vocab_size is not None
    ids_BT, pad = found.batch(2, _PADS, seed=6)["input_ids"], _pad_id(found)
    return torch.where(ids_BT == pad, (ids_BT + 1) % found.vocab_size, ids_BT)


def _stated_pad_id(found: Probe) -> int | None:
    config = getattr(found.model, "config", None)
    pad = config.get("pad_token_id") if isinstance(config, dict) else getattr(config, "pad_token_id", None)
    return pad if isinstance(pad, int) and 0 <= pad < (found.vocab_size or 0) else None


def _has_padding_id(found: Probe) -> bool:
    return any(getattr(module, "padding_idx", None) is not None for module in found.model.modules())


def _pad_id(found: Probe) -> int:
    stated = _stated_pad_id(found)
    if stated is not None:
        return stated
    tables = (getattr(module, "padding_idx", None) for module in found.model.modules())
    return next((pad for pad in tables if pad is not None), 0)
