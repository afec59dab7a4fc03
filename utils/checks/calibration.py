"""Whether a trained model's probabilities match its accuracy: expected calibration error on held-out data.

Shapes: N targets, K bins.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.adapters.maturity import is_untrained
from utils.check_result import CheckResult, Finding, Limit
from utils.checks.checking import check
from utils.checks.probe import Probe
from utils.checks.real_data import DATA_ERRORS, CheckData, NoDataError, data_for, scored
from utils.training.task_kinds import kind_of_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "calibration"

# Bins of equally many targets: with bins of equal width most are nearly empty (Nixon et al. 2019, arXiv 1904.01685).
BINS = 15
# Guo et al. 2017 (arXiv 1706.04599, table 1) measure 1 to 17 % for deep classifiers that nobody calibrated; most are below
# 10 %.
LARGEST_ERROR = 0.1
# Standard errors by which sampling noise may exceed its expectation.
_SIGMAS = 3.0
# With fewer targets the noise alone exceeds LARGEST_ERROR.
_FEWEST = 100


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy.

    Attributes:
        error: expected calibration error, sum over bins of their share of the targets times |accuracy - confidence|.
        noise: what a perfectly calibrated model would show with as many targets.
        noise_limit: that and three standard errors.
        confidence, accuracy, share: of each bin, (K,).
        temperature: divisor of the logits that minimises the loss; above 1 for an overconfident model.
        loss, loss_at_temperature: nats per target.
    """

    error: float
    noise: float
    noise_limit: float
    confidence: Tensor
    accuracy: Tensor
    share: Tensor
    temperature: float
    loss: float
    loss_at_temperature: float


#: Limits of the measured values, and where each is from.
_LIMITS = (
    Limit("calibration_error", at_most="calibration_error",
          source=f"{LARGEST_ERROR:g}, which most uncalibrated deep classifiers stay below (Guo et al. 2017, "
          "table 1), plus sampling noise with three standard errors"),
)  # fmt: skip


@check(NAME, limits=_LIMITS)
def test_calibration(found: Probe, data: Any = None, n_bins: int = BINS) -> CheckResult:
    """Expected calibration error of the most likely class or token on held-out data, with a reliability diagram.

    Called as (model, config=None, *, task_spec=None, tokenizer=None, data=None, n_bins=15). For trained models. Bins hold
    equally many targets. A finite sample shows an error even for a perfectly calibrated model; that noise, estimated with
    the targets of a row taken as dependent, is subtracted before the error is judged. Warns above 10 %.

    Args:
        data: PreparedData, a pair (training, validation), or a dataset that is all held out. None: the validation part of the
            built-in corpus, for language models with a tokenizer.
    """
    if is_untrained(found.model):
        return CheckResult(
            NAME, "not run", "The model is untrained: its probabilities mean nothing yet.", remedy="Train it."
        )
    if found.output == "numbers":
        return CheckResult(NAME, "not run", "The model predicts numbers, not probabilities.", remedy="Nothing to do.")
    try:
        prepared = data_for(found, data)
        if not kind_of_task(prepared.task_spec.task_type).is_categorical:
            return CheckResult(
                NAME, "not run", f"Not defined for {prepared.task_spec.task_type}.", remedy="Nothing to do."
            )
        parts = list(_confidences(found, prepared))
    except DATA_ERRORS as error:
        return CheckResult(NAME, "not run", f"Nothing was measured: {error}.", remedy=str(error))
    count = sum(len(part[0]) for part in parts)
    if count < _FEWEST:
        return CheckResult(
            NAME, "not run", f"{count} held-out targets are too few: noise exceeds what is measured.",
            remedy=f"Give at least {_FEWEST} held-out targets.",
        )  # fmt: skip
    confidences, correct, rows = (torch.cat([torch.as_tensor(part[column]) for part in parts]) for column in range(3))
    losses = torch.stack([torch.as_tensor(part[3]) for part in parts]).sum(0) / len(confidences)
    known = measure(confidences, correct, rows, n_bins, losses)
    accuracy, classes = float(correct.double().mean()), parts[0][4]
    measured = {
        "calibration_error": known.error, "sampling_noise": known.noise, "sampling_noise_limit": known.noise_limit,
        "mean_confidence": float(confidences.mean()), "accuracy": accuracy, "temperature": known.temperature,
        "loss_nats": known.loss, "loss_at_temperature_nats": known.loss_at_temperature, "targets": len(confidences),
        "bins": len(known.share), "data": prepared.source,
    }  # fmt: skip
    thresholds = {"calibration_error": LARGEST_ERROR + known.noise_limit}
    if not prepared.given and not known.loss < math.log(classes):
        return CheckResult(
            NAME, "not run",
            f"The loss on the built-in corpus is {known.loss:.3g} nats, no better than a uniform "
            f"guess ({math.log(classes):.3g}): "
            "the model was trained on other data.", measured, thresholds, "Give data=… of the kind it was trained on.",
        )  # fmt: skip
    summary = (
        f"Confidence and accuracy differ by {known.error:.1%} on average ({measured['mean_confidence']:.0%} confident, "
        f"{accuracy:.0%} right; sampling noise {known.noise:.1%}; {len(confidences):,} targets of {prepared.source})."
    )
    result = CheckResult(NAME, "pass", summary, measured, thresholds, figure=_figure(known))
    return result.with_findings(_judged(known, measured, prepared.given), {})


