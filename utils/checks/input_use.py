"""Whether the outputs use the inputs unchanged: fractions of numbers, and no labels in a decoder's input."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from utils.check_result import Finding
from utils.checks.probe import Probe, relative
from utils.training.engine import rng

_ROWS = 8


def fractions_are_used(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Models over images and numbers that give the same outputs for inputs that were rounded or cut to whole numbers."""
    if found.over_tokens:
        return
    found.model.eval()
    batch = found.batch(_ROWS, 0, seed=9)
    (name, inputs) = next(iter(batch.items()))
    inputs = 3 * inputs  # several whole numbers, so that a constant model is not taken for one that rounds
    outputs = _outputs(found, {name: inputs})
    if outputs is None or relative(outputs, outputs[:1].expand_as(outputs)) <= found.tolerance:
        return
    for word, whole in (("cut", inputs.trunc()), ("rounded", inputs.round()), ("cut", inputs.floor())):
        same = _outputs(found, {name: whole})
        if same is not None and torch.equal(same, outputs):
            measured["inputs_used_as"] = f"{word} to whole numbers"
            yield Finding(
                "fractions dropped", "warn",
                f"Forward uses the inputs {word} to whole numbers: what lies between makes no difference, and no gradient "
                "reaches what is before.",
                "Remove int(), long(), byte() or round() on the inputs; cast to the weights' floating-point type instead. "
                "Right where every input is a category.",
            )  # fmt: skip
            return


def _outputs(found: Probe, batch: dict[str, Tensor]) -> Tensor | None:
    rng.seed_all(0)
    with torch.no_grad():
        outputs = found.call(batch)
    return outputs.float() if bool(outputs.isfinite().all()) else None


def labels_are_hidden(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Encoder-decoders that make the decoder's input from labels: the scores of a position must not see its own label."""
    names = inspect.signature(found.model.forward).parameters
    if not found.encoder_decoder or "labels" not in names or found.vocab_size is None or found.output != "tokens":
        return
    found.model.eval()
    batch = found.batch(2, min(8, found.max_length), seed=10)
    labels = batch.pop("decoder_input_ids")
    changed = labels.shape[1] // 2  # not the last one, which mBART moves to the front: it names the language
    other = labels.clone()
    other[:, changed] = (other[:, changed] + 1) % found.vocab_size
    first, second = (_logits(found, batch, given) for given in (labels, other))
    if first is None or second is None:
        return
    difference = relative(first[:, : changed + 1], second[:, : changed + 1])
    measured["label_difference"] = difference
    if not difference <= found.tolerance:
        yield Finding(
            "sees its targets", "fail",
            f"Given labels and no decoder_input_ids, the scores of a position change by {difference:.2g} of their size with "
            "its own label: the decoder reads what it should predict.",
            "Shift the labels one position to the right, behind decoder_start_token_id, to make the decoder's input.",
        )  # fmt: skip


def _logits(found: Probe, batch: dict[str, Tensor], labels: Tensor) -> Tensor | None:
    """Logits (B, T, V) of a call with labels; None where the outputs do not name them."""
    rng.seed_all(0)
    with torch.no_grad():
        outputs = found.model(**batch, labels=labels)
    logits = outputs.get("logits") if isinstance(outputs, dict) else getattr(outputs, "logits", None)
    return logits.float() if isinstance(logits, Tensor) and logits.dim() == 3 else None
