"""Setups whose rows are conversations or pairs of texts: from every source, with the answers as targets."""

from __future__ import annotations

import json

import pytest
from transformers import T5Config, T5ForConditionalGeneration

from tests.kit.toys import tiny_gpt
from utils.data import prepare_data
from utils.data.text.corpus import builtin_questions, builtin_summaries
from utils.errors import ConfigError, DataError
from utils.training import TrainingCoordinator
from utils.ui import SetupConfig

DIALOGUES = [
    {"dialog": [f"Hello {n}?", f"It is {n}.", "And then?", f"It is {n + 1}."], "act": [1, 2]} for n in range(20)
]
ARTICLES = [{"article": f"Number {n} is here. " * 200, "highlights": f"Number {n}.", "id": str(n)} for n in range(20)]
KINDS = {"conversations": DIALOGUES, "pairs": ARTICLES}
COLUMNS = {"conversations": "dialog", "pairs": "article"}


@pytest.fixture
def folder(tmp_path):
    for kind, records in KINDS.items():
        (tmp_path / kind).mkdir()
        lines = "\n".join(map(json.dumps, records))
        (tmp_path / kind / "train.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


def model():
    return tiny_gpt(vocab_size=400, length=192)


def answers(data):
    """The text of the targets of each training row."""
    rows = [[int(token) for token in row["labels"] if token != -100] for row in data.train]
    return "|".join(data.tokenizer.decode(ids, skip_special_tokens=True) for ids in rows)


def setup_of(source, kind, folder, **changes):
    places = {
        "builtin": {"dataset_source": "builtin"},
        "file": {"dataset_path": str(folder / kind / "train.jsonl"), "text_column": COLUMNS[kind]},
        "folder as a dataset": {"dataset_name": str(folder / kind)},
    }
    return SetupConfig(**places[source], data_kind=kind, max_length=192, vocab_size=400, **changes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["builtin", "file", "folder as a dataset"])
def test_only_the_answers_are_learned_whatever_the_source(source, kind, folder):
    data = prepare_data(setup_of(source, kind, folder), model())
    found = answers(data)
    assert 0 < data.report.supervised_share < 1
    assert data.validation is not None
    if source == "builtin":
        records = builtin_questions() if kind == "conversations" else builtin_summaries()
        asked, answered = ("question", "answer") if kind == "conversations" else ("article", "summary")
        known = {record[answered].strip() for record in records}
        assert any(text in found for text in known)
        assert not any(record[asked] in found for record in records)
    else:
        assert ("It is 3." if kind == "conversations" else "Number 3.") in found
        assert "Hello" not in found
        assert "is here" not in found


def test_turns_alternate_and_the_user_begins(folder):
    data = prepare_data(setup_of("file", "conversations", folder, val_split=0), model())
    assert data.report.num_answers == 2 * len(DIALOGUES)
    assert "And then" not in answers(data)


def test_a_text_is_cut_where_its_summary_would_not_fit(folder):
    data = prepare_data(setup_of("file", "pairs", folder), model())
    assert (data.report.dropped, data.report.truncated) == (0, 0)
    assert data.report.longest <= 192
    assert any("20 prompts were cut" in note for note in data.report.notes)
    assert data.report.ended_share == 1


def test_rows_that_are_text_by_decision_are_text(folder):
    setup = SetupConfig(dataset_path=str(folder / "pairs" / "train.jsonl"), text_column="article", data_kind="text",
                        max_length=32, vocab_size=400)  # fmt: skip
    assert prepare_data(setup, model()).report.rows()["Source"].startswith(str(folder))


def test_the_kind_survives_every_form_of_a_setup(folder, tmp_path):
    setup = setup_of("file", "pairs", folder)
    assert SetupConfig.load(setup.save(tmp_path / "job.yaml")).data_kind == "pairs"
    assert SetupConfig(**setup.differences()).data_kind == "pairs"
    assert setup.to_dict()["data_kind"] == "pairs"
    assert prepare_data(setup, model()).train.origin["data_kind"] == "pairs"


def test_the_coordinator_takes_the_same_setup(tmp_path):
    setup = SetupConfig(data_kind="conversations", max_length=192, vocab_size=400, max_steps=1, run_name="chat",
                        max_val_samples=4, output_dir=str(tmp_path))  # fmt: skip
    results = TrainingCoordinator().train(model(), **setup.to_dict())
    assert results["report"].layout.startswith("question_answer")
    assert results["final_metrics"]["val/bits_per_byte"] > 0


def test_what_does_not_fit_is_refused(folder):
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=400, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(ConfigError, match="encoder-decoder"):
        prepare_data(setup_of("builtin", "pairs", folder), t5)
    with pytest.raises(ConfigError, match="data_kind"):
        SetupConfig(data_kind="chats")
    other_column = setup_of("file", "conversations", folder)
    other_column.set("text_column", "dialogue")
    with pytest.raises(ConfigError, match="dialogue"):
        prepare_data(other_column, model())
    no_turns = setup_of("folder as a dataset", "pairs", folder)
    no_turns.set("data_kind", "conversations")
    with pytest.raises(DataError, match="conversations"):
        prepare_data(no_turns, model())
