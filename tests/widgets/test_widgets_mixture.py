"""The wizard's rows for a mixture: added, weighted, refused beside the row, taken out, and copied as code that runs."""

from __future__ import annotations

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
