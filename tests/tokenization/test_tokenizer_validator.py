"""A tokenizer that cannot be used is refused with every reason; one that can is accepted, with what the user should know."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from utils.data.text.corpus import builtin_corpus
from utils.errors import ConfigError, DataTypeError
from utils.tokenization import CharacterLevelTokenizer, TokenizerValidator, build_character_tokenizer, train_bpe
from utils.tokenization.validator import SENTENCES

EVERYTHING = list(SENTENCES.values())


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(builtin_corpus()[:5], 400)


def words(vocabulary, unknown="<unk>", **settings):
    """A tokenizer of whole words."""
    backend = Tokenizer(models.WordLevel({unknown: 0, **vocabulary}, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=unknown, **settings)


def messages(report, check):
    return [finding.message for finding in report.findings if finding.check == check]


@pytest.mark.parametrize("kind", ["bpe", "characters", "no text", "bytes"])
def test_those_made_here_pass_without_a_word(kind, bpe):
    tokenizer = {
        "bpe": bpe,
        "characters": build_character_tokenizer(EVERYTHING),
        "no text": CharacterLevelTokenizer(1000),
        "bytes": CharacterLevelTokenizer(260),
    }[kind]
    report = TokenizerValidator.report(tokenizer, len(tokenizer), texts=EVERYTHING)
    assert report.findings == ()
    assert TokenizerValidator.validate(tokenizer, expected_vocab_size=len(tokenizer), strict=True) is True


def test_a_larger_tokenizer_is_an_error_with_both_numbers_and_a_smaller_one_a_note(bpe):
    assert TokenizerValidator.validate(bpe, 399, strict=False) is False
    with pytest.raises(ConfigError, match=r"has 400 tokens.* holds 399\."):
        TokenizerValidator.validate(bpe, 399)
    report = TokenizerValidator.report(bpe, 1000)
    assert report.passed
    assert "600 of the model's 1,000 are never used" in str(report)


def test_ids_with_gaps_that_the_model_does_not_have_are_an_error():
    report = TokenizerValidator.report(words({"a": 90}), 50)
    assert not report.passed
    assert "ids up to 90" in messages(report, "vocabulary")[0]


def test_an_id_that_a_text_gets_beyond_the_vocabulary_is_an_error(bpe):
    report = TokenizerValidator.report(bpe, 100)
    assert any("ids 0 to 99" in message for message in messages(report, "ids"))


def test_characters_that_become_other_ones_are_an_error_with_the_text_before_and_after():
    backend = Tokenizer(
        models.BPE(vocab={letter: n for n, letter in enumerate("abcdefghijklmnopqrstuvwxyz ")}, merges=[])
    )
    backend.decoder = decoders.Fuse()  # without an unknown token, what has none is dropped
    report = TokenizerValidator.report(PreTrainedTokenizerFast(tokenizer_object=backend), 27)
    assert not report.passed
    (english,) = [message for message in messages(report, "round trip") if message.startswith("English")]
    assert "The quick brown" in english
    assert "comes back as 'he quick brown" in english


def test_unknown_characters_are_a_note_unless_the_users_own_texts_have_them():
    tokenizer = build_character_tokenizer([SENTENCES["English"]], vocab_size=60)
    report = TokenizerValidator.report(tokenizer, len(tokenizer), texts=[SENTENCES["English"]])
    assert report.passed
    assert "Chinese" in messages(report, "round trip")[0]
    assert "English" not in messages(report, "round trip")[0]
    own = TokenizerValidator.report(tokenizer, len(tokenizer), texts=["fine", "größer"])
    assert not own.passed
    assert [finding.message for finding in own.errors] == ["characters without a token become unknown in: text 1"]


def test_a_change_of_case_and_accents_is_a_note_as_berts_tokenizers_make_it():
    tokenizer = CharacterLevelTokenizer(1000)
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()])
    report = TokenizerValidator.report(tokenizer, 1000)
    assert report.passed
    assert "case, accents or spaces are changed in: English, French" in messages(report, "round trip")[0]


def test_missing_special_tokens_are_noted_and_ones_without_an_id_refused():
    report = TokenizerValidator.report(words({"a": 1}), 2)
    assert report.passed
    assert len(messages(report, "special tokens")) == 2
    broken = words({"a": 1}, eos_token="</s>")
    broken.get_vocab = lambda: {"<unk>": 0, "a": 1}
    assert "eos_token is '</s>', which is not in the vocabulary" in str(TokenizerValidator.report(broken, 10))


def test_strict_tells_all_errors_at_once(bpe):
    with pytest.raises(ConfigError) as caught:
        TokenizerValidator.validate(bpe, 100)
    assert [problem.field for problem in caught.value.problems] == ["vocabulary", "ids"]


@pytest.mark.parametrize("what", [None, "text", object(), Tokenizer(models.BPE())])
def test_what_is_no_tokenizer_is_refused_with_the_way_to_one(what):
    with pytest.raises(DataTypeError, match="load_or_create"):
        TokenizerValidator.validate(what, 10)


def test_what_is_no_vocabulary_size_and_what_are_no_texts(bpe):
    for size in (None, 0, True, "400"):
        with pytest.raises(ConfigError, match="got expected_vocab_size"):
            TokenizerValidator.validate(bpe, size)
    with pytest.raises(DataTypeError, match=r"given as \[text\]"):
        TokenizerValidator.validate(bpe, 400, texts="one text")
    with pytest.raises(DataTypeError, match="text 1 is of type NoneType"):
        TokenizerValidator.validate(bpe, 400, texts=["a", None])
