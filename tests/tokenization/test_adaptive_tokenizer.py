"""The tokenizer for a vocabulary comes from the first tier that can give one, and says which and why."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset, DatasetDict

from tests.kit.hub_server import MAIN, NOWHERE, asked_here, hub_at
from utils.data.text.corpus import builtin_corpus
from utils.errors import ConfigError, DataError, DataNotFoundError, DataTypeError
from utils.tokenization import SPECIAL_TOKENS, AdaptiveTokenizer, CharacterLevelTokenizer, TokenizerValidator, train_bpe
from utils.tokenization.pretrained import KNOWN, Candidate, find_pretrained, verify


@pytest.fixture(scope="module")
def texts():
    return builtin_corpus()[:25]


# Which tier


@pytest.mark.parametrize(
    ("vocab_size", "dataset_size", "strategy"),
    [
        (50_257, 0, "pretrained"),
        (10_000, 100, "bpe"),
        (10_000, 99, "character"),
        (10_000, None, "character"),
        (999, 10_000, "character"),
    ],
)
def test_the_first_tier_is_told_from_the_sizes(vocab_size, dataset_size, strategy):
    assert AdaptiveTokenizer.detect_strategy(vocab_size, dataset_size) == strategy


@pytest.mark.parametrize("kind", ["list", "column", "dataset", "splits", "rows", "iterator"])
def test_texts_in_any_form_give_the_same_tokenizer(texts, kind):
    table = Dataset.from_dict({"number": list(range(len(texts))), "text": texts})
    forms = {
        "list": texts,
        "column": table["text"],
        "dataset": table,
        "splits": DatasetDict({"train": table, "test": table.select([0])}),
        "rows": [{"text": text} for text in texts],
        "iterator": iter(texts),
    }
    tokenizer = AdaptiveTokenizer.load_or_create(1000, forms[kind])
    assert tokenizer.choice.strategy == "bpe"
    assert "1,000 tokens" in tokenizer.choice.reason
    assert tokenizer.backend_tokenizer.to_str() == train_bpe(texts, 1000).backend_tokenizer.to_str()


def test_without_a_text_it_is_characters_and_says_so():
    tokenizer = AdaptiveTokenizer.load_or_create(2000)
    assert isinstance(tokenizer, CharacterLevelTokenizer)
    assert (len(tokenizer), tokenizer.choice.strategy) == (2000, "character")
    assert "no text to learn from" in tokenizer.choice.reason


@pytest.mark.parametrize("vocab_size", [101, 400, 1000, 2000])
def test_what_is_made_passes_its_own_validator(texts, vocab_size):
    dataset = None if vocab_size == 400 else [text.encode("ascii", "ignore").decode() for text in texts]
    tokenizer = AdaptiveTokenizer.load_or_create(vocab_size, dataset)
    assert TokenizerValidator.validate(tokenizer, expected_vocab_size=vocab_size, strict=True)


def test_special_tokens_that_were_asked_for_are_there(texts):
    names = [*SPECIAL_TOKENS, "<user>"]
    for tokenizer in (
        AdaptiveTokenizer.load_or_create(1000, texts, special_tokens=names),
        AdaptiveTokenizer.load_or_create(600, texts, special_tokens=names),
        AdaptiveTokenizer.load_or_create(600, special_tokens=names),
    ):
        assert tokenizer.convert_tokens_to_ids("<user>") == 4


def test_text_column_is_found_or_asked_for(texts):
    table = Dataset.from_dict({"title": ["a"] * len(texts), "body": texts})
    with pytest.raises(DataError, match="text_column: title, body"):
        AdaptiveTokenizer.load_or_create(1000, table)
    assert len(AdaptiveTokenizer.load_or_create(1000, table, text_column="body")) == 1000
    with pytest.raises(DataError, match="no column 'bodi'.*Did you mean 'body'"):
        AdaptiveTokenizer.load_or_create(1000, table, text_column="bodi")
    assert len(AdaptiveTokenizer.load_or_create(1000, table.remove_columns("title"))) == 1000


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"vocab_size": 0}, ConfigError, "vocab_size=0"),
        ({"vocab_size": True}, ConfigError, "vocab_size=True"),
        ({"vocab_size": 2000, "strategy": "bep"}, ConfigError, "Did you mean 'bpe'"),
        ({"vocab_size": 2000, "strategy": "bpe"}, ConfigError, "learns from a text"),
        ({"vocab_size": 2001, "strategy": "pretrained"}, ConfigError, "vocabulary of 2,001 is known"),
        ({"vocab_size": 2000, "dataset": ["", " "]}, DataError, "none of the 2 texts"),
        ({"vocab_size": 2000, "dataset": [1, 2]}, DataTypeError, "text 0 is of type int"),
        ({"vocab_size": 2000, "dataset": "a text"}, DataTypeError, "list of texts"),
        ({"vocab_size": 50}, ConfigError, "at least 100"),
        ({"vocab_size": 2000, "special_tokens": ["<pad>"]}, ConfigError, "different names"),
    ],
)
def test_what_cannot_be_is_refused(arguments, error, told):
    with pytest.raises(error, match=told):
        AdaptiveTokenizer.load_or_create(**arguments)


# The user's own


@pytest.fixture
def own(texts):
    return train_bpe(texts, 500)


@pytest.mark.parametrize("form", ["object", "backend", "tokenizer.json", "folder", "folder of one file"])
def test_the_users_own_tokenizer_is_taken_in_every_form(own, form, tmp_path):
    (tmp_path / "folder").mkdir()
    own.save_pretrained(tmp_path / "folder")
    alone = tmp_path / "alone"
    alone.mkdir()
    forms = {
        "object": own,
        "backend": own.backend_tokenizer,
        "tokenizer.json": own.save(tmp_path / "tokenizer.json"),
        "folder": str(tmp_path / "folder"),
        "folder of one file": own.save(alone / "tokenizer.json").parent,
    }
    tokenizer = AdaptiveTokenizer.load_or_create(600, tokenizer=forms[form])
    assert tokenizer.choice.strategy == "user"
    assert "100 of the model's 600 are never used" in tokenizer.choice.reason
    assert tokenizer.encode("the statement")["input_ids"] == own("the statement")["input_ids"]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "</s>")


def test_a_vocab_txt_is_read_as_bert_has_it(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "wor", "##ld", ","]) + "\n")
    tokenizer = AdaptiveTokenizer.load_or_create(9, tokenizer=path)
    assert tokenizer("Hello, world xyz")["input_ids"] == [2, 5, 8, 6, 7, 1, 3]
    assert tokenizer.decode([5, 8, 6, 7]) == "hello, world"
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (0, 4)


def test_an_own_tokenizer_that_is_larger_than_the_model_is_an_error_with_both_numbers(own):
    with pytest.raises(ConfigError, match=r"has 500 tokens.* holds 499\."):
        AdaptiveTokenizer.load_or_create(499, tokenizer=own)


def test_an_own_tokenizer_without_padding_gets_its_end_token_for_it(own):
    own.pad_token = None
    tokenizer = AdaptiveTokenizer.load_or_create(500, tokenizer=own)
    assert tokenizer.pad_token == "</s>"
    assert "</s> stands in for it" in tokenizer.choice.reason
    assert tokenizer.encode("a", max_length=3, padding="max_length")["attention_mask"] == [1, 0, 0]


@pytest.mark.parametrize(
    ("name", "content", "error", "told"),
    [
        ("missing.json", None, DataNotFoundError, "no tokenizer at .*missing.json"),
        ("bad.json", "{}", DataError, "bad.json is no tokenizer.json"),
        ("bad.json", '{"version": "1.0", "mod', DataError, "bad.json is no tokenizer.json"),
        ("vocab.txt", "[UNK]\na\na\n", DataError, "vocab.txt:2: the token 'a' is there twice"),
        ("vocab.txt", "a\nb\n", DataError, r"one line must be \[UNK\]"),
        ("", "", DataError, "holds no tokenizer that can be read.*other.txt"),
    ],
)
def test_a_file_that_is_no_tokenizer_is_named(name, content, error, told, tmp_path):
    (tmp_path / "other.txt").write_text("nothing")
    if content is not None and name:
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=told):
        AdaptiveTokenizer.load_or_create(1000, tokenizer=tmp_path / name)


def test_something_that_is_no_tokenizer_is_refused():
    with pytest.raises(DataTypeError, match="got a int as the tokenizer"):
        AdaptiveTokenizer.load_or_create(1000, tokenizer=7)


# Published ones


def test_the_table_agrees_with_itself():
    for vocab_size, candidates in KNOWN.items():
        assert candidates
        for candidate in candidates:
            assert candidate.num_tokens <= vocab_size, candidate.name
            assert len(candidate.markers) >= 2, candidate.name
            assert all(0 <= number < candidate.num_tokens for number in candidate.markers.values()), candidate.name
            assert candidate.name.count("/") == 1, candidate.name
    assert not any("meta-llama" in one.name or "google/gemma" in one.name for group in KNOWN.values() for one in group)


def test_a_published_tokenizer_is_verified_by_its_ids_and_not_by_its_size(own):
    right = Candidate("a/b", 500, {"<pad>": 0, "</s>": 3})
    assert verify(own, right) is None
    assert "500 tokens and not 501" in verify(own, Candidate("a/b", 501, right.markers))
    assert "'<pad>' has the id 0 and not 1" in verify(own, Candidate("a/b", 500, {"<pad>": 1}))
    assert "'<none>' has the id None" in verify(own, Candidate("a/b", 500, {"<none>": 1}))


def test_offline_the_next_tier_is_taken_and_it_is_said(texts, caplog):
    tokenizer = AdaptiveTokenizer.load_or_create(50_257, texts)
    assert tokenizer.choice.strategy == "bpe"
    assert (
        "no published tokenizer, because openai-community/gpt2 could not be had: HF_HUB_OFFLINE"
        in tokenizer.choice.reason
    )
    assert "openai-community/gpt2" in caplog.text
    with pytest.raises(ConfigError, match="openai-community/gpt2 could not be had"):
        AdaptiveTokenizer.load_or_create(50_257, texts, strategy="pretrained")
    assert find_pretrained(50_257).tokenizer is None


def files_of(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def look(name, **markers):
    """The reason that is given for a candidate, and its ids; False if it was rejected."""
    found = find_pretrained(500, {500: (Candidate(name, 500, {"<pad>": 0, **markers}),)})
    return [found.reason, found.tokenizer is not None and found.tokenizer.encode("the statement")["input_ids"]]


def test_a_published_tokenizer_is_loaded_verified_and_kept_without_running_code(own, tmp_path):
    files = files_of(own, tmp_path / "own")
    config = json.loads(files["tokenizer_config.json"])
    code = "raise SystemExit('code of the repository was run')"
    hostile = {
        **files, "code.py": code.encode(),
        "tokenizer_config.json": json.dumps({**config, "auto_map": {"AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"]}}).encode(),
    }  # fmt: skip
    hub = {
        "toys/good": {MAIN: files},
        "toys/hostile": {MAIN: hostile},
        "toys/half": {MAIN: {**files, "tokenizer.json": files["tokenizer.json"][:999]}},
    }
    ids = own("the statement")["input_ids"]
    with asked_here(hub, cache=tmp_path / "home"):
        good, other, hostile_one = look("toys/good"), look("toys/good", a=7), look("toys/hostile")
        half, none = look("toys/half"), look("toys/none")
    assert good == ["toys/good, 500 tokens, verified by its size and the ids of 1 tokens", ids]
    assert "its token 'a' has the id" in other[0]
    assert other[1] is False
    assert hostile_one[1] in (ids, False)
    assert half[1] is False
    assert none == ["toys/none could not be had: the Hub answered 404", False]
    # What was downloaded stays usable when the Hub is gone.
    with hub_at(NOWHERE, tmp_path / "home"):
        assert look("toys/good") == good


def test_a_hub_that_refuses_or_sends_half_a_file_leaves_no_half_tokenizer(own, tmp_path):
    files = files_of(own, tmp_path / "own")
    half = {**files, "tokenizer.json": files["tokenizer.json"][:2000]}
    texts = ["a text of the user's own, said again and again"] * 100
    names = ("openai-community/gpt2", "distilbert/distilgpt2")
    refusing = asked_here({}, dict.fromkeys(names, (503, "")), tmp_path / "refused")
    sending_half = asked_here({name: {MAIN: half} for name in names}, cache=tmp_path / "half")
    for hub, told in ((refusing, "the Hub answered 503"), (sending_half, "could not be had")):
        with hub:
            made = AdaptiveTokenizer.load_or_create(50_257, texts, cache_dir=tmp_path / "cache")
        strategy, reason, back, text = made.choice.strategy, made.choice.reason, made.decode(made.encode(texts[0])), texts[0]
        assert strategy in ("bpe", "character")
        assert "no published tokenizer, because openai-community/gpt2" in reason
        assert told in reason
        assert back == text
        assert [path.name.partition("-")[0] for path in (tmp_path / "cache").iterdir()] == ["auto"]


def test_a_published_tokenizer_without_the_special_tokens_asked_for_is_passed_over(own, tmp_path, monkeypatch):
    from utils.tokenization import adaptive_tokenizer
    from utils.tokenization.pretrained import Found

    monkeypatch.setattr(adaptive_tokenizer, "find_pretrained", lambda vocab_size: Found(own, "a/b, 500 tokens"))
    taken = AdaptiveTokenizer.load_or_create(50_257, cache_dir=tmp_path)
    assert taken.choice.strategy == "pretrained"
    kept = AdaptiveTokenizer.load_or_create(50_257, cache_dir=tmp_path)
    assert kept.encode("the") == own.encode("the")
    other = AdaptiveTokenizer.load_or_create(50_257, special_tokens=[*SPECIAL_TOKENS, "<user>"])
    assert other.choice.strategy == "character"
    assert "lacks the special tokens <user>" in other.choice.reason
