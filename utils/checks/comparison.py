"""A model beside a reference model: parameters, held-out loss on the same data, and speed."""

from __future__ import annotations

import copy
import logging
import math
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.forward import ModelCall
from utils.adapters.maturity import is_untrained
from utils.check_result import CheckResult, Finding, Limit
from utils.checks.checking import check
from utils.checks.copies import Budget, seconds_per_step, train_copy
from utils.checks.fine_tuning import FRESH_RATE, held_out_errors, metric_of
from utils.checks.limits import OWN_CHOICE
from utils.checks.probe import CannotProbeError, Probe, probe
from utils.checks.real_data import DATA_ERRORS, CheckData, data_for, scored

NAME = "reference comparison"
log = logging.getLogger("trainbook.checks")

# Share of the reference's loss by which the model may be worse after the same training, beyond three standard errors of the
# paired difference: architectures of one size differ by less. The project's own choice.
LARGEST_LAG = 0.25
_SIGMAS = 3.0
# Stands for an error of 0, of which there are no shares.
_LEAST_ERROR = 1e-12
_LAYERS, _HEADS = 4, 4
_ROWS, _LENGTH, _REPETITIONS = 8, 128, 7

#: Limits of the measured values, and where each is from.
_LIMITS = (
    Limit("lag", at_most="lag",
          source=f"of the reference's loss: {LARGEST_LAG:g}, as architectures of one size differ by less, or "
          f"three standard errors of the paired difference; {OWN_CHOICE}"),
)  # fmt: skip


@check(NAME, limits=_LIMITS)
def test_benchmark_comparison(
    found: Probe, reference: Any = None, data: Any = None, steps: int = 150, batch_size: int = 16,
    repetitions: int = _REPETITIONS, budget: Budget | None = None,
) -> CheckResult:  # fmt: skip
    """Compare with a reference model: parameters, loss on the same held-out data, forward and training speed.

    Called as (model, config=None, *, task_spec=None, tokenizer=None, reference=None, data=None, steps=150, batch_size=16,
    repetitions=7). Copies of both are trained for `steps` steps on the same data if both are untrained; else both losses
    are those of the models as they are. Times are medians of alternating repetitions on the same batch. Warns when the
    model's loss exceeds the reference's by more than 25 % and three standard errors. Neither model is changed.

    Args:
        reference: a model for the same inputs and targets. None: for causal language models a GPT of about as many parameters
            with fresh weights; a trained model is compared with it in size and speed only.
        data: as for `test_training_beats_baseline`; None: the built-in corpus, for language models.
    """
    budget = budget or Budget()
    chosen = reference is not None
    if reference is None and not (
        found.over_tokens and found.output == "tokens" and found.causal and found.scores_vocabulary
    ):
        return CheckResult(
            NAME,
            "not run",
            "There is no built-in reference for this kind of model.",
            remedy="Give reference=another_model.",
        )
    other = reference if chosen else _gpt_like(found)
    twin = _as_probe(found, other)
    if isinstance(twin, CheckResult):
        return twin
    measured: dict[str, Any] = {
        "reference": type(other).__name__, "parameters": _count(found.model), "reference_parameters": _count(other),
        "device": str(found.device),
    }  # fmt: skip
    measured |= _speeds(found, twin, repetitions)
    fresh = is_untrained(found.model) and is_untrained(other)
    findings: list[Finding] = []
    thresholds: dict[str, float] = {}
    loss = "their losses are not compared: one of them is trained and the other is not."
    if fresh or (chosen and not is_untrained(found.model) and not is_untrained(other)):
        try:
            prepared = data_for(found, data, train=fresh)
            pair = _losses(found, other, prepared, steps if fresh else 0, batch_size, budget)
        except DATA_ERRORS as error:
            loss = f"their losses were not compared: {error}."
        else:
            loss, findings = _judged(*pair, prepared, steps if fresh else 0, measured, thresholds)
    summary = (
        f"{measured['parameters']:,} parameters against {measured['reference_parameters']:,} ({measured['reference']}); "
        f"{measured['training_speed_ratio']:.2f} times its training speed, {measured['forward_speed_ratio']:.2f} times its "
        f"inference speed; {loss}"
    )
    return CheckResult(NAME, "pass", summary, measured, thresholds).with_findings(findings, {})


def _gpt_like(found: Probe) -> nn.Module:
    """A GPT with the model's vocabulary and length and about as many parameters."""
    from utils.models import ModelRegistry

    assert found.vocab_size is not None
    # Parameters are 12 L d^2 + (V + T) d, so this is the positive root.
    a, b = 12 * _LAYERS, found.vocab_size + found.max_length
    width = (-b + math.sqrt(b * b + 4 * a * _count(found.model))) / (2 * a)
    width = max(_HEADS * 2, round(width / _HEADS) * _HEADS)
    made: nn.Module = ModelRegistry.create(
        "gpt-small",
        vocab_size=found.vocab_size,
        max_seq_len=found.max_length,
        n_layer=_LAYERS,
        n_head=_HEADS,
        n_embd=width,
    )
    return made.to(found.device)


