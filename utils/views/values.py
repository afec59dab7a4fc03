"""Measured values and their limits as rows of text. Takes plain data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Metrics of a validation that say more than its loss, of which the highest is the best, and their names on screens.
SCORES: Mapping[str, str] = {"accuracy": "accuracy", "r2": "R\N{SUPERSCRIPT TWO}"}


def score_in(row: Mapping[str, Any]) -> str | None:
    """The score of `SCORES` that a validation's row has; None of a language model, which is judged by its perplexity."""
    return None if "val/perplexity" in row else next((name for name in SCORES if f"val/{name}" in row), None)


def score_text(name: str | None, value: float | None) -> str:
    """A score in words, such as "87.5%" for an accuracy; a dash where it is not known."""
    return "\N{EN DASH}" if value is None else f"{value:.1%}" if name == "accuracy" else f"{value:.3f}"


def score_card(name: str, newest: float | None, best: float, more: str = "") -> dict[str, str]:
    """A score as an entry of `number_cards`: the newest value, with the best one and `more` in the note."""
    notes = [f"best {score_text(name, best)}", *([more] if more else [])]
    return {f"validation {SCORES[name]}": f"{score_text(name, newest)} ({', '.join(notes)})"}


@dataclass(frozen=True)
class ValueRow:
    """A measured value as text.

    Attributes:
        name, value: what was measured; the value is empty where the limit stands for several values.
        limit, source: what it is compared with and where that comes from; empty where it is not compared.
        outside: whether the value is beyond its limit.
    """

    name: str
    value: str
    limit: str = ""
    source: str = ""
    outside: bool = False


@dataclass(frozen=True)
class Bounds:
    """A limit of a value.

    Attributes:
        name: of the value, or a description of several, which has a space in it.
        at_least, at_most: None: no bound on that side.
        source: where the limit comes from.
        other: a limit of another kind, shown as it is.
    """

    name: str
    at_least: Any = None
    at_most: Any = None
    source: str = ""
    other: Any = None

    def excludes(self, value: Any) -> bool:
        """Whether a number is beyond a bound; NaN is beyond every one."""
        if not _is_number(value):
            return False
        above = _is_number(self.at_least) and not value >= self.at_least
        return above or (_is_number(self.at_most) and not value <= self.at_most)

    @property
    def in_words(self) -> str:
        """Such as "at most 0.05" or "0.001 to 1,000"."""
        if self.at_least is None and self.at_most is None:
            return value_text(self.other)
        if self.at_least is not None and self.at_most is not None:
            return f"{value_text(self.at_least)} to {value_text(self.at_most)}"
        return (
            f"at least {value_text(self.at_least)}"
            if self.at_least is not None
            else f"at most {value_text(self.at_most)}"
        )


_UNITS = {"mib": "MiB", "ms": "ms", "s": "s", "nats": "nats", "rms": "RMS"}
# Longest list that is written out.
_WRITTEN_OUT = 4


def value_rows(measured: Mapping[str, Any], limits: Sequence[Bounds]) -> tuple[ValueRow, ...]:
    """Values that have a limit first, then limits that stand for several values, then the other values.

    Args:
        measured: values by name; nested mappings become one row per entry, empty ones are left out.
        limits: one for a name that was not measured is left out; a description is kept.
    """
    values = dict(_flat(measured))
    compared, shown = [], set()
    for limit in limits:
        matching = [key for key in values if key == limit.name or key.startswith(f"{limit.name} of ")]
        for key in matching:
            outside = limit.excludes(values[key])
            compared.append(ValueRow(label(key), value_text(values[key]), limit.in_words, limit.source, outside))
        shown.update(matching)
        if not matching and " " in limit.name:
            compared.append(ValueRow(label(limit.name), "", limit.in_words, limit.source))
    others = (ValueRow(label(name), value_text(value)) for name, value in values.items() if name not in shown)
    return (*compared, *others)


def value_text(value: Any) -> str:
    """A value as a person reads it: three digits, thousands apart, long lists by their range."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if math.isfinite(value) and 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    if isinstance(value, (list, tuple)):
        return _list_text(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {value_text(one)}" for name, one in value.items())
    return "not known" if value is None else str(value)


def size_text(size_bytes: int) -> str:
    """Bytes in decimal units: "812 B", "4.2 kB", "1.3 MB", "2.0 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= size:
            return f"{size_bytes / size:.1f} {unit}"
    return f"{size_bytes} B"


def label(name: str) -> str:
    """The name of a value as a person reads it, with its unit in parentheses: "total_mib" is "total (MiB)"."""
    words = name if " " in name and "_" not in name else name.replace("_", " ")
    unit = re.search(r" (mib|ms|s|nats|rms)$", words)
    return words if unit is None else f"{words[: unit.start()]} ({_UNITS[unit[1]]})"


def _flat(measured: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in measured.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} / ")
        elif value is not None and not (isinstance(value, (list, tuple, str)) and not value):
            yield f"{prefix}{name}", value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _list_text(values: Sequence[Any]) -> str:
    if len(values) <= _WRITTEN_OUT:
        return ", ".join(value_text(value) for value in values)
    numbers = list(_numbers(values))
    if numbers:
        return f"{len(numbers):,} values, {value_text(min(numbers))} to {value_text(max(numbers))}"
    first = ", ".join(value_text(value) for value in values[:_WRITTEN_OUT])
    return f"{first} and {len(values) - _WRITTEN_OUT:,} more"


def _numbers(values: Sequence[Any]) -> Iterator[float]:
    """The numbers in nested lists of nothing but numbers; nothing when there is anything else."""
    found: list[float] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            found += _numbers(value)
        elif _is_number(value):
            found.append(value)
        else:
            return
    yield from found
