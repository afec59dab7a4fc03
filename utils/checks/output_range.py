"""Whether what should be logits can take every value: no activation, clipping or dominant bias after the output layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.adapters.maturity import is_untrained
from utils.adapters.output_reach import last_layer, output_reach
from utils.check_result import Finding, Limit
from utils.checks.probe import Probe
from utils.training.engine import rng

# Factor on the weights of the last layer that drives whatever is behind it into saturation.
_DRIVE = 1e4
# Bounds of squashing functions that leave softmax unsure: a spread of 2 gives the best class of two 88 %. Soft caps in use
# are 30 and more (Gemma 2), far above.
_NARROW_BOUND = 5.0
# Factor on scales and biases that widens what they bound, and nothing behind a squashing function.
_SCALED = 50.0
# Share of logits at one and the same extreme value that is no coincidence.
_CLIPPED_SHARE = 0.02
# Share of outputs that dropout erases; rates in use are 0.1 and more. Of fewer outputs than this, some may be zero by chance.
_DROPPED_SHARE, _LEAST_OUTPUTS = 0.04, 16
# Probability of one class that no set worth training on has.
_CERTAIN = 0.995
# Share of the variance over classes that comes from the input, below which a fixed bias decides an untrained model's output.
_LEAST_SHARE_FROM_INPUT = 0.01
# Standard deviation over the classes of the mean scores, in nats, from which on a preference shows: torch's default biases of a
# last layer with 4 inputs have 0.29.
_LEAST_PREFERENCE = 0.5

#: Limits of what is measured here, and where each is from.
RANGE_LIMITS = (
    Limit("bound of the outputs when the last layer is enlarged", at_least=_NARROW_BOUND,
          source="soft caps in use are 30 and more (Gemma 2); tanh and sigmoid end at 1"),
    Limit("outputs_zero_in_training_only", at_most=_DROPPED_SHARE, source="dropout rates in use are 0.1 and more"),
    Limit("probability of one class by the last bias alone", at_most=_CERTAIN,
          source="log frequencies of the classes are a usual initialisation; before training only"),
)  # fmt: skip


def output_range(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Outputs as they are, then with the last layer's weights enlarged and negated: a linear output follows, others do not."""
    found.model.eval()
    outputs = _outputs(found)
    if not bool(outputs.isfinite().all()) or not bool(outputs.any()):  # reported by the check itself
        return
    classes = outputs.shape[-1] if outputs.dim() > 1 else 1
    if found.output == "numbers":
        yield from _of_numbers(found, outputs, measured)
        return
    if classes < 2:
        yield from _single_class(outputs)
        return
    named = _probabilities(outputs) or _driven(found, outputs, measured) or _clipped(outputs)
    # Noise images all have the same mean features, so what an untrained image model says of them shows nothing.
    if named is None and found.image_shape is None and is_untrained(found.model):
        named = _dominated(outputs, measured)
    named = named or _one_class_by_bias(found, outputs)
    if named is not None:
        yield named


