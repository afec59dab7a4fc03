"""The tokenizers made here are transformers' own to everybody else, and encode() also answers by name."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from transformers import AutoTokenizer

from utils.tokenization import TrainbookTokenizer, train_bpe
from utils.tokenization.fast import adopt

TEXT = "hello world, hello"


@pytest.fixture
def tokenizer():
    return train_bpe([TEXT], 300)


def test_encode_is_transformers_list_that_also_answers_by_name(tokenizer):
    encoded = tokenizer.encode(TEXT, max_length=20, padding="max_length")
    plain = plain_of(tokenizer).encode(TEXT, max_length=20, padding="max_length", truncation=True)
    assert encoded == plain
    assert isinstance(encoded, list)
    assert encoded["input_ids"] == list(encoded)
    assert len(encoded["input_ids"]) == 20
    assert sum(encoded["attention_mask"]) == len(tokenizer(TEXT)["input_ids"])
    assert encoded[:2] == plain[:2]
    assert torch.equal(torch.tensor([encoded]), torch.tensor([plain]))
    assert dict(encoded) == {"input_ids": plain, "attention_mask": encoded["attention_mask"]}
    assert "attention_mask" in encoded
    assert encoded[0] in encoded
    again = pickle.loads(pickle.dumps(encoded))
    assert again["attention_mask"] == encoded["attention_mask"]


def plain_of(tokenizer):
    """The same as transformers makes it, without our class."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        unk_token="<unk>",
    )


def test_a_max_length_cuts_even_with_padding_and_padding_fills(tokenizer):
    long = " ".join([TEXT] * 50)
    assert len(tokenizer.encode(long, max_length=7, padding="max_length")) == 7
    assert len(tokenizer.encode(long, max_length=7)) == 7
    assert len(tokenizer.encode(long)) > 7
    assert len(tokenizer.encode(long, max_length=7, truncation=False)) > 7


def test_with_return_tensors_encode_gives_transformers_tensor(tokenizer):
    ids = tokenizer.encode(TEXT, return_tensors="pt")
    assert ids.tolist() == [tokenizer(TEXT)["input_ids"]]


def test_truncation_keeps_the_end_token_that_was_asked_for(tokenizer, tmp_path):
    tokenizer.add_eos_token = True
    assert tokenizer.encode(TEXT, max_length=4)[-1] == tokenizer.eos_token_id
    assert len(tokenizer.encode(TEXT, max_length=4)) == 4
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXT)["input_ids"][-1] == tokenizer.eos_token_id


def test_the_saved_folder_names_no_class_of_ours_and_loads_as_either(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    ours = TrainbookTokenizer.from_pretrained(tmp_path)
    assert (
        ours.encode(TEXT)["input_ids"] == AutoTokenizer.from_pretrained(tmp_path).encode(TEXT) == tokenizer.encode(TEXT)
    )


def test_save_writes_what_the_tokenizers_library_reads_without_an_earlier_calls_truncation(tokenizer, tmp_path):
    from tokenizers import Tokenizer

    tokenizer.encode(TEXT, max_length=2, padding="max_length")
    path = tokenizer.save(tmp_path / "my_tokenizer.json")
    loaded = Tokenizer.from_file(str(path))
    assert loaded.encode(TEXT).ids == tokenizer(TEXT)["input_ids"]
    assert loaded.truncation is None
    assert loaded.padding is None


def test_adopting_a_tokenizer_leaves_it_as_it_is_and_changes_no_id(tokenizer):
    plain = plain_of(tokenizer)
    plain.model_max_length, plain.padding_side = 77, "left"
    ours = adopt(plain)
    assert ours.encode(TEXT) == plain.encode(TEXT)
    assert (ours.pad_token, ours.eos_token, ours.model_max_length, ours.padding_side) == ("<pad>", "</s>", 77, "left")
    ours.add_tokens(["<more>"])
    assert len(plain) == len(ours) - 1
