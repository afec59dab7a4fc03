"""The wizard's rows for a mixture: added, weighted, refused beside the row, taken out, and copied as code that runs."""

from __future__ import annotations

import json
import shlex
from itertools import pairwise

import pytest

from cli.job_files import JobConfig, setup_of
from tests.kit.pretrained import write_conversations
from tests.kit.toys import tiny_gpt
from utils.ui import SetupConfig
from utils.ui.wizard_code import setup_code
from utils.ui.wizard_state import WizardState
from widgets.wizard_view import WizardView


@pytest.fixture
def mixed(tmp_path):
    """A form with a file of text, and a file of conversations added with three times its weight."""
    (tmp_path / "manual.txt").write_text("\n\n".join(f"Step {n}: press key {n % 7} and wait." for n in range(200)))
    write_conversations(tmp_path / "chats.jsonl")
    setup = SetupConfig(dataset_path=str(tmp_path / "manual.txt"), vocab_size=256, max_length=64, batch_size=4)
    state = WizardState(setup, tiny_gpt(vocab_size=256, length=64))
    view = WizardView(state)
    view["add-dataset"].click()
    assert not setup.mixture
    assert "for dataset 2" in view["error:mixture"].value
    view["mixture:1:place"].value = str(tmp_path / "chats.jsonl")
    return state, view


def test_weights_give_shares_and_the_checks_pass(mixed):
    state, view = mixed
    assert [one.label for one in state.setup.mixture] == ["manual", "chats"]
    weight = view["mixture:0:weight"]
    weight.value = "1"
    assert "chats has no weight" in view["error:mixture"].value
    view["mixture:1:weight"].value = "3"
    view["mixture:1:name"].value = "dialogues"
    assert view["mixture:0:weight"] is weight, "the control that somebody types in stays"
    assert "Share: 25.0%" in view["mixture:0:share"].value
    assert [(one.label, one.weight) for one in state.setup.mixture] == [("manual", 1.0), ("dialogues", 3.0)]
    assert "dataset_source" not in {field.name for field in state.fields("dataset")}
    assert state.rows()["Mixture"] == "manual 1, dialogues 3"
    checks = state.preflight.run()
    assert state.ready, [check.message for check in checks]
    assert not view.errors


def test_a_missing_file_of_a_mixture_blocks_the_data_step(mixed, tmp_path):
    state, view = mixed
    view["mixture:1:place"].value = str(tmp_path / "gone.jsonl")
    assert "gone" in next(p.message for p in state.blockers("dataset") if p.field == "mixture")


def test_the_last_dataset_that_is_left_is_the_only_one(mixed, tmp_path):
    state, view = mixed
    view["mixture:1:remove"].click()
    assert (state.setup.mixture, state.setup.dataset_path) == ((), str(tmp_path / "manual.txt"))
    assert "dataset_source" in {field.name for field in state.fields("dataset")}
    state.setup.update(mixture=[{"path": "a.txt"}, {"path": "b.txt"}])
    assert view["mixture:1:place"].value == "b.txt", "a mixture that code sets appears in the form"
    assert not view.errors


def test_a_copied_mixture_makes_the_same_setup(mixed, tmp_path):
    setup = mixed[0].setup
    (tmp_path / "job.yaml").write_text(setup_code("YAML", setup))
    assert SetupConfig.load(tmp_path / "job.yaml").mixture == setup.mixture
    words = shlex.split(setup_code("Command line", setup).replace("\\\n", " "))
    sets = [word for before, word in pairwise(words) if before == "--set"]
    assert setup_of(JobConfig.from_file(None, sets)).mixture == setup.mixture
    made: dict[str, object] = {}
    exec(setup_code("Python", setup), made)  # noqa: S102 - the code that the form shows
    assert made["setup"] == setup


def test_columns_and_layouts_of_a_dataset_are_chosen_from_its_first_rows(mixed, tmp_path):
    state, view = mixed
    column, layout = view["mixture:1:column"], view["mixture:1:layout"]
    assert (view["mixture:0:column"].layout.display, layout.layout.display) == ("none", "none"), "one layout fits"
    assert "Conversations found: messages" in view["mixture:1:found"].value
    rows = [{"title": f"Rule {n}", "body": f"Press key {n % 7} and wait.", "id": n} for n in range(60)]
    (tmp_path / "rules.jsonl").write_text("\n".join(map(json.dumps, rows)))
    view["mixture:1:place"].value = str(tmp_path / "rules.jsonl")
    assert [name for _, name in column.options] == ["", "title", "body", "id"]
    column.value = "body"
    assert state.setup.mixture[1].text_column == "body"
    assert view["mixture:1:column"] is column
    state.preflight.run()
    assert state.ready, [check.message for check in state.preflight.checks]
    rows = [{"messages": [{"role": "user", "content": "a"}], "instruction": "b", "output": "c"}] * 9
    (tmp_path / "both.jsonl").write_text("\n".join(map(json.dumps, rows)))
    view["mixture:1:place"].value = str(tmp_path / "both.jsonl")
    assert state.setup.mixture[1].text_column is None, "columns of other data are forgotten"
    assert {"messages", "instruction"} <= {name for _, name in layout.options}
    assert layout.layout.display is None
    layout.value = "instruction"
    assert state.setup.mixture[1].conversation_layout == "instruction"
    state.setup.update(mixture=[{"path": "manual.txt"}, {"path": str(tmp_path / "both.jsonl"), "text_column": "texts"}])
    assert "texts (not in the data)" in [label for label, _ in view["mixture:1:column"].options]
    assert any("the columns are messages, instruction, output" in p.message for p in state.blockers("dataset"))
    assert not view.errors


def test_first_rows_of_a_hub_dataset_of_a_mixture_are_read_by_a_click(mixed, tmp_path):
    from datasets import Dataset

    state, view = mixed
    Dataset.from_dict({"head": ["a"] * 8, "story": ["b c d"] * 8}).save_to_disk(tmp_path / "stories")
    view["mixture:1:source"].value = "huggingface"
    view["mixture:1:place"].value = str(tmp_path / "stories")
    assert view["mixture:1:column"].layout.display == "none"
    view["mixture:1:first-rows"].click()
    assert "Columns: head, story" in view["mixture:1:found"].value
    view["mixture:1:column"].value = "story"
    assert state.setup.mixture[1].to_dict()["text_column"] == "story"
    view["mixture:1:place"].value = str(tmp_path / "none")
    view["mixture:1:first-rows"].click()
    assert "Problem" in view["mixture:1:found"].value
    assert not view.errors
