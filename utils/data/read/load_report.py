"""LoadReport: what was read and what was left out, in numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class LoadReport:
    """Counts of the rows of a source: kept, dropped, changed.

    Attributes:
        source: what was read.
        text_column: the column with the text.
        num_rows: rows that were read.
        num_kept: those that are in the dataset.
        num_without_text: left out, because they hold no visible character.
        num_too_short, num_too_long: left out, by `min_length` and `max_length`, in characters.
        num_duplicates: left out, because the same text came before.
        num_bad_lines: lines that are no record, left out by `on_bad_line="skip"`; they are not among `num_rows`.
        bad_lines: what was wrong with the first of them.
        notes: what else the user should know, one sentence each.
    """

    source: str
    text_column: str = "text"
    num_rows: int = 0
    num_kept: int = 0
    num_without_text: int = 0
    num_too_short: int = 0
    num_too_long: int = 0
    num_duplicates: int = 0
    num_bad_lines: int = 0
    bad_lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def dropped(self) -> dict[str, int]:
        """Number of dropped rows by reason, zeros left out."""
        counts = {
            "without text": self.num_without_text,
            "too short": self.num_too_short,
            "too long": self.num_too_long,
            "duplicates": self.num_duplicates,
            "lines that are no record": self.num_bad_lines,
        }
        return {reason: count for reason, count in counts.items() if count}

    @property
    def sentence(self) -> str:
        """The dropped rows in one sentence, or ""."""
        parts = [f"{count:,} {reason}" for reason, count in self.dropped.items()]
        return f"{self.num_kept:,} of {self.num_rows:,} rows were kept; left out: {', '.join(parts)}." if parts else ""

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; `LoadReport(**values)` is equal."""
        return dataclasses.asdict(self)

    def rows(self) -> Mapping[str, str]:
        """Label -> value, as shown."""
        rows = {
            "Source": self.source,
            "Text column": self.text_column,
            "Rows": f"{self.num_kept:,} of {self.num_rows:,} kept",
        }
        left_out = [f"{count:,} {reason}" for reason, count in self.dropped.items()]
        if left_out:
            rows["Left out"] = "\n".join([*left_out, *self.bad_lines])
        return {**rows, "Notes": "\n".join(self.notes)} if self.notes else rows

    def __str__(self) -> str:
        from utils.views.tables import summary_text

        return summary_text("Loaded data", self.rows())

    def show(self) -> None:
        """Show it: a table in a notebook, text elsewhere."""
        from utils.views.display import show_table

        show_table("Loaded data", self.rows())
