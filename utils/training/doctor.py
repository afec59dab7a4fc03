"""diagnose: what is wrong with a run, in plain words, with the evidence and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.check_result import CheckReport, CheckResult, Finding
from utils.errors import DataTypeError
from utils.storage import absolute_path
from utils.training.diagnosis.record import RunRecord
from utils.training.diagnosis.rules import Outcome, run_rules
from utils.training.diagnosis.watch import DoctorCallback

__all__ = ["Diagnosis", "DoctorCallback", "diagnose"]


class Diagnosis(CheckReport):
    """Results of every rule for one run: a `CheckReport`, with findings first. A rule that could not run is no failure
    here.

    Attributes:
        run_name: name of the run.
    """

    def __init__(self, run_name: str, outcomes: list[Outcome]) -> None:
        self.run_name = run_name
        super().__init__(f"Diagnosis of {run_name}", [_result(outcome) for outcome in outcomes])

    @property
    def findings(self) -> tuple[CheckResult, ...]:
        """The rules that found something, failures first."""
        return tuple(result for result in self.results if result.verdict in ("warn", "fail"))

    @property
    def passed(self) -> bool:
        """Whether no rule found anything."""
        return not self.findings

    @property
    def conclusion(self) -> str:
        """One sentence: how many findings there are, and how many rules had enough evidence."""
        ran = sum(result.verdict != "not run" for result in self.results)
        rest = len(self.results) - ran
        found = len(self.findings)
        headline = "No findings" if not found else f"{found} finding{'s' if found > 1 else ''}"
        return f"{headline}: {ran} rules checked, {rest} not run"


def _result(outcome: Outcome) -> CheckResult:
    findings: tuple[Finding, ...] = ()
    if outcome.verdict == "warn" or outcome.verdict == "fail":
        findings = (Finding(outcome.rule, outcome.verdict, outcome.summary, outcome.remedy),)
    return CheckResult(
        outcome.rule, outcome.verdict, outcome.summary, outcome.measured, outcome.thresholds, outcome.remedy,
        findings=findings,
    )  # fmt: skip


def diagnose(run: Any, *, data: Any = None) -> Diagnosis:
    """Judge a run by its history, gradients, settings and data.

    Args:
        run: results of a training, a Trainer (also during its run), a run's folder, or the name of a run in `runs/`.
        data: the PreparedData that was trained on; its report's unigram loss is then used instead of one measured on a sample.
    Returns:
        a report with one result for each rule: `.findings`, `.show()`, `.to_json()`, `.to_html()`.
    Raises:
        DataTypeError: `run` is not one of these. DataNotFoundError: there is no run in the folder.
        ConfigError: its config.yaml cannot be read.
    """
    report = getattr(data, "report", data)
    unigram = getattr(report, "unigram_loss", None)
    folder = _folder(run)
    state = getattr(run, "state", None)
    running = state is not None and not hasattr(run, "final_loss") and state.stop_reason is None
    record = RunRecord.read(folder, running=running, unigram=unigram)
    if state is not None and getattr(state, "stop_reason", None) is not None:
        record.state = {**record.state, "stop_reason": state.stop_reason}
    return Diagnosis(record.name, run_rules(record))


def _folder(run: Any) -> Path:
    """The folder that `run` means."""
    if isinstance(run, (str, Path)):
        path = absolute_path(run)
        named = absolute_path(Path("runs") / run)
        return named if not path.is_dir() and named.is_dir() else path
    found = run.get("run_dir") if isinstance(run, Mapping) else getattr(run, "run_dir", None)
    if found is None:
        raise DataTypeError(
            "diagnose takes results, a Trainer that has trained, or a run's folder or name; got a "
            f"{type(run).__name__} without a "
            "run_dir."
        )
    return Path(found)