def measure(confidences: Tensor, correct: Tensor, rows: Tensor, bins: int, losses: Tensor) -> Calibration:
    """Bin targets by confidence and compare.

    Args:
        confidences: (N,) probability of the predicted class; correct: (N,) whether it was right; rows: (N,) the row of each.
        losses: mean loss at each of `TEMPERATURES`.
    """
    order = confidences.argsort()
    confidences, correct, rows = confidences[order].double(), correct[order].double(), rows[order]
    edges = torch.linspace(0, len(order), min(bins, len(order)) + 1).round().long().tolist()
    total = len(order)
    confidence, accuracy, share = [], [], []
    error = noise = variance = 0.0
    for start, end in itertools.pairwise(edges):
        gaps = correct[start:end] - confidences[start:end]
        confidence.append(float(confidences[start:end].mean()))
        accuracy.append(float(correct[start:end].mean()))
        share.append((end - start) / total)
        error += abs(float(gaps.sum())) / total
        # Targets of one row are not independent, so the variance of the sum is that of the rows' sums, and never below that
        # of independent targets of these confidences.
        _, number = torch.unique(rows[start:end], return_inverse=True)
        sums = torch.zeros(int(number.max()) + 1, dtype=torch.float64).index_add_(0, number, gaps - gaps.mean())
        independent = (confidences[start:end] * (1 - confidences[start:end])).sum()
        spread = math.sqrt(max(float(sums.square().sum()), float(independent))) / total
        # Mean and variance of |x| for a normal x of that standard deviation.
        noise += math.sqrt(2 / math.pi) * spread
        variance += (1 - 2 / math.pi) * spread**2
    best = int(losses.argmin())
    return Calibration(
        error, noise, noise + _SIGMAS * math.sqrt(variance), torch.tensor(confidence), torch.tensor(accuracy),
        torch.tensor(share), TEMPERATURES[best], float(losses[_UNCHANGED]), float(losses[best]),
    )  # fmt: skip


#: Divisors of the logits that are tried, from 1/8 to 8.
TEMPERATURES = tuple(2 ** (step / 4) for step in range(-12, 13))
_UNCHANGED = TEMPERATURES.index(1.0)
# Logits of a batch that are tried at every temperature, in values: each costs an exponential for each temperature.
_TRIED_VALUES = 1_000_000


def _confidences(found: Probe, prepared: CheckData) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, int]]:
    """For each batch: confidences, whether right, rows, mean losses at each temperature times targets, number of classes."""
    for one in scored(found.model, prepared):
        if not len(one.targets):
            continue
        if int(one.targets.max()) >= one.outputs.shape[1]:
            raise NoDataError(
                f"a target is {int(one.targets.max())}, but the model scores {one.outputs.shape[1]} classes"
            )
        top, predicted = one.outputs.softmax(-1).max(-1)
        every = max(1, math.ceil(one.outputs.numel() / _TRIED_VALUES))
        tried, targets = one.outputs[::every], one.targets[::every]
        losses = torch.stack(
            [F.cross_entropy(tried / temperature, targets).double().cpu() for temperature in TEMPERATURES]
        )
        yield top.cpu(), (predicted == one.targets).cpu(), one.rows.cpu(), losses * len(top), one.outputs.shape[1]


def _judged(known: Calibration, measured: dict[str, Any], given: bool) -> list[Finding]:
    # Other text than a model was trained on makes it overconfident, which says nothing about the model on its own data.
    if not given or known.error <= LARGEST_ERROR + known.noise_limit:
        return []
    over = measured["mean_confidence"] > measured["accuracy"]
    return [
        Finding(
            "overconfident" if over else "underconfident", "warn",
            f"Its probabilities are too {'high' if over else 'low'}: "
            f"{measured['mean_confidence']:.0%} confident on average and "
            f"right in {measured['accuracy']:.0%} (calibration error {known.error:.1%}, of which sampling noise explains "
            f"{known.noise:.1%}).",
            f"Divide the logits by a temperature of {known.temperature:.2g} (loss {known.loss:.3g} to "
            f"{known.loss_at_temperature:.3g}); "
            + ("train less long, with more data or with label smoothing." if over else "remove label smoothing, or train on."),
        )
    ]  # fmt: skip


def _figure(known: Calibration) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#888888", linestyle="--", label="calibrated")
    axes.plot(known.confidence.tolist(), known.accuracy.tolist(), marker="o", color="#1f4e9c", label="model")
    axes.set(
        xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title=f"Calibration error {known.error:.1%}"
    )
    axes.legend(loc="upper left")
    return figure
