"""Whether positions enter as they should: order is seen, relative positions depend on distances, and far is not preferred.

Shapes: B batch, H heads, Q queries, K keys, T positions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from utils.adapters.forward import ModelCall
from utils.check_result import Finding, Limit
from utils.checks.attention import captured_attention
from utils.checks.limits import OWN_CHOICE
from utils.checks.probe import Probe, is_stock, relative

# Positions of a probe: no width or number of heads in use is the same, so that weights are recognised by their shape.
_LENGTH, _LEAST_LENGTH = 23, 10
# Differences of scores below this are rounding; a share of them that two places of equal distance may differ by.
_LEAST_SCORE, _APART = 1e-4, 0.02
# Spread of scores over distances below which they do not depend on it: rotary positions spread them by about their size.
_UNTURNED = 1e-3
# Share of the change by other inputs below which a rearrangement is not seen in fp64: rounding, also where angles are fp32.
_UNSEEN = 1e-6
# What zeros are filled with for that test, and the largest model that is copied in fp64: 160 MB.
_AWAKE, _LARGEST = 0.02, 20_000_000
# In fp32 a second look is taken below this share.
_SUSPECT = 1e-3

#: Limits of what is measured here, and where each is from.
POSITION_LIMITS = (
    Limit("scores_at_equal_distances", at_most=_APART,
          source=f"difference as a share of the largest score; rotary and relative positions leave rounding; {OWN_CHOICE}"),
    Limit("change_over_distances", at_least=_UNTURNED,
          source=f"spread of scores as a share of the largest; with rotary positions 0.1 and more; {OWN_CHOICE}"),
    Limit("change_by_rearrangement", at_least=_UNSEEN,
          source=f"as a share of the change by other inputs; {OWN_CHOICE}"),
)  # fmt: skip


def relative_positions(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Scores of the first attention layer, in causal models whose hidden states hold no positions.

    A row of one token repeated gives such a model the same output everywhere, whatever its attention. Its only positions are
    in the scores: in a row of two tokens in turn these must be the same two places later, and for one token repeated they must
    not rise with the distance in every head, as linear biases of the wrong sign do. Not judged: models with absolute
    positions, in half precision, and custom kernels, which do not show their weights.
    """
    length = min(_LENGTH, found.max_length)
    if not found.causal or not found.over_tokens or length < _LEAST_LENGTH or found.tolerance > _APART:
        return
    found.model.eval()
    pair = torch.unique(found.batch(1, 8, seed=12)["input_ids"][0])[:2]
    if len(pair) < 2:
        return
    same, turns = pair[:1].expand(2, length), pair.repeat(length)[None, :length].expand(2, -1)
    outputs, bias_HQK = _first_scores(found, same)
    if bias_HQK is None or not relative(outputs, outputs[:, :1].expand_as(outputs)) <= found.tolerance:
        return
    of_turns, scores_HQK = _first_scores(found, turns)
    if relative(of_turns[:, 0], of_turns[:, 1]) <= found.tolerance:
        return  # a head of zeros, say: that all outputs are the same tells nothing
    if _rises_with_distance(bias_HQK):
        yield Finding(
            "far preferred", "fail",
            "Every head of the first layer scores a token higher the farther away it is: the position bias has the wrong sign.",
            "Subtract slope times distance from the scores: bias = -slope * (query position - key position).",
        )  # fmt: skip
        return
    if scores_HQK is None or (apart := _apart_at_equal_distances(scores_HQK)) is None:
        return
    measured["scores_at_equal_distances"] = apart
    if not apart <= _APART:
        yield Finding(
            "positions not relative", "warn",
            f"Scores of the same tokens at the same distance differ by {apart:.0%} of their size from place to place, although "
            "positions enter in the scores alone: rotary positions should depend on distances only.",
            "Rotate queries and keys by the same angles, and pair the channels (halves or neighbours) as cos and sin are laid "
            "out.",
        )  # fmt: skip
        return
    if _has_rotary_module(found.model) and not is_stock(found.model):
        measured["change_over_distances"] = change = _change_over_distances(scores_HQK)
        if change <= _UNTURNED:
            yield Finding(
                "rotation without effect", "fail",
                "Scores do not depend on the distance between two tokens, although the model has rotary position embeddings: "
                "all positions are rotated alike.",
                "Pass position_ids that count from 0 along each row, or none so that the model counts them itself.",
            )  # fmt: skip


def _first_scores(found: Probe, ids_BT: Tensor) -> tuple[Tensor, Tensor | None]:
    """Outputs, and the first layer's scores (H, Q, K) less that of each query's own place; NaN where a key is not visible."""
    batch = {"input_ids": ids_BT.contiguous()}
    with torch.no_grad(), captured_attention(batch) as captured:
        outputs = found.call(batch).float()
    if not captured.layers or captured.layers[0].shape[-2] != captured.layers[0].shape[-1]:
        return outputs, None
    weights_HQK = captured.layers[0][0].double()
    logs_HQK = torch.where(weights_HQK > 0, weights_HQK.clamp_min(1e-40).log(), torch.nan)
    return outputs, logs_HQK - logs_HQK.diagonal(dim1=-2, dim2=-1)[..., None]


def _apart_at_equal_distances(scores_HQK: Tensor) -> float | None:
    """Largest change of a score two places later, as a share of the largest score; None where all scores are level."""
    size, changes = scores_HQK.abs().nan_to_num().amax(), scores_HQK[:, 2:, 2:] - scores_HQK[:, :-2, :-2]
    return None if float(size) < _LEAST_SCORE else float(changes.abs().nan_to_num().amax() / size)


