"""Check attention weights of every layer and head, also where a fused kernel computes them.

Shapes: B batch, H heads, Q queries, K keys.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from utils.adapters.maturity import is_untrained
from utils.check_result import CheckResult, Finding, Limit
from utils.checks.checking import check
from utils.checks.limits import OWN_CHOICE
from utils.checks.probe import Probe, counted, few
from utils.checks.usage import USAGE_LIMITS, context_is_used, order_matters, shifted_positions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "attention patterns"

# Entropy as a share of the largest that is possible, ln(visible keys). Below the first a head looks at one key only; an
# untrained model starts near 1, and below the second its scores are too large for their softmax (Vaswani et al. 2017, 3.2.1).
COLLAPSED, UNTRAINED_ENTROPY = 0.05, 0.5
# Share of heads that may be collapsed: trained models have some that look at the previous token or at the first one.
COLLAPSED_SHARE = 0.5
# Largest difference of weights between two heads that are one; a head's own deviation from uniform must be larger.
SAME_HEAD = 1e-6
# Two lengths that no width or number of heads in use has, so that a matrix of scores is recognised by its shape.
_LENGTHS = (23, 19)

_FUSED = {
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
}  # fmt: skip


@dataclass
class Captured:
    """Attention weights of one call.

    Attributes:
        layers: weights (B, H, Q, K) after softmax, in the order of the calls; fp32.
    """

    layers: list[Tensor] = field(default_factory=list)


#: Limits of the scores of a model that has not been trained, in tier 1.
ATTENTION_LIMITS = (
    Limit("median_attention_entropy", at_least=UNTRAINED_ENTROPY,
          source="of ln(visible keys); scaled scores start near 1 (Vaswani et al. 2017, 3.2.1); before training only"),
)  # fmt: skip

#: Limits of the measured values, and where each is from.
_LIMITS = (
    Limit("median_entropy", at_least=UNTRAINED_ENTROPY,
          source="of ln(visible keys); scaled scores start near 1 (Vaswani et al. 2017, 3.2.1); before training only"),
    Limit("share of collapsed heads", at_most=COLLAPSED_SHARE,
          source="trained models have some heads that look at the previous or the first token"),
    Limit("entropy of a collapsed head", at_most=COLLAPSED, source=f"of ln(visible keys); {OWN_CHOICE}"),
    Limit("difference between two heads", at_least=SAME_HEAD, source="rounding in fp32"),
    *USAGE_LIMITS,
)  # fmt: skip


@check(NAME, (context_is_used, order_matters, shifted_positions), limits=_LIMITS)
def test_attention_patterns(found: Probe, input_text: str | None = None) -> CheckResult:
    """Weights of every attention layer on one input: entropy, share on the first key, collapsed and identical heads.

    Called as (model, config=None, *, task_spec=None, tokenizer=None, input_text=None). Fused kernels do not return their
    weights, so these are computed again from the queries and keys that the kernels were given. Warns when more than half of
    the heads look at a single key, when heads of one layer are identical, and when an untrained model's scores saturate their
    softmax. Models without attention are "not run".

    Args:
        input_text: what the model reads, given a tokenizer; None: random ids.
    """
    if not found.over_tokens:
        return CheckResult(NAME, "not run", "The model does not read token ids.")
    found.model.eval()
    batch = _inputs(found, input_text)
    with torch.no_grad(), captured_attention(batch) as captured:
        found.call(batch)
    if not captured.layers:
        return CheckResult(
            NAME, "not run", "No attention weights were seen in a forward pass.",
            remedy="None for models without attention; custom kernels do not show their weights.",
        )  # fmt: skip
    layers = [_statistics(weights) for weights in captured.layers]
    heads = [
        f"layer {layer + 1} head {head + 1}" for layer, row in enumerate(layers) for head in range(len(row["entropy"]))
    ]
    entropy = [value for row in layers for value in row["entropy"]]
    collapsed = [name for name, value in zip(heads, entropy, strict=True) if value < COLLAPSED]
    same = [pair for layer, weights in enumerate(captured.layers) for pair in _identical(layer, weights)]
    measured: dict[str, Any] = {
        "num_layers": len(layers), "input_length": captured.layers[0].shape[-1], "heads": len(heads),
        "attention_entropy": [row["entropy"] for row in layers], "share_on_first_key": [row["sink"] for row in layers],
        "collapsed_heads": collapsed, "identical_heads": same, "median_entropy": sorted(entropy)[len(entropy) // 2],
    }  # fmt: skip
    thresholds = {
        "collapsed_entropy": COLLAPSED, "collapsed_share": COLLAPSED_SHARE, "untrained_entropy": UNTRAINED_ENTROPY,
        "same_head": SAME_HEAD,
    }  # fmt: skip
    figure = _figure(captured.layers)
    summary = (
        f"{counted(len(heads), 'head')} in {counted(len(layers), 'layer')}: median entropy "
        f"{measured['median_entropy']:.0%} of the largest possible, {len(collapsed)} collapsed."
    )
    result = CheckResult(NAME, "pass", summary, measured, thresholds, figure=figure)
    return result.with_findings(list(_judged(found, measured)), {})


def _judged(found: Probe, measured: Mapping[str, Any]) -> Iterator[Finding]:
    collapsed, heads = measured["collapsed_heads"], measured["heads"]
    if is_untrained(found.model) and measured["median_entropy"] < UNTRAINED_ENTROPY:
        yield from _too_large(measured["median_entropy"])
    elif len(collapsed) > COLLAPSED_SHARE * heads:
        yield Finding(
            "collapsed heads", "warn", f"{len(collapsed)} of {heads} heads look at a single key: {few(collapsed)}.",
            "Lower the learning rate or add warm-up, normalise queries and keys, or use fewer heads.",
        )  # fmt: skip
    if measured["identical_heads"]:
        yield Finding(
            "identical heads", "warn", f"Heads compute the same weights: {few(measured['identical_heads'])}.",
            "Look at how queries and keys are split into heads, and at weights that start equal.",
        )  # fmt: skip


def oversized_scores(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Scores of an untrained model that are too large for their softmax."""
    if not found.over_tokens or not is_untrained(found.model):
        return
    found.model.eval()
    batch = _inputs(found, None)
    with torch.no_grad(), captured_attention(batch) as captured:
        found.call(batch)
    entropy = sorted(value for weights in captured.layers for value in _statistics(weights)["entropy"])
    if entropy:
        measured["median_attention_entropy"] = entropy[len(entropy) // 2]
        yield from _too_large(measured["median_attention_entropy"])


def _too_large(entropy: float) -> Iterator[Finding]:
    if entropy < UNTRAINED_ENTROPY:
        yield Finding(
            "scores too large", "warn",
            f"Before training the median entropy of attention is {entropy:.0%} of the largest possible: "
            "the scores saturate their softmax, which then passes hardly any gradient.",
            "Divide queries times keys by sqrt(head width), and start their projections with a standard deviation near 0.02.",
        )  # fmt: skip


@contextlib.contextmanager
def captured_attention(batch: Mapping[str, Tensor], *, any_square: bool = False) -> Iterator[Captured]:
    """Inside the block, weights of every attention between tensors of the batch's lengths are kept.

    Args:
        any_square: keep those of as many queries as keys instead, whatever their number: places of an image.
    """
    lengths = None if any_square else {value.shape[1] for value in batch.values() if value.dim() == 2}
    watch = _Watch(lengths, len(next(iter(batch.values()))))
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it runs a whole layer as one operation
    try:
        with watch:
            yield watch.captured
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Watch(TorchDispatchMode):
    """Sees softmax over matrices of scores, and fused attention, among the operations of a forward pass."""

    def __init__(self, lengths: set[int] | None, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.captured = Captured()
        self._lengths, self._rows = lengths, rows

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = operation(*args, **(kwargs or {}))
        name = operation.overloadpacket.__name__
        if name in _FUSED:
            self._keep(_weights(name, args, kwargs or {}))
        elif name in ("_softmax", "_safe_softmax") and given.dim() >= 3:
            self._keep(given)
        return given

    def _keep(self, weights: Tensor) -> None:
        queries, keys = weights.shape[-2:]
        if queries != keys if self._lengths is None else not {queries, keys} <= self._lengths:
            return
        if weights.numel() % (self._rows * weights.shape[-2] * weights.shape[-1]) == 0:
            self.captured.layers.append(weights.detach().float().reshape(self._rows, -1, *weights.shape[-2:]).clone())


def _weights(name: str, args: Any, kwargs: Mapping[str, Any]) -> Tensor:
    """softmax(scale Q K^T + mask) from the arguments of a fused kernel."""
    query, key = args[0].float(), args[1].float()
    efficient = "efficient" in name or "cudnn" in name
    mask = args[3] if efficient and len(args) > 3 else kwargs.get("attn_mask")
    position = 6 if efficient else 4
    causal = bool(args[position]) if len(args) > position else bool(kwargs.get("is_causal", False))
    scale = kwargs.get("scale") or 1 / math.sqrt(query.shape[-1])
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = query @ key.transpose(-1, -2) * scale
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights: Tensor = scores.softmax(-1).nan_to_num()
    return weights


def _inputs(found: Probe, input_text: str | None) -> dict[str, Tensor]:
    if input_text is not None and found.tokenizer is not None and not found.encoder_decoder:
        ids = found.tokenizer.encode(input_text)
        ids = [int(one) for one in (ids.ids if hasattr(ids, "ids") else ids)][: found.max_length]
        if len(ids) > 1:
            return {"input_ids": torch.tensor([ids], device=found.device)}
    batch = found.batch(2, min(_LENGTHS[0], found.max_length), seed=4)
    if found.encoder_decoder:
        batch["decoder_input_ids"] = batch["decoder_input_ids"][:, : _LENGTHS[1]]
    return batch


def _statistics(weights_BHQK: Tensor) -> dict[str, list[float]]:
    """For each head: entropy as a share of ln(visible keys), and the mean weight of the first key for later queries."""
    visible = (weights_BHQK > 0).sum(-1)
    entropy = -(weights_BHQK * weights_BHQK.clamp_min(1e-12).log()).sum(-1)
    several = visible > 1
    share = torch.where(several, entropy / visible.clamp_min(2).float().log(), torch.zeros_like(entropy))
    per_head = share.sum((0, 2)) / several.sum((0, 2)).clamp_min(1)
    later = weights_BHQK[:, :, weights_BHQK.shape[2] // 2 :, 0].mean((0, 2))
    return {"entropy": per_head.tolist(), "sink": later.tolist()}


def _identical(layer: int, weights_BHQK: Tensor) -> list[str]:
    """Pairs of heads of one layer with the same weights; heads that are exactly uniform are left out."""
    heads = weights_BHQK.transpose(0, 1).flatten(1)
    uniform = (weights_BHQK > 0) / (weights_BHQK > 0).sum(-1, keepdim=True).clamp_min(1)
    deviation = (weights_BHQK - uniform).transpose(0, 1).flatten(1).abs().amax(1)
    return [
        f"layer {layer + 1} heads {first + 1} and {second + 1}"
        for first in range(len(heads)) for second in range(first + 1, len(heads))
        if float(deviation[first]) > 10 * SAME_HEAD and float((heads[first] - heads[second]).abs().max()) < SAME_HEAD
    ]  # fmt: skip


def _figure(layers: list[Tensor], most: int = 4) -> Figure:
    """Heatmaps of the first row's weights: one row per layer, one heatmap per head, at most four by four."""
    from matplotlib.figure import Figure

    rows, columns = min(len(layers), most), min(layers[0].shape[1], most)
    figure = Figure(figsize=(2 * columns + 0.6, 2 * rows + 0.6), dpi=100, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for layer in range(rows):
        for head in range(min(columns, layers[layer].shape[1])):
            panel = axes[layer][head]
            panel.imshow(layers[layer][0, head].cpu().numpy(), cmap="viridis", vmin=0, aspect="auto")
            panel.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=8)
            panel.tick_params(labelsize=6)
            for axis in (panel.xaxis, panel.yaxis):
                axis.get_major_locator().set_params(integer=True)
    figure.supxlabel("key position", fontsize=8)
    figure.supylabel("query position", fontsize=8)
    return figure
