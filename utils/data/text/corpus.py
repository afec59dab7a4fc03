"""The built-in corpus: real technical English that needs no network and no file."""

from __future__ import annotations

import re
from collections.abc import Mapping

from utils.errors import DataNotFoundError

#: How reports and messages call the built-in corpus.
BUILTIN_NAME = "Python language reference"


def builtin_corpus() -> list[str]:
    """The Python language reference, as it ships inside CPython (`pydoc_data.topics`), without its repeats.

    The topics overlap: `compound` holds `if`, `while`, `for` and more, which are topics of their own. Paragraphs that
    repeat are removed, or text of the validation part would also stand in the training part. In CPython 3.11 that takes
    79 topics of 464,970 characters to 57 documents of 370,805: 20 % of the text was repeats. Other versions of Python
    hold other text.

    Returns:
        One text per topic that has text of its own, in alphabetical order of the topics: always the same list.
    Raises:
        DataNotFoundError: this Python was built without the module.
    Not covered: sentences that repeat inside paragraphs that differ (in CPython 3.11, 0.07 % of all runs of 12 words).
    """
    return list(builtin_topics().values())


def builtin_topics() -> dict[str, str]:
    """The same texts by the names of their topics. Raises `DataNotFoundError` as `builtin_corpus`."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataNotFoundError(
            "The built-in corpus is the module pydoc_data.topics of the standard library, which this Python lacks. "
            "Give a text file of your own as the dataset, or use a complete CPython."
        ) from error
    return without_repeats(topics)


def without_repeats(texts: Mapping[str, str]) -> dict[str, str]:
    """Each paragraph once: the longest text that holds it keeps it. Returns the texts that are left, ordered by name.

    Paragraphs are what blank lines separate; two are the same when their words are, whatever spacing and underlines.
    """
    seen: set[str] = set()
    kept: dict[str, str] = {}
    for name in sorted(texts, key=lambda name: (-len(texts[name]), name)):
        paragraphs = []
        for paragraph in texts[name].split("\n\n"):
            words = " ".join(re.findall(r"\w+", paragraph))
            if words in seen:
                continue
            if words:
                seen.add(words)
            paragraphs.append(paragraph)
        text = "\n\n".join(paragraphs).strip("\n")
        if re.search(r"\w", text):
            kept[name] = text + "\n"
    return {name: kept[name] for name in sorted(kept)}


def builtin_questions() -> list[dict[str, str]]:
    """A question about each section of the built-in corpus, with the section's first sentence as its answer: `question` and
    `answer`, always the same list. About 150 records; a stand-in for a dataset of conversations."""
    records = []
    for title, text in _sections():
        sentence = re.split(r"(?<=[.:])\s", _first_prose(text), maxsplit=1)[0]
        if _SHORTEST_ANSWER <= len(sentence) <= _LONGEST_ANSWER:
            records.append({"question": f"What is said about {title}?", "answer": sentence})
    return records


def builtin_summaries() -> list[dict[str, str]]:
    """Each section of the built-in corpus with its title: `article` and `summary`, always the same list. About 160 records; a
    stand-in for a dataset of articles with summaries."""
    return [{"article": text, "summary": title} for title, text in _sections() if text]


# Characters of an answer: shorter ones are fragments, longer ones fill the row of a small model.
_SHORTEST_ANSWER, _LONGEST_ANSWER = 20, 200
# A heading of reStructuredText: a line, and one of equal marks below it.
_HEADING = re.compile(r"^(?P<name>\S[^\n]*)\n(?P<mark>[*=\-~^])(?P=mark){2,}\n", re.MULTILINE)


def _sections() -> list[tuple[str, str]]:
    """Title and text of each section of the built-in corpus."""
    found = []
    for topic in builtin_topics().values():
        headings = list(_HEADING.finditer(topic))
        ends = [*(heading.start() for heading in headings[1:]), len(topic)]
        found += [(one["name"], topic[one.end() : end].strip()) for one, end in zip(headings, ends, strict=False)]
    return found


def _first_prose(text: str) -> str:
    """The first paragraph that is neither code nor a list, on one line."""
    prose = (
        paragraph for paragraph in text.split("\n\n") if re.match(r"[A-Za-z\"“]", paragraph) and "::=" not in paragraph
    )
    return " ".join(next(prose, "").split())
