"""Whether weights have a scale that can be trained from."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from utils.checks.probe import Probe, check, few
from utils.checks.result import CheckResult

NAME = "parameter initialisation"

# Standard deviations. The smallest in use is GPT-2's residual projection, 0.02 / sqrt(2 layers): 0.0014 with 100 layers.
# The largest is torch's default embedding, N(0, 1).
SMALLEST_STD, LARGEST_STD = 0.001, 1.5
# Standard deviation times sqrt(inputs): 0.58 for torch's default (He et al. 2015, with a = sqrt(5)), 0.55 for GPT-2's
# 0.02 at width 768, below 10 in trained models.
LARGEST_GAIN = 30.0
# |mean| above this and above the standard deviation: no initialisation in use is that far from zero.
LARGEST_MEAN = 0.05


@check(NAME)
def test_parameter_initialization(found: Probe) -> CheckResult:
    """The numbers in every weight matrix; vectors (biases, norms) are only asked to be finite.

    Called as (model, config=None, *, task_spec=None). Fails on NaN, on a standard deviation outside 0.001 to 1.5 or, times
    sqrt(inputs), above 30, and on matrices whose rows are all the same; warns about matrices of zeros (some designs start
    residual projections or heads there) and about ones that are not centred. The limits hold for trained models too.
    """
    problems: dict[str, list[str]] = {"fail": [], "warn": []}
    scales = {}
    for name, parameter in found.model.named_parameters():
        values = parameter.detach().float()
        found_wrong = _problem(values, _inputs_of(found.model, name, values))
        if values.dim() > 1:
            scales[name] = float(values.std(unbiased=False))
        if found_wrong is not None:
            problems[found_wrong[0]].append(f"{name} {found_wrong[1]}")
    measured = {"matrices": len(scales), "smallest_std": _least(scales), "largest_std": _most(scales), **problems}
    thresholds = {"std": (SMALLEST_STD, LARGEST_STD), "gain": LARGEST_GAIN, "mean": LARGEST_MEAN}
    if problems["fail"]:
        return CheckResult(
            NAME, "fail", f"{len(problems['fail'])} parameters: {few(problems['fail'])}.", measured, thresholds,
            "Initialise matrices with a standard deviation of about 0.02, or 1/sqrt(inputs), around zero.",
        )  # fmt: skip
    if problems["warn"]:
        return CheckResult(
            NAME, "warn", f"{len(problems['warn'])} parameters: {few(problems['warn'])}.", measured, thresholds,
            "Right if the design starts there on purpose; otherwise initialise them like the others.",
        )  # fmt: skip
    spread = f"{measured['smallest_std']:.2g} to {measured['largest_std']:.2g}" if scales else "none"
    return CheckResult(
        NAME,
        "pass",
        f"{len(scales)} matrices with standard deviations of {spread}; all numbers finite.",
        measured,
        thresholds,
    )


def _problem(values: Tensor, inputs: int) -> tuple[str, str] | None:
    """ "fail" or "warn" and what is wrong, or None."""
    if not bool(torch.isfinite(values).all()):
        return "fail", "holds NaN or infinite values"
    # What is no matrix of several rows (a bias, a norm, a single learnt token) has no scale to judge.
    if values.dim() < 2 or values.shape[0] < 2 or values[0].numel() < 2:
        return None
    std, mean = float(values.std(unbiased=False)), float(values.mean())
    if not bool(values.any()):
        return "warn", "is all zeros"
    rows = values.flatten(1)
    if bool((rows == rows[0]).all()):
        return "fail", "has rows that are all the same"
    if std < SMALLEST_STD:
        return "fail", f"has a standard deviation of {std:.2g}, below {SMALLEST_STD}"
    if std > LARGEST_STD or std * math.sqrt(inputs) > LARGEST_GAIN:
        return "fail", f"has a standard deviation of {std:.2g} with {inputs:,} inputs: too large"
    if abs(mean) > max(LARGEST_MEAN, std):
        return "warn", f"has a mean of {mean:.2g}"
    return None


def _inputs_of(model: nn.Module, name: str, values: Tensor) -> int:
    """Inputs that each unit adds up. An embedding adds none: it is looked up."""
    owner = model.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, nn.Embedding) or values.dim() < 2:
        return 1
    if type(owner).__name__ == "Conv1D":  # transformers' Linear with its weight the other way round
        return int(values.shape[0])
    return int(values[0].numel())


def _least(scales: dict[str, float]) -> float | None:
    return min(scales.values(), default=None)


def _most(scales: dict[str, float]) -> float | None:
    return max(scales.values(), default=None)
