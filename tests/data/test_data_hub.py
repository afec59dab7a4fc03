"""Datasets are read as the `datasets` library reads them; what cannot be had is one plain sentence with a way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from tests.kit.asked import answering, hub_environment
from tests.kit.hub_server import MAIN, NOWHERE, PARQUET, serving
from utils.data import prepare_data
from utils.data.text.hub import dataset_name_problem, load_hub_texts, table_texts
from utils.data.text.hub_errors import plain_error
from utils.errors import ConfigError, DataError, HubError
from utils.ui.setup_config import SetupConfig

LINES = [f"Line {number} of a text about {number * number} things." for number in range(300)]
DIALOGS = [["Hello.", "Hello, how are you?"], ["Good evening.", "", "Good night."]]


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "corpus"
    path.mkdir()
    return path


def write_jsonl(path, **columns):
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# What can be read


def test_a_folder_of_text_files_gives_its_lines_and_its_own_validation(folder):
    (folder / "train.txt").write_text("\n".join(LINES))
    (folder / "validation.txt").write_text("\n".join(LINES[:7]))
    loaded = load_hub_texts(str(folder))
    assert loaded.documents == LINES
    assert loaded.validation == LINES[:7]
    assert str(folder) in loaded.source
    assert "own split 'validation' (rows: 7)" in " ".join(loaded.notes)
    assert load_hub_texts(str(folder), with_validation=False).validation is None


def test_datasets_in_memory_report_their_own_validation_split_and_a_reading_that_ended_early():
    tables = DatasetDict(train=Dataset.from_dict({"text": LINES}), dev=Dataset.from_dict({"text": LINES[:7]}))
    loaded = table_texts(tables, max_characters=100)
    assert loaded.validation == LINES[:4], "the limit is that of each split"
    assert "own split 'dev' (its first 4 rows)" in " ".join(loaded.notes)
    assert "reach 100 characters, the most that is held" in " ".join(loaded.notes)
    assert table_texts(tables, with_validation=False).notes == []


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv", "saved", "saved splits"])
def test_every_kind_of_table_gives_its_text(folder, kind):
    table = Dataset.from_dict({"id": [1, 2, 3], "body": ["one", None, "three"]})
    if kind == "jsonl":
        table.to_json(folder / "train.jsonl")
    elif kind == "parquet":
        table.to_parquet(folder / "train.parquet")
    elif kind == "csv":
        table.to_csv(folder / "train.csv")
    elif kind == "saved":
        table.save_to_disk(folder)
    else:
        DatasetDict(train=table).save_to_disk(folder)
    assert load_hub_texts(str(folder)).documents == ["one", "", "three"]


def test_a_column_of_lists_becomes_one_text_a_row(folder):
    write_jsonl(folder / "train.jsonl", dialog=DIALOGS, act=[[1, 2], [1, 1]])
    documents = load_hub_texts(str(folder), text_column="dialog").documents
    assert documents == ["Hello.\nHello, how are you?", "Good evening.\nGood night."]


def test_the_column_named_text_comes_first(folder):
    write_jsonl(folder / "train.jsonl", title=["a", "b"], text=["c", "d"])
    assert load_hub_texts(str(folder)).documents == ["c", "d"]
    assert load_hub_texts(str(folder), text_column="title").documents == ["a", "b"]


def test_a_configuration_is_a_part_of_the_data_set(folder):
    for name in ("first", "second"):
        (folder / f"{name}.txt").write_text(f"this is the {name}")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.txt\n" for name in ("first", "second"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert load_hub_texts(str(folder), "second").documents == ["this is the second"]
    with pytest.raises(DataError, match="several configurations; set config_name to one of: first, second"):
        load_hub_texts(str(folder))
    with pytest.raises(DataError, match=r"no configuration 'secnd'.*Did you mean 'second'"):
        load_hub_texts(str(folder), "secnd")


def test_the_only_split_is_taken_and_it_is_said(folder):
    (folder / "test.txt").write_text("some text")
    loaded = load_hub_texts(str(folder))
    assert loaded.documents == ["some text"]
    assert "the only one, 'test', was taken" in " ".join(loaded.notes)


def test_reading_stops_at_the_limit_and_it_is_said(folder):
    (folder / "train.txt").write_text("\n".join(["ten chars."] * 50))
    loaded = load_hub_texts(str(folder), max_characters=95)
    assert len(loaded.documents) == 10
    assert "first 10 rows were read: they reach 95 characters" in " ".join(loaded.notes)
    whole = load_hub_texts(str(folder), max_characters=500)
    assert len(whole.documents) == 50
    assert whole.notes == []


def test_a_data_set_becomes_blocks_and_validates_on_its_own_split(folder):
    (folder / "train.txt").write_text("\n".join(LINES))
    (folder / "validation.txt").write_text("zebra quagga okapi\n" * 40)
    setup = SetupConfig(
        dataset_name=str(folder), vocab_size=300, max_length=16, tokenizer_strategy="character", val_split=0.1
    )
    data = prepare_data(setup)
    assert "zebra" not in data.tokenizer.decode(data.train.blocks.reshape(-1))
    assert data.report.num_documents == len(LINES)
    assert "40 documents of their own" in data.report.split
    assert data.validation.num_tokens > 500
    setup.val_split = 0.0
    assert prepare_data(setup).validation is None


def test_loading_draws_no_random_number_and_leaves_the_progress_bars(folder, rng_untouched, capfd):
    from datasets import are_progress_bars_disabled

    (folder / "train.txt").write_text("some text")
    before = are_progress_bars_disabled()
    load_hub_texts(str(folder))
    assert are_progress_bars_disabled() == before
    assert capfd.readouterr() == ("", "")


# What cannot be read


@pytest.mark.parametrize(
    ("columns", "text_column", "message"),
    [
        ({"title": ["a"], "body": ["b"]}, None, r"say which with text_column: title, body"),
        ({"title": ["a"], "body": ["b"]}, "bodi", r"columns of .* are title, body; with text.*Did you mean 'body'"),
        ({"label": [1], "body": ["b"]}, "label", r"'label' holds no text; with text: body"),
        ({"label": [1], "score": [0.5]}, None, r"no column of text; its columns are label, score"),
        ({"messages": [[{"role": "user", "content": "hi"}]]}, None, r"no column of text"),
    ],
)
def test_a_column_that_cannot_be_is_refused_with_those_that_can(folder, columns, text_column, message):
    write_jsonl(folder / "train.jsonl", **columns)
    with pytest.raises(DataError, match=message):
        load_hub_texts(str(folder), text_column=text_column)


def test_an_unknown_split_lists_the_splits(folder):
    (folder / "train.txt").write_text("some text")
    (folder / "test.txt").write_text("some text")
    with pytest.raises(DataError, match="got the split 'trian'; the dataset has train, test"):
        load_hub_texts(str(folder), split="trian")


def test_a_folder_without_data_says_what_is_read(folder):
    with pytest.raises(DataError, match=r"no data files.*\.txt, \.csv"):
        load_hub_texts(str(folder))


def test_a_script_is_not_run(folder):
    marker = folder / "ran"
    (folder / "corpus.py").write_text(f"open({str(marker)!r}, 'w')\n")
    with pytest.raises(DataError, match="is a loading script, which is not run"):
        load_hub_texts(str(folder))
    assert not marker.exists()


def test_a_damaged_file_is_a_data_error(folder):
    (folder / "train.parquet").write_bytes(b"PAR1 and then nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        load_hub_texts(str(folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "must be a dataset's id"),
        ("  ", "must be a dataset's id"),
        (None, "must be a dataset's id"),
        ("https://huggingface.co/datasets/Salesforce/wikitext", "id alone: 'Salesforce/wikitext'"),
        ("./nowhere", "no such folder"),
        ("a/b/c", "no such folder"),
        ("my data", "letters, digits"),
        ("own.txt", "which is a file"),
        ("a\0b", "letters, digits"),
        ("x" * 5000, "letters, digits"),
    ],
)
def test_a_name_that_is_none_is_refused_before_anything_is_asked(name, message):
    Path("own.txt").write_text("text")
    assert message in dataset_name_problem(name)
    with pytest.raises(DataError, match="dataset_name"):
        load_hub_texts(name)


@pytest.mark.parametrize("name", ["wikitext", "Salesforce/wikitext", "code-search-net/code_search_net", "a.b/c-d_e"])
def test_ids_of_the_hub_are_names(name):
    assert dataset_name_problem(name) is None


def test_a_bad_name_is_a_problem_of_the_setup():
    with pytest.raises(ConfigError, match="no such folder"):
        prepare_data(SetupConfig(dataset_name="./nowhere", vocab_size=100))


def test_without_a_line_a_data_set_is_one_plain_error():
    """Tests run with HF_HUB_OFFLINE=1."""
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE forbids.*dataset=\"builtin\""):
        load_hub_texts("Salesforce/wikitext", "wikitext-2-raw-v1")


# What the Hub answers: a server of our own, and a process of its own because the address is read at import


README = b"""---
configs:
- config_name: one
  data_files:
  - split: train
    path: one/train.jsonl
  - split: validation
    path: one/valid.jsonl
