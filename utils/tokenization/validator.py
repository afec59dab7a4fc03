"""TokenizerValidator: whether a tokenizer can be used with a model, and whether it round-trips a text."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from utils.errors import ConfigError, DataTypeError, Problem
from utils.tokenization.adaptive import check_fits, check_ids
from utils.tokenization.fast import special_tokens_of
from utils.tokenization.texts import checked_texts

#: Language -> a sentence that is sent through the tokenizer and back: letters with marks, scripts without spaces, text from
#: right to left, code, symbols beyond 16 bits.
SENTENCES: Mapping[str, str] = {
    "English": "The quick brown fox doesn't jump over 13 lazy dogs; why?",
    "French": "Où est passé l'été ? Ça coûtait 3,50 € à Noël.",
    "Russian": "Съешь же ещё этих мягких французских булок.",
    "Greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "Arabic": "اللغة العربية تُكتب من اليمين إلى اليسار.",
    "Hindi": "सभी मनुष्य जन्म से स्वतंत्र हैं।",
    "Chinese": "敏捷的棕色狐狸跳过了懒狗。",
    "Japanese": "いろはにほへと、東京タワーへ行きました。",
    "Korean": "모든 사람은 자유롭게 태어났다.",
    "code": "def f(x):\n    return x[1:] + 'a\tb'  # done\n",
    "emoji": "Thumbs up 👍🏽, a family 👨‍👩‍👧, done ✅",
}

Level = Literal["error", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing about a tokenizer.

    Attributes:
        check: "vocabulary", "special tokens", "round trip" or "ids".
        level: "error" where it cannot be used; "note" where it can, and the user should know.
        message: what was found, one sentence.
    """

    check: str
    level: Level
    message: str