def _as_probe(found: Probe, other: Any) -> Probe | CheckResult:
    """The reference with the model's inputs, or the reason why they cannot be compared."""
    try:
        known = probe(other, None, found.task_spec, found.tokenizer)
    except CannotProbeError as error:
        return CheckResult(NAME, "not run", f"The reference cannot be called: {error}.", remedy=str(error))
    kinds = [(one.over_tokens, one.output, one.image_shape, one.feature_shape) for one in (found, known)]
    if kinds[0] != kinds[1]:
        return CheckResult(
            NAME, "not run", "The reference takes other inputs or gives other outputs than the model.",
            remedy="Give a reference for the same task.",
        )  # fmt: skip
    return known


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _speeds(found: Probe, twin: Probe, repetitions: int) -> dict[str, float]:
    """Rows (tokens, for models over tokens) a second of both, forward and forward with backward."""
    sizes = [one.vocab_size for one in (found, twin) if one.vocab_size is not None]
    length = min(found.max_length, twin.max_length, _LENGTH)
    batch = (replace(found, vocab_size=min(sizes)) if sizes else found).batch(_ROWS, length, seed=23)
    models = [copy.deepcopy(one.model).to(found.device) for one in (found, twin)]
    calls = [ModelCall(model) for model in models]
    units = _ROWS * (length if found.over_tokens else 1)
    measured: dict[str, float] = {}
    for kind in ("forward", "training"):
        times: list[list[float]] = [[], []]
        for repetition in range(max(1, repetitions) + 1):
            for known, model, call in zip(times, models, calls, strict=True):
                model.train(kind == "training")
                began = time.perf_counter()
                _pass(call, batch, kind == "training")
                if found.device.type == "cuda":
                    torch.cuda.synchronize(found.device)
                if repetition:  # the first warms up
                    known.append(max(time.perf_counter() - began, 1e-9))
        own, others = (units / statistics.median(known) for known in times)
        unit = "tokens" if found.over_tokens else "samples"
        measured |= {
            f"{kind}_{unit}_per_s": own, f"reference_{kind}_{unit}_per_s": others, f"{kind}_speed_ratio": own / others,
        }  # fmt: skip
    return measured


def _pass(call: ModelCall, batch: dict[str, Tensor], backward: bool) -> None:
    trains = backward and any(parameter.requires_grad for parameter in call.model.parameters())
    with torch.set_grad_enabled(trains):
        logits = call(batch)
        if trains:
            logits.float().square().mean().backward()  # type: ignore[no-untyped-call]


def _losses(
    found: Probe, other: nn.Module, data: CheckData, steps: int, batch_size: int, budget: Budget
) -> tuple[Tensor, Tensor]:
    """Errors of both on every held-out target, after the same training if `steps` is not 0."""
    models: list[nn.Module] = [found.model, other]
    if steps:
        expected = sum(seconds_per_step(found, data, batch_size, model) for model in models) * steps
        log.info("Reference comparison: %d steps of both models on %s, about %.0f s.", steps, data.source, expected)
        half = replace(budget, deadline=(time.monotonic() + budget.deadline) / 2)
        first = train_copy(found, data, steps=steps, batch_size=batch_size, learning_rate=FRESH_RATE, budget=half)
        second = train_copy(
            found,
            data,
            steps=max(1, first.steps),
            batch_size=batch_size,
            learning_rate=FRESH_RATE,
            budget=budget,
            model=other,
        )
        models = [first.model, second.model]
    first_errors, second_errors = (held_out_errors(list(scored(model, data)), data)[0] for model in models)
    return first_errors, second_errors


def _judged(
    errors: Tensor,
    reference: Tensor,
    data: CheckData,
    steps: int,
    measured: dict[str, Any],
    thresholds: dict[str, float],
) -> tuple[str, list[Finding]]:
    own = float(errors.mean())
    others = max(float(reference.mean()), _LEAST_ERROR)
    difference = errors - reference if len(errors) == len(reference) else torch.zeros(0)
    error = float(difference.std()) / math.sqrt(len(difference)) if len(difference) > 1 else math.inf
    measured |= {
        "loss": own,
        "reference_loss": others,
        "lag": (own - others) / others,
        "metric": metric_of(data),
        "standard_error": error,
        "steps": steps,
    }
    after = f"after {steps} steps" if steps else "as they are"
    text = f"held-out {metric_of(data)} {own:.4g} against {others:.4g} {after} on {data.source}."
    thresholds["lag"] = max(LARGEST_LAG, _SIGMAS * error / others)
    if measured["lag"] > thresholds["lag"]:
        return text, [
            Finding(
                "behind the reference", "warn", f"The model is worse than the reference: {text}",
                "Compare learning rates with the hyper-parameter search, then look at initialisation and gradient flow.",
            )
        ]  # fmt: skip
    return text, []