- config_name: two
  data_files: two/*.jsonl
---
"""
LARGE = b"""---
dataset_info:
  features:
  - name: text
    dtype: string
  splits:
  - name: train
    num_bytes: 38000000000
    num_examples: 8000000
  dataset_size: 38000000000
---
"""
REPOSITORIES = {
    "owner/parts": {
        MAIN: {
            "README.md": README,
            "one/train.jsonl": b'{"text": "first"}\n{"text": "second"}\n',
            "one/valid.jsonl": b'{"text": "unseen"}\n',
            "two/train.jsonl": b'{"text": "other"}\n',
        }
    },
    "owner/script": {
        MAIN: {"script.py": b"raise SystemExit('run!')"},
        PARQUET: {
            "java/train/0000.jsonl": b'{"text": "converted from Java"}\n',
            "python/train/0000.jsonl": b'{"text": "converted from Python"}\n',
            "python/validation/0000.jsonl": b'{"text": "unseen"}\n',
        },
    },
    "owner/single": {
        MAIN: {"single.py": b"raise SystemExit('run!')"},
        PARQUET: {"plain_text/train/0000.jsonl": b'{"text": "converted"}\n'},
    },
    "owner/large": {MAIN: {"README.md": LARGE, "train.jsonl": b'{"text": "%s"}\n' % (b"x" * 40) * 100}},
}
REFUSALS = {"owner/missing": (404, "RepoNotFound"), "owner/gated": (403, "GatedRepo"), "owner/down": (500, "")}


LOAD = """
    from utils.data.text import hub
    from utils.data.text.hub import load_hub_texts
    from utils.errors import TrainbookError
    hub.RETRY_WAITS_S = (0.0, 0.0)

    def answer(call):
        try:
            loaded = load_hub_texts(*call, max_characters=1000)
            return [loaded.documents, loaded.validation, loaded.source, " ".join(loaded.notes)]
        except TrainbookError as error:
            return f"{type(error).__name__}: {error}"
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Where both processes keep what they have from the Hub."""
    return tmp_path_factory.mktemp("hub-home")


@pytest.fixture(scope="module")
def hub():
    with serving(REPOSITORIES, REFUSALS) as server:
        yield server


@pytest.fixture(scope="module")
def answers(hub, home):
    """What load_hub_texts(*call) gives or says for each call, in a process that can reach the Hub."""
    with answering(LOAD, "-W", "error", environment=hub_environment(hub.address, home)) as process:
        yield process.ask


@pytest.fixture(scope="module")
def answers_without_a_line(home):
    """The same in a process that cannot."""
    with answering(LOAD, "-W", "error", environment=hub_environment(NOWHERE, home)) as process:
        yield process.ask


def test_a_data_set_of_the_hub_is_read_and_kept(answers, answers_without_a_line):
    one, two, unnamed, mistyped = answers(
        ["owner/parts", "one"], ["owner/parts", "two"], ["owner/parts"], ["owner/parts", "onne"]
    )
    assert one[:2] == [["first", "second"], ["unseen"]]
    assert one[2] == "Hugging Face Hub: owner/parts, one, split train, column text"
    assert two[:2] == [["other"], None]
    assert unnamed.endswith("several configurations; set config_name to one of: one, two.")
    assert "Did you mean 'one'?" in mistyped
    # Without a line the copy is enough.
    (again,) = answers_without_a_line(["owner/parts", "one"])
    assert again[:2] == [["first", "second"], ["unseen"]]
    assert "from an earlier time" in again[3]


def test_a_script_is_read_from_the_hubs_conversion(answers):
    calls = ["owner/script", "python"], ["owner/script"], ["owner/script", "jva"], ["owner/single"]
    python, several, mistyped, single, again = answers(*calls, calls[0])
    assert again == python
    assert python[:2] == [["converted from Python"], ["unseen"]]
    assert "is not run" in python[3]
    assert several.endswith("several configurations; set config_name to one of: java, python.")
    assert "Did you mean 'java'?" in mistyped
    assert single[0] == ["converted"]


def test_a_data_set_too_large_to_keep_is_read_as_a_stream_up_to_the_limit(answers):
    ((documents, _, _, notes),) = answers(["owner/large"])
    assert documents == ["x" * 40] * 25
    assert "has 38 GB: it was read as a stream" in notes
    assert "first 25 rows" in notes


def test_what_the_hub_refuses_is_said_in_plain_words(hub, answers):
    missing, gated, broken = answers(["owner/missing"], ["owner/gated"], ["owner/down"])
    assert "has no dataset 'owner/missing', or it is private" in missing
    assert "is gated" in gated
    assert "could not be reached for owner/down: it answered 500" in broken
    for sentence in (missing, gated, broken):
        assert sentence.startswith("HubError")
        assert 'dataset="builtin"' in sentence
    # A refusal is final; a server that is down is asked twice more, without a long series of retries.
    assert [sum(name in line for line in hub.asked) for name in ("missing", "gated", "down")] == [1, 1, 3]


def test_a_hub_that_cannot_be_reached_is_asked_once(answers_without_a_line):
    (sentence,) = answers_without_a_line(["Salesforce/wikitext"])
    assert sentence.startswith("HubError: the Hugging Face Hub could not be reached for Salesforce/wikitext: ")
    assert "refused" in sentence


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ConnectionError("Couldn't reach 'x' on the Hub (ReadTimeout)"), HubError, "ReadTimeout"),
        (TimeoutError("timed out"), HubError, "could not be reached for x: timed out"),
        (OSError("Not enough disk space. Needed: 40 GB"), DataError, "does not fit on the disk: Not enough"),
        (ValueError("odd\nsecond line"), DataError, "x cannot be read: odd. Try"),
    ],
)
def test_other_failures_keep_their_reason(error, kind, message):
    assert message in str(plain_error(error, "x"))
    assert type(plain_error(error, "x")) is kind
