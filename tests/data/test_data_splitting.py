"""The split keeps its share from training, loses nothing, shares nothing and says its rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.data.text.splitting import MANY_DOCUMENTS, split_documents
from utils.errors import ConfigError

DOCUMENTS = st.lists(st.text("ab \n", min_size=1, max_size=60), min_size=1, max_size=30)
SHARES = st.floats(0.01, 0.5)


@given(DOCUMENTS, SHARES, st.integers(0, 5))
def test_nothing_is_lost_and_nothing_is_in_both(documents, share, seed):
    split = split_documents(documents, share, seed)
    if len(documents) >= MANY_DOCUMENTS:
        assert sorted(split.train + split.validation) == sorted(documents)
    else:
        assert sum(map(len, split.train + split.validation)) == sum(map(len, documents))
        assert all(any(document.startswith(part) for document in documents) for part in split.train)
        assert all(any(document.endswith(part) for document in documents) for part in split.validation)


def test_many_documents_are_drawn_whole_until_the_share_is_reached():
    documents = [f"{number:04}" * (5 + number % 7) for number in range(100)]
    split = split_documents(documents, 0.2, seed=1)
    share = sum(map(len, split.validation)) / sum(map(len, documents))
    assert 0.2 <= share <= 0.22
    assert set(split.validation) < set(documents)
    assert split.train == [text for text in documents if text not in split.validation]
    assert f"{len(split.validation)} of 100 documents, drawn with seed 1" in split.rule
    assert f"{share:.1%}" in split.rule


def test_the_seed_decides_which_documents():
    documents = [f"{number:04}" for number in range(100)]
    assert split_documents(documents, 0.1, 1) == split_documents(documents, 0.1, 1)
    assert split_documents(documents, 0.1, 1).validation != split_documents(documents, 0.1, 2).validation
    # Pinned: another order would silently change what every stored result was validated on.
    assert split_documents(documents, 0.05, 42).validation == ["0001", "0009", "0012", "0019", "0067"]


def test_one_huge_document_among_many_is_not_drawn():
    documents = ["x" * 10_000] + [f"{number:04}" * 10 for number in range(40)]
    for seed in range(10):
        split = split_documents(documents, 0.1, seed)
        assert documents[0] in split.train


def test_documents_that_are_all_too_long_still_give_one():
    documents = ["x" * (100 + number) for number in range(20)]
    assert split_documents(documents, 0.01, 0).validation == [documents[0]]


def test_few_documents_give_their_ends_cut_between_lines():
    document = "".join(f"line {number}\n" for number in range(100))
    split = split_documents([document, document.upper()], 0.1, 0)
    assert [text.count("\n") for text in split.train] == [90, 90]
    assert split.train[0] + split.validation[0] == document
    assert split.validation[1].startswith("LINE 90\n")
    assert "the end of each of the 2 documents" in split.rule


def test_one_line_is_cut_between_words_and_one_word_anywhere():
    assert split_documents(["aa bb cc dd ee ff gg hh ii jj"], 0.2, 0).validation == ["ii jj"]
    assert split_documents(["x" * 100], 0.2, 0).validation == ["x" * 20]


def test_zero_means_no_validation():
    split = split_documents(["a\nb", "c"], 0, 0)
    assert (split.train, split.validation) == (["a\nb", "c"], [])
    assert "no validation" in split.rule


@pytest.mark.parametrize("share", [-0.1, 0.6, 1, float("nan"), True, "0.1", None])
def test_other_shares_are_refused(share):
    with pytest.raises(ConfigError, match="0 .*to 0.5"):
        split_documents(["a"], share, 0)
