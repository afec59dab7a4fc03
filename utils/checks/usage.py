"""Whether a model uses its input: the context, the order of tokens, and positions as its architecture should."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from utils.check_result import Finding, Limit
from utils.checks.limits import OWN_CHOICE
from utils.checks.probe import Probe, relative

# Changes below this share of the outputs' size are rounding, not use; a weak but real path leaves 1e-3 and more.
_LEAST_CHANGE = 1e-6
# Change by another token that is enough to look at order there, and the share of it by which order must matter.
_LEAST_SEEN, _LEAST_ORDER = 1e-4, 1e-3
# Rotary and relative positions leave rounding of about 1e-4 when all positions shift.
_SHIFT_TOLERANCE = 1e-2
_SHIFT = 7

#: Limits of what is measured here, and where each is from.
USAGE_LIMITS = (
    Limit("change_by_earlier_tokens", at_least=_LEAST_CHANGE, source="rounding in fp32"),
    Limit("change by exchange / by replacement", at_least=_LEAST_ORDER,
          source=f"judged where a replaced token is seen; {OWN_CHOICE}"),
    Limit("change_by_shifted_positions", at_most=_SHIFT_TOLERANCE,
          source="rotary positions leave rounding of about 1e-4"),
)  # fmt: skip


def context_is_used(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Whether the last output depends on the first tokens."""
    if not found.over_tokens or found.encoder_decoder or found.max_length < 4:
        return
    length = min(24, found.max_length)
    ids_BT = _ids(found, length)
    other = ids_BT.clone()
    assert found.vocab_size is not None
    other[:, : length // 2] = (other[:, : length // 2] + 1) % found.vocab_size
    change = relative(_last(found, ids_BT), _last(found, other))
    measured["change_by_earlier_tokens"] = change
    if change <= _LEAST_CHANGE and not _sees_context_once_awake(found, ids_BT, other):
        yield Finding(
            "context ignored", "warn", "The output for the last token does not depend on the tokens in the first half.",
            "Look for positions that are never mixed: a mask that hides everything, or a layer that is left out.",
        )  # fmt: skip


def _sees_context_once_awake(found: Probe, ids_BT: Tensor, other_BT: Tensor) -> bool:
    """Whether parameters that are all zero hide the context: gates of residual branches that start closed (ReZero, Fixup) open
    in training, as the gradients that they get show."""
    closed = [
        parameter for parameter in found.model.parameters()
        if parameter.is_floating_point() and parameter.requires_grad and not bool(parameter.detach().any())
    ]  # fmt: skip
    if not closed:
        return False
    try:
        with torch.no_grad():
            for parameter in closed:
                parameter.fill_(0.1)
            return relative(_last(found, ids_BT), _last(found, other_BT)) > _LEAST_CHANGE
    finally:
        with torch.no_grad():
            for parameter in closed:
                parameter.zero_()


def order_matters(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Whether exchanging two neighbours changes the last output, near the start and near the end of the longest input."""
    if not found.over_tokens or found.encoder_decoder or found.max_length < 8:
        return
    length = found.max_length
    ids_BT = _ids(found, length)
    reference = _last(found, ids_BT)
    changes, seen = {}, {}
    for name, first in (("start", 1), ("end", length - 4)):
        swapped = ids_BT.clone()
        swapped[:, [first, first + 1]] = ids_BT[:, [first + 1, first]]
        changes[name] = relative(reference, _last(found, swapped))
        far = ids_BT.clone()
        assert found.vocab_size is not None
        far[:, first] = (far[:, first] + 1) % found.vocab_size
        seen[name] = relative(reference, _last(found, far))
    measured |= {"change_by_exchange": changes, "change_by_replacement": seen}
    # Where another token hardly changes anything (a window, or fading with distance), order says nothing.
    blind = [name for name in changes if seen[name] > _LEAST_SEEN and changes[name] <= _LEAST_ORDER * seen[name]]
    if blind:
        where = (
            "at both ends of the input" if len(blind) == 2 else f"near the {blind[0]} of an input of {length} tokens"
        )
        yield Finding(
            "order ignored", "warn", f"Exchanging two neighbouring tokens {where} does not change the output.",
            "Add position embeddings or rotary positions, with as many distinct positions as max_seq_len.",
        )  # fmt: skip


def shifted_positions(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Whether a model with rotary positions is the same when all position ids shift, as relative positions are."""
    takes = "position_ids" in inspect.signature(found.model.forward).parameters
    rotary = any("rotary" in name.lower() for name, _ in found.model.named_modules())
    if not takes or not rotary or not found.over_tokens or found.max_length < _SHIFT + 9:
        return
    found.model.eval()
    ids_BT = _ids(found, 8)
    positions = torch.arange(8, device=found.device)[None].expand(len(ids_BT), -1)
    with torch.no_grad():
        here, there = (found.call({"input_ids": ids_BT, "position_ids": positions + shift}) for shift in (0, _SHIFT))
    change = relative(here, there)
    measured["change_by_shifted_positions"] = change
    if not change <= max(_SHIFT_TOLERANCE, found.tolerance):
        yield Finding(
            "positions not relative", "warn",
            f"Shifting all positions by {_SHIFT} changes the outputs by {change:.2g} of their size in a model with rotary "
            "positions, which should depend on distances only.",
            "Rotate queries and keys by the same angles, in every head and also in fp32.",
        )  # fmt: skip


def _ids(found: Probe, length: int) -> Tensor:
    """ids (2, length) in which neighbours differ."""
    ids_BT = found.batch(2, length, seed=8)["input_ids"]
    assert found.vocab_size is not None
    same = ids_BT[:, 1:] == ids_BT[:, :-1]
    ids_BT[:, 1:] = torch.where(same, (ids_BT[:, 1:] + 1) % found.vocab_size, ids_BT[:, 1:])
    return ids_BT


def _last(found: Probe, ids_BT: Tensor) -> Tensor:
    """Outputs at the last position, or of the row for classifiers."""
    found.model.eval()
    with torch.no_grad():
        outputs = found.call({"input_ids": ids_BT}).float()
    return outputs[:, -1] if found.output == "tokens" else outputs
