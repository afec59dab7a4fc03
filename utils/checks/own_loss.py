"""The loss that a model computes itself, and the loss of a model that has not learned anything yet."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.adapters.maturity import is_untrained
from utils.check_result import Finding, Limit
from utils.checks.probe import Probe

# Nats above ln V at which a model that has not been trained starts wrongly: logits with a standard deviation of s add
# s^2 / 2 (their moment-generating function), and the usual initialisations keep s below 1. 2 nats are s = 2.
UNTRAINED_EXCESS = 2.0
# Nats below ln V that no model reaches on uniformly random targets that it cannot see.
IMPOSSIBLE_GAIN = 0.7
_IGNORED = -100
# Relative difference between two losses that is not rounding, in fp32. Before training all losses are near ln V, so that a
# coarser comparison would see no difference between conventions.
_LOSS_TOLERANCE = 1e-4

#: Limits of what is measured here, and where each is from.
LOSS_LIMITS = (
    Limit("loss_on_random_targets_nats above ln V", at_least=-IMPOSSIBLE_GAIN,
          source="no model that cannot see uniformly random targets gets below ln V"),
    Limit("loss before training above ln V (nats)", at_most=UNTRAINED_EXCESS,
          source="logits with a standard deviation of s add s²/2 nats; 2 nats are s = 2; before training only"),
    Limit("own loss against cross-entropy of its logits (relative)", at_most=_LOSS_TOLERANCE,
          source="rounding in fp32"),
)  # fmt: skip


def own_loss(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """The model's own loss, where forward takes labels, against cross-entropy of its logits by its family's convention.

    Language models shift labels by one inside; other families do not; -100 is not scored; the mean is over targets.
    `targets`, as nanoGPT's models name them, are shifted by the caller or by the model: both conventions are accepted.
    """
    if found.output == "numbers" or not found.over_tokens:
        return
    names = inspect.signature(found.model.forward).parameters
    name = next((name for name in ("labels", "targets") if name in names), None)
    if name is None:
        return
    found.model.eval()
    batch = found.batch(3, min(16, found.max_length))
    with torch.no_grad():
        arguments, named = found.call.inputs(batch)
        logits = found.call(batch).float()
        labels = _labels(found, batch, logits)
        outputs = found.model(*arguments, **{**named, name: labels})
    own = _loss_of(outputs)
    if own is None:
        return
    expected = _by_convention(found, logits, labels, shifted_by_caller=name == "targets")
    measured["own_loss_nats"], measured["expected_loss_nats"] = own, min(expected, key=lambda loss: abs(loss - own))
    tolerance = max(_LOSS_TOLERANCE, found.tolerance)
    if not any(abs(loss - own) <= tolerance * max(1.0, abs(loss)) for loss in expected):
        yield Finding(
            "own loss", "fail",
            f"The model's own loss is {own:.4g} where cross-entropy of its logits is {expected[0]:.4g} "
            f"({'labels shifted by one, ' if found.causal else ''}-100 ignored, mean over targets).",
            "Shift labels once, pass ignore_index=-100, and average over the targets that count. A parameter for labels that "
            "the caller has shifted is named targets.",
        )  # fmt: skip


def starting_loss(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Loss on random targets: never far below ln V; for a model that has not been trained, not far above it."""
    if found.output == "numbers":
        return
    found.model.eval()
    with torch.no_grad():
        batch = found.batch(8, min(32, found.max_length))
        loss, classes = float(found.loss(batch)), found.call(batch).shape[-1]
    if classes < 2 or not math.isfinite(loss):
        return
    ln_v, untrained = math.log(classes), is_untrained(found.model)
    measured |= {"loss_on_random_targets_nats": loss, "ln_v": ln_v, "untrained": untrained}
    if found.causal and loss < ln_v - IMPOSSIBLE_GAIN:
        yield Finding(
            "sees its targets", "fail",
            f"The loss on uniformly random tokens is {loss:.3g} nats, and ln V = {ln_v:.3g} is the least that is possible "
            "without seeing the targets.",
            "Look for labels or later tokens that reach forward, and for a mask that lets positions see the next one.",
        )  # fmt: skip
    elif untrained and loss > ln_v + UNTRAINED_EXCESS:
        yield Finding(
            "initial loss", "fail",
            f"The loss before training is {loss:.3g} nats; a uniform guess has ln V = {ln_v:.3g}: the initial logits are "
            "too large.",
            "Initialise the embedding and the output layer with a standard deviation of about 0.02, or scale the logits "
            "by 1/sqrt(width).",
        )  # fmt: skip


def _labels(found: Probe, batch: dict[str, Tensor], logits: Tensor) -> Tensor:
    """Labels with some positions that are not scored; one class a row for classifiers."""
    if found.output == "classes":
        return torch.arange(len(logits), device=found.device) % logits.shape[-1]
    ids_BT = batch["decoder_input_ids"] if found.encoder_decoder else batch["input_ids"]
    labels = (ids_BT % logits.shape[-1]).clone()
    labels[0, : labels.shape[1] // 2] = _IGNORED
    labels[1, -2:] = _IGNORED
    return labels


def _by_convention(found: Probe, logits: Tensor, labels: Tensor, shifted_by_caller: bool) -> list[float]:
    """The losses that are right, the family's own convention first."""
    if found.output == "classes":
        return [float(F.cross_entropy(logits, labels))]
    unshifted = float(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED))
    shifted = float(F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED))
    if not found.causal:
        return [unshifted]
    return [shifted, unshifted] if shifted_by_caller else [shifted]


def _loss_of(outputs: Any) -> float | None:
    """The scalar loss in a model's outputs, less an auxiliary loss that has been added to it; None where there is none."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else getattr(outputs, "loss", None)
    if loss is None and isinstance(outputs, (tuple, list)):
        loss = next((value for value in outputs if isinstance(value, Tensor) and value.dim() == 0), None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        return None
    auxiliary = getattr(outputs, "aux_loss", None)
    return None if isinstance(auxiliary, Tensor) else float(loss)
