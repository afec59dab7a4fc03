"""Any text round-trips through characters, whatever the vocabulary, and frequent characters come first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from utils.errors import ConfigError
from utils.tokenization import SPECIAL_TOKENS, CharacterLevelTokenizer
from utils.tokenization.code_points import NUM_CODE_POINTS, code_points_by_use
from utils.tokenization.validator import SENTENCES

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)


@pytest.fixture(scope="module", params=[260, 300, 5_000, 40_000])
def tokenizer(request):
    return CharacterLevelTokenizer(request.param)


@given(text=TEXT)
def test_any_text_round_trips_from_256_tokens_on(tokenizer, text):
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded["input_ids"]) == text
    assert all(0 <= number < len(tokenizer) for number in encoded)


def test_it_has_exactly_the_tokens_that_were_asked_for(tokenizer):
    assert len(tokenizer) == tokenizer.vocab_size
    assert max(tokenizer.get_vocab().values()) == len(tokenizer) - 1
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3]


def test_a_hundred_thousand_tokens_hold_the_scripts_of_the_world_a_character_each():
    tokenizer = CharacterLevelTokenizer(vocab_size=100_000, special_tokens=["<pad>", "<unk>", "<s>", "</s>"])
    text = "Hello 世界! 東京"
    assert len(tokenizer.encode(text)) == len(text)
    for language, sentence in SENTENCES.items():
        assert len(tokenizer.encode(sentence)) == len(sentence), language


@pytest.mark.parametrize(
    ("vocab_size", "text"),
    [
        (570, "naïve “quotes” – cost"),
        (1_800, "Съешь же ещё этих мягких"),
        (12_000, "敏捷的棕色狐狸跳过了懒狗"),
        (14_500, "東京タワーへ行きました"),
        (17_500, "모든 사람은 자유롭게 태어났다"),
    ],
)
def test_what_is_frequent_has_a_token_in_small_vocabularies(vocab_size, text):
    assert CharacterLevelTokenizer(vocab_size).tokenize(text) == list(text)


def test_the_order_holds_every_character_of_unicode_once_and_no_surrogate():
    order = code_points_by_use(NUM_CODE_POINTS + 1)
    assert len(order) == len(set(order)) == NUM_CODE_POINTS
    assert not any("\ud800" <= character <= "\udfff" for character in order)
    assert "".join(order[:96]) == "".join(map(chr, range(0x20, 0x7F))) + "\n"
    assert code_points_by_use(5000) == order[:5000]


def test_below_256_what_has_no_token_is_unknown():
    tokenizer = CharacterLevelTokenizer(100)
    assert tokenizer.decode(tokenizer.encode("Plain ASCII, in lines.\n")) == "Plain ASCII, in lines.\n"
    assert tokenizer.encode("é") == [tokenizer.unk_token_id]


@pytest.mark.parametrize("vocab_size", [99, 0, -1, True, 1e3, "1000"])
def test_what_is_too_small_or_no_number_is_refused_with_the_smallest(vocab_size):
    with pytest.raises(ConfigError, match=r"at least 100 .*260 for every text"):
        CharacterLevelTokenizer(vocab_size)


def test_without_a_size_it_says_what_is_missing():
    with pytest.raises(ConfigError, match="needs vocab_size"):
        CharacterLevelTokenizer()


@pytest.mark.parametrize("special", [{"add_eos_token": True}, {"add_bos_token": True, "add_eos_token": True}])
def test_truncation_keeps_the_end_also_after_saving(special, tmp_path):
    tokenizer = CharacterLevelTokenizer(300, **special)
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, CharacterLevelTokenizer.from_pretrained(tmp_path)):
        ids = one.encode("hello world", max_length=6)["input_ids"]
        assert len(ids) == 6
        assert ids[-1] == one.eos_token_id
        assert (ids[0] == one.bos_token_id) == ("add_bos_token" in special)


def test_saved_it_loads_as_itself_and_as_any_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    text = "Hello 世界!\n\U0001f600"
    ours, any_other = CharacterLevelTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert type(ours) is CharacterLevelTokenizer
    assert ours.encode(text) == any_other(text)["input_ids"] == tokenizer.encode(text)
    assert any_other.decode(any_other(text)["input_ids"]) == text
    assert len(ours) == len(any_other) == len(tokenizer)


def test_further_special_tokens_follow_the_four():
    tokenizer = CharacterLevelTokenizer(300, [*SPECIAL_TOKENS, "<user>"])
    assert tokenizer.encode("<user>a")[0] == 4
    assert len(tokenizer) == 300
