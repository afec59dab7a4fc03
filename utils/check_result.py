"""Outcome of a check, CheckResult, and of several, CheckReport."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from utils.errors import ConfigError
from utils.storage import atomic_write
from utils.views.display import show_html
from utils.views.html import Html
from utils.views.report import Details, Row, page, report_html, report_text
from utils.views.values import Bounds, value_rows

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Verdict = Literal["pass", "warn", "fail", "not run"]


@dataclass(frozen=True)
class Finding:
    """One problem that a check reports.

    Attributes:
        cause: short, stable key of the kind of problem, such as "causality" or "padding".
        verdict: "fail" for what makes training or inference wrong, "warn" for what is probably unintended.
        summary: one sentence with the measured numbers.
        remedy: what to do.
    """

    cause: str
    verdict: Literal["warn", "fail"]
    summary: str
    remedy: str


@dataclass(frozen=True)
class Limit:
    """A limit that a measured value is compared with.

    Attributes:
        measured: key of the value in `CheckResult.measured`, or a description where no single value is kept.
        at_least, at_most: the bounds; None: no bound on that side; a text: the threshold of that name.
        source: where the limit comes from: a publication, arithmetic, or a choice of this project.
    """

    measured: str
    at_least: float | str | None = None
    at_most: float | str | None = None
    source: str = ""


@dataclass(frozen=True)
class CheckResult:
    """One check's outcome.

    Attributes:
        name: of the check.
        verdict: the worst of its findings; "not run" is not a pass: nothing is known about the model.
        summary: one sentence with the numbers that matter; with several findings, one sentence for each.
        measured: the numbers themselves, plain values with units in their names.
        thresholds: what they were compared with.
        remedy: what to do; empty for a pass.
        figure: a picture of what was measured, or None.
        findings: the problems, failures first; empty for a pass.
        limits: what the measured values were compared with, and where each limit comes from.
    Raises:
        ValueError: "not run" without a reason in `summary`.
    """

    name: str
    verdict: Verdict
    summary: str
    measured: Mapping[str, Any] = field(default_factory=dict)
    thresholds: Mapping[str, Any] = field(default_factory=dict)
    remedy: str = ""
    figure: Figure | None = field(default=None, compare=False, repr=False)
    findings: tuple[Finding, ...] = ()
    limits: tuple[Limit, ...] = ()

    def __post_init__(self) -> None:
        if self.verdict == "not run" and not self.summary.strip():
            raise ValueError(f"{self.name}: a check that was not run states its reason in `summary`")

    def with_findings(self, more: Sequence[Finding], measured: Mapping[str, Any]) -> CheckResult:
        """This result with further findings and measurements; the verdict and the texts are those of all findings."""
        findings = list(self.findings)
        if not findings and self.verdict in ("warn", "fail"):
            findings = [Finding(self.name, "fail" if self.verdict == "fail" else "warn", self.summary, self.remedy)]
        findings = sorted([*findings, *more], key=lambda finding: finding.verdict != "fail")
        merged = {**self.measured, **measured}
        if not findings or self.verdict == "not run":
            return replace(self, measured=merged)
        return replace(
            self,
            verdict=findings[0].verdict,
            summary=" ".join(finding.summary for finding in findings),
            remedy=" ".join(dict.fromkeys(finding.remedy for finding in findings if finding.remedy)),
            measured=merged,
            findings=tuple(findings),
        )

    @property
    def passed(self) -> bool:
        """Whether the check ran and found nothing that stands in the way; a warning is no failure."""
        return self.verdict in ("pass", "warn")

    def to_dict(self) -> dict[str, Any]:
        """Everything but the figure, as plain values; numbers that are not finite as text."""
        found: dict[str, Any] = _plain(
            {
                "name": self.name,
                "verdict": self.verdict,
                "summary": self.summary,
                "measured": self.measured,
                "thresholds": self.thresholds,
                "remedy": self.remedy,
                "findings": [vars(finding) for finding in self.findings],
                "limits": [vars(limit) for limit in self.limits],
            }
        )
        return found

    def show(self) -> None:
        """Show it, as `CheckReport.show` does."""
        CheckReport(self.name, [self]).show()


class CheckReport(Mapping[str, CheckResult]):
    """Several checks of one model, in order. `report["shapes"]` and `report[0]` are results; iterating gives the names.

    Args:
        title: what was checked.
        results: in the order of the report.
        seconds: how long it took; None: not measured.
        stopped: whether somebody ended the checks early.
    """

    def __init__(
        self, title: str, results: Sequence[CheckResult], seconds: float | None = None, stopped: bool = False
    ) -> None:
        self.title, self.results, self.seconds, self.stopped = title, tuple(results), seconds, stopped

    @property
    def passed(self) -> bool:
        """Whether every check ran and none failed. An empty report has not passed."""
        return bool(self.results) and all(result.passed for result in self.results)

    @property
    def conclusion(self) -> str:
        """One sentence: how many checks came out how."""
        counts: dict[str, int] = dict.fromkeys(("pass", "warn", "fail", "not run"), 0)
        for result in self.results:
            counts[result.verdict] += 1
        listed = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
        return f"{'Passed' if self.passed else 'Not passed'}: {listed or 'no check'}"

    def __getitem__(self, name: str | int) -> CheckResult:
        if isinstance(name, int):
            return self.results[name]
        for result in self.results:
            if result.name == name:
                return result
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (result.name for result in self.results)

    def __len__(self) -> int:
        return len(self.results)

    def __repr__(self) -> str:
        return f"CheckReport({self.title}: {self.conclusion})"

    def to_frame(self) -> pd.DataFrame:
        """One row per check: check, verdict, summary, remedy, measured, thresholds."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "check": r.name,
                    "verdict": r.verdict,
                    "summary": r.summary,
                    "remedy": r.remedy,
                    "measured": dict(r.measured),
                    "thresholds": dict(r.thresholds),
                }
                for r in self.results
            ]
        )

    def to_json(self) -> str:
        """Title, conclusion and every result as strict JSON."""
        content = {
            "title": self.title,
            "passed": self.passed,
            "conclusion": self.conclusion,
            "seconds": self.seconds,
            "results": [result.to_dict() for result in self.results],
        }
        return json.dumps(content, indent=2, allow_nan=False)

    def to_html(self) -> Html:
        """The report as self-contained markup without script, readable on light and dark pages; all text is escaped.

        Every check has its verdict as an icon and a word, its findings with their remedies, and the measured values with
        their limits and the limits' sources. Where something is wrong, values and picture are visible at once.
        """
        pictures = {result.name: result.figure for result in self.results if result.figure is not None}
        details = {result.name: _details(result) for result in self.results}
        return report_html(self.title, self._rows(), pictures, details, self.seconds)

    def to_page(self) -> str:
        """The text of an HTML file with the report."""
        return page(self.title, self.to_html())

    def save(self, path: str | Path) -> Path:
        """Write the report to an .html or .json file. A crash leaves the old file or the new one.

        Raises:
            ConfigError: another suffix.
        Returns:
            The absolute path.
        """
        path = Path(path)
        if path.suffix not in (".html", ".htm", ".json"):
            raise ConfigError(f"A report is saved as .html or .json; got {path.name!r}.")
        content = (self.to_json() if path.suffix == ".json" else self.to_page()).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        return atomic_write(path, lambda file: file.write(content)).resolve()

    def show(self) -> None:
        """Show the report: a table in a notebook, text elsewhere."""
        show_html(self.to_html(), self.to_text())

    def to_text(self) -> str:
        """The report for a terminal."""
        return report_text(f"{self.title}. {self.conclusion}", self._rows())

    def _rows(self) -> list[Row]:
        return [(result.name, result.verdict, result.summary, result.remedy) for result in self.results]


def _details(result: CheckResult) -> Details:
    """Details of a result that a report shows beside its row."""
    measured = dict(result.measured)
    not_run = measured.pop("not run", {})
    tokens = measured.get("tokens"), measured.get("scores")
    coloured: tuple[tuple[str, float], ...] = ()
    if all(isinstance(column, list) for column in tokens) and result.figure is not None:
        coloured = tuple(zip(measured.pop("tokens"), measured.pop("scores"), strict=True))
    limits = [Bounds(limit.measured, limit.at_least, limit.at_most, limit.source) for limit in result.limits]
    if not limits:
        limits = [
            Bounds(name if name in measured else f"threshold {name}", other=value)
            for name, value in result.thresholds.items()
        ]
    return Details(
        findings=tuple((finding.verdict, finding.summary, finding.remedy) for finding in result.findings),
        values=value_rows(measured, limits) if result.verdict != "not run" else (),
        tokens=coloured,
        not_run=not_run if isinstance(not_run, Mapping) else {},
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, int, float)) else str(value)
