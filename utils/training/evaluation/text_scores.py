"""Scores of texts against expected ones, by the libraries that the field reports them with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from utils.errors import ConfigError, MissingPackageError
from utils.schema import nearest, shown


@dataclass(frozen=True)
class Scores:
    """A metric over all texts.

    Attributes:
        value: over all texts, in the metric's own unit.
        each: of each text; None where the metric has no value for a single text.
        signature: how it was computed, so that others can compute the same.
    """

    value: float
    each: list[float] | None
    signature: str


Scorer = Callable[[Sequence[str], Sequence[str]], Scores]


def _exact_match() -> Scorer:
    def score(written: Sequence[str], expected: Sequence[str]) -> Scores:
        each = [float(one.strip() == other.strip()) for one, other in zip(written, expected, strict=True)]
        return Scores(sum(each) / len(each), each, "equal texts, white space at the two ends aside")

    return score


def _rouge_l() -> Scorer:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingPackageError("rouge-score", "to compute ROUGE-L", "eval") from error
    scorer = RougeScorer(["rougeL"])

    def score(written: Sequence[str], expected: Sequence[str]) -> Scores:
        each = [
            float(scorer.score(other, one)["rougeL"].fmeasure) for one, other in zip(written, expected, strict=True)
        ]
        signature = f"rougeL|fmeasure|mean|use_stemmer:no|rouge-score:{version('rouge-score')}"
        return Scores(sum(each) / len(each), each, signature)

    return score


def _sacrebleu(name: str) -> Scorer:
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise MissingPackageError("sacrebleu", "to compute chrF and BLEU", "eval") from error
    metric: Any = BLEU() if name == "BLEU" else CHRF()
    # The BLEU of a single text is 0 as soon as one of its n-grams is missing: it is made for many.
    by_text = None if name == "BLEU" else metric.sentence_score

    def score(written: Sequence[str], expected: Sequence[str]) -> Scores:
        value = float(metric.corpus_score(list(written), [list(expected)]).score)
        pairs = zip(written, expected, strict=True)
        each = None if by_text is None else [float(by_text(one, [other]).score) for one, other in pairs]
        return Scores(value, each, f"{name}|{metric.get_signature()}")

    return score


_METRICS: dict[str, Callable[[], Scorer]] = {
    "exact_match": _exact_match,
    "rouge_l": _rouge_l,
    "chrf": lambda: _sacrebleu("chrF"),
    "bleu": lambda: _sacrebleu("BLEU"),
}
#: The metrics of generated text, by name.
METRICS = tuple(_METRICS)


def make_scorers(names: Sequence[str]) -> dict[str, Scorer]:
    """The metrics of these names.

    Raises:
        ConfigError: there is no such metric; MissingPackageError: its package is not installed.
    """
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        if name not in METRICS:
            guess = nearest(str(name), METRICS)
            hint = f"; did you mean {guess!r}?" if guess else ""
            raise ConfigError(f"metrics: got {shown(name)}; there are {', '.join(METRICS)}{hint}")
    return {name: _METRICS[name]() for name in names}
