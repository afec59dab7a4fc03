"""FastBPETrainer learns what train_bpe learns, from lists, columns and streams, and refuses what cannot be learned from."""

from __future__ import annotations

import pytest
from datasets import Dataset

from utils.data.text.corpus import builtin_corpus
from utils.errors import ConfigError, DataError, DataTypeError
from utils.tokenization import BPETrainerConfig, FastBPETrainer, train_bpe

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]


@pytest.fixture(scope="module")
def texts():
    return [text[:4000] for text in builtin_corpus()[:8]]


def test_all_ways_of_training_give_the_tokenizer_of_train_bpe(texts):
    expected = train_bpe(texts, 600).backend_tokenizer.to_str()
    trainer = FastBPETrainer(BPETrainerConfig(vocab_size=600, min_frequency=2, special_tokens=SPECIAL))
    ways = [
        trainer.train_on_dataset(texts=texts),
        trainer.train_on_dataset(Dataset.from_dict({"text": texts})),
        trainer.train_on_dataset(Dataset.from_dict({"text": texts})["text"]),
        trainer.train_with_streaming(iter(texts)),
        FastBPETrainer.train_on_dataset(texts, vocab_size=600),
        FastBPETrainer(BPETrainerConfig(vocab_size=300)).train_on_dataset(texts, vocab_size=600),
    ]
    assert [way.backend_tokenizer.to_str() == expected for way in ways] == [True] * len(ways)


def test_a_stream_is_read_once_and_never_held(texts):
    alive = []

    def stream():
        for text in texts:
            alive.append(text)
            yield text

    assert len(FastBPETrainer(BPETrainerConfig(vocab_size=300)).train_with_streaming(stream())) == 300
    assert alive == texts


def test_settings_of_the_config_count(texts):
    named = FastBPETrainer(BPETrainerConfig(vocab_size=300, special_tokens=[*SPECIAL, "<user>"])).train_on_dataset(
        texts
    )
    assert named.convert_tokens_to_ids("<user>") == 4
    rare = FastBPETrainer(BPETrainerConfig(vocab_size=5000, min_frequency=50)).train_on_dataset(texts)
    assert len(rare) < len(FastBPETrainer(BPETrainerConfig(vocab_size=5000)).train_on_dataset(texts))


@pytest.mark.parametrize(
    ("name", "size"), [("small", 5_000), ("medium", 10_000), ("large", 25_000), ("xlarge", 50_000)]
)
def test_presets_have_their_sizes(name, size):
    assert BPETrainerConfig.get_preset(name).vocab_size == size
    assert FastBPETrainer.from_preset(name).config.vocab_size == size
    assert BPETrainerConfig.get_preset(name, min_frequency=7).min_frequency == 7


def test_an_unknown_preset_is_an_error_with_the_nearest():
    with pytest.raises(ConfigError, match="small, medium, large, xlarge.*Did you mean 'large'"):
        BPETrainerConfig.get_preset("lage")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"vocab_size": 259}, "at least 260"),
        ({"vocab_size": "500"}, "vocab_size"),
        ({"min_frequency": 0}, "min_frequency"),
        ({"special_tokens": ["<pad>"]}, "different names"),
        ({"vocabsize": 500}, "did you mean vocab_size"),
    ],
)
def test_a_bad_setting_is_named(settings, told):
    with pytest.raises(ConfigError, match=told):
        BPETrainerConfig(**settings)


@pytest.mark.parametrize(
    ("texts", "error", "told"),
    [
        ([], DataError, "none of the 0 texts"),
        (["", " \n"], DataError, "holds any text|nothing to learn"),
        (["a", 3], DataTypeError, "text 1 is of type int"),
        (["a", "b\ud800"], DataError, "text 1, character 1"),
        ("one text", DataTypeError, "list of texts"),
        (7, DataTypeError, "got a int"),
    ],
)
def test_what_nothing_can_be_learned_from_is_refused_everywhere(texts, error, told):
    for refuse in (
        FastBPETrainer.validate_texts,
        FastBPETrainer.train_on_dataset,
        FastBPETrainer.estimate_training_time,
    ):
        with pytest.raises(error, match=told):
            refuse(texts)


def test_validate_texts_counts():
    counts = FastBPETrainer.validate_texts(iter(["ab", "", "cde"]))
    assert (counts.num_texts, counts.num_characters, counts.num_empty) == (3, 5, 1)


def test_the_estimate_grows_with_the_text(texts, monkeypatch):
    monkeypatch.setattr("utils.tokenization.bpe_trainer._SAMPLE", 8_000)
    # Time itself is not measured here: one second for each character that was trained on.
    trained = []
    monkeypatch.setattr(
        "utils.tokenization.bpe_trainer._seconds", lambda work: trained.append(work()) or float(len(trained))
    )
    trainer = FastBPETrainer(BPETrainerConfig(vocab_size=300))
    same_length = ["".join(texts)[:3000]] * 8
    once = trainer.estimate_training_time(same_length)
    trained.clear()
    many = trainer.estimate_training_time(same_length * 4)
    assert 2.5 < many / once < 3.8  # four times the counting, twice the merging
    assert len(trained[0]) == 260
    assert len(trained[1]) == 300


def test_the_estimate_is_of_this_machine(texts):
    assert 0 < FastBPETrainer.estimate_training_time(texts, vocab_size=300) < 60


def test_a_tokenizer_is_kept_for_the_same_texts_and_settings(texts, tmp_path):
    first = FastBPETrainer.train_on_dataset(texts, vocab_size=300, cache_dir=tmp_path)
    again = FastBPETrainer.train_on_dataset(iter(texts), vocab_size=300, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert first.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()
    FastBPETrainer.train_on_dataset(texts, vocab_size=310, cache_dir=tmp_path)
    FastBPETrainer.train_on_dataset(texts, vocab_size=300, min_frequency=3, cache_dir=tmp_path)
    FastBPETrainer.train_on_dataset(texts[1:], vocab_size=300, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_tables_give_their_texts_and_not_the_names_of_their_columns(texts):
    import pandas as pd

    table = pd.DataFrame({"body": [*texts, None], "rating": range(9)})
    rows = table.to_dict("records")
    expected = train_bpe(texts, 600).backend_tokenizer.to_str()
    for given in (table, table["body"], table["body"][::-1], rows, [*rows, {"rating": 3}]):
        assert FastBPETrainer.train_on_dataset(given, vocab_size=600).backend_tokenizer.to_str() == expected
        streamed = FastBPETrainer(BPETrainerConfig(vocab_size=600)).train_with_streaming(given)
        assert streamed.backend_tokenizer.to_str() == expected
    # Rows of a part of a table keep their numbers of the whole: they are not places.
    assert FastBPETrainer.estimate_training_time(table["body"][4:], vocab_size=300) > 0
    with pytest.raises(DataError, match="no column is the only one with text"):
        FastBPETrainer.train_on_dataset(table.assign(title="a"))
    with pytest.raises(DataTypeError, match="got a dict of body, rating"):
        FastBPETrainer.train_on_dataset({"body": texts, "rating": []})