def _change_over_distances(scores_HQK: Tensor) -> float:
    """Spread of the last query's scores of one token at all its distances, as a share of the largest score; 1 where only one
    is seen."""
    of_one_HK = scores_HQK[:, -1, 1::2]
    of_one_HK = of_one_HK[:, ~of_one_HK.isnan().any(0)]  # a window of attention hides the far ones
    if of_one_HK.shape[1] < 2:
        return 1.0
    return float((of_one_HK.amax(-1) - of_one_HK.amin(-1)).max() / scores_HQK.abs().nan_to_num().amax())


def _has_rotary_module(model: nn.Module) -> bool:
    return any("rotary" in f"{name} {type(module).__name__}".lower() for name, module in model.named_modules())


def _rises_with_distance(bias_HQK: Tensor) -> bool:
    """Whether the last query's scores rise strictly with the distance, in every head."""
    by_distance_HK = bias_HQK[:, -1].flip(-1)
    steps = by_distance_HK.diff(dim=-1)
    return bool((steps > 0).all()) and bool((by_distance_HK[:, -1] > _LEAST_SCORE).all())


def arrangement_is_seen(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Whether models with attention between positions, other than causal ones, distinguish an input from a permuted one.

    Of images two blocks are exchanged, of token ids two tokens. Without attention a model may be a bag of words or patches on
    purpose; a causal mask lets attention count positions. Unchanged stock models have the positions that their config says.
    """
    if found.causal or found.encoder_decoder or found.feature_shape is not None or is_stock(found.model):
        return
    if found.over_tokens and found.max_length < 8:
        return
    found.model.eval()
    pairs = list(_rearranged(found))
    with torch.no_grad():
        if not pairs or not _attends(found, pairs[0][0]):
            return
        ratio = min(_ratio(found, *pair) for pair in pairs)
        if ratio < _SUSPECT and sum(p.numel() for p in found.model.parameters()) <= _LARGEST:
            # Small scores of an untrained model leave little of their positions: fp64 tells that from rounding.
            model = copy.deepcopy(found.model).double()
            _fill_zeros(model)
            exact = replace(found, model=model, call=ModelCall(model))
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernel of CPUs misreads fp32 masks beside fp64 queries
                ratio = min(_ratio(exact, *map(_in_fp64, pair)) for pair in pairs)
    measured["change_by_rearrangement"] = ratio
    if ratio < _UNSEEN:
        what = "two tokens" if found.over_tokens else "two parts of the image"
        yield Finding(
            "order ignored", "warn",
            f"Exchanging {what} changes nothing else: attention has no positions, and the model sees a set.",
            "Add position embeddings to what goes into the first layer, or rotary or relative positions to the scores.",
        )  # fmt: skip


_Batch = dict[str, Tensor]


def _rearranged(found: Probe) -> Iterator[tuple[_Batch, _Batch, _Batch]]:
    """A batch, the same rearranged, and another one that differs from it in the same places; for images with blocks of the
    patch size and of half of the image, as the patches may be cut otherwise than by a convolution."""
    if found.over_tokens:
        assert found.vocab_size is not None
        ids_BT = found.batch(2, min(_LENGTH, found.max_length), seed=13)["input_ids"]
        ids_BT[:, 5] = torch.where(ids_BT[:, 2] == ids_BT[:, 5], (ids_BT[:, 5] + 1) % found.vocab_size, ids_BT[:, 5])
        swapped, other = ids_BT.clone(), ids_BT.clone()
        swapped[:, [2, 5]] = ids_BT[:, [5, 2]]
        other[:, 2] = ids_BT[:, 5]
        yield {"input_ids": ids_BT}, {"input_ids": swapped}, {"input_ids": other}
        return
    assert found.image_shape is not None
    images = found.batch(2, 0, seed=13)["pixel_values"]
    for side in sorted({_patch(found.model), found.image_shape[-1] // 2} - {0}):
        if 2 * side > found.image_shape[-1] or side > found.image_shape[-2]:
            continue
        swapped, other = images.clone(), images.clone()
        swapped[..., :side, : 2 * side] = torch.cat(
            [images[..., :side, side : 2 * side], images[..., :side, :side]], dim=-1
        )
        other[..., :side, :side] = images[..., :side, side : 2 * side]
        yield {"pixel_values": images}, {"pixel_values": swapped}, {"pixel_values": other}


def _patch(model: nn.Module) -> int:
    """Side of the patches that the first convolution cuts without overlap; 0 where it is not of that kind."""
    first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return (
        int(first.stride[0]) if first is not None and first.stride == first.kernel_size and first.stride[0] > 1 else 0
    )


def _attends(found: Probe, batch: _Batch) -> bool:
    with captured_attention(batch, any_square=not found.over_tokens) as captured:
        found.call(batch)
    return any(weights.shape[-1] == weights.shape[-2] for weights in captured.layers)


def _ratio(found: Probe, batch: _Batch, swapped: _Batch, other: _Batch) -> float:
    """Change by the rearrangement as a share of the change by another input; 1 where that changes nothing either."""
    before, after, changed = (found.call(one) for one in (batch, swapped, other))
    if found.over_tokens and found.output == "tokens":
        after = after.clone()
        after[:, [2, 5]] = after[:, [5, 2]]
    seen = float((before - changed).abs().max())
    return float((before - after).abs().max()) / seen if seen > found.tolerance * float(before.abs().max()) else 1.0


def _in_fp64(batch: _Batch) -> _Batch:
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}


def _fill_zeros(model: nn.Module) -> None:
    """Put noise into trainable tensors of zeros, where position tables and scales of branches may start."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad and not bool(parameter.any()):
            parameter.copy_((torch.randn(parameter.shape, generator=generator) * _AWAKE).to(parameter))
