"""Two real tasks made from the built-in corpus, each with the figures that a model must beat. No training here.

`python -m benchmarks.quality_data` prints them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from utils.data.text.corpus import builtin_topics

#: Topic of `pydoc_data.topics` -> the chapter of Python's documentation that it is from. Topics that other versions of Python
#: may have beside these are skipped.
CHAPTERS: Mapping[str, tuple[str, ...]] = {
    "lexical analysis": (
        "atom-identifiers", "atom-literals", "floating", "id-classes", "identifiers", "imaginary", "integers", "numbers",
        "strings",
    ),
    "data model": (
        "attribute-access", "callable-types", "customization", "numeric-types", "objects", "sequence-types", "specialattrs",
        "specialnames", "types",
    ),
    "expressions": (
        "attribute-references", "await", "binary", "bitwise", "booleans", "calls", "comparisons", "conversions", "dict",
        "exprlists", "in", "lambda", "lists", "operator-summary", "power", "shifting", "slicings", "subscriptions", "unary",
        "yield",
    ),
    "statements": (
        "assert", "assignment", "augassign", "break", "class", "compound", "continue", "del", "for", "function", "global", "if",
        "import", "nonlocal", "pass", "raise", "return", "try", "while", "with",
    ),
    "built-in types": ("string-methods", "truth", "typesfunctions", "typesmapping", "typesmethods", "typesseq"),
    "debugger": ("debugger",),
}  # fmt: skip

# Consecutive paragraphs that are held out together, and every how manyth such run is.
_RUN, _EVERY = 6, 5
# Fewest words of a paragraph that says what it is about.
_FEWEST_WORDS = 12
_WORD, _RULED = re.compile(r"[A-Za-z]{2,}"), re.compile(r"[=*+-]{4}")


@dataclass(frozen=True)
class QualityTask:
    """Records and what is reached on them without learning.

    Attributes:
        train, validation: records with `text` and `label`, or `source` and `target`; no text is in both.
        baselines: figure -> value on `validation`; shares are from 0 to 1.
    """

    train: list[dict[str, str]]
    validation: list[dict[str, str]]
    baselines: dict[str, float]


def chapter_task() -> QualityTask:
    """Text classification: from which chapter of Python's documentation is a paragraph?

    About 1,000 paragraphs, six chapters. Held out are runs of six consecutive paragraphs, every fifth, so that what is asked
    for is seldom told by the sentence before it. Headings, tables and paragraphs below 12 words are left out.
    Baseline: `majority_accuracy`, for always the chapter that is most frequent in training.
    """
    train, validation = _split(
        [[{"text": text, "label": chapter} for text in paragraphs] for chapter, paragraphs in _paragraphs()]
    )
    usual = Counter(record["label"] for record in train).most_common(1)[0][0]
    share = sum(record["label"] == usual for record in validation) / len(validation)
    return QualityTask(train, validation, {"majority_accuracy": share})


def vowel_task(words: int = 6) -> QualityTask:
    """Sequence to sequence: a phrase without its vowels -> the phrase. `th clss sttmnt` -> `the class statement`.

    About 6,400 phrases in lower case, without overlap. Held out are runs of thirty consecutive phrases, every fifth. Words
    that lose all their letters keep their first one. Which word is meant is often told by the words around it only: `n` is in,
    on, an or no.

    Args:
        words: of a phrase. Fewer are easier, and give more phrases: 13,000 of three.

    Baselines, of copying the input: `copy_exact`, the share of phrases that are right; `copy_word_accuracy`, of words;
    `copy_character_error_rate`, edit distance by characters of the targets. And `lookup_word_accuracy`: of replacing each word
    by the one that it most often stands for in training.
    """
    train, validation = _split(
        [[record for text in paragraphs for record in _phrases(text, words)] for _, paragraphs in _paragraphs()],
        _RUN * 5,
    )
    pairs = [(record["source"], record["target"]) for record in validation]
    table = _lookup(train)
    return QualityTask(
        train,
        validation,
        {
            "copy_exact": sum(source == target for source, target in pairs) / len(pairs),
            "copy_word_accuracy": word_accuracy(pairs),
            "copy_character_error_rate": character_error_rate(pairs),
            "lookup_word_accuracy": word_accuracy(
                [(" ".join(table.get(word, word) for word in source.split()), target) for source, target in pairs]
            ),
        },
    )


def without_vowels(text: str) -> str:
    """`text` without a, e, i, o, u; a word of vowels only keeps its first letter."""
    return " ".join(re.sub("[aeiou]", "", word) or word[0] for word in text.split())


def word_accuracy(pairs: Sequence[tuple[str, str]]) -> float:
    """The share of the target's words that stand at the same place of the answer, over all (answer, target)."""
    words = [(answer.split(), target.split()) for answer, target in pairs]
    right = sum(a == b for answer, target in words for a, b in zip(answer, target, strict=False))
    return right / sum(len(target) for _, target in words)


def character_error_rate(pairs: Sequence[tuple[str, str]]) -> float:
    """Edit distance (Levenshtein: insertions, deletions, replacements) over characters of the targets, of (answer, target)."""
    return sum(_distance(answer, target) for answer, target in pairs) / sum(len(target) for _, target in pairs)


def _distance(first: str, second: str) -> int:
    """Wagner and Fischer 1974: one row of the table at a time."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def _paragraphs() -> Iterator[tuple[str, list[str]]]:
    """(chapter, its paragraphs in order) for every topic; a paragraph is one line. Headings and tables are left out."""
    chapter_of = {topic: chapter for chapter, topics in CHAPTERS.items() for topic in topics}
    for topic, text in builtin_topics().items():
        if topic in chapter_of:
            lines = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
            kept = [line for line in lines if not _RULED.search(line) and len(_WORD.findall(line)) >= _FEWEST_WORDS]
            yield chapter_of[topic], kept


def _phrases(text: str, length: int) -> Iterator[dict[str, str]]:
    words = re.findall(r"[a-z]+", text.lower())
    for start in range(0, len(words) - length + 1, length):
        target = " ".join(words[start : start + length])
        yield {"source": without_vowels(target), "target": target}


def _split(topics: list[list[dict[str, str]]], run: int = _RUN) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Training and validation records: every fifth run of consecutive records is held out, counted over all topics."""
    parts: tuple[list[dict[str, str]], list[dict[str, str]]] = ([], [])
    number = 0
    for records in topics:
        for start in range(0, len(records), run):
            number += 1
            parts[number % _EVERY == 0].extend(records[start : start + run])
    seen = {tuple(sorted(record.items())) for record in parts[0]}
    return parts[0], [record for record in parts[1] if tuple(sorted(record.items())) not in seen]


def _lookup(records: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Each shortened word -> the word that it most often stands for."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        for short, word in zip(record["source"].split(), record["target"].split(), strict=True):
            counts.setdefault(short, Counter())[word] += 1
    return {short: words.most_common(1)[0][0] for short, words in counts.items()}


def main() -> None:
    """Print sizes, baselines and an example of both tasks."""
    for name, task in (("chapters", chapter_task()), ("vowels", vowel_task())):
        print(f"{name}: {len(task.train):,} for training, {len(task.validation):,} for validation")
        for figure, value in task.baselines.items():
            print(f"  {figure} {value:.3f}")
        print(f"  {task.validation[0]}")


if __name__ == "__main__":
    main()
