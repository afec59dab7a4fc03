"""Figures -> tables -> RESULTS.md. Medians with their quartiles; each command rewrites its own sections only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parent / "RESULTS.md"


@dataclass(frozen=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        low, median, high = np.quantile(np.asarray(values, dtype=float), (0.25, 0.5, 0.75))
        return cls(float(median), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratios(values: Sequence[float], reference: Sequence[float]) -> Spread:
    """The spread of value / reference, round by round: both were measured within moments of each other."""
    return Spread.of([value / other for value, other in zip(values, reference, strict=True)])


@dataclass
class Table:
    """A table of text.

    Attributes:
        passing: columns that hold only on the machine and in the hour they were measured: printed, and kept only for a GPU.
    """

    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    passing: frozenset[str] = frozenset()

    def markdown(self, everything: bool) -> str:
        """The table in Markdown, its columns aligned; `everything`: the passing columns too."""
        shown = [i for i, name in enumerate(self.columns) if everything or name not in self.passing]
        lines = [[row[i] for i in shown] for row in [self.columns, *self.rows]]
        widths = [max(len(line[i]) for line in lines) for i in range(len(shown))]
        texts = [
            "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
        ]
        texts.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        notes = "".join(f"\n\n{note}" for note in self.notes)
        return f"### {self.title}\n\n" + "\n".join(texts) + notes


def write_section(path: Path, heading: str, body: str) -> None:
    """Put `body` under `## heading` in the file: in place of what stood there, or at the end. Nothing else is changed."""
    text = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    section = f"## {heading}\n\n{body.strip()}\n"
    found = re.search(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        text = f"{text.rstrip()}\n\n{section}"
    else:
        rest = text[found.end() :]
        text = text[: found.start()] + section + ("\n" + rest if rest else "")
    path.write_text(text, encoding="utf-8")
