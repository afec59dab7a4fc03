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
# Tokens that are special in most vocabularies: their first ids.
_FIRST_IDS = 5
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
    ignored = _ignored_id(found, batch, name, logits) if found.output == "tokens" else None
    if ignored is not None:  # the same token must explain the loss on the ordinary labels
        without = _by_convention(
            found, logits, labels.masked_fill(labels == ignored, _IGNORED), shifted_by_caller=name == "targets"
        )
        if not any(abs(loss - own) <= tolerance * max(1.0, abs(loss)) for loss in without):
            ignored = None
    if ignored is None and not any(abs(loss - own) <= tolerance * max(1.0, abs(loss)) for loss in expected):
        yield Finding(
            "own loss", "fail",
            f"The model's own loss is {own:.4g} where cross-entropy of its logits is {expected[0]:.4g} "
            f"({'labels shifted by one, ' if found.causal else ''}-100 ignored, mean over targets).",
            "Shift labels once, pass ignore_index=-100, and average over the targets that count. A parameter for labels that "
            "the caller has shifted is named targets.",
        )  # fmt: skip
        return
    if ignored is not None:
        measured["ignored_id"] = ignored
        yield Finding(
            "ignored token", "warn",
            f"The model's own loss ignores targets that are token {ignored}, which nothing says is padding: it never learns to "
            "predict it.",
            "Ignore -100 only, and set the labels of padding to -100; where this token is padding, say so (padding_idx, or "
            "pad_token_id of config or task_spec).",
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


def _ignored_id(found: Probe, batch: dict[str, Tensor], name: str, logits: Tensor) -> int | None:
    """A token that the model's own loss leaves out, and that is not padding; None where it counts all of them.

    Of the usual special tokens: the first ids, the last one, and those that the model's config names.
    """
    config = getattr(found.model, "config", None)
    named = [getattr(config, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad")]
    last = min(found.vocab_size or 0, logits.shape[-1]) - 1
    ids = sorted(
        {token for token in (*range(_FIRST_IDS), last, *named) if isinstance(token, int) and 0 <= token <= last}
    )
    labels_BT = (
        torch.tensor(ids, device=found.device).repeat(logits.shape[1])[: logits.shape[1]].expand(len(logits), -1)
    )
    labels_BT = torch.stack([row.roll(7 * place) for place, row in enumerate(labels_BT)])
    with torch.no_grad():
        arguments, given = found.call.inputs(batch)
        own = _loss_of(found.model(*arguments, **{**given, name: labels_BT}))
    tolerance = max(_LOSS_TOLERANCE, found.tolerance)

    def agrees(labels: Tensor) -> bool:
        losses = _by_convention(found, logits, labels, shifted_by_caller=name == "targets")
        return own is not None and any(abs(loss - own) <= tolerance * max(1.0, abs(loss)) for loss in losses)

    if own is None or agrees(labels_BT):
        return None
    padding = {getattr(found.task_spec, "pad_token_id", None), getattr(config, "pad_token_id", None)}
    padding |= {getattr(module, "padding_idx", None) for module in found.model.modules()}
    matching = (token for token in ids if agrees(labels_BT.masked_fill(labels_BT == token, _IGNORED)))
    return next((token for token in matching if token not in padding), None)


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
    """The scalar loss in a model's outputs, less an auxiliary loss that has been added to it, or None."""
    loss = outputs.get("loss") if isinstance(outputs, dict) else getattr(outputs, "loss", None)
    if loss is None and isinstance(outputs, (tuple, list)):
        loss = next((value for value in outputs if isinstance(value, Tensor) and value.dim() == 0), None)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        return None
    auxiliary = getattr(outputs, "aux_loss", None)
    return None if isinstance(auxiliary, Tensor) else float(loss)
