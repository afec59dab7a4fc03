"""JSON -> rows: one object a line, or one document whose rows are read one after the other, never all at once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from utils.data.read.decoding import LONGEST_RECORD, lines_of
from utils.data.read.rows import BadLines, Row, excerpt, quoted
from utils.errors import DataError

_BLANKS = " \t\r\n"
# A scanner that ran out of text fails at most this far from its end: in a word such as -Infinity, or an escape.
_TORN = 16
# Characters that are looked at to tell one object a line from one document.
_LONGEST_FIRST_LINE = 1 << 23


def jsonl_rows(pieces: Iterable[str], file: Path, bad: BadLines) -> Iterator[Row]:
    """One JSON object a line. Blank lines are skipped; what is no object is `bad`'s."""
    for number, whole in enumerate(lines_of(pieces, file), start=1):
        line = whole.strip(_BLANKS)
        if not line:
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            column = whole.index(line) + error.pos + 1
            bad.meet(f"{file}:{number}:{column}: the line is not valid JSON ({error.msg}): {excerpt(line)}.")
        except (ValueError, RecursionError) as error:  # thousands of digits; nested thousands deep
            bad.meet(f"{file}:{number}: the line cannot be read ({_reason(error)}): {excerpt(line)}.")
        else:
            if isinstance(value, dict):
                yield Row(number, value)
            else:
                bad.meet(f"{file}:{number}: the line is {_kind(value)}, not an object: {excerpt(line)}.")


def json_rows(pieces: Iterable[str], file: Path, bad: BadLines) -> Iterator[Row]:
    """The rows of a .json file: a list of objects (or of texts), an object that holds such a list, such as
    {"data": [...]}, an object of rows by key (which is held whole), or, as many are, one object a line.

    Raises:
        DataError: no valid JSON, or another shape; gives path:line:column. In a document nothing can be skipped behind a
            place that is no JSON.
    """
    document = _Document(pieces, file)
    if document.is_one_object_a_line():
        return jsonl_rows(document.rest(), file, bad)
    rows = document.list_rows(bad) if document.peek() == "[" else document.object_rows(bad)
    return document.checked(rows)


