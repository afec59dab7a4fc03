"""What is kept is found again by its content, is whole or not there, and never decides whether there is a tokenizer."""

from __future__ import annotations

import json
import os

import pytest

from tests.kit.crash import Fuse, in_child
from utils.errors import ConfigError
from utils.tokenization import AdaptiveTokenizer, train_bpe
from utils.tokenization.cache import CacheEntry, cached_tokenizer, content_key

TEXTS = ["a text that says something, and a text that says it again"] * 20


def load(folder, texts=TEXTS, **options):
    return AdaptiveTokenizer.load_or_create(300, texts, cache_dir=folder, strategy="bpe", **options)


def counted(monkeypatch):
    """How often a tokenizer was learned."""
    made = []
    real = train_bpe
    monkeypatch.setattr("utils.tokenization.adaptive.train_bpe", lambda *a, **o: made.append(1) or real(*a, **o))
    return made


def test_the_second_time_it_is_read_and_is_the_same_with_its_reason(tmp_path, monkeypatch):
    made = counted(monkeypatch)
    first, second = load(tmp_path / "new" / "cache"), load(tmp_path / "new" / "cache")
    assert len(made) == 1
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    assert first.choice.reason == second.choice.reason
    assert second.special_tokens_map == first.special_tokens_map
    assert second.encode("a text", max_length=9, padding="max_length") == first.encode(
        "a text", max_length=9, padding="max_length"
    )


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    made = counted(monkeypatch)
    load(None)
    load(None)
    assert len(made) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [{"texts": [*TEXTS, "more"]}, {"texts": ["".join(TEXTS)]}, {"special_tokens": ["<a>", "<b>", "<c>", "<d>"]}],
)
def test_another_text_or_setting_is_another_entry(tmp_path, change):
    load(tmp_path)
    load(tmp_path, **change)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_version_of_tokenizers_is_in_the_key(monkeypatch):
    import tokenizers

    before = content_key({}, TEXTS)
    monkeypatch.setattr(tokenizers, "__version__", "0.0.1")
    assert content_key({}, TEXTS) != before


def test_where_a_text_ends_is_in_the_key():
    assert len({content_key({}, ["ab"]), content_key({}, ["a", "b"]), content_key({}, ["ab", ""])}) == 3


def damage(path, how):
    content = path.read_text()
    if how == "cut":
        path.write_text(content[: len(content) // 2])
    elif how == "a letter":  # one that leaves it a tokenizer which can be read
        path.write_text(content.replace("byte-level BPE", "bite-level BPE", 1))
    elif how == "empty":
        path.write_text("")
    elif how == "other JSON":
        path.write_text(json.dumps([1]))
    else:
        path.write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize("how", ["cut", "a letter", "empty", "other JSON", "no text"])
def test_a_damaged_entry_is_made_anew_and_said(tmp_path, how, caplog):
    first = load(tmp_path)
    (entry,) = tmp_path.iterdir()
    whole = entry.read_text()
    damage(entry, how)
    assert entry.read_bytes() != whole.encode()
    again = load(tmp_path)
    assert again.backend_tokenizer.to_str() == first.backend_tokenizer.to_str()
    assert "is damaged" in caplog.text
    assert entry.read_text() == whole


def test_killed_at_any_moment_of_writing_no_half_entry_is_left(tmp_path):
    tokenizer = train_bpe(TEXTS, 280)

    def write_and_die(folder, moment):
        fuse = Fuse(moment)
        real_replace, real_fsync = os.replace, os.fsync

        def replace(*arguments):
            fuse.burn()
            real_replace(*arguments)
            fuse.burn()

        def fsync(number):
            fuse.burn()
            real_fsync(number)

        os.replace, os.fsync = replace, fsync
        CacheEntry(folder / "entry.json").write(tokenizer, "a reason")

    endings = []
    for moment in (1, 2, 3, 4, 9):
        folder = tmp_path / str(moment)
        folder.mkdir()
        endings.append(in_child(lambda folder=folder, moment=moment: write_and_die(folder, moment)).killed)
        found = CacheEntry(folder / "entry.json").read()
        assert (found is None) == (moment < 3), moment
        assert found is None or found[0].backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert endings == [True, True, True, True, False]


def test_a_disk_that_takes_nothing_costs_the_cache_and_not_the_tokenizer(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("utils.tokenization.cache.write_text", full)
    assert len(load(tmp_path)) > 260
    assert "No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cache_dir: the folder .*file/x cannot be made"):
        cached_tokenizer(tmp_path / "file" / "x", {}, [], lambda: pytest.fail("it was made"))
