"""A corpus on disk holds the same ids as in memory, is whole or not there, and is never held as a whole."""

from __future__ import annotations

import gc
import json
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.data.packing import blocks_of, pack
from utils.data.text.corpus import builtin_corpus
from utils.errors import ConfigError, DataError, DataTypeError
from utils.tokenization import build_character_tokenizer, encode_corpus, encode_documents, train_bpe
from utils.tokenization import encoding as encoding_module
from utils.tokenization.corpus_file import encode_flat


@pytest.fixture(scope="module")
def documents():
    return ["", *builtin_corpus()[:10], "", "a", "\n".join(builtin_corpus()[:20]), ""]


@pytest.fixture(scope="module")
def tokenizer(documents):
    return train_bpe(documents, 600)


def in_memory(tokenizer, documents):
    """Every document's ids and an end, by the plainest means."""
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return [i for ids in encode_documents(tokenizer, documents) if len(ids) for i in [*ids.tolist(), *ends]]


@pytest.mark.parametrize("batch", [1, 100, 5000, 1_000_000])
def test_it_is_every_documents_ids_with_an_end_however_they_are_cut(tokenizer, documents, batch, monkeypatch):
    expected = in_memory(tokenizer, documents)
    monkeypatch.setattr(encoding_module, "_BATCH", batch)
    if batch == 1:
        documents = documents[:5]
        expected = in_memory(tokenizer, documents)
    found = encode_corpus(tokenizer, iter(documents))
    assert isinstance(found, np.memmap)
    assert (found.dtype, found.ndim) == (np.uint16, 1)
    assert found.tolist() == expected
    assert not found.flags.writeable
    assert encode_flat(tokenizer, documents).tolist() == expected
    assert (
        blocks_of(found, 16).tolist()
        == pack(encode_documents(tokenizer, documents), 16, tokenizer.eos_token_id).tolist()
    )


@given(documents=st.lists(st.text("ab \n", max_size=12), max_size=8), batch=st.integers(1, 20))
def test_any_documents_in_any_batches(tokenizer, documents, batch):
    before = encoding_module._BATCH
    encoding_module._BATCH = batch
    try:
        assert encode_flat(tokenizer, documents).tolist() == in_memory(tokenizer, documents)
    finally:
        encoding_module._BATCH = before


def test_ids_above_65535_are_int32_and_without_an_end_token_nothing_is_between():
    tokenizer = build_character_tokenizer(["ab" + "".join(map(chr, range(0x10000, 0x20000)))])
    assert encode_corpus(tokenizer, ["ab"]).dtype == np.int32
    tokenizer.eos_token = None
    assert encode_corpus(tokenizer, ["a", "b"]).tolist() == tokenizer("ab")["input_ids"]


def test_a_file_is_an_ordinary_npy_and_replaced_in_one_step(tokenizer, documents, tmp_path):
    path = tmp_path / "ids.npy"
    expected = in_memory(tokenizer, documents)
    assert encode_corpus(tokenizer, documents, path).tolist() == expected
    assert np.load(path).tolist() == expected
    with pytest.raises(DataTypeError, match="text 2 is of type int"):
        encode_corpus(tokenizer, ["a", "b", 3], path)
    assert np.load(path).tolist() == expected
    assert [entry.name for entry in tmp_path.iterdir()] == ["ids.npy"]


def test_no_documents_are_no_ids(tokenizer, tmp_path):
    for array in (
        encode_corpus(tokenizer, []),
        encode_corpus(tokenizer, [""], tmp_path / "ids.npy"),
        encode_flat(tokenizer, []),
    ):
        assert array.shape == (0,)


def test_without_a_path_no_file_is_left(tokenizer, documents, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    array = encode_corpus(tokenizer, documents)
    assert list(tmp_path.iterdir()) == []
    assert array[-1] == tokenizer.eos_token_id
    del array
    gc.collect()
    assert not [link for link in os.listdir("/proc/self/fd") if str(tmp_path) in _target(link)]


def _target(number):
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""


def test_the_second_time_it_is_read_from_the_cache_and_another_tokenizer_is_another_entry(
    tokenizer, documents, tmp_path, monkeypatch
):
    first = encode_corpus(tokenizer, documents, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr("utils.tokenization.corpus_file.encoded_pieces", lambda *_: pytest.fail("it was encoded again"))
        assert np.array_equal(encode_corpus(tokenizer, list(documents), cache_dir=tmp_path), first)
    encode_corpus(tokenizer, documents[1:], cache_dir=tmp_path)
    encode_corpus(train_bpe(documents, 500), documents, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("how", ["a bit", "cut", "no record", "other record", "no header"])
def test_a_damaged_cache_is_made_anew(tokenizer, documents, tmp_path, how):
    expected = encode_corpus(tokenizer, documents, cache_dir=tmp_path).tolist()
    (file,), (record,) = tmp_path.glob("*.npy"), tmp_path.glob("*.json")
    content = bytearray(file.read_bytes())
    file.unlink()  # the mapped pages of the first array are of the old file
    if how == "a bit":
        content[-7] ^= 1
    elif how == "cut":
        del content[-20:]
    elif how == "no header":
        content[:8] = b"\0" * 8
    file.write_bytes(content)
    if how == "no record":
        record.unlink()
    elif how == "other record":
        record.write_text(json.dumps([]))
    assert encode_corpus(tokenizer, documents, cache_dir=tmp_path).tolist() == expected
    assert encode_corpus(tokenizer, documents, cache_dir=tmp_path).tolist() == expected


def test_what_cannot_be_is_refused(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="not both"):
        encode_corpus(tokenizer, ["a"], tmp_path / "x.npy", cache_dir=tmp_path)
    with pytest.raises(ConfigError, match="got an iterator with a cache_dir"):
        encode_corpus(tokenizer, iter(["a"]), cache_dir=tmp_path)
    with pytest.raises(DataError, match="no_folder.* could not be written"):
        encode_corpus(tokenizer, ["a"], tmp_path / "no_folder" / "x.npy")
    with pytest.raises(DataError, match="text 1, character 0"):
        encode_corpus(tokenizer, ["a", "\ud800"])


def test_neither_text_nor_ids_are_held_as_a_whole(tokenizer, monkeypatch):
    monkeypatch.setattr(encoding_module, "_BATCH", 20_000)
    text = builtin_corpus()[0][:2000]

    def peak(number):
        tracemalloc.start()
        array = encode_corpus(tokenizer, (f"{index} {text}" for index in range(number)))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found, array.nbytes

    few, _ = peak(30)
    many, written = peak(600)
    assert written > 500_000
    assert many < few + written / 2
