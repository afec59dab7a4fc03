"""Files of words with tags -> rows of sentences: CoNLL and BIO files, and CoNLL-U.

Each line holds a word and its annotations, in columns separated by tabs or blanks; a blank line ends a sentence. Comments
(`# …`) before a sentence and `-DOCSTART-` lines are skipped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from utils.data.read.decoding import TextPieces, lines_of
from utils.data.read.rows import BadLines, Row, excerpt
from utils.errors import DataError

#: Names of the columns of words and of tags.
WORDS, TAGS = "tokens", "tags"

# The ten columns of CoNLL-U (universaldependencies.org/format.html), and those whose "_" means that nothing is known.
_CONLL_U = ("id", WORDS, "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
_MAY_BE_UNKNOWN = ("upos", "xpos", "head", "deprel")

_SAMPLE_LINES = 200
_BLANKS = re.compile(r"[ \t]+")
# The number of a word in its sentence; of several words that are written as one, or of one that is not written at all.
_NUMBER, _NO_WORD = re.compile(r"\d+"), re.compile(r"\d+[-.]\d+")
# Comments that have as many fields as a line of words may have: "# sent_id = 3".
_METADATA = re.compile(r"#\s+[^\s=]+\s*=")
_BIO = re.compile(r"O|[BIESLUM]-\S+")
_DOCUMENT = "-DOCSTART-"


@dataclass(frozen=True)
class _Layout:
    """Columns of a file.

    Attributes:
        tabs: whether tabs separate them, else blanks.
        names: theirs, in order. numbered: whether the first only numbers the words. bio: whether the last holds BIO tags.
    """

    tabs: bool
    names: tuple[str, ...]
    numbered: bool
    bio: bool

    def fields(self, line: str) -> list[str]:
        return _fields(line, self.tabs)

    def is_comment(self, line: str) -> bool:
        """Whether a line before a sentence is a comment, and not the word "#"."""
        if not line.startswith("#"):
            return False
        fields = self.fields(line)
        odd_tag = self.bio and not _BIO.fullmatch(fields[-1])
        return len(fields) != len(self.names) or odd_tag or bool(_METADATA.match(line))

    def problem(self, fields: list[str]) -> str | None:
        """What is wrong with a line, or None."""
        if len(fields) != len(self.names):
            counted = f"{len(fields)} field{'' if len(fields) == 1 else 's'}"
            separated = "tabs" if self.tabs else "blanks"
            return f"the line has {counted}, separated by {separated}, and the others have {len(self.names)}"
        empty = [name for name, field in zip(self.names, fields, strict=True) if name in (WORDS, TAGS) and not field]
        return f"{empty[0]!r} is empty" if empty else None

    def value(self, name: str, field: str) -> str | None:
        return None if field == "_" and name in _MAY_BE_UNKNOWN and self.names == _CONLL_U else field


def conll_rows(pieces: Iterable[str], file: Path, bad: BadLines) -> Iterator[Row]:
    """One row a sentence, each column a list with an entry a word.

    `tokens` is the first column, or the second where the first numbers the words; `tags` is the last. Columns between are
    named by their place, as `column 2`. The ten columns of CoNLL-U have its names (`tokens`, `lemma`, `upos`, …).

    Raises:
        DataError: lines of one field; a line with more or fewer fields than the others, or without word or tag, unless `bad`
            leaves its sentence out.
    """
    lines = lines_of(pieces, file)
    sample = list(islice(lines, _SAMPLE_LINES))
    layout = _layout(sample, file)
    begins, words, is_broken = 1, list[list[str]](), False
    for number, line in enumerate(chain(sample, lines, [""]), start=1):
        text = line.rstrip("\n")
        fields = layout.fields(text)
        if not text.strip() or fields[0] == _DOCUMENT:
            if words and not is_broken:
                yield _row(begins, words, layout)
            words, is_broken = [], False
            continue
        if (not words and layout.is_comment(text)) or (layout.numbered and _NO_WORD.fullmatch(fields[0])):
            continue
        if not is_broken and (problem := layout.problem(fields)) is not None:
            advice = "A line is a word and its tag, and a blank line ends a sentence."
            bad.meet(f"{file}:{number}: {problem}: {excerpt(text)}. {advice}")
            is_broken = True
        begins = begins if words else number
        words.append(fields)


def looks_tagged(file: Path) -> bool:
    """Whether a plain text is plainly one of words with BIO tags: lines of equally many fields, each ending with O or a tag
    such as B-PER, of which there is one at least. False for a file that cannot be read."""
    try:
        start = next(iter(TextPieces(file)), "")
    except DataError:
        return False
    lines = start.split("\n")[:-1][:_SAMPLE_LINES] or [start]
    tabs = _has_tabs(lines)
    rows = [_fields(line, tabs) for line in lines if line.strip() and not line.startswith(("#", _DOCUMENT))]
    tags = [fields[-1] for fields in rows if len(fields) > 1]
    is_even = len({len(fields) for fields in rows}) == 1 and len(tags) == len(rows)
    return is_even and all(map(_BIO.fullmatch, tags)) and any(tag != "O" for tag in tags)


def _row(line: int, words: list[list[str]], layout: _Layout) -> Row:
    columns = zip(layout.names, zip(*words, strict=True), strict=True)
    return Row(
        line, {name: [layout.value(name, field) for field in column] for name, column in columns if name != "id"}
    )


def _layout(sample: list[str], file: Path) -> _Layout:
    """The layout of a file by its first lines."""
    tabs = _has_tabs(sample)
    rows = [_fields(line, tabs) for line in sample if line.strip() and not line.startswith(("#", _DOCUMENT))]
    if not rows:
        raise DataError(f"{file}: holds no words with tags in its first lines. Give a word and its tag a line.")
    width = Counter(map(len, rows)).most_common(1)[0][0]
    if width < 2:
        raise DataError(
            f"{file}: lines have one field, such as {excerpt(rows[0][0])}; give a word and its tag a line, with a tab or a "
            "blank between them."
        )
    first = next((fields[0] for fields in rows if _NUMBER.fullmatch(fields[0])), "")
    numbered = width > 2 and first in ("0", "1") and all(_is_number(fields[0]) for fields in rows)
    if numbered and width == len(_CONLL_U):
        return _Layout(tabs, _CONLL_U, numbered, bio=False)
    places = tuple(f"column {place}" for place in range(1, width + 1))
    names = ("id", WORDS, *places[2:-1], TAGS) if numbered else (WORDS, *places[1:-1], TAGS)
    bio = all(_BIO.fullmatch(fields[-1]) for fields in rows if len(fields) == width)
    return _Layout(tabs, names, numbered, bio)


def _is_number(field: str) -> bool:
    return bool(_NUMBER.fullmatch(field) or _NO_WORD.fullmatch(field))


def _has_tabs(lines: Iterable[str]) -> bool:
    """Whether tabs separate the fields: most lines with text have one."""
    with_text = [line for line in lines if line.strip() and not line.startswith(("#", _DOCUMENT))]
    return sum("\t" in line.strip() for line in with_text) * 2 > len(with_text)


def _fields(line: str, tabs: bool) -> list[str]:
    return [field.strip(" \r\n") for field in line.split("\t")] if tabs else _BLANKS.split(line.strip(" \t\r\n"))