@dataclass(frozen=True)
class ValidationReport:
    """Every finding about a tokenizer; `passed` when none is an error."""

    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings for which the tokenizer cannot be used."""
        return tuple(finding for finding in self.findings if finding.level == "error")

    @property
    def passed(self) -> bool:
        """Whether it can be used."""
        return not self.errors

    def __str__(self) -> str:
        lines = [f"{finding.level:<5}  {finding.check}: {finding.message}" for finding in self.findings]
        return "\n".join(["The tokenizer can be used." if self.passed else "The tokenizer cannot be used.", *lines])


class TokenizerValidator:
    """Checks a transformers tokenizer against the vocabulary of a model.

    - vocabulary: not larger than the model's (error, with both numbers); a smaller one is allowed and noted.
    - special tokens: each has an id of the vocabulary; what is missing for batches and packing is noted.
    - round trip: real sentences of eleven kinds are encoded and decoded. An unknown token is a note for these, since a
      tokenizer may be made for one script, and an error for `texts`, which it must know. So is a change of case, accents and
      spaces, which BERT's and T5's tokenizers make on purpose. A text that comes back as another one is an error.
    - ids: the tokenizer's highest id and every id that it gave lie in the vocabulary.
    """

    @classmethod
    def validate(
        cls, tokenizer: Any, expected_vocab_size: int, strict: bool = True, *, texts: Iterable[str] = ()
    ) -> bool:
        """Whether the tokenizer can be used.

        Args:
            tokenizer: a transformers tokenizer.
            expected_vocab_size: tokens of the model.
            strict: raise instead of False.
            texts: some of the user's own, which must come back without an unknown token.
        Raises:
            ConfigError: with `strict`, when there is an error; lists every one.
        """
        report = cls.report(tokenizer, expected_vocab_size, texts=texts)
        if strict and not report.passed:
            problems = [Problem(finding.check, finding.message) for finding in report.errors]
            raise ConfigError.from_problems("the tokenizer", problems)
        return report.passed

    @classmethod
    def report(cls, tokenizer: Any, expected_vocab_size: int, *, texts: Iterable[str] = ()) -> ValidationReport:
        """Every finding, notes too. Arguments as `validate`.

        Raises:
            DataTypeError: not a transformers tokenizer, or something else than texts; ConfigError: no number of tokens.
        """
        if not callable(tokenizer) or not hasattr(tokenizer, "decode") or not hasattr(tokenizer, "get_vocab"):
            raise DataTypeError(
                f"got a {type(tokenizer).__name__}; give a transformers tokenizer. "
                "AdaptiveTokenizer.load_or_create(tokenizer=...) makes one of a file or a tokenizers.Tokenizer."
            )
        if isinstance(expected_vocab_size, bool) or not isinstance(expected_vocab_size, int) or expected_vocab_size < 1:
            raise ConfigError(
                f"got expected_vocab_size={expected_vocab_size!r}; give the number of tokens of the model, such as 10000."
            )
        if isinstance(texts, str):
            raise DataTypeError("Expected several texts; got one str. One text is given as [text].")
        trips = [_Trip(tokenizer, what, text) for what, text in SENTENCES.items()]
        own = [_Trip(tokenizer, f"text {number}", text) for number, text in enumerate(checked_texts(texts))]
        return ValidationReport(
            (
                *_vocabulary(tokenizer, expected_vocab_size),
                *_special_tokens(tokenizer),
                *_round_trips(trips, unknown="note"),
                *_round_trips(own, unknown="error"),
                *_ids([*trips, *own], expected_vocab_size),
            )
        )


class _Trip:
    """A text, its ids, and what they are decoded to."""

    def __init__(self, tokenizer: Any, what: str, text: str) -> None:
        self.what, self.text = what, text
        self.ids: list[int] = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        self.unknown = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in self.ids
        self.back: str = tokenizer.decode(self.ids, clean_up_tokenization_spaces=False)

    def result(self) -> Literal["same", "unknown", "folded", "other"]:
        if self.back == self.text:
            return "same"
        if self.unknown:
            return "unknown"
        return "folded" if _folded(self.back) == _folded(self.text) else "other"


def _folded(text: str) -> str:
    """Without case, accents, spaces and control characters, and with one form for what Unicode has several of."""
    letters = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(letter for letter in letters if unicodedata.category(letter)[0] not in "MZC")


def _vocabulary(tokenizer: Any, expected: int) -> list[Finding]:
    try:
        note = check_fits(tokenizer, expected)
        check_ids(tokenizer, expected)
    except ConfigError as error:
        return [Finding("vocabulary", "error", str(error))]
    return [Finding("vocabulary", "note", note)] if note else []


def _special_tokens(tokenizer: Any) -> list[Finding]:
    findings = []
    roles = special_tokens_of(tokenizer)
    vocabulary = tokenizer.get_vocab()
    for role, token in roles.items():
        if token not in vocabulary:
            message = f"{role} is {token!r}, which is not in the vocabulary"
            findings.append(Finding("special tokens", "error", message))
    if "pad_token" not in roles:
        message = "there is no padding token: texts of different lengths make no batch (set tokenizer.pad_token)"
        findings.append(Finding("special tokens", "note", message))
    if not {"eos_token", "sep_token"} & roles.keys():
        message = "there is no end token: packed documents follow each other without a mark between them"
        findings.append(Finding("special tokens", "note", message))
    return findings


def _round_trips(trips: Sequence[_Trip], unknown: Level) -> list[Finding]:
    by_result: dict[str, list[_Trip]] = {}
    for trip in trips:
        by_result.setdefault(trip.result(), []).append(trip)
    findings = []
    if parts := by_result.get("unknown"):
        message = f"characters without a token become unknown in: {_names(parts)}"
        findings.append(Finding("round trip", unknown, message))
    if parts := by_result.get("folded"):
        message = f"case, accents or spaces are changed in: {_names(parts)}"
        findings.append(Finding("round trip", "note", message))
    for trip in by_result.get("other", []):
        message = f"{trip.what}: {trip.text!r} comes back as {trip.back!r}"
        findings.append(Finding("round trip", "error", message))
    if trips and len(by_result.get("unknown", ())) == len(trips) and unknown == "note":
        findings.append(Finding("round trip", "note", "no sentence of any language comes back without unknown tokens"))
    return findings


def _ids(trips: Sequence[_Trip], expected: int) -> list[Finding]:
    ids = [number for trip in trips for number in trip.ids]
    bad = next((number for number in ids if not 0 <= number < expected), None)
    if bad is None:
        return []
    message = f"a text was given the id {bad:,}; the model's vocabulary has ids 0 to {expected - 1:,}"
    return [Finding("ids", "error", message)]


def _names(trips: Sequence[_Trip]) -> str:
    return ", ".join(trip.what for trip in trips)
