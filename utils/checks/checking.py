"""`check` makes a documented check of a function: it never raises for a model that does not work."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from utils.check_result import CheckResult, Finding, Limit
from utils.checks.limits import limits_of
from utils.checks.probe import CannotProbeError, Probe, left_as_it_was, probe
from utils.checks.running_statistics import settled
from utils.errors import ModelError, first_line

Check = Callable[..., CheckResult]

#: Looks for one kind of problem: yields findings, and adds what it measured to the mapping.
Detector = Callable[[Probe, dict[str, Any]], Iterable[Finding]]


def check(name: str, detectors: Sequence[Detector] = (), limits: Sequence[Limit] = ()) -> Callable[[Check], Check]:
    """Make a documented check of a function (probe, **options) -> CheckResult.

    The check takes (model, config=None, *, task_spec=None, tokenizer=None, **options). It never raises for a model
    that does not work: that is a "fail" with the error in one line; one whose inputs are not known is "not run".

    Args:
        detectors: each is run after the function, and adds its findings to the result. One that raises ends nothing: the
            others still run, and `measured["not run"]` has its error, unless the check has already reported the same one.
    """

    def decorate(function: Check) -> Check:
        @functools.wraps(function)
        def run(
            model: Any, config: Any = None, *, task_spec: Any = None, tokenizer: Any = None, **options: Any
        ) -> CheckResult:
            try:
                found = replace(probe(model, config, task_spec, tokenizer), task_spec=task_spec)
            except CannotProbeError as error:
                return CheckResult(name, "not run", f"Nothing was checked: {error}.", remedy=str(error))
            with settled(found):
                result = _first_result(name, function, found, options)
                findings, measured = _detect(found, detectors, result.summary)
            result = result.with_findings(findings, measured)
            return replace(result, limits=limits_of(limits, result.thresholds))

        del run.__wrapped__  # its signature is run's own
        run.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it by its name
        return run

    return decorate


def _first_result(name: str, function: Check, found: Probe, options: dict[str, Any]) -> CheckResult:
    try:
        with left_as_it_was(found.model):
            return function(found, **options)
    except ModelError as error:  # raised by whoever reads the model's outputs, not by the model
        return CheckResult(
            name, "fail", str(error),
            remedy="Change what forward takes or returns; a transformers model needs a head (…ForCausalLM).",
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - the check reports any error of the model
        return CheckResult(
            name, "fail", f"The model raised {first_line(error, with_class=True)}",
            remedy=f"Call the model on {_described(found)} yourself to see the whole error.",
        )  # fmt: skip


def _detect(found: Probe, detectors: Sequence[Detector], reported: str) -> tuple[list[Finding], dict[str, Any]]:
    """Findings and measurements of every detector that could run."""
    findings: list[Finding] = []
    measured: dict[str, Any] = {}
    not_run: dict[str, str] = {}
    for detector in detectors:
        try:
            with left_as_it_was(found.model), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a probe calls the model in ways that its author may comment on
                findings += detector(found, measured)
        except Exception as error:  # noqa: BLE001 - one probe that cannot run must not end the others
            if (text := first_line(error)) not in reported and text not in not_run.values():
                not_run[detector.__name__.lstrip("_")] = text
    return findings, {**measured, **({"not run": not_run} if not_run else {})}


def _described(found: Probe) -> str:
    if found.feature_shape is not None:
        return f"numbers of shape (2, {', '.join(map(str, found.feature_shape))})"
    if found.image_shape is not None:
        return f"pixel_values of shape (2, {', '.join(map(str, found.image_shape))})"
    return f"input_ids of shape (2, {min(16, found.max_length)}) below {found.vocab_size}"
