"""Filter and clean the texts of a source. Every dropped text is counted."""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING

from utils.data.read.columns import one_text
from utils.data.read.load_report import LoadReport
from utils.errors import ConfigError, DataError, Problem
from utils.schema import shown

if TYPE_CHECKING:
    import pyarrow as pa

# Cache of texts that were seen, KiB; SQLite spills the rest to a temporary file.
_SEEN_CACHE_KIB = 1 << 16


@dataclass(frozen=True)
class TextRules:
    """Rules for filtering and cleaning texts.

    Attributes:
        strip: strip leading and trailing white space. Nothing else is changed in any text.
        min_length, max_length: limits in characters, after stripping; None: no limit. Shorter and longer texts are left out,
            not cut.
        remove_duplicates: leave out a text that is equal to one before.
    """

    strip: bool = False
    min_length: int = 0
    max_length: int | None = None
    remove_duplicates: bool = False

    def __post_init__(self) -> None:
        problems = []
        limits = {"min_length": self.min_length, "max_length": self.max_length}
        for name, value in limits.items():
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
            if not whole and not (name == "max_length" and value is None):
                problems.append(Problem(name, f"got {shown(value)}; must be a whole number of characters, 0 or more"))
        if not problems and self.max_length is not None and self.max_length < max(self.min_length, 1):
            message = f"got {self.max_length}; must be at least 1, and not less than min_length={self.min_length}"
            problems.append(Problem("max_length", message, max(self.min_length, 1)))
        if problems:
            raise ConfigError.from_problems("the rules for texts", problems)


class TextFilter:
    """Applies rules to one source, text by text, and counts in `report`."""

    def __init__(self, rules: TextRules, report: LoadReport) -> None:
        self.rules, self.report = rules, report
        self._seen = SeenTexts() if rules.remove_duplicates else None

    def table(self, table: pa.Table) -> pa.Table:
        """The rows of `table` that are kept, their texts cleaned, and lists of texts joined to one."""
        import pyarrow as pa

        name = self.report.text_column
        texts = [self.text(one_text(value)) for value in table[name].to_pylist()]
        mask = pa.array([text is not None for text in texts], type=pa.bool_())
        column = pa.array([text for text in texts if text is not None], type=pa.string())
        place = table.column_names.index(name)
        return table.filter(mask).set_column(place, name, column)

    def text(self, text: str) -> str | None:
        """`text` as it is kept, or None."""
        report, rules = self.report, self.rules
        report.num_rows += 1
        text = text.strip() if rules.strip else text
        if not text or text.isspace():
            report.num_without_text += 1
        elif len(text) < rules.min_length:
            report.num_too_short += 1
        elif rules.max_length is not None and len(text) > rules.max_length:
            report.num_too_long += 1
        elif self._seen is not None and not self._seen.add(text):
            report.num_duplicates += 1
        else:
            report.num_kept += 1
            return text
        return None

    def check(self) -> None:
        """Raise DataError when no text was kept; says how many there were and why they were dropped."""
        report, rules = self.report, self.rules
        if report.num_kept:
            return
        if not report.dropped:
            raise DataError(f"{report.source}: holds no rows. Give a source with text in it.")
        parts = ", ".join(f"{count:,} {reason}" for reason, count in report.dropped.items())
        limits = f"min_length={rules.min_length}, max_length={rules.max_length}"
        first = f" The first: {report.bad_lines[0]}" if report.bad_lines else ""
        raise DataError(
            f"{report.source}: none of the {report.num_rows:,} rows is left ({parts}; the limits are {limits} characters). "
            f"Give other limits, or a source with text in it.{first}"
        )

    def close(self) -> None:
        """Forget which texts were seen."""
        if self._seen is not None:
            self._seen.close()


class SeenTexts:
    """Set of texts seen so far, by a 128-bit hash: among a billion different texts two collide with a probability of
    1e-21 (n^2 / 2^129). Memory is bounded; beyond it the hashes are in a temporary file of SQLite."""

    def __init__(self) -> None:
        # The empty name is a private database that SQLite keeps in memory until its cache is full, then in a file.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for setting in (f"cache_size = -{_SEEN_CACHE_KIB}", "journal_mode = OFF", "synchronous = OFF"):
            self._database.execute(f"PRAGMA {setting}")
        self._database.execute("CREATE TABLE seen (hash BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, text: str) -> bool:
        """Whether `text` is new."""
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1

    def close(self) -> None:
        self._database.close()
