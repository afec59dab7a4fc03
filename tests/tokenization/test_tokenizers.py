"""Tokenizers give back every text they took, are the same each time, survive being saved, and fit the vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from utils.data.text.corpus import builtin_corpus
from utils.errors import ConfigError, DataError, DataTypeError
from utils.tokenization import (
    SPECIAL_TOKENS,
    FastBPETrainer,
    build_character_tokenizer,
    check_fits,
    choose_tokenizer,
    encode_documents,
    train_bpe,
)  # fmt: skip
from utils.tokenization.encoding import pieces

# Without lone surrogates, which are no text.
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=80)
CODE_LIKE = st.text("ab_1 \n\t.'(é世", max_size=300)


@pytest.fixture(scope="module")
def corpus():
    return builtin_corpus()[:12]


@pytest.fixture(scope="module", params=["bpe", "character"])
def tokenizer(request, corpus):
    return choose_tokenizer(corpus, 1000, request.param).tokenizer


@given(text=TEXT)
def test_any_text_round_trips(tokenizer, text):
    (ids,) = encode_documents(tokenizer, [text])
    assert tokenizer.decode(ids) == text
    assert len(ids) == 0 or (ids.min() >= 0 and ids.max() < len(tokenizer))


def test_documents_in_pieces_are_encoded_as_if_whole(tokenizer, corpus):
    documents = [*corpus, "\n".join(corpus)]
    assert len(list(pieces(documents[-1]))) > 5
    for document, ids in zip(documents, encode_documents(tokenizer, documents), strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == tokenizer(document)["input_ids"]


@given(text=CODE_LIKE, size=st.integers(1, 9))
def test_pieces_join_to_the_text_and_cut_where_the_tokenizer_cuts(tokenizer, text, size):
    parts = list(pieces(text, size))
    assert "".join(parts) == text
    assert all(len(part) >= size for part in parts[:-1])
    assert [i for part in parts for i in tokenizer(part)["input_ids"]] == tokenizer(text)["input_ids"]


def test_special_tokens_written_in_a_text_are_only_text(tokenizer):
    text = "an </s> end, a <pad> and an <unk>"
    (ids,) = encode_documents(tokenizer, [text])
    assert not set(ids.tolist()) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == text


def test_truncation_and_padding_of_earlier_calls_have_no_effect(tokenizer, corpus):
    documents = [*corpus[:2], "a"]
    whole = encode_documents(tokenizer, documents)
    tokenizer(documents, truncation=True, max_length=5, padding="max_length")
    again = encode_documents(tokenizer, documents)
    assert [len(ids) for ids in again] == [len(ids) for ids in whole]
    # and the caller's own setting is still there
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 5


def test_a_tokenizer_that_marks_the_beginning_of_a_text_gets_documents_whole():
    backend = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in "abcdefghij")], unk_id=0)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    metaspace = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    document = "abc def\nghi " * 1000
    (ids,) = encode_documents(metaspace, [document])
    assert ids.tolist() == metaspace(document)["input_ids"]


def test_empty_documents_and_none_at_all_are_allowed(tokenizer):
    assert [len(ids) for ids in encode_documents(tokenizer, ["", "a"])] == [0, 1]
    assert encode_documents(tokenizer, []) == []


def test_a_tokenizer_without_a_fast_backend_is_refused():
    with pytest.raises(DataTypeError, match="no fast backend"):
        encode_documents(object(), ["a"])


def test_roles_and_ids_of_the_special_tokens(tokenizer):
    assert (tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token, tokenizer.eos_token) == SPECIAL_TOKENS
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]
    assert tokenizer("abc")["input_ids"] == encode_documents(tokenizer, ["abc"])[0].tolist()  # none is added by itself


def test_saved_and_loaded_it_is_the_same(tokenizer, corpus, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = corpus[0][:3000] + " don 't , stop . 世界\n\n   x"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert len(loaded) == len(tokenizer)
    assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 3)


@pytest.mark.parametrize("strategy", ["bpe", "character"])
def test_the_same_text_gives_the_same_tokenizer(corpus, strategy):
    first, second = (choose_tokenizer(corpus, 1000, strategy).tokenizer for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_further_special_tokens_follow_the_four():
    names = [*SPECIAL_TOKENS, "<user>"]
    for tokenizer in (
        train_bpe(["aa bb"], 300, special_tokens=names),
        build_character_tokenizer(["aa bb"], special_tokens=names),
    ):
        assert tokenizer.convert_tokens_to_ids("<user>") == 4
        assert tokenizer("<user>")["input_ids"] == [4]


@pytest.mark.parametrize("names", [["<pad>"], ["a", "b", "c", "c"], ["a", "b", "c", ""], "<pad>", range(4)])
def test_bad_special_tokens_are_refused(names):
    with pytest.raises(ConfigError, match="different names"):
        train_bpe(["aa bb"], 300, special_tokens=names)
    with pytest.raises(ConfigError, match="different names"):
        FastBPETrainer.train_on_dataset(["aa bb"], 300, special_tokens=names)


# BPE


def test_bpe_has_the_size_that_was_asked_for_and_joins_what_is_frequent(corpus):
    tokenizer = train_bpe(corpus, 1000)
    assert len(tokenizer) == 1000
    assert len(tokenizer(" expression")["input_ids"]) < 4


def test_the_smallest_bpe_holds_every_byte():
    tokenizer = train_bpe(["aaaa"], 260)
    assert len(tokenizer) == 260
    assert tokenizer.decode(tokenizer("é\x00世")["input_ids"]) == "é\x00世"
    with pytest.raises(ConfigError, match=r"vocab_size=259 .*at least 260 .*\"character\""):
        train_bpe(["aaaa"], 259)


def test_min_frequency_leaves_rare_pairs_apart():
    texts = ["xyz xyz xyz qrs"]
    assert "xyz" in train_bpe(texts, 400, min_frequency=3).get_vocab()
    assert "xyz" not in train_bpe(texts, 400, min_frequency=4).get_vocab()


# Characters


def test_one_token_per_character():
    tokenizer = build_character_tokenizer(["hello wörld\n"])
    assert tokenizer.tokenize("hör\n") == ["h", "ö", "r", "\n"]


def test_characters_have_their_ids_in_the_order_of_code_points():
    text = "".join(map(chr, range(0x100, 0x180)))[::-1]
    tokenizer = build_character_tokenizer([text], vocab_size=4 + len(text))
    assert tokenizer.convert_ids_to_tokens(range(4, 4 + len(text))) == sorted(text)


def test_unknown_characters_become_bytes_where_there_is_room_and_unk_where_not():
    needed = len(SPECIAL_TOKENS) + len("helo")
    with_bytes = build_character_tokenizer(["hello"], vocab_size=needed + 256)
    assert len(with_bytes) == needed + 256
    assert with_bytes.decode(with_bytes("hé世")["input_ids"]) == "hé世"
    without = build_character_tokenizer(["hello"], vocab_size=needed + 255)
    assert len(without) == needed
    assert without("h世e界")["input_ids"][1::2] == [without.unk_token_id] * 2
    assert without.decode(without("hole")["input_ids"]) == "hole"


def test_more_characters_than_the_vocabulary_holds_is_an_error_with_both_numbers():
    with pytest.raises(ConfigError, match=r"5 different characters.* need 9 tokens .*holds 8\."):
        build_character_tokenizer(["abcde"], vocab_size=8)
    assert len(build_character_tokenizer(["abcde"], vocab_size=9)) == 9


# The choice


@pytest.mark.parametrize(
    ("num_characters", "vocab_size", "strategy", "size"),
    [
        (100_000, 1000, "bpe", 1000),
        (100_000, 999, "character", None),
        (100_000, 50_000, "bpe", 2000),
        (49_999, 4096, "character", None),
    ],
)
def test_auto_follows_vocabulary_and_amount_of_text(num_characters, vocab_size, strategy, size):
    texts = ["".join(builtin_corpus())[:num_characters]]
    choice = choose_tokenizer(texts, vocab_size)
    assert choice.strategy == strategy
    assert size is None or len(choice.tokenizer) == size
    assert f"{len(choice.tokenizer):,} tokens" in choice.reason


def test_auto_takes_bpe_when_the_characters_do_not_fit():
    texts = ["".join(map(chr, range(0x4E00, 0x4E00 + 300)))]
    assert choose_tokenizer(texts, 303).strategy == "bpe"
    assert choose_tokenizer(texts, 304).strategy == "character"
    with pytest.raises(ConfigError, match="300 different characters"):
        choose_tokenizer(texts, 259)


def test_a_short_text_gives_a_smaller_bpe_and_says_so():
    choice = choose_tokenizer(["a short text, a short text"], 4096, "bpe")
    assert 260 < len(choice.tokenizer) < 300
    assert "fewer than the 4,096 allowed" in choice.reason


def test_an_unknown_strategy_is_an_error_with_the_nearest():
    with pytest.raises(ConfigError, match="auto, bpe, character.*Did you mean 'character'"):
        choose_tokenizer(["text"], 300, "charakter")


def test_no_text_is_an_error():
    with pytest.raises(DataError, match="no text"):
        choose_tokenizer(["", ""], 300)


def test_a_larger_tokenizer_is_an_error_and_a_smaller_one_a_note():
    tokenizer = build_character_tokenizer(["abc"], vocab_size=7)
    assert check_fits(tokenizer, 7) is None
    assert "never used" in check_fits(tokenizer, 10)
    with pytest.raises(ConfigError, match=r"has 7 tokens.* holds 6\."):
        check_fits(tokenizer, 6)
