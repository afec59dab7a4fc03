"""The repository speaks of the product only: nothing of the places and people it was made by, and no keys."""

from __future__ import annotations

import re

import pytest

from tests.kit.tree import ROOT, repository_files, text_of

# Names are split by brackets here, so that this file does not find itself.
FORBIDDEN = {
    "a workplace's path": r"/wor[k]/|/roo[t]/|/hom[e]/[a-z]+/|/op[t]/(?:wheels|pypi)",
    "a document outside the repository": r"(?-i:\bdesig[n]\.md\b)|\bstyl[e]\.md\b|\.\./share[d]/",
    "a number that means nothing outside": r"\bissu[e] #?\d|\bP[R] #?\d|\bpull reques[t] #?\d",
    "a package host": r"\bpyp[i]\.org|pythonhoste[d]\.org|registry\.npmj[s]",
    "how it was written": r"\bsub-?agen[t]s?\b|\bcoding agen[t]s?\b|\bClaud[e]\b|\bAnthropi[c]\b",
    "a key": r"\b(?:sk|hf|ghp|glpat)[-_](?!CANARY)[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVAT[E]",
}
TORCH_HOST = "download.pytorch.org"


def words_in(text: str) -> list[str]:
    """The forbidden words of a text, each with its line."""
    return [
        f"line {number}: {kind}: {match[0]}"
        for number, line in enumerate(text.splitlines(), start=1)
        for kind, pattern in FORBIDDEN.items()
        if (match := re.search(pattern, line, re.IGNORECASE if kind != "a key" else 0))
    ]


def test_no_file_has_a_word_that_means_nothing_to_a_user():
    texts = {str(path.relative_to(ROOT)): text for path in repository_files() if (text := text_of(path)) is not None}
    assert "setup_colab.sh" in texts
    assert {name: found for name, text in texts.items() if (found := words_in(text))} == {}


def test_only_the_setup_script_names_the_index_of_torch():
    holders = {path.relative_to(ROOT).as_posix() for path in repository_files() if TORCH_HOST in (text_of(path) or "")}
    assert holders <= {"setup_colab.sh", "README.md", "CONTRIBUTING.md", "tests/house/test_house_words.py"}


@pytest.mark.parametrize(
    "text",
    [
        "cd /wor" + "k/main",
        "see des" + "ign.md",
        "fixes issu" + "e #12",
        "https://pypi" + ".org/simple",
        "token = 'hf" + "_" + "a" * 30 + "'",
    ],
)
def test_the_search_finds(text):
    assert words_in(text)


def test_the_search_allows_ordinary_text():
    assert words_in("colour #12ab34, a pull request, an issue, work/life, /workspace, shared memory, hf_hub") == []
