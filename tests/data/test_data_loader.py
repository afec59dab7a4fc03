"""Texts come from anywhere, nothing is left out unsaid, and what was read once is found on disk the next time."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from tests.kit.asked import answering, hub_environment
from tests.kit.hub_server import MAIN, NOWHERE, serving
from utils.data import DatasetLoader, DatasetUploader, prepare_data
from utils.data.read.files import files_to_choose, find_files
from utils.data.read.stored_texts import StoredTexts
from utils.data.read.text_rules import SeenTexts
from utils.data.text.local import load_local_texts
from utils.data.text.statistics import percentiles
from utils.errors import ConfigError, DataError, DataNotFoundError, DataTypeError
from utils.ui.setup_config import SetupConfig

TEXTS = ["a text of some length", "another one, as long", "the third of these texts"]


@pytest.fixture
def loader(tmp_path):
    return DatasetLoader(cache_dir=tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    return path


# Where texts come from


@pytest.mark.parametrize(
    "source",
    [
        TEXTS,
        [{"text": text, "n": n} for n, text in enumerate(TEXTS)],
        pd.DataFrame({"n": [1, 2, 3], "text": TEXTS}),
        Dataset.from_dict({"text": TEXTS}),
        Dataset.from_dict({"id": [1, 2, 3], "body": TEXTS}),
    ],
    ids=["texts", "dicts", "frame", "dataset", "only column"],
)
def test_objects_become_a_data_set(loader, source):
    loaded = loader.load(source)
    assert loaded[loader.report.text_column][:] == TEXTS
    assert (loader.report.num_rows, loader.report.num_kept, loader.report.dropped) == (3, 3, {})


def test_the_builtin_corpus_is_a_source(loader):
    loaded = loader.load("builtin")
    assert len(loaded) > 40
    assert "Python language reference" in loader.report.source


@pytest.mark.parametrize("source", [5, None, {"a": 1}, [1, 2], DatasetDict(train=Dataset.from_dict({"text": TEXTS}))])
def test_what_is_no_source_is_refused_with_what_is(loader, source):
    with pytest.raises(DataTypeError, match="give a path|give one of its splits: 'train'"):
        loader.load(source)


@pytest.mark.parametrize("source", [[], pd.DataFrame({"text": []}, dtype=str), Dataset.from_dict({"text": []})])
def test_a_source_without_rows_is_an_error(loader, source):
    with pytest.raises(DataError):
        loader.load(source)


def test_mixed_kinds_in_an_object_are_named(loader):
    with pytest.raises(DataError, match=r"list of 2:2: 'text' is 7, a number, and a text in the rows before"):
        loader.load([{"text": "x"}, {"text": 7}])
    with pytest.raises(DataError, match="column text with type object"):
        loader.load(pd.DataFrame({"text": ["x", 7]}))


def test_a_folder_as_the_datasets_library_reads_it(loader, folder):
    (folder / "train.jsonl").write_text("".join(json.dumps({"id": 1, "body": text}) + "\n" for text in TEXTS))
    loaded = loader.load_huggingface(str(folder))
    assert loaded["body"][:] == TEXTS
    assert loaded.features["id"].dtype == "int64"
    stream = loader.load_huggingface(str(folder), streaming=True)
    assert [row["body"] for row in stream] == TEXTS
    assert [row["body"] for row in stream] == TEXTS  # it can be read again
    with pytest.raises(ConfigError, match="streaming=True"):
        DatasetLoader(remove_duplicates=True).load_huggingface(str(folder), streaming=True)


@pytest.mark.parametrize(
    ("split", "numbers"), [("train[:3]", [0, 1, 2]), ("train[50%:60%]", [10, 11]), ("train[-2:]", [18, 19])]
)  # fmt: skip
def test_a_part_of_a_split_is_taken(folder, split, numbers):
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(20)))
    loader = DatasetLoader(min_length=1)
    assert loader.load_huggingface(str(folder), split=split)["text"][:] == [f"row {n}" for n in numbers]
    for wrong in ("train[a:b]", "train[:3", "train[:900]x"):
        with pytest.raises(DataError, match="write a part as"):
            loader.load_huggingface(str(folder), split=wrong)
    with pytest.raises(DataError, match="a stream has no parts"):
        loader.load_huggingface(str(folder), split=split, streaming=True)


def test_a_saved_data_set_is_known_for_what_it_is(loader, folder):
    Dataset.from_dict({"text": TEXTS}).save_to_disk(folder / "saved")
    assert loader.load(folder / "saved")["text"][:] == TEXTS
    assert loader.load(folder / "saved", split="train[:1]")["text"][:] == TEXTS[:1]
    with pytest.raises(DataError, match="Give it as dataset_name"):
        load_local_texts(folder / "saved")


def test_classes_of_a_data_set_keep_their_names(loader):
    from datasets import ClassLabel, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    given = Dataset.from_dict({"text": ["  one of the texts ", "short"], "label": [1, 0]}, features=features)
    loaded = loader.load(given)
    assert loaded.features["label"].names == ["no", "yes"]
    assert loaded[:] == {"text": ["one of the texts"], "label": [1]}


@pytest.mark.parametrize(
    ("columns", "taken"),
    [
        ({"title": ["a"], "text": ["b"]}, "text"),
        ({"title": ["a"], "content": ["b"]}, "content"),
        ({"id": [1], "review": ["b"]}, "review"),
        ({"a": ["b"], "c": ["d"]}, None),
        ({"id": [1]}, None),
    ],
)
def test_the_column_of_texts_is_found_or_asked_for(columns, taken):
    loader = DatasetLoader(min_length=0)
    if taken is not None:
        loader.load(Dataset.from_dict(columns))
        assert loader.report.text_column == taken
        return
    with pytest.raises(DataError, match="column of text") as caught:
        loader.load(Dataset.from_dict(columns))
    assert all(name in str(caught.value) for name in columns)
    assert ("  string  " in str(caught.value)) == ("a" in columns)


# What is kept


def test_only_the_ends_of_a_text_are_cleaned():
    text = "  \n two  spaces\t\n\nand a blank line \n"
    assert DatasetLoader().load([text])["text"][:] == ["two  spaces\t\n\nand a blank line"]
    assert DatasetLoader(preprocessing=False).load([text])["text"][:] == [text]


def test_what_is_left_out_is_counted_and_told(caplog):
    texts = ["long enough", "short", "", " \n", "long enough", "x" * 21, "  long enough  ", "also long"]
    loader = DatasetLoader(min_length=9, max_length=20, remove_duplicates=True)
    with caplog.at_level(logging.WARNING, "trainbook.data"):
        assert loader.load(texts)["text"][:] == ["long enough", "also long"]
    assert loader.report.dropped == {"without text": 2, "too short": 1, "too long": 1, "duplicates": 2}
    assert loader.report.num_rows == 8
    assert "2 of 8 rows were kept; left out: 2 without text, 1 too short, 1 too long, 2 duplicates." in caplog.text
    assert "Left out" in str(loader.report)


def test_nothing_left_is_an_error_with_counts():
    with pytest.raises(DataError, match=r"none of the 3 rows is left \(1 without text, 2 too short; .*min_length=10"):
        DatasetLoader().load(["", "a", "b"])


@pytest.mark.parametrize(
    "limits", [{"min_length": -1}, {"max_length": 0}, {"min_length": 5, "max_length": 4}, {"min_length": 1.5}]
)
def test_limits_that_cannot_be_are_refused(limits):
    with pytest.raises(ConfigError, match=next(reversed(limits))):
        DatasetLoader(**limits)


def test_what_was_seen_is_remembered_beyond_its_memory():
    seen = SeenTexts()
    assert all(seen.add(f"text {number}") for number in range(5000))
    assert not any(seen.add(f"text {number}") for number in range(5000))
    seen.close()


# The table on disk


def test_a_file_is_read_once_and_again_when_it_or_the_rules_change(loader, folder):
    path = folder / "a.txt"
    path.write_text("\n".join(TEXTS))
    first = loader.load(path)
    report = loader.report
    assert first.cache_files
    written = Path(first.cache_files[0]["filename"]).stat().st_mtime_ns
    again = loader.load(path)
    assert again.cache_files == first.cache_files
    assert Path(again.cache_files[0]["filename"]).stat().st_mtime_ns == written
    assert loader.report == report
    longer = DatasetLoader(min_length=21, cache_dir=loader.cache_dir).load(path)
    assert longer["text"][:] == [TEXTS[0], TEXTS[2]]
    path.write_text("\n".join([*TEXTS, "one more of the texts"]))
    assert len(loader.load(path)) == 4
    assert len(first) == 3  # what was handed out stays as it was


@pytest.mark.parametrize("damage", ["cut off", "no record", "strange record"])
def test_a_damaged_table_is_made_anew(loader, folder, damage):
    (folder / "a.txt").write_text("\n".join(TEXTS))
    table = Path(loader.load(folder / "a.txt").cache_files[0]["filename"])
    record = table.with_suffix(".json")
    if damage == "cut off":
        table.write_bytes(table.read_bytes()[:-50])
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text(json.dumps({"size_bytes": table.stat().st_size, "report": {"other": 1}}))
    assert loader.load(folder / "a.txt")["text"][:] == TEXTS
    assert loader.report.num_kept == 3


def test_an_error_leaves_nothing_behind(loader, folder):
    (folder / "a.jsonl").write_text('{"text": "a text of some length"}\n' * 2000 + "{")
    with pytest.raises(DataError, match=":2001:2"):
        loader.load(folder / "a.jsonl")
    assert os.listdir(loader.cache_dir) == []


def test_a_folder_that_cannot_be_written_to_is_said(folder):
    (folder / "file").write_text("x")
    (folder / "a.txt").write_text("some text is here")
    with pytest.raises(DataError, match="cache_dir="):
        DatasetLoader(cache_dir=folder / "file").load(folder / "a.txt")


def test_loading_draws_no_random_number_and_prints_nothing(loader, folder, rng_untouched, capfd):
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    loader.load(folder / "a.jsonl", text_column="text")
    assert capfd.readouterr() == ("", "")


# Statistics and samples


def test_statistics_are_exact(loader, capsys):
    texts = ["x" * n + " y" for n in range(10, 110)]
    numbers = loader.get_statistics(Dataset.from_dict({"text": texts, "n": list(range(100))}))
    lengths = sorted(map(len, texts))
    assert (numbers["num_samples"], numbers["total_chars"], numbers["total_words"]) == (100, sum(lengths), 200)
    assert (numbers["min_chars"], numbers["max_chars"]) == (12, 111)
    assert (numbers["avg_chars"], numbers["avg_words"]) == (61.5, 2.0)
    assert (numbers["median_chars"], numbers["p95_chars"]) == (lengths[49], lengths[94])
    assert numbers["other_columns"] == {"n": "int64"}
    assert loader.get_statistics(texts)["num_samples"] == 100
    loader.print_statistics(Dataset.from_dict({"text": texts, "n": list(range(100))}))
    assert "Median chars   61" in capsys.readouterr().out
    with pytest.raises(DataError, match="holds no texts"):
        loader.get_statistics([])


def test_percentiles_of_one_value_are_that_value():
    assert percentiles({7: 1}, {"low": 1, "high": 99}) == {"low": 7, "high": 7}


def test_samples_are_shown_and_long_ones_cut(loader, capsys):
    loader.preview_samples(["first", "x" * 1000, "third", "fourth"], num_samples=3)
    out = capsys.readouterr().out
    assert "first" in out
    assert "… (1,000 characters)" in out
    assert "fourth" not in out
    with pytest.raises(ConfigError, match="num_samples"):
        loader.preview_samples(["a"], num_samples=0)


# Documents to train on


def test_a_table_can_be_trained_on(folder):
    lines = [f"Line {number} of a text about {number * number} things." for number in range(300)]
    (folder / "a.csv").write_text("id,body\n" + "".join(f"{n},{line}\n" for n, line in enumerate(lines)))
    setup = SetupConfig(
        dataset_path=str(folder / "a.csv"), vocab_size=300, max_length=16, tokenizer_strategy="character"
    )
    report = prepare_data(setup).report
    assert report.num_documents == 300
    assert report.num_characters == sum(map(len, lines))
    assert report.source.endswith("a.csv, column body")
    setup.text_column = "bodi"
    with pytest.raises(DataError, match="Did you mean 'body'"):
        prepare_data(setup)


def test_a_folder_of_texts_is_a_document_a_file_and_validates_on_its_own(folder):
    for name, text in {"train-1.txt": "one\n\ntwo\n", "train-2.txt": "three\n", "validation.txt": "unseen\n"}.items():
        (folder / name).write_text(text)
    loaded = load_local_texts(folder)
    assert list(loaded.documents) == ["one\n\ntwo\n", "three\n"]
    assert list(loaded.validation) == ["unseen\n"]
    assert load_local_texts(folder, with_validation=False).validation is None


def test_a_packed_text_is_the_same_document_as_the_plain_one(folder):
    import gzip

    text = "One paragraph.\n\nAnother one.\n" * 50
    (folder / "a.txt").write_text(text)
    (folder / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert (
        list(load_local_texts(folder / "a.txt.gz").documents) == load_local_texts(folder / "a.txt").documents == [text]
    )


def test_a_large_table_is_read_from_disk_and_prepares_to_the_same_blocks(folder, monkeypatch):
    rows = [{"text": f"Row {number} of this table." if number % 7 else " "} for number in range(400)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    setup = SetupConfig(
        dataset_path=str(folder / "a.jsonl"), vocab_size=300, max_length=16, tokenizer_strategy="character"
    )
    held = prepare_data(setup)
    monkeypatch.setattr("utils.data.read.stored_texts.HELD_BYTES", 100)
    assert isinstance(load_local_texts(folder / "a.jsonl").documents, StoredTexts)
    stored = prepare_data(setup)
    assert (stored.train.blocks == held.train.blocks).all()
    assert stored.report.num_characters == held.report.num_characters


def test_stored_texts_are_a_sequence():
    texts = StoredTexts(Dataset.from_dict({"body": ["a", None, "c", " "]}), "body")
    assert list(texts) == ["a", "", "c", " "]
    assert (texts[0], texts[-2], len(texts)) == ("a", "c", 4)
    assert list(texts[1:3]) == ["", "c"]
    with pytest.raises(IndexError):
        texts[4]


def test_drive_and_upload_are_files_of_this_machine_as_well(folder):
    (folder / "a.txt").write_text("a text of some length\n" * 40)
    for source in ("local", "drive", "upload"):
        setup = SetupConfig(dataset_source=source, dataset_path=str(folder / "a.txt"), vocab_size=300, max_length=16)
        assert prepare_data(setup).report.num_documents == 1
        assert (
            SetupConfig(**{k: v for k, v in setup.to_dict().items() if k.startswith("dataset_")}).dataset_source
            == source
        )


def test_uploading_needs_a_limit_and_colab():
    with pytest.raises(ConfigError, match="max_size_mb"):
        DatasetUploader(max_size_mb=0)
    with pytest.raises(DataError, match="needs Colab.*setup wizard"):
        DatasetLoader().load_upload()


def test_a_name_beside_a_test_folder_is_not_taken_for_a_split(tmp_path):
    inner = tmp_path / "validation" / "mine"
    inner.mkdir(parents=True)
    for name in ("train.txt", "extra.txt"):
        (inner / name).write_text("text")
    assert find_files(inner).validation == ()


# The Hub


LOAD = """
    from utils.data import DatasetLoader
    from utils.data.text import hub
    from utils.errors import TrainbookError
    hub.RETRY_WAITS_S = (0.0, 0.0)

    def answer(call):
        try:
            return DatasetLoader(min_length=1).load_huggingface(**call)["text"][:]
        except TrainbookError as error:
            return f"{type(error).__name__}: {error}"
