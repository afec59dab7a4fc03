"""The built-in corpus is real text, the same in every process, and repeats nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.kit.tree import ROOT
from utils.data.text.corpus import builtin_corpus, without_repeats


def words_of(paragraph):
    return " ".join(re.findall(r"\w+", paragraph))


def test_it_is_a_few_hundred_kilobytes_of_documents():
    documents = builtin_corpus()
    assert len(documents) >= 40
    assert sum(map(len, documents)) > 300_000
    assert any('The "if" statement is used for conditional execution' in text for text in documents)


def test_no_paragraph_occurs_twice():
    paragraphs = [words_of(part) for text in builtin_corpus() for part in text.split("\n\n") if words_of(part)]
    assert len(paragraphs) == len(set(paragraphs))


def test_it_is_the_same_in_another_process():
    code = (
        "import zlib; from utils.data.text.corpus import builtin_corpus; print(zlib.crc32(repr(builtin_corpus()).encode()))"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_the_longest_text_keeps_what_several_hold():
    texts = {
        "if": "The if statement\n****************\n\nShared  words.\n\n   code(1)",
        "compound": "Compound\n\nThe if statement\n================\n\nShared words.\n\n   code(1)\n\nMore.",
        "own": "Shared\nwords.\n\nOwn words.",
        "alone": "Something else.",
    }
    assert list(without_repeats(texts).values()) == ["Something else.\n", texts["compound"] + "\n", "Own words.\n"]