class _Document:
    """A cursor over JSON text that comes in pieces. Holds the part that is being read."""

    def __init__(self, pieces: Iterable[str], file: Path) -> None:
        self.file = file
        self._pieces = iter(pieces)
        self._text, self._at = "", 0
        self._line, self._column = 1, 1  # of the beginning of _text
        self._ended = False
        self._decode = json.JSONDecoder().raw_decode

    # ---- the shapes of a document ----

    def is_one_object_a_line(self) -> bool:
        """Whether the first line is a whole object and another follows."""
        if self.peek() != "{":
            return False
        while "\n" not in self._text[self._at :] and not self._ended and len(self._text) < _LONGEST_FIRST_LINE:
            self._more()
        line, _, rest = self._text[self._at :].partition("\n")
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            return False
        while not rest.strip() and not self._ended:
            self._more()
            rest = self._text[self._at :].partition("\n")[2]
        return rest.strip(_BLANKS).startswith("{")

    def rest(self) -> Iterator[str]:
        """The text from its beginning on; for a reader that takes over before anything was read."""
        yield "\n" * (self._line - 1) + self._text  # forgotten blank lines count
        yield from self._pieces

    def list_rows(self, bad: BadLines) -> Iterator[Row]:
        """The values of the list that begins here, objects and texts."""
        self._take("[")
        while self.peek() != "]":
            line, column = self._place(self._at)
            value = self._value()
            if isinstance(value, dict):
                yield Row(line, value)
            elif isinstance(value, str):
                yield Row(line, {"text": value})
            else:
                bad.meet(f"{self.file}:{line}:{column}: a row is {_kind(value)}, not an object: {quoted(value)}.")
            if self.peek() != "]":
                self._take(",")
        self._take("]")

    def object_rows(self, bad: BadLines) -> Iterator[Row]:
        """The rows inside the object that begins here: those of its one list, or its objects, or itself."""
        line, _ = self._place(self._at)
        kept: dict[str, Any] = {}
        found: str | None = None
        self._take("{")
        while self.peek() != "}":
            key = self._value()
            self._take(":")
            if self.peek() == "[" and self._list_holds_objects():
                if found is not None:
                    names = f"{quoted(found)} and {quoted(key)}"
                    self._fail(f"the document holds two lists of rows, {names}; keep one in the file")
                found = str(key)
                yield from self.list_rows(bad)
            else:
                kept[str(key)] = self._value()
            if self.peek() != "}":
                self._take(",")
        self._take("}")
        if found is None:
            yield from self._rows_of(kept, line)

    def _rows_of(self, values: dict[str, Any], line: int) -> Iterator[Row]:
        if values and all(isinstance(value, dict) for value in values.values()):
            yield from (Row(line, value) for value in values.values())
        elif any(isinstance(value, list) and value for value in values.values()):
            names = excerpt(", ".join(values))
            raise DataError(
                f"{self.file}:{line}: the document is one object with lists of values ({names}), one a column. Save it as "
                "rows: a list of objects, or one object a line."
            )
        elif not any(isinstance(value, list) for value in values.values()) and values:
            yield Row(line, values)

    def checked(self, rows: Iterator[Row]) -> Iterator[Row]:
        """`rows`, and an error when something follows the document."""
        if self.peek() not in ("[", "{"):
            self._fail('the document is neither a list of rows nor an object, such as [{"text": "..."}]')
        yield from rows
        if self.peek():
            self._fail("something follows the end of the document")

    # ---- reading ----

    def peek(self) -> str:
        """The next character that is no blank; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANKS:
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def _take(self, sign: str) -> None:
        if self.peek() != sign:
            self._fail(f"expected {sign!r}")
        self._at += 1

    def _list_holds_objects(self) -> bool:
        """Whether the list that begins here has an object as its first value."""
        at = self._at + 1
        while not (start := self._text[at:].lstrip(_BLANKS)) and not self._ended:
            at -= self._more()
        return start.startswith("{")

    def _value(self) -> Any:
        """The value that begins here. More text is read while its end may be missing."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                open_text = error.msg.startswith("Unterminated string")
                if self._ended or not (open_text or error.pos >= len(self._text) - _TORN):
                    self._at = error.pos
                    self._fail(f"is not valid JSON ({error.msg})")
            except (ValueError, RecursionError) as error:  # thousands of digits; nested thousands deep
                self._fail(f"cannot be read ({_reason(error)})")
            else:
                if end < len(self._text) or self._ended:  # a number may go on behind the end
                    self._at = end
                    return value
            self._more()
            if len(self._text) - self._at > LONGEST_RECORD:
                self._fail(f"one value has more than {LONGEST_RECORD:,} characters")

    def _more(self) -> int:
        """Read about as much again as is held; forget what lies behind. Returns how many characters were forgotten."""
        behind = self._at
        self._line, self._column = self._place(behind)
        kept = [self._text[behind:]]
        self._at = 0
        size, wanted = 0, len(kept[0])
        while not self._ended and size <= wanted:
            piece = next(self._pieces, None)
            self._ended = piece is None
            kept.append(piece or "")
            size += len(piece or "")
        self._text = "".join(kept)
        return behind

    def _place(self, at: int) -> tuple[int, int]:
        """Line and column of a place in the held text."""
        last = self._text.rfind("\n", 0, at)
        column = at - last if last >= 0 else self._column + at
        return self._line + self._text.count("\n", 0, at), column

    def _fail(self, what: str) -> NoReturn:
        line, column = self._place(self._at)
        start = max(0, self._at - 20)
        raise DataError(f"{self.file}:{line}:{column}: {what}, near {excerpt(self._text[start : self._at + 60])}.")


def _kind(value: Any) -> str:
    names = {
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names[type(value)]


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