def dropped_outputs(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Outputs that are exactly zero in training mode and not in evaluation mode: dropout acts on them last."""
    found.model.eval()
    expected = _outputs(found)
    found.model.train()
    dropped = _outputs(found)
    if not bool(expected.isfinite().all()) or expected.shape != dropped.shape or expected.numel() < _LEAST_OUTPUTS:
        return
    share_before, share = (float((outputs == 0).float().mean()) for outputs in (expected, dropped))
    measured["outputs_zero_in_training_only"] = max(0.0, share - share_before)
    if share_before < _DROPPED_SHARE / 2 and _DROPPED_SHARE <= share < 1:
        yield Finding(
            "dropout on the outputs", "fail",
            f"In training mode {share:.0%} of the outputs are exactly zero: dropout acts on the outputs themselves, so the "
            "loss is computed from scores that were erased and scaled at random.",
            "Apply dropout before the last layer, and return that layer's output itself.",
        )  # fmt: skip


def _outputs(found: Probe, rows: int = 16) -> Tensor:
    rng.seed_all(0)
    with torch.no_grad():
        return found.call(found.batch(rows, min(32, found.max_length), seed=11)).float()


def _single_class(outputs: Tensor) -> Iterator[Finding]:
    if bool((outputs == outputs.flatten()[0]).all()):
        yield Finding(
            "constant output", "fail", f"The only output is {float(outputs.flatten()[0]):.3g} for every input.",
            "Softmax over one unit is always 1: use sigmoid, or two outputs.",
        )  # fmt: skip


def _of_numbers(found: Probe, outputs: Tensor, measured: dict[str, Any]) -> Iterator[Finding]:
    if float(outputs.std(0, unbiased=False).max()) <= 1e-7 * max(1.0, float(outputs.abs().max())):
        yield Finding(
            "constant output", "fail", f"The output is {float(outputs.flatten()[0]):.3g} for every input.",
            "Look for softmax over one unit, which is always 1, and for units that are dead.",
        )  # fmt: skip
        return
    reach = output_reach(found.model, lambda: _outputs(found, 4))
    if reach is None:
        return
    measured["output_bounds"] = [reach.bottom, reach.top]
    if reach.cuts and reach.bottom == 0 and reach.top == float("inf"):
        yield Finding(
            "one-sided", "fail", "The outputs are never negative, whatever the weights: an activation such as ReLU follows the "
            "last layer, and what it cuts off gets no gradient.",
            "Return the last layer's output itself, or, where targets are positive, use softplus.",
        )  # fmt: skip


def _probabilities(outputs: Tensor) -> Finding | None:
    """Softmax or log-softmax in the model, along the classes."""
    if bool((outputs >= 0).all()) and bool(((outputs.sum(-1) - 1).abs() < 1e-3).all()):
        return Finding(
            "probabilities", "fail",
            "The outputs are probabilities already (every row sums to 1): cross-entropy applies softmax a second time.",
            "Return the logits, without softmax.",
        )  # fmt: skip
    if bool((outputs.logsumexp(-1).abs() < 1e-3).all()) and bool((outputs <= 1e-4).all()):
        return Finding(
            "log-probabilities", "warn",
            "The outputs are log-probabilities (log-softmax is in the model): cross-entropy applies it a second time, and "
            "temperature, top-p and label smoothing expect logits.",
            "Return the logits, without log_softmax.",
        )  # fmt: skip
    return None


def _driven(found: Probe, outputs: Tensor, measured: dict[str, Any]) -> Finding | None:
    """Bounds that appear when the last layer's weights are enlarged, and signs that stay when they are negated."""
    layer = last_layer(found.model, lambda: _outputs(found, 2))
    if layer is None or not isinstance(layer.weight, nn.Parameter):
        return None
    large, negated = (_with_scale(found, layer, factor) for factor in (_DRIVE, -_DRIVE))
    if not bool(large.isfinite().all() and negated.isfinite().all()):
        return None
    top, bottom = float(torch.maximum(large.max(), negated.max())), float(torch.minimum(large.min(), negated.min()))
    measured["output_bounds"] = [bottom, top]
    if bottom >= 0 and top <= 1.001:
        return Finding(
            "bounded", "fail", "The logits lie between 0 and 1 whatever the weights: a sigmoid or softmax follows the "
            "last layer.", "Return the last layer's output itself; the loss applies softmax or sigmoid.",
        )  # fmt: skip
    if max(abs(bottom), top) <= _NARROW_BOUND and not _scales_widen(found):
        return Finding(
            "bounded", "fail", f"The logits stay between {bottom:.3g} and {top:.3g} whatever the weights: they are clipped "
            "or squashed, so no prediction can become certain.", "Return the last layer's output itself.",
        )  # fmt: skip
    if bottom >= 0 or top <= 0:
        sign = "negative" if bottom >= 0 else "positive"
        return Finding(
            "one-sided", "fail", f"The logits are never {sign}, whatever the weights: an activation such as ReLU follows the "
            "last layer, and what it cuts off gets no gradient.", "Return the last layer's output itself.",
        )  # fmt: skip
    return None


def _with_scale(found: Probe, layer: nn.Module, factor: float) -> Tensor:
    """Outputs while the layer's own output is multiplied by `factor`."""
    hook = layer.register_forward_hook(lambda module, inputs, output: output * factor)
    try:
        return _outputs(found)
    finally:
        hook.remove()


def _scales_widen(found: Probe) -> bool:
    """Whether the model has trained scales behind its last layer, which lift the bound: of normalised weights, temperatures."""
    scales = [p for p in found.model.parameters() if p.requires_grad and p.dim() < 2 and bool(p.any())]
    before = [scale.detach().clone() for scale in scales]
    try:
        with torch.no_grad():
            for scale in scales:
                scale.mul_(_SCALED)
        return float(_outputs(found).abs().nan_to_num(0.0, 0.0, 0.0).max()) > 2 * _NARROW_BOUND
    finally:
        with torch.no_grad():
            for scale, value in zip(scales, before, strict=True):
                scale.copy_(value)


def _clipped(outputs: Tensor) -> Finding | None:
    """Many logits at exactly the largest or smallest value."""
    for name, extreme in (("largest", outputs.max()), ("smallest", outputs.min())):
        share = float((outputs == extreme).float().mean())
        if outputs.numel() >= 200 and share > _CLIPPED_SHARE and share < 1:
            return Finding(
                "clipped", "fail", f"{share:.0%} of the logits have exactly the {name} value, {float(extreme):.4g}: they are "
                "clipped, and what is clipped gets no gradient.", "Return the logits without clamp.",
            )  # fmt: skip
    return None


def _one_class_by_bias(found: Probe, outputs: Tensor) -> Finding | None:
    """A bias of the last layer that gives one class nearly all of the probability before any input has been seen."""
    layer = last_layer(found.model, lambda: _outputs(found, 2))
    bias = getattr(layer, "bias", None)
    if (
        not isinstance(bias, Tensor)
        or bias.shape != outputs.shape[-1:]
        or not is_untrained(found.model, apart_from=layer)
    ):
        return None
    probability = float(bias.detach().float().softmax(0).max())
    if probability < _CERTAIN or len({int(row.argmax()) for row in outputs.flatten(0, -2)}) > 1:
        return None
    return Finding(
        "dominated by a bias", "warn",
        f"The last layer's bias alone gives class {int(bias.argmax())} a probability of {probability:.2%}, and every input "
        "gets that class: a fixed bias decides.",
        "Initialise the output layer's bias with zeros, or with the logarithm of the classes' frequencies.",
    )  # fmt: skip


def _dominated(outputs: Tensor, measured: dict[str, Any]) -> Finding | None:
    """The same preference for some classes for every input."""
    centred = (
        F.layer_norm(outputs, outputs.shape[-1:]) if outputs.shape[-1] > 2 else outputs - outputs.mean(-1, keepdim=True)
    )
    flat = centred.flatten(0, -2)
    fixed, varying = float(flat.mean(0).square().mean()), float(flat.var(0, unbiased=False).mean())
    share = varying / (fixed + varying) if fixed + varying > 0 else 1.0
    measured["share_of_scores_from_input"] = share
    # Scores that hardly differ decide nothing: small outputs of a deep model that has not been trained are no bias.
    preference = float(outputs.flatten(0, -2).mean(0).std(unbiased=False))
    if share < _LEAST_SHARE_FROM_INPUT and preference > _LEAST_PREFERENCE:
        return Finding(
            "dominated by a bias", "warn",
            f"Only {share:.1%} of the differences between classes depend on the input: a fixed bias decides.",
            "Initialise the output layer's bias with zeros, or with the logarithm of the classes' frequencies.",
        )  # fmt: skip
    return None
