"""Whether an output depends on what it must not see: later positions, other rows, earlier calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from utils.check_result import Finding
from utils.checks.probe import Probe, relative
from utils.training.engine import rng


def later_positions(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Causality at the full length, with the change at three places, in evaluation and in training mode.

    For an encoder-decoder: of the decoder over its own ids, which differ from the encoder's.
    """
    length = found.max_length
    if not (found.causal or found.encoder_decoder) or not found.over_tokens or length < 3:
        return
    side = "decoder_input_ids" if found.encoder_decoder else "input_ids"
    cuts = sorted({1, length // 2, length - 1})
    for training in (False, True):
        found.model.train(training)
        leaks = _leaks(found, side, length, cuts)
        measured[f"future_difference_{'training' if training else 'evaluation'}"] = max(leaks.values())
        leaking = [cut for cut, leak in leaks.items() if not leak <= found.tolerance]
        if leaking and training:
            with _without_dropout(found.model):
                leaking = [
                    cut for cut, leak in _leaks(found, side, length, leaking).items() if not leak <= found.tolerance
                ]
        if leaking and _repeats(found, length):
            where = "in training mode" if training else f"in evaluation mode at length {length}"
            norms = _batch_norms(found.model)
            yield Finding(
                "causality", "fail",
                f"A later token changes earlier logits by {max(leaks.values()):.2g} of their size {where} "
                f"(changed from position {leaking[0]} on).",
                f"{norms[0]} normalises over positions: use LayerNorm or RMSNorm." if training and norms
                else "Apply the causal mask at every length and in every layer.",
            )  # fmt: skip
            return


def other_rows_in_training(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Row independence in training mode. Batch normalisation mixes rows by design, and is expected outside language models."""
    if found.output != "tokens" and _batch_norms(found.model):
        return
    found.model.train()
    batch = found.batch(3, min(16, found.max_length))
    changed = {name: torch.cat([value[:1], other[1:]]) for (name, value), other in
               zip(batch.items(), found.batch(3, min(16, found.max_length), seed=1).values(), strict=True)}  # fmt: skip
    difference = relative(_seeded(found, batch)[:1], _seeded(found, changed)[:1])
    measured["row_difference_training"] = difference
    if not difference <= found.tolerance:
        with _without_dropout(found.model):
            difference = relative(_seeded(found, batch)[:1], _seeded(found, changed)[:1])
    if not difference <= found.tolerance and relative(_seeded(found, batch), _seeded(found, batch)) <= found.tolerance:
        norms = _batch_norms(found.model)
        yield Finding(
            "rows in training", "fail",
            f"In training mode a row's outputs change by {difference:.2g} of their size with the other rows of its batch.",
            f"{norms[0]} computes its statistics over the batch: use LayerNorm or RMSNorm." if norms
            else "Keep the batch dimension apart: no mean, softmax or normalisation over it.",
        )  # fmt: skip


def carried_state(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Outputs that differ between two equal calls from the same random state: some state is carried over from the first."""
    found.model.eval()
    batch, other = (found.batch(2, min(16, found.max_length), seed) for seed in (0, 1))
    first = _seeded(found, batch)
    _seeded(found, other)
    difference = relative(first, _seeded(found, batch))
    measured["difference_after_another_call"] = difference
    if not difference <= found.tolerance:
        yield Finding(
            "carried state", "fail",
            f"The same input from the same random state gives outputs that differ by {difference:.2g} of their size after "
            "another call: the model carries state from one call to the next.",
            "Start from a fresh state in each forward, or return the state and let the caller pass it.",
        )  # fmt: skip


def encoder_is_used(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Whether the logits of an encoder-decoder depend on the encoder's input."""
    if not found.encoder_decoder:
        return
    found.model.eval()
    length = min(16, found.max_length)
    batch = found.batch(2, length)
    other = {**batch, "input_ids": found.batch(2, length, seed=1)["input_ids"]}
    difference = relative(_seeded(found, batch), _seeded(found, other))
    measured["encoder_dependence"] = difference
    if not difference > 0:
        yield Finding(
            "encoder ignored", "fail", "The logits do not depend on the encoder's input.",
            "Pass the encoder's hidden states to the cross-attention of the decoder's layers.",
        )  # fmt: skip


def _leaks(found: Probe, side: str, length: int, cuts: Sequence[int]) -> dict[int, float]:
    """Relative change of the outputs before each cut when all tokens from there on are others."""
    assert found.vocab_size is not None
    batch = found.batch(2, length)
    before, leaks = _seeded(found, batch), {}
    for cut in cuts:
        ids = batch[side].clone()
        ids[:, cut:] = (ids[:, cut:] + 1) % found.vocab_size
        leaks[cut] = relative(before[:, :cut], _seeded(found, {**batch, side: ids})[:, :cut])
    return leaks


def _repeats(found: Probe, length: int) -> bool:
    """Whether equal calls give equal outputs: otherwise differences cannot be attributed to positions or rows."""
    batch = found.batch(2, length)
    return relative(_seeded(found, batch), _seeded(found, batch)) <= found.tolerance


def _seeded(found: Probe, batch: dict[str, Tensor]) -> Tensor:
    """Outputs from a fixed random state, so that dropout draws the same masks in each call.

    In training mode buffers are put back afterwards: spectral normalisation and running statistics move with each call.
    """
    buffers = [(buffer, buffer.clone()) for buffer in found.model.buffers()] if found.model.training else []
    rng.seed_all(0)
    with torch.no_grad():
        outputs = found.call(batch).float()
        for buffer, before in buffers:
            buffer.copy_(before)
    return outputs


@contextlib.contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Inside the block dropout modules drop nothing: where experts drop, one token's masks depend on how many others there
    are, and outputs differ although nothing is mixed."""
    rates = [(module, module.p) for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    try:
        for module, _ in rates:
            module.p = 0.0
        yield
    finally:
        for module, rate in rates:
            module.p = rate


def _batch_norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
