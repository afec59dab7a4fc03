"""Shared parts of all record readers: rows with their line numbers, options, and handling of malformed lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from utils.errors import ConfigError, DataError, Problem
from utils.schema import nearest, shown

TextUnit = Literal["file", "paragraph", "line"]
FileFormat = Literal["txt", "csv", "tsv", "json", "jsonl", "parquet", "conll"]
OnBadLine = Literal["error", "skip"]
FORMATS: tuple[str, ...] = get_args(FileFormat)

# Characters of a line that a message shows, and bad lines of which the message is kept.
_EXCERPT = 80
_KEPT_MESSAGES = 5


class Row(NamedTuple):
    """One record: its physical line in the file (from 1), and its values by column."""

    line: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading files.

    Attributes:
        file_format: one of `FORMATS`; default: by each file's extension.
        encoding: of text files.
        text_unit: what one row of a plain text is: "file" (the whole, for packing), "paragraph" (what blank lines separate;
            a line, where the first MiB has none) or "line". A row never has more than 1 Mi characters; longer ones are cut.
        on_bad_line: "error", or "skip" to leave out and count what is no record.
        delimiter: between the fields of csv and tsv; None: what a first line such as Excel's `sep=;` names, else tab for tsv,
            and for csv the sign by which the first rows have as many fields as the header. A `sep=` line is never a row.
        quotes: False: in csv and tsv a quote is a character like any other, as in many .tsv files.
    """

    file_format: str | None = None
    encoding: str = "utf-8"
    text_unit: str = "paragraph"
    on_bad_line: str = "error"
    delimiter: str | None = None
    quotes: bool = True

    def __post_init__(self) -> None:
        allowed = {
            "file_format": (None, *FORMATS), "text_unit": get_args(TextUnit), "on_bad_line": get_args(OnBadLine),
        }  # fmt: skip
        problems = [_choice_problem(name, getattr(self, name), values) for name, values in allowed.items()]
        sign = self.delimiter
        if sign is not None and (not isinstance(sign, str) or len(sign) != 1 or sign in '"\r\n'):
            message = f"got {shown(sign)}; must be one character, and neither a quote nor a line end"
            problems.append(Problem("delimiter", message))
        if found := [problem for problem in problems if problem is not None]:
            raise ConfigError.from_problems("the options for reading", found)


def _choice_problem(name: str, value: Any, allowed: tuple[Any, ...]) -> Problem | None:
    if value in allowed:
        return None
    guess = nearest(str(value), [choice for choice in allowed if choice])
    hint = f"; did you mean {guess!r}?" if guess else ""
    return Problem(name, f"got {shown(value)}; must be one of {', '.join(map(str, allowed))}{hint}", guess)


class BadLines:
    """Handling of malformed lines: raise, or count them.

    Attributes:
        count: those that were left out.
        messages: what was wrong with the first few.
    """

    def __init__(self, on_bad_line: str = "error") -> None:
        self.skips = on_bad_line == "skip"
        self.count = 0
        self.messages: list[str] = []

    def meet(self, message: str) -> None:
        """Count a bad line, or raise DataError with `message`, which says where it is, and the way on."""
        if not self.skips:
            raise DataError(
                f"{message} Correct or remove it, or leave such lines out: DatasetLoader().load_local_file(path, "
                'on_bad_line="skip").'
            )
        self.count += 1
        if len(self.messages) < _KEPT_MESSAGES:
            self.messages.append(message)


def quoted(value: Any) -> str:
    """A value as a message quotes it, at most 80 characters."""
    return excerpt(value) if isinstance(value, str) else shown(value, _EXCERPT)


def excerpt(text: str) -> str:
    """`text` as a message quotes it: escaped, at most 80 characters."""
    kept = text[:_EXCERPT]
    while len(written := repr(kept if len(kept) == len(text) else f"{kept}…")) > _EXCERPT:
        kept = kept[:-1]
    return written


def cut(text: str, most: int = _EXCERPT) -> str:
    """`text`, at most `most` characters of it."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def listed(names: Iterable[Any], most: int = 400, joiner: str = ", ") -> str:
    """Names as a message lists them, at most about `most` characters in all; the rest is counted."""
    shown_names: list[str] = []
    room = most
    remaining = iter(names)
    for name in remaining:
        text = cut(str(name))
        if shown_names and len(text) > room:
            return f"{joiner.join(shown_names)} and {1 + sum(1 for _ in remaining):,} more"
        shown_names.append(text)
        room -= len(text) + len(joiner)
    return joiner.join(shown_names)
