"""Whether the outputs are usable numbers that depend on the input and on nothing else."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from utils.check_result import CheckResult, Limit, Verdict
from utils.checks.bookkeeping import draws_in_evaluation, inputs_changed
from utils.checks.checking import check
from utils.checks.input_use import fractions_are_used, labels_are_hidden
from utils.checks.limits import OWN_CHOICE, ROUNDING
from utils.checks.output_range import RANGE_LIMITS, dropped_outputs, output_range
from utils.checks.own_loss import LOSS_LIMITS, own_loss, starting_loss
from utils.checks.probe import Probe, few
from utils.training.engine import rng

NAME = "output stability"

# Standard deviation over the classes of one prediction: softmax at this spread puts all weight on one class. Trained
# language models have about 2 to 10. The project's own choice.
LARGEST_SPREAD = 100.0
# Share of a logit's size by which different inputs must change it at least, and by which classes must differ. Relative,
# as a healthy classifier starts with a spread of 0.005. The project's own choice.
LEAST_DEPENDENCE = 1e-4

#: Limits of the measured values, and where each is from.
_LIMITS = (
    Limit("spread_over_classes", at_most=LARGEST_SPREAD,
          source=f"softmax is one-hot at this spread; trained language models have 2 to 10; {OWN_CHOICE}"),
    Limit("dependence", at_least=LEAST_DEPENDENCE,
          source=f"relative to the logits, as healthy classifiers start with a spread of 0.005; {OWN_CHOICE}"),
    Limit("repeat_difference", at_most="repeat_difference", source=f"{ROUNDING}, times the largest logit"),
    *LOSS_LIMITS,
    *RANGE_LIMITS,
)  # fmt: skip


@check(
    NAME,
    (
        output_range, dropped_outputs, own_loss, starting_loss, inputs_changed, draws_in_evaluation, fractions_are_used,
        labels_are_hidden,
    ),
    limits=_LIMITS,
)  # fmt: skip
def test_output_stability(found: Probe, n_samples: int = 4) -> CheckResult:
    """Logits of `n_samples` random batches in evaluation mode, and what forward does to the training around it.

    Called as (model, config=None, *, task_spec=None, n_samples=4). Fails on NaN or infinite logits, on logits that do not
    depend on the input, on equal scores for all classes, on a spread over classes above 100, and when the same input gives
    different logits twice. In training mode it fails when forward seeds a random generator or switches a module to evaluation
    mode, as both undo dropout. Logits of zeros pass when a matrix of zeros explains it: some designs start there. No limit is
    set on the logits' mean, which softmax takes out: GPT-2's trained logits lie around -100.
    """
    length = min(32, found.max_length)
    misconduct = _misconduct(found)
    found.model.eval()
    with torch.no_grad():
        logits = [found.call(found.batch(2, length, seed)).float() for seed in range(n_samples)]
        again = found.call(found.batch(2, length, 0)).float()
    everything = torch.stack(logits)
    finite = everything[everything.isfinite()]
    measured = {
        "not_finite": everything.numel() - finite.numel(), "logits": everything.numel(),
        "classes": everything.shape[-1], "largest": float(finite.abs().max()) if finite.numel() else math.nan,
        "spread_over_classes": float(everything.std(dim=-1, unbiased=False).mean()),
        "dependence": _dependence(everything), "repeat_difference": float((again - logits[0]).abs().max()),
    }  # fmt: skip
    thresholds = {
        "largest_spread": LARGEST_SPREAD, "least_dependence": LEAST_DEPENDENCE,
        "repeat_difference": found.tolerance,
    }  # fmt: skip
    verdict, summary, remedy = _verdict(found, measured)
    if misconduct and verdict != "fail":
        verdict, (summary, remedy) = "fail", misconduct
    return CheckResult(NAME, verdict, summary, measured, thresholds, remedy)


def _verdict(found: Probe, measured: dict[str, float]) -> tuple[Verdict, str, str]:
    spread, dependence = measured["spread_over_classes"], measured["dependence"]
    if measured["not_finite"]:
        return (
            "fail", f"{measured['not_finite']:,} of {measured['logits']:,} logits are NaN or infinite.",
            "Check the weights for NaN, and divisions, logarithms and masks for rows without any allowed position.",
        )  # fmt: skip
    if not measured["repeat_difference"] <= found.tolerance * max(1.0, measured["largest"]):
        return (
            "fail", f"The same input gives logits that differ by {measured['repeat_difference']:.2g} in evaluation mode.",
            "Use nn.Dropout rather than functional dropout without training=self.training; draw nothing in forward.",
        )  # fmt: skip
    if measured["largest"] == 0 and (zero := [n for n, p in found.model.named_parameters() if _is_zero_matrix(p)]):
        return (
            "pass", f"Every logit is exactly zero, because {few(zero[::-1])} is: the rest shows after the first steps.", "",
        )  # fmt: skip
    # Amounts may vary little beside their level (years, prices): a constant one is the output range's to report.
    if found.output != "numbers" and not dependence >= LEAST_DEPENDENCE:
        return (
            "fail", f"Different inputs change the logits by {dependence:.2g} of their size: the input hardly matters.",
            "Follow the input through forward: something on the way to the logits drops or overwrites it.",
        )  # fmt: skip
    if measured["classes"] > 1 and not spread > LEAST_DEPENDENCE * measured["largest"]:
        return (
            "fail", f"All {measured['classes']:,} classes get the same score within {spread:.2g}: nothing is predicted.",
            "Look at the output layer: its scores are summed, averaged or overwritten before they are returned.",
        )  # fmt: skip
    if spread > LARGEST_SPREAD:
        return (
            "fail", f"Logits of one prediction have a standard deviation of {spread:.3g}, above {LARGEST_SPREAD:g}.",
            "Make the output layer's weights smaller, or normalise what goes into it.",
        )  # fmt: skip
    spread_text = f"; spread over classes {spread:.3g}" if measured["classes"] > 1 else ""
    return "pass", f"Outputs are finite, repeatable and depend on the input{spread_text}.", ""


def _misconduct(found: Probe) -> tuple[str, str] | None:
    """Side effects of forward in training mode on global state, and the remedy, or None."""
    batch = found.batch(2, min(32, found.max_length))
    after = []
    for seed in (0, 1):
        found.model.train()
        modes = [module.training for module in found.model.modules()]
        rng.seed_all(seed)
        with torch.no_grad():
            found.call(batch)
        after.append(rng.snapshot())
        if [module.training for module in found.model.modules()] != modes:
            return (
                "Forward switches modules to evaluation mode, or back: dropout and normalisation do not train as they should.",
                "Call eval() and train() outside of forward.",
            )
    first, second = after
    if first[0] == second[0] or torch.equal(first[2], second[2]) or (first[1][1] == second[1][1]).all():
        return (
            "Forward seeds the random generator: dropout is the same in every step.",
            "Seed once, before training (random_seed); where forward needs fixed numbers, give it a torch.Generator.",
        )
    return None


def _is_zero_matrix(parameter: Tensor) -> bool:
    return parameter.dim() > 1 and not bool(parameter.any())


def _dependence(logits: Tensor) -> float:
    """Standard deviation of each logit over the inputs, as a share of the logits' root mean square."""
    over_inputs = logits.flatten(0, 1)
    size = over_inputs.square().mean().sqrt()
    return float(over_inputs.std(dim=0, unbiased=False).mean() / size) if float(size) > 0 else 0.0
