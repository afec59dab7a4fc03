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
            "Give a text file of your own as the data set, or use a complete CPython."
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
