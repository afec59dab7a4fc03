"""Measure how predictions change under perturbation: noise on embeddings, swapped, deleted and replaced tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.adapters.attribution import token_table
from utils.check_result import CheckResult, Finding, Limit
from utils.checks.checking import check
from utils.checks.depth import outputs_of, signal, stacks_of
from utils.checks.limits import OWN_CHOICE
from utils.checks.probe import Probe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "input perturbation"

# Noise added to each embedding, as a share of its own norm.
NOISE = (0.01, 0.05, 0.1)
# Mean KL divergence in nats at 1 % noise: a model that changes its mind by more than this reacts to rounding in fp16 as well.
LARGEST_KL = 0.5
# What varies between positions, as a share of the size of the last block's output, below which all positions look alike.
COLLAPSED_SHARE = 0.02

#: Limits of the measured values, and where each is from.
_LIMITS = (
    Limit("changes / noise 1% / change", at_most=LARGEST_KL,
          source=f"nats; a model above this reacts to rounding in fp16 as well; {OWN_CHOICE}"),
    Limit("variation after the last block", at_least=COLLAPSED_SHARE,
          source="below it all positions look alike"),
)  # fmt: skip


@check(NAME, (), limits=_LIMITS)
def test_robustness(found: Probe, n_samples: int = 8) -> CheckResult:
    """Mean KL divergence and share of changed top predictions under five kinds of change, in evaluation mode.

    Called as (model, config=None, *, task_spec=None, n_samples=8). Noise is added to the token embeddings (to the inputs, for
    images and tables) with a stated share of their norm; exchange, deletion and replacement change one token in eight. Only
    noise is judged: how strongly a model should react to another token is a matter of its task. Warns when 1 % of noise changes
    predictions by more than 0.5 nats.
    """
    found.model.eval()
    length = min(32, found.max_length)
    batch = found.batch(n_samples, length, seed=9)
    with torch.no_grad():
        reference = found.call(batch).float()
        if found.output == "numbers":
            changes = {f"noise {share:.0%}": _numbers(reference, _noisy(found, batch, share)) for share in NOISE}
        else:
            changes = {f"noise {share:.0%}": _predictions(reference, _noisy(found, batch, share)) for share in NOISE}
            if found.over_tokens and not found.encoder_decoder and length >= 8:
                changes |= _token_changes(found, batch["input_ids"], reference)
    measured = {"samples": n_samples, "changes": changes}
    first = changes[f"noise {NOISE[0]:.0%}"]
    unit = "of their spread" if found.output == "numbers" else "nats"
    summary = (
        f"1 % of noise changes predictions by {first['change']:.2g} {unit}, and {first['flipped']:.0%} of the top ones."
    )
    result = CheckResult(
        NAME, "pass", summary, measured, {"largest_kl_at_1_percent": LARGEST_KL}, figure=_figure(changes, unit)
    )
    return result.with_findings(list(_judged(first)) + list(_collapsed(found, measured)), measured)


def _judged(first: Mapping[str, float]) -> Iterator[Finding]:
    if not first["change"] <= LARGEST_KL:
        yield Finding(
            "oversensitive", "warn", f"1 % of noise on the input changes predictions by {first['change']:.2g}.",
            "Look for weights or scores that are far too large, and for missing normalisation.",
        )  # fmt: skip


def _collapsed(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Whether all positions look alike after the last block of a stack."""
    stacks = stacks_of(found.model)
    sizes: dict[nn.Module, float] = {}
    with torch.no_grad(), outputs_of(stacks, lambda block, output: sizes.__setitem__(block, _varying_share(output))):
        found.call(found.batch(4, min(32, found.max_length)))
    for name, blocks in stacks.items():
        known = [sizes[block] for block in blocks if block in sizes]
        measured[f"variation_through_depth of {name}"] = known
        if known and known[-1] < COLLAPSED_SHARE and known[0] > 5 * known[-1]:
            yield Finding(
                "representation collapse", "warn",
                f"After the last block of {name} what differs between inputs is {known[-1]:.1%} of the activations' size "
                f"(after the first: {known[0]:.0%}).",
                "Scale residual branches by 1/sqrt(2 layers), use normalisation before each branch, or fewer layers.",
            )  # fmt: skip


def _varying_share(output: Tensor) -> float:
    return signal(output) / max(float(output.detach().float().square().mean().sqrt()), 1e-12)


def _noisy(found: Probe, batch: Mapping[str, Tensor], share: float) -> Tensor:
    """Outputs with noise of `share` times each vector's norm on the embeddings, or on the inputs themselves."""
    generator = torch.Generator().manual_seed(13)

    def disturbed(values: Tensor) -> Tensor:
        noise = torch.randn(values.shape, generator=generator).to(values)
        scale = values.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        disturbed_values: Tensor = values + share * scale * noise
        return disturbed_values

    if not found.over_tokens:
        return found.call({name: disturbed(value) for name, value in batch.items()}).float()
    table = token_table(found.model)
    hook = None if table is None else table.register_forward_hook(lambda module, inputs, output: disturbed(output))
    try:
        return found.call(batch).float()
    finally:
        if hook is not None:
            hook.remove()


def _token_changes(found: Probe, ids_BT: Tensor, reference: Tensor) -> dict[str, dict[str, float]]:
    """Changes of the prediction after the last token, by what was done to one token in eight before it."""
    assert found.vocab_size is not None
    length = ids_BT.shape[1]
    places = list(range(1, length - 2, 8))
    swapped, replaced = ids_BT.clone(), ids_BT.clone()
    for place in places:
        swapped[:, [place, place + 1]] = ids_BT[:, [place + 1, place]]
        replaced[:, place] = (ids_BT[:, place] + 17) % found.vocab_size
    kept = [place for place in range(length) if place not in places]
    whole = _of_last(found, reference)
    cases = {"tokens exchanged": swapped, "tokens replaced": replaced, "tokens deleted": ids_BT[:, kept]}
    return {
        name: _predictions(whole, _of_last(found, found.call({"input_ids": ids}).float()))
        for name, ids in cases.items()
    }


def _of_last(found: Probe, outputs: Tensor) -> Tensor:
    return outputs[:, -1] if found.output == "tokens" else outputs


def _predictions(reference: Tensor, changed: Tensor) -> dict[str, float]:
    """Mean KL divergence in nats, and the share of positions whose most likely class changes."""
    kl = F.kl_div(changed.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none").sum(-1).mean()
    flipped = (reference.argmax(-1) != changed.argmax(-1)).float().mean()
    return {"change": float(kl), "flipped": float(flipped)}


def _numbers(reference: Tensor, changed: Tensor) -> dict[str, float]:
    spread = float(reference.std().clamp_min(1e-12)) if reference.numel() > 1 else 1.0
    return {"change": float((reference - changed).abs().mean()) / spread, "flipped": 0.0}


def _figure(changes: Mapping[str, Mapping[str, float]], unit: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.barh(list(changes)[::-1], [row["change"] for row in changes.values()][::-1], color="#1f4e9c")
    axes.set_xlabel(f"change of the prediction ({unit})")
    axes.set_title("Input perturbation")
    return figure
