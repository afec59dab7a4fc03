"""Definition of a doctor's rule, and all rules in the order of a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from utils.training.diagnosis.record import RunRecord

Judgement = Literal["pass", "warn", "fail", "not run"]


@dataclass(frozen=True)
class Outcome:
    """Result of a rule for one run.

    Attributes:
        verdict: "not run" where there is too little evidence; then `summary` is the reason.
        summary: the evidence in one or two sentences, with numbers; remedy: what to do; empty without a finding.
        measured: the numbers; thresholds: what they were compared with.
        rule: name of the rule, set by `run_rules`.
    """

    verdict: Judgement
    summary: str
    remedy: str = ""
    measured: Mapping[str, Any] = field(default_factory=dict)
    thresholds: Mapping[str, Any] = field(default_factory=dict)
    rule: str = ""

    @property
    def found(self) -> bool:
        """Whether this is a finding."""
        return self.verdict in ("warn", "fail")


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: of the rule, as findings name it; sees: the fault; threshold: when it is a finding; source: where that is from.
        live: whether it is reported during the run. Rules that only repeat the settings, or that the engine has a notice for,
            are not. at_start: whether it judges the plan alone, and is reported before the first step too.
    """

    name: str
    sees: str
    threshold: str
    source: str
    live: bool
    at_start: bool
    judge: Callable[[RunRecord], Outcome]


RULES: dict[str, Rule] = {}


def rule(
    name: str, *, sees: str, threshold: str, source: str, live: bool = True, at_start: bool = False
) -> Callable[[Callable[[RunRecord], Outcome]], Callable[[RunRecord], Outcome]]:
    """Register a function as a rule."""

    def register(judge: Callable[[RunRecord], Outcome]) -> Callable[[RunRecord], Outcome]:
        RULES[name] = Rule(name, sees, threshold, source, live, at_start, judge)
        return judge

    return register


def passed(summary: str, **measured: Any) -> Outcome:
    """No finding."""
    return Outcome("pass", summary, measured=measured)


def unknown(reason: str) -> Outcome:
    """Too little evidence."""
    return Outcome("not run", reason[:1].upper() + reason[1:].rstrip(".") + ".")


def found(
    summary: str, remedy: str, measured: Mapping[str, Any], thresholds: Mapping[str, Any] | None = None,
    verdict: Literal["warn", "fail"] = "warn",
) -> Outcome:  # fmt: skip
    """A finding."""
    return Outcome(verdict, summary, remedy, measured, thresholds or {})


def run_rules(run: RunRecord, rules: Iterable[Rule] | None = None) -> list[Outcome]:
    """Every rule's outcome, findings first (failures before warnings), rules without evidence last."""
    order = ("fail", "warn", "pass", "not run")
    chosen = all_rules() if rules is None else rules
    outcomes = []
    for one in chosen:
        outcome = one.judge(run)
        outcomes.append(
            Outcome(outcome.verdict, outcome.summary, outcome.remedy, outcome.measured, outcome.thresholds, one.name)
        )
    return sorted(outcomes, key=lambda outcome: order.index(outcome.verdict))


def findings_of(run: RunRecord, *, live: bool = False) -> list[Outcome]:
    """The findings; `live`: only of rules that are reported during a run."""
    return [outcome for outcome in (live_outcomes(run) if live else run_rules(run)) if outcome.found]


def live_outcomes(run: RunRecord, *, starting: bool = False) -> list[Outcome]:
    """Evaluate the rules that are reported during a run; `starting`: only those that judge the plan alone."""
    return run_rules(run, [one for one in all_rules() if one.live and (one.at_start or not starting)])


def all_rules() -> list[Rule]:
    """Every rule, by subject."""
    # Each module registers its rules when it is imported; they import this one.
    from utils.training.diagnosis import cost, data, generalisation, layers, learning, rates, settings

    known = (learning, rates, generalisation, data, layers, settings, cost)
    names = [module.__name__ for module in known]
    return sorted(RULES.values(), key=lambda one: names.index(one.judge.__module__))
