"""Whether weights have a scale that can be trained from."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.maturity import is_untrained
from utils.check_result import CheckResult, Limit
from utils.checks.attention import ATTENTION_LIMITS, oversized_scores
from utils.checks.bookkeeping import (
    DROPOUT_LIMITS,
    broken_ties,
    dropout_rates,
    repeated_modules,
    round_trip,
    unsaved_state,
)
from utils.checks.checking import check
from utils.checks.connections import idle_widening, takers_of
from utils.checks.depth import (
    ACTIVATION_LIMITS,
    activations_through_depth,
    activations_through_time,
    dead_units,
    only_linear,
)
from utils.checks.limits import OWN_CHOICE
from utils.checks.probe import Probe, counted, few
from utils.checks.residuals import RESIDUAL_LIMITS, input_is_kept
from utils.checks.siblings import SIBLING_LIMITS, copied_blocks, fast_running_statistics, padding_row

NAME = "parameter initialisation"

# Standard deviations. The smallest in use is GPT-2's residual projection, 0.02 / sqrt(2 layers): 0.0014 with 100 layers.
# The largest is torch's default embedding, N(0, 1).
SMALLEST_STD, LARGEST_STD = 0.001, 1.5
# Standard deviation times sqrt(inputs): 0.58 for torch's default (He et al. 2015, with a = sqrt(5)), 0.55 for GPT-2's
# 0.02 at width 768, below 10 in trained models.
LARGEST_GAIN = 30.0
# The same, as a multiple of the median over the model's layers: residual scaling makes it sqrt(2 layers) times smaller, 14
# with 100 layers. The project's own choice.
OUT_OF_LINE = 30.0
# Mean of a normalisation's scales: 1 at first; 0 where the design adds 1 to them, or starts a branch at zero.
SMALLEST_SCALE, LARGEST_SCALE = 0.001, 30.0
# |mean| above this and above the standard deviation: no initialisation in use is that far from zero.
LARGEST_MEAN = 0.05
LEAST_FOR_MEAN = 25  # at which a mean of one standard deviation is 5 standard errors

#: Limits of the measured values, and where each is from.
_LIMITS = (
    Limit("smallest_std", at_least=SMALLEST_STD,
          source="GPT-2's residual projection, 0.02/√(2·layers), is 0.0014 with 100 layers; before training only"),
    Limit("largest_std", at_most=LARGEST_STD,
          source="torch's default embedding is N(0, 1); before training only"),
    Limit("standard deviation × √inputs", at_most=LARGEST_GAIN,
          source="0.58 for torch's default (He et al. 2015), below 10 in trained models"),
    Limit("the same / median layer", at_least=1 / OUT_OF_LINE, at_most=OUT_OF_LINE,
          source=f"residual scaling makes it 14 times smaller with 100 layers; {OWN_CHOICE}"),
    Limit("mean of a normalisation's scales", at_least=SMALLEST_SCALE,
          at_most=LARGEST_SCALE, source="1 at first, 0 where the design adds 1"),
    *ACTIVATION_LIMITS,
    *DROPOUT_LIMITS,
    *RESIDUAL_LIMITS,
    *ATTENTION_LIMITS,
    *SIBLING_LIMITS,
)  # fmt: skip


@check(
    NAME,
    (
        repeated_modules, unsaved_state, round_trip, broken_ties, dropout_rates, activations_through_depth,
        activations_through_time, dead_units, only_linear, idle_widening, input_is_kept, copied_blocks,
        fast_running_statistics, padding_row, oversized_scores,
    ),
    limits=_LIMITS,
)  # fmt: skip
def test_parameter_initialization(found: Probe) -> CheckResult:
    """The numbers in every weight matrix and in the scales of normalisations; biases are only asked to be finite.

    Called as (model, config=None, *, task_spec=None). Fails on NaN, on a standard deviation outside 0.001 to 1.5 or, times
    sqrt(inputs), above 30, on one 30 times larger or smaller than the median layer's, on scales with a mean above 30, and on
    layers whose rows or columns are all the same. Warns about frozen matrices of zeros, about ones that are not centred, and
    about scales below 0.001. Limits of size are for layers of models that have not been trained (`maturity`). Biases are
    free: those of trained attention keys reach hundreds.
    """
    problems: dict[str, list[str]] = {"fail": [], "warn": []}
    scales, gains, untrained = {}, {}, is_untrained(found.model)
    normalised = _normalised_embeddings(found) if untrained else set()
    ends_branch = _zero_ends_of_branches(found)
    for name, parameter in found.model.named_parameters():
        values, owner = parameter.detach().float(), found.model.get_submodule(name.rpartition(".")[0])
        if not values.numel():
            continue
        inputs = _inputs_of(owner, values)
        found_wrong = _problem(name, owner, values, inputs, parameter.requires_grad, untrained)
        if found_wrong is not None and isinstance(owner, nn.Embedding) and owner in normalised and _is_small(values):
            found_wrong = None
        if owner in ends_branch and found_wrong is not None and found_wrong[0] == "warn":
            found_wrong = None
        if values.dim() > 1:
            scales[name] = float(values.std(unbiased=False))
        if found_wrong is not None:
            problems[found_wrong[0]].append(f"{name} {found_wrong[1]}")
        elif inputs > 1 and _is_layer(owner) and scales[name] > 0:
            gains[name] = scales[name] * math.sqrt(inputs)
    problems["fail"] += _out_of_line(gains) if untrained else []
    measured = {"matrices": len(scales), "smallest_std": _least(scales), "largest_std": _most(scales), **problems}
    thresholds = {
        "std": (SMALLEST_STD, LARGEST_STD), "gain": LARGEST_GAIN, "gain_to_median": (1 / OUT_OF_LINE, OUT_OF_LINE),
        "mean": LARGEST_MEAN, "normalisation_scale": (SMALLEST_SCALE, LARGEST_SCALE),
    }  # fmt: skip
    if problems["fail"]:
        return CheckResult(
            NAME, "fail", f"{counted(len(problems['fail']), 'parameter')}: {few(problems['fail'])}.", measured, thresholds,
            "Initialise matrices with a standard deviation of about 0.02, or 1/sqrt(inputs), around zero.",
        )  # fmt: skip
    if problems["warn"]:
        return CheckResult(
            NAME, "warn", f"{counted(len(problems['warn']), 'parameter')}: {few(problems['warn'])}.", measured, thresholds,
            "Right if the design starts there on purpose; otherwise initialise them like the others.",
        )  # fmt: skip
    spread = f"{measured['smallest_std']:.2g} to {measured['largest_std']:.2g}" if scales else "none"
    return CheckResult(
        NAME,
        "pass",
        f"{counted(len(scales), 'matrix')} with standard deviations of {spread}; all numbers finite.",
        measured,
        thresholds,
    )


def _problem(
    name: str, owner: nn.Module, values: Tensor, inputs: int, trainable: bool, untrained: bool
) -> tuple[str, str] | None:
    """ "fail" or "warn" and what is wrong, or None."""
    if not bool(torch.isfinite(values).all()):
        return "fail", "holds NaN or infinite values"
    if _scales_a_normalisation(name, owner, values):
        return _scale_problem(owner, float(values.mean()))
    # What is no matrix of several rows (a bias, a norm, a single learned token) has no scale to judge.
    if values.dim() < 2 or values.shape[0] < 2 or values[0].numel() < 2:
        return None
    std, mean = float(values.std(unbiased=False)), float(values.mean())
    if not bool(values.any()):
        # Residual projections, heads and adapters may start at zero: the check of the gradients sees whether they wake up.
        return None if trainable or _is_added(name) else ("warn", "is all zeros and frozen")
    rows = values.flatten(1)
    # A parameter of a module's own may have equal rows by design, as the A of a state-space model has.
    if _is_layer(owner) or isinstance(owner, nn.Embedding):
        if bool((rows == rows[0]).all()):
            return "fail", "has rows that are all the same"
        if bool((rows == rows[:, :1]).all()):
            return "fail", "has columns that are all the same"
    if not untrained or not (_is_layer(owner) or isinstance(owner, nn.Embedding)):
        return None
    if std < SMALLEST_STD:
        return "fail", f"has a standard deviation of {std:.2g}, below {SMALLEST_STD}"
    if std > LARGEST_STD or std * math.sqrt(inputs) > LARGEST_GAIN:
        return "fail", f"has a standard deviation of {std:.2g} with {inputs:,} inputs: too large"
    # The mean of n values drawn around zero has a standard error of std / sqrt(n): of a few it says nothing.
    if values.numel() >= LEAST_FOR_MEAN and abs(mean) > max(LARGEST_MEAN, std):
        return "warn", f"has a mean of {mean:.2g}"
    return None


def _normalised_embeddings(found: Probe) -> set[nn.Module]:
    """Embeddings whose vectors go straight into a normalisation, which takes their scale out (RWKV starts them at 1e-4)."""
    embeddings = [module for module in found.model.modules() if isinstance(module, nn.Embedding)]
    norms = [module for module in found.model.modules() if _is_norm(module)]
    if not any(_is_small(module.weight.detach().float()) for module in embeddings) or not norms:
        return set()
    given: dict[int, nn.Module] = {}
    kept: list[Tensor] = []  # keeps their ids theirs
    normalised: set[nn.Module] = set()

    def gives(module: nn.Module, inputs: Any, output: Tensor) -> None:
        given[id(output)] = module
        kept.append(output)

    def takes(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and id(inputs[0]) in given:
            normalised.add(given[id(inputs[0])])

    hooks = [module.register_forward_hook(gives) for module in embeddings]
    hooks += [module.register_forward_pre_hook(takes) for module in norms]
    try:
        with torch.no_grad():
            found.call(found.batch(2, min(8, found.max_length)))
    finally:
        for handle in hooks:
            handle.remove()
    return normalised


def _zero_ends_of_branches(found: Probe) -> set[nn.Module]:
    """Normalisations whose scales are all zero and whose output goes into no module: the last of a residual branch, which is
    added, and starts switched off (Goyal et al. 2017, 5.1)."""
    zeros = [m for m in found.model.modules() if _is_norm(m) and _is_zero(getattr(m, "weight", None))]
    return {norm for norm, takers in takers_of(found, zeros).items() if not takers} if zeros else set()


def _is_zero(weight: object) -> bool:
    return isinstance(weight, Tensor) and weight.dim() == 1 and not bool(weight.any())


def _is_small(values: Tensor) -> bool:
    return bool(values.any()) and float(values.std(unbiased=False)) < SMALLEST_STD


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _scales_a_normalisation(name: str, owner: nn.Module, values: Tensor) -> bool:
    return values.dim() == 1 and name.endswith("weight") and _is_norm(owner)


def _scale_problem(owner: nn.Module, mean: float) -> tuple[str, str] | None:
    if abs(mean) > LARGEST_SCALE:
        return "fail", f"scales by {mean:.3g} on average, and 1 is usual: too large"
    # Classes of others may add 1 to their scales, as Gemma's do: zero is their one.
    plain = isinstance(owner, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase))
    if plain and abs(mean) < SMALLEST_SCALE:
        return "warn", f"scales by {mean:.2g} on average: what it normalises is all but switched off"
    return None


def _is_added(name: str) -> bool:
    last = name.lower().rsplit(".", 1)[-1]
    return any(word in last for word in ("bias", "token", "position", "pos_embed"))


def _is_layer(owner: nn.Module) -> bool:
    """Whether its units add up their inputs: scales of such weights compare with each other."""
    return isinstance(owner, (nn.Linear, nn.modules.conv._ConvNd)) or type(owner).__name__ == "Conv1D"


def _out_of_line(gains: Mapping[str, float]) -> list[str]:
    """Layers whose standard deviation, times sqrt(inputs), is far from the median layer's. Needs three to tell which."""
    if len(gains) < 3:
        return []
    middle = statistics.median(gains.values())
    return [
        f"{name} is {gain / middle:.2g} times the median layer's scale"
        for name, gain in gains.items()
        if not middle / OUT_OF_LINE <= gain <= middle * OUT_OF_LINE
    ]


def _inputs_of(owner: nn.Module, values: Tensor) -> int:
    """Inputs that each unit adds up. An embedding adds none: it is looked up."""
    if isinstance(owner, nn.Embedding) or values.dim() < 2:
        return 1
    if type(owner).__name__ == "Conv1D":  # transformers' Linear with its weight the other way round
        return int(values.shape[0])
    return int(values[0].numel())


def _least(scales: dict[str, float]) -> float | None:
    return min(scales.values(), default=None)


def _most(scales: dict[str, float]) -> float | None:
    return max(scales.values(), default=None)
