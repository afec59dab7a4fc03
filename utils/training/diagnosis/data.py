"""Rules about what the model answers and what its loss is made of."""

from __future__ import annotations

import math

from utils.training.diagnosis.record import RunRecord
from utils.training.diagnosis.rules import Outcome, found, passed, rule, unknown

#: Standard deviation of the outputs relative to that of the targets, below which they are one number.
CONSTANT = 1e-3


@rule(
    "constant predictions",
    sees="The model answers the same for every input.",
    threshold="one class for every sample of the last two validations (or epochs) although there are several, or "
    "outputs that vary "
    "by less than 0.1 % of the targets' standard deviation",
    source="an answer that does not depend on the input holds no information about it",
)
def constant_predictions(run: RunRecord) -> Outcome:
    if run.judged:
        return unknown(run.judged)
    rows = (run.counts("val") or run.counts("train"))[-2:]
    if not rows:
        return unknown("predictions were not recorded")
    classes = [row for row in rows if "top_prediction" in row]
    if classes and len(classes) == len(rows):
        last = classes[-1]
        measured = {
            "top_prediction": last["top_prediction"],
            "majority": last.get("majority"),
            "classes": last.get("classes"),
        }
        if last.get("classes", 0) < 2 or last["targets"] < 20:
            return unknown("the samples that were scored have only one class, or are fewer than 20")
        if any(row["top_prediction"] < 1 for row in classes):
            return passed(f"{last['classes_predicted']} of {last['classes']} classes are predicted.", **measured)
        rare = last.get("majority", 0.0) > 0.8
        return found(
            f"Every one of {last['targets']} samples gets the same class; {last['majority']:.0%} have it.",
            "The classes are unbalanced: judge by f1_macro, and weight or resample them." if rare else
            "Look at the scores: a softmax over one unit, a ReLU on the scores, dead hidden units or a "
            "learning rate that is far "
            "too high make them independent of the input.",
            measured, {"share": 1.0},
        )  # fmt: skip
    spreads = [row["output_variance"] for row in rows if row.get("output_variance") is not None]
    if len(spreads) < len(rows) or min(run.facts.get("batch_size") or 1, rows[-1]["targets"]) < 2:
        return unknown("outputs were not recorded, or batches have one sample")
    guess = run.guess
    targets = guess.loss if run.task == "regression" and guess is not None else 1.0
    if guess is not None and guess.loss <= 0:
        return unknown("all targets are the same")
    measured = {"output_deviation": math.sqrt(max(spreads)), "target_deviation": math.sqrt(targets)}
    if max(spreads) >= CONSTANT**2 * targets if run.task == "regression" else max(spreads) > 0:
        return passed("Outputs differ from input to input.", **measured)
    return found(
        "The output is the same for every input"
        + (f" (standard deviation {math.sqrt(max(spreads)):.2g}; targets: {math.sqrt(targets):.3g})." if run.task else "."),
        "Look at the last layers: a softmax over one unit is always 1 (use a sigmoid, or no activation for "
        "amounts), a ReLU at "
        "the end or dead units give 0; targets far from the outputs' scale must be standardised.",
        measured, {"relative_deviation": CONSTANT}, verdict="fail",
    )  # fmt: skip


@rule(
    "monitored metric",
    sees="The metric that decides what is best is never computed.",
    threshold="no validation (or epoch) has it",
    source="best checkpoint and early stopping follow it",
    live=False,
)
def monitored_metric(run: RunRecord) -> Outcome:
    monitor = run.config.monitor
    rows = run.epochs if monitor.startswith("train/") else run.validations
    if not rows:
        return unknown("there is no row that could have it")
    have = sum(row.get(monitor) is not None for row in rows)
    if have:
        return passed(f"{monitor} was computed {have} times.", rows=have)
    there = sorted(name for name in rows[-1] if name.startswith(("train/", "val/")))
    return found(
        f"monitor={monitor!r} was never computed; {run.task or 'the criterion'} has {', '.join(there)}.",
        f"Set monitor={there[0]!r}." if there else "Set monitor to a metric that the task has.", {"rows": 0},
        verdict="fail",
    )  # fmt: skip