"""


def loading(endpoint):
    """A process that loads what it is asked for from a Hub."""
    return answering(LOAD, "-W", "error", environment=hub_environment(endpoint, Path("hub-home").absolute()))


def rows(count):
    return b"".join(b'{"text": "row %d of the dataset"}\n' % number for number in range(count))


@pytest.mark.slow
def test_f41_a_data_set_that_cannot_be_had_is_one_plain_error_and_no_half_of_it_is_kept():
    wanted = {"dataset_name": "owner/set"}
    with loading(NOWHERE) as cut_off, serving({"owner/set": {MAIN: {"train.jsonl": rows(400)}}}) as server:
        with loading(server.address) as connected:
            with server.failing(503, times=99):
                (busy,) = connected.ask(wanted)
                assert server.asked == ["GET /api/datasets/owner/set"] * 3  # two more times, and no series of retries
            (nowhere,) = cut_off.ask(wanted)
            for sentence in (busy, nowhere):
                assert sentence.startswith("HubError: the Hugging Face Hub could not be reached for owner/set")
                assert 'dataset="builtin"' in sentence
            with server.cutting("train.jsonl", after=1000):
                (cut,) = connected.ask(wanted)
            assert isinstance(cut, str)
            assert "Error: " in cut
            with server.failing(429, times=2):
                (whole,) = connected.ask(wanted)  # answered at the third question
            assert len(whole) == 400
        (again,) = cut_off.ask(wanted)
        assert again == whole  # without a line the copy is enough


def test_a_path_that_is_missing_in_a_list_is_an_error_and_no_text(loader, folder):
    there = folder / "there.txt"
    there.write_text("\n".join(TEXTS))
    for paths in (
        [str(there), "missing-notes.txt"],
        [there, folder / "missing"],
        ["missing-one.csv", "missing-two.csv.gz"],
    ):
        with pytest.raises(DataNotFoundError, match="missing"):
            loader.load(paths)
    assert loader.load(["a text about notes.txt", "another text"]).num_rows == 2


@pytest.mark.parametrize(
    "source", [TEXTS, pd.DataFrame({"text": TEXTS}), Dataset.from_dict({"text": TEXTS}), "builtin", "x.txt"]
)
def test_an_option_that_a_source_does_not_have_is_refused(loader, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("\n".join(TEXTS))
    with pytest.raises(ConfigError, match="text_colum  *is no option for .*did you mean text_column"):
        loader.load(source, text_colum="text")
    with pytest.raises(ConfigError, match="delimitr"):
        loader.load(source, delimitr=",", text_column="text")


def test_an_encoding_that_is_no_name_is_refused(loader, folder):
    (folder / "x.txt").write_text(TEXTS[0])
    with pytest.raises(ConfigError, match="encoding=5, which is no text encoding"):
        loader.load(folder / "x.txt", encoding=5)


def test_what_is_loaded_by_its_column_is_counted_and_shown_by_it(loader, capsys):
    loaded = loader.load([{"title": f"title {n}", "body": text} for n, text in enumerate(TEXTS)], text_column="body")
    loader.print_statistics(loaded, text_column="body")
    loader.preview_samples(loaded, 1, text_column="body")
    assert TEXTS[0] in capsys.readouterr().out


def test_files_to_choose_from_are_the_data_files_nearby_and_nothing_else(tmp_path):
    for name in (
        "b.csv", "a.jsonl.gz", "notes.md", "requirements.txt", "model.py", ".hidden.txt", "data/c.parquet", "data/README.txt",
        "data/deep/d.txt", ".git/e.txt", "_cache/f.txt", "x.egg-info/top_level.txt",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert files_to_choose(tmp_path) == ["a.jsonl.gz", "b.csv", "data/c.parquet"]
    assert files_to_choose(tmp_path, most=1) == ["a.jsonl.gz"]
    assert files_to_choose(tmp_path / "nowhere") == []
    slow = iter([0.0, 0.0, 1.0])
    assert files_to_choose(tmp_path, seconds=0.5, clock=lambda: next(slow)) == ["a.jsonl.gz", "b.csv"]
