"""A text that does not fit into memory gives the same blocks as one that does."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from utils.data import prepare_text
from utils.data.text.splitting import Cut, Selected, select, split_documents
from utils.errors import DataError
from utils.tokenization import encoding, train_bpe

LINES = [f"Line {number} of a text about the number {number * number}.\n" * (1 + number % 7) for number in range(300)]


class Lazy(Sequence):
    """Texts that are made when they are asked for, and counts how many there are at once at most."""

    def __init__(self, texts):
        self._texts = texts

    def __len__(self):
        return len(self._texts)

    def __getitem__(self, number):
        if isinstance(number, slice):
            raise AssertionError("a slice of a large text is a copy of it")
        return "".join(list(self._texts[number]))


SETTINGS = {"vocab_size": 400, "block_size": 16}


def facts(data):
    validation = None if data.validation is None else data.validation.digest()
    return data.report.to_dict(), data.train.digest(), validation, data.tokenizer.get_vocab()


@pytest.mark.parametrize(
    "documents", [LINES, ["", *LINES, " \n"], LINES[:7], ["".join(LINES)]], ids=["many", "some blank", "few", "one"]
)
@pytest.mark.parametrize("val_split", [0.1, 0])
def test_a_lazy_sequence_on_disk_gives_what_a_list_in_memory_gives(documents, val_split, monkeypatch, tmp_path):
    expected = facts(prepare_text(documents, val_split=val_split, **SETTINGS))
    kept = prepare_text(Lazy(documents), val_split=val_split, cache_dir=tmp_path, **SETTINGS)
    assert isinstance(kept.train.blocks, np.memmap)
    assert facts(kept) == expected
    assert facts(prepare_text(Lazy(documents), val_split=val_split, cache_dir=tmp_path, **SETTINGS)) == expected
    monkeypatch.setattr("utils.data.text.prepare._IN_MEMORY_CHARACTERS", 100)
    large = prepare_text(Lazy(documents), val_split=val_split, **SETTINGS)
    assert isinstance(large.train.blocks, np.memmap)
    assert facts(large) == expected


def test_validation_documents_of_their_own_may_be_lazy_too():
    settings = {**SETTINGS, "val_split": 0.1}
    in_memory = prepare_text(LINES[:250], validation_documents=LINES[250:], **settings)
    lazy = prepare_text(Lazy(LINES[:250]), validation_documents=Lazy([*LINES[250:], ""]), **settings)
    assert facts(lazy) == facts(in_memory)


def test_memory_does_not_grow_with_the_text(monkeypatch):
    monkeypatch.setattr("utils.data.text.prepare._IN_MEMORY_CHARACTERS", 1000)
    monkeypatch.setattr(encoding, "_BATCH", 20_000)
    monkeypatch.setattr("utils.data.text.report._COUNTED_AT_ONCE", 10_000)
    text = "".join(LINES)[:3000]
    tokenizer = train_bpe(LINES, 400)

    class Numbered(Sequence):
        def __init__(self, number):
            self._number = number

        def __len__(self):
            return self._number

        def __getitem__(self, number):
            if number >= self._number:
                raise IndexError
            return f"{number} {text}"

    def peak(number):
        tracemalloc.start()
        data = prepare_text(Numbered(number), tokenizer=tokenizer, **SETTINGS)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found, data.report.num_characters

    few, _ = peak(40)
    many, characters = peak(600)
    assert characters > 1_700_000
    assert many < few + characters / 4


def test_parts_of_a_lazy_sequence_hold_no_text_and_those_of_a_list_are_lists():
    lazy, in_memory = split_documents(Lazy(LINES), 0.2, 7), split_documents(LINES, 0.2, 7)
    assert isinstance(lazy.train, Selected)
    assert isinstance(in_memory.train, list)
    assert (list(lazy.train), list(lazy.validation), lazy.rule) == (
        in_memory.train,
        in_memory.validation,
        in_memory.rule,
    )
    assert lazy.train[3] == in_memory.train[3]
    assert lazy.train[-2:] == in_memory.train[-2:]
    few = split_documents(Lazy(LINES[:3]), 0.2, 7)
    assert isinstance(few.train, Cut)
    assert [*few.train, *few.validation] == [
        *split_documents(LINES[:3], 0.2, 7).train,
        *split_documents(LINES[:3], 0.2, 7).validation,
    ]
    assert few.validation[-1:] == [few.validation[-1]]


def test_what_is_chosen_of_a_sequence_that_changed_its_length_is_an_error():
    documents = list(LINES[:5])
    with pytest.raises(ValueError, match="zip"):
        list(select(Lazy(documents[:4]), np.ones(5, dtype=bool)))


def test_a_half_character_is_found_in_a_lazy_sequence():
    with pytest.raises(DataError, match="document 2, character 1"):
        prepare_text(Lazy(["a", "b", "c\ud800"]), **SETTINGS)
