"""Are two datasets of the same kind: training and validation, or last month's and today's?"""

from __future__ import annotations

from typing import Any

from utils.check_result import CheckReport, CheckResult
from utils.checks.data_quality import above, labels_in, texts_in, unit_of
from utils.data.quality.drift import measure_drift
from utils.data.quality.texts import profile_texts
from utils.errors import DataError

#: Distances (see `utils.data.quality.drift.Drift`) from which on a drift is a warning and a failure. Two halves of the lines of
#: one text, divided at random, were 0.01 (characters) to 0.06 (lengths) from each other, 600- and 5,000-word pieces of it 1.0.
WARN, FAIL = 0.2, 0.4

_REMEDIES = {
    "lengths": "Cut or join texts so that both are alike, or choose max_length for the longer ones.",
    "words": "They speak of other things: expect a higher loss there, or train on both.",
    "characters": "Look for another language, markup or encoding in one of them.",
    "labels": "Draw both with the same shares of labels, or weigh the results by label.",
}


def check_drift(
    reference: Any, current: Any, *, text_column: str = "text", label_column: str | None = None, tokenizer: Any = None,
    warn: float = WARN, fail: float = FAIL,
) -> CheckReport:  # fmt: skip
    """Compare two datasets by all of their rows: lengths, words, characters and labels.

    Args:
        reference, current: texts, or Datasets or DataFrames with `text_column` (and `label_column`).
        tokenizer: lengths in tokens; None: in characters.
        warn, fail: Jensen-Shannon distances, 0 (the same) to 1 (nothing in common).
    Raises:
        DataError: one of them has no rows.
    """
    profiles = [
        profile_texts(
            texts_in(data, text_column), labels=labels_in(data, label_column), tokenizer=tokenizer, unit=unit_of(data)
        )
        for data in (reference, current)
    ]
    for name, found in zip(("reference", "current"), profiles, strict=True):
        if found.num_rows == 0:
            raise DataError(f"the {name} dataset has no rows; there is nothing to compare.")
    drift = measure_drift(*profiles)
    results = []
    for name, distance in drift.distances().items():
        verdict = above(distance, warn, fail)
        what = f"lengths ({drift.length_unit})" if name == "lengths" else name
        said = f"The distributions of {what} are {distance:.3f} apart (0: the same, 1: nothing in common)."
        remedy = "" if verdict == "pass" else _REMEDIES[name]
        results.append(
            CheckResult(name, verdict, said, {"js_distance": distance}, {"warn": warn, "fail": fail}, remedy)
        )
    first, second = profiles
    noun = f" {first.unit}s" if first.unit != second.unit else ""
    return CheckReport(f"Drift between {first.num_rows:,}{noun} and {second.num_rows:,} {second.unit}s", results)
