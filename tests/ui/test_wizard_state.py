"""What somebody does in the wizard, without a front end: entries that are refused, presets, what was clicked."""

from __future__ import annotations

import re

import pytest
import torch

from tests.kit.toys import tiny_gpt
from utils.errors import ConfigError, PresetNotFoundError
from utils.models import ModelRegistry
from utils.ui import PRESETS, ConfigPresets, WizardState
from utils.ui.edited_setup import AS_GIVEN
from utils.ui.preset_fitting import model_code, model_sentence, prepared
from utils.ui.setting_values import typed_text, typed_value
from utils.ui.wizard_fields import wizard_field
from utils.ui.wizard_memory import cell_key, remember, remembered
from utils.ui.wizard_records import Clicks
from utils.ui.wizard_steps import STEPS, facts_of


def starter(model=None, preset="starter", **overrides):
    """A WizardState as `SetupWizard.run` makes it."""
    chosen = ConfigPresets().get(preset) if isinstance(preset, str) else preset
    facts = None if model is None else facts_of(model)
    return WizardState(prepared(chosen, facts, overrides), model, preset, overrides)


def refused(state, name, value):
    with pytest.raises(ConfigError) as error:
        state.set(name, value)
    return str(error.value)


# Entries


def test_a_refused_entry_changes_nothing_is_explained_and_blocks():
    state = starter()
    before = state.setup.copy()
    with pytest.raises(ConfigError, match="at least 1"):
        state.parse("batch_size", "0")
    assert state.setup == before
    assert (state.entry("batch_size").value, state.entry("batch_size").text) == (0, "0")
    assert "at least 1" in state.message("batch_size")
    assert "Not applied: Batch size stays 8 samples." in state.message("batch_size")
    assert [problem.field for problem in state.blockers("summary")] == ["batch_size"]
    assert state.status("training") == "blocked"
    state.parse("batch_size", "16")
    assert state.setup.batch_size == 16
    assert state.entry("batch_size") is None
    assert state.complete


def test_a_change_by_code_replaces_a_refused_entry():
    state = starter()
    refused(state, "epochs", 0)
    state.setup.epochs = 3
    assert state.entry("epochs") is None
    assert state.complete


def test_an_unknown_setting_is_named_and_blocks_nothing():
    state = starter()
    assert "did you mean epochs" in refused(state, "epocs", 3)
    assert state.complete


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("epochs", " 3 ", 3), ("epochs", "010", 10), ("learning_rate", "5e-4", 5e-4), ("learning_rate", "1e-2", 0.01),
        ("max_time_hours", "", None), ("max_time_hours", "2", 2), ("run_name", "123", "123"), ("run_name", "", None),
        ("betas", "[0.8, 0.9]", (0.8, 0.9)), ("eval_every", "50", 50), ("eval_every", "epoch", "epoch"),
        ("notes", "a: b", "a: b"), ("vocab_size", "1,000", 1000), ("vocab_size", "1 000", 1000),
        ("vocab_size", "1\u202f000", 1000), ("vocab_size", "1_000", 1000), ("max_train_samples", "1,234,567", 1_234_567),
        ("epochs", "1e3", 1000), ("max_steps", "2.5e3", 2500), ("epochs", "3.0", 3), ("eval_every", "1e3", 1000),
        ("eval_every", "1,000", 1000), ("val_split", "50%", 0.5), ("val_split", "12.5 %", 0.125), ("val_split", "7%", 0.07),
        ("warmup_ratio", "10%", 0.1), ("betas", "0.8, 0.9", (0.8, 0.9)), ("max_steps", "none", None),
        ("max_steps", "None", None), ("max_time_hours", "not set", None), ("run_name", "none", None), ("warmup_steps", "7", 7), ("seed", "5", 5),
    ],
)  # fmt: skip
def test_what_is_typed_means_what_it_says(name, text, value):
    state = starter()
    state.parse(name, text)
    assert getattr(state.setup, name) == value


@pytest.mark.parametrize(
    ("name", "text", "because"),
    [
        ("epochs", "1.5", "whole number"), ("epochs", "", "whole number"), ("epochs", "three", "whole number"),
        ("epochs", "50%", "whole number"), ("epochs", "1,00", "whole number"), ("epochs", "none", "whole number"),
        ("epochs", "1e-3", "whole number"), ("epochs", "0,100", "whole number"), ("epochs", "inf", "whole number"),
        ("val_split", "60%", "0.5"), ("val_split", "%", "number"), ("vocab_size", "1,000 000", "whole number"),
        ("learning_rate", "nan", "finite"), ("learning_rate", "0,1", "number"), ("learning_rate", "1:30", "number"),
        ("run_name", "../x", "letters"), ("output_dir", " ", "empty"), ("betas", "0.9", "list"),
    ],
)  # fmt: skip
def test_what_is_typed_wrong_is_refused_in_words(name, text, because):
    state = starter()
    with pytest.raises(ConfigError, match=because):
        state.parse(name, text)
    assert state.entry(name).text == text


def test_every_settings_text_is_read_back_as_its_value():
    for preset in PRESETS.values():
        setup = preset.setup()
        for step in STEPS:
            for field in step.all_fields:
                if field.kind != "switch":
                    value = getattr(setup, field.name)
                    assert typed_value(field, typed_text(value)) == (list(value) if isinstance(value, tuple) else value)


# The source of data


def test_a_source_is_taken_once_its_place_is_known(tmp_path):
    (tmp_path / "my.txt").write_text("text")
    state = starter()
    refused(state, "dataset_source", "local")
    assert (state.source, state.setup.dataset_source) == ("local", "builtin")
    asked = "Enter a file or folder path. Until then the built-in text is used."
    assert state.message("dataset_path") == state.hint("dataset_path") == asked
    assert state.next().name == "dataset"
    state.parse("dataset_path", "my.txt")
    assert state.setup.dataset_source == "local"
    assert state.message("dataset_path") == state.hint("dataset_path") == ""
    assert state.next().name == "tokenizer"


@pytest.mark.parametrize(
    ("source", "field", "leave"),
    [
        ("local", "dataset_path", lambda state: state.next()),
        ("huggingface", "dataset_name", lambda state: state.goto("training")),
        ("drive", "dataset_path", lambda state: state.goto("summary")),
    ],
)
def test_an_empty_field_is_no_problem_before_its_page_was_left(source, field, leave):
    state = starter()
    refused(state, "dataset_source", source)
    assert state.visible_problems()["dataset"] == state.visible_problems()["summary"] == []
    assert state.message(field, state.visible_problems()) == ""
    assert state.hint(field) == state.notice
    assert not state.complete
    leave(state)
    assert [problem.field for problem in state.visible_problems()["summary"]] == [field]
    state.goto("dataset")
    refused(state, "dataset_source", "upload" if source == "huggingface" else "huggingface")
    assert state.visible_problems()["dataset"] == []


def test_what_was_entered_and_cleared_again_is_a_problem_at_once():
    state = starter(dataset_path=__file__)
    with pytest.raises(ConfigError):
        state.parse("dataset_path", "")
    assert [problem.field for problem in state.visible_problems()["dataset"]] == ["dataset_path"]


def test_a_vocabulary_that_must_be_set_is_no_problem_before_its_page_was_left():
    state = starter(preset=None)
    state.goto("tokenizer")
    assert state.visible_problems()["tokenizer"] == []
    assert state.next().name == "tokenizer"
    assert [problem.field for problem in state.visible_problems()["tokenizer"]] == ["vocab_size"]


def test_only_the_settings_of_the_chosen_source_are_shown():
    state = starter()
    names = dict.fromkeys(("builtin", "local", "huggingface", "drive", "upload"))
    for source in names:
        if source != "builtin":
            refused(state, "dataset_source", source)
        shown = [field.name for field in state.fields("dataset")]
        names[source] = [name for name in shown if name not in ("dataset_source", "task", "val_split") and "samples" not in name]
    assert names == {
        "builtin": [],
        "local": ["dataset_path", "text_column"],
        "huggingface": ["dataset_name", "config_name", "dataset_split", "text_column"],
        "drive": ["dataset_path", "text_column"],
        "upload": ["dataset_path", "text_column"],
    }


def test_clearing_the_file_does_not_silently_mean_other_data():
    state = starter(dataset_path=__file__)
    with pytest.raises(ConfigError, match="required"):
        state.parse("dataset_path", "")
    assert (state.setup.dataset_source, state.setup.dataset_path) == ("local", __file__)
    assert state.entry("dataset_path").text == ""


def test_an_entry_that_waited_for_another_is_taken_with_it():
    state = starter()
    refused(state, "dataset_source", "huggingface")
    with pytest.raises(ConfigError):
        state.parse("config_name", "wikitext-2-raw-v1")
    state.parse("dataset_name", "Salesforce/wikitext")
    assert state.setup.config_name == "wikitext-2-raw-v1"
    assert state.complete


def test_going_back_to_the_source_in_force_drops_the_refused_one():
    state = starter()
    refused(state, "dataset_source", "local")
    state.set("dataset_source", "builtin")
    assert (state.source, state.entry("dataset_source")) == ("builtin", None)


def test_an_upload_answers_the_source_that_waits_for_it():
    state = starter()
    refused(state, "dataset_source", "upload")
    state.upload("a.csv", b"text,n\none,1\n")
    assert (state.setup.dataset_source, state.setup.dataset_path) == ("upload", "uploads/a.csv")
    assert state.blockers("dataset") == []
    state.set("text_column", "text")
    state.upload("b.csv", b"body\none\n")  # another file: its column is not known
    assert (state.setup.dataset_path, state.setup.text_column) == ("uploads/b.csv", None)


def test_an_upload_becomes_the_data(tmp_path):
    state = starter()
    state.upload("../../evil name.txt", b"to be")
    assert state.setup.dataset_source == "local"
    assert (tmp_path / "uploads" / "evil name.txt").read_bytes() == b"to be"
    assert state.notice == "Saved as uploads/evil name.txt (5 bytes)."
    assert "dataset_path" in state.clicks.values


# Fixes


def test_a_fix_solves_its_problem():
    state = starter(tiny_gpt())
    state.setup.update(vocab_size=99, max_length=99)
    for problem in state.blockers("summary"):
        state.apply_fix(problem)
    assert state.complete
    assert (state.setup.vocab_size, state.setup.max_length) == (32, 16)


def test_a_problem_without_a_fix_is_said():
    state = starter()
    refused(state, "epochs", 0)
    with pytest.raises(ConfigError, match="no value to propose"):
        state.apply_fix(state.blockers("summary")[0])


# Steps


def test_a_steps_status_follows_what_happens():
    state = starter()
    assert [state.status(index) for index in range(5)] == ["current", "open", "open", "open", "open"]
    state.goto("training")
    assert [state.status(index) for index in range(5)] == ["done", "done", "done", "current", "open"]
    refused(state, "epochs", 0)
    state.back()
    assert [state.status(index) for index in range(5)] == ["done", "done", "current", "blocked", "blocked"]


# Presets


def test_a_preset_is_fitted_to_the_model_and_says_what_it_replaced():
    state = starter(tiny_gpt())
    state.set("batch_size", 3)
    state.apply_preset("chat")
    assert (state.setup.vocab_size, state.setup.max_length) == (32, 16)
    assert (state.setup.batch_size, state.setup.dataset_name, state.setup.warmup_ratio) == (
        16,
        "OpenRL/daily_dialog",
        None,
    )
    assert state.preset == "chat"
    assert "Batch size 3 samples → 16 samples" in state.notice_details
    assert not state.clicks.values
    assert not state.changed()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_replaces_every_other_wholly(name):
    for before in PRESETS:
        state = starter(preset=before)
        state.apply_preset(name)
        assert state.setup == PRESETS[name].setup()


def test_what_the_cell_gave_stays_over_a_chosen_preset():
    state = starter(epochs=2, dataset_path=__file__)
    state.apply_preset("tiny")
    assert (state.setup.epochs, state.setup.dataset_path, state.setup.batch_size) == (2, __file__, 32)
    assert set(state.changed()) == {"epochs", "dataset_source", "dataset_path", "dataset_name", "config_name", "run_name"}


def test_a_preset_that_does_not_fit_changes_nothing():
    state = starter(preset=None, config_name="x", dataset_name="a/b")
    before = state.setup.copy()
    with pytest.raises(PresetNotFoundError):
        state.apply_preset("startr")
    assert state.setup == before
    assert state.preset == AS_GIVEN


def test_a_customized_preset_can_be_gone_back_to():
    custom = ConfigPresets().customize("starter", epochs=33)
    state = starter(preset=custom)
    assert (state.preset, list(state.presets)[:2]) == (AS_GIVEN, [AS_GIVEN, "starter"])
    state.apply_preset("starter")
    assert state.setup.epochs == PRESETS["starter"].values["epochs"]
    state.apply_preset(AS_GIVEN)
    assert state.setup.epochs == 33


def test_changes_are_marked_in_words():
    state = starter()
    state.set("max_steps", 5)
    state.setup.epochs = 3
    assert state.changed() == {"epochs": (4, 3), "max_steps": (None, 5)}
    assert state.rows()["Epochs"] == "3 (changed; preset: 4)"
    assert state.rows()["Step limit"] == "5 steps (changed; preset: not set)"
    assert "changed" not in state.rows()["Batch size"]


def test_the_summary_has_the_essential_settings_and_what_is_not_at_its_default():
    rows = starter().rows()
    assert {"Data", "Task", "Batch size", "Learning rate", "Precision", "Run name", "Optimizer", "Betas"} <= rows.keys()
    assert not {"Label smoothing", "Schedule", "Random seed"} & rows.keys()


def test_one_of_something_is_singular():
    state = starter(batch_size=1, max_steps=1)
    assert state.rows()["Batch size"].startswith("1 sample (")
    assert state.rows()["Step limit"].startswith("1 step (")


# Clicks


def test_clicks_are_what_the_wizard_changed_and_code_did_not():
    state = starter()
    state.set("epochs", 2)
    state.set("batch_size", 2)
    state.setup.update(batch_size=4, learning_rate=0.5)
    assert state.clicks == Clicks(None, {"epochs": 2})
    state.reset()
    assert not state.clicks
    assert state.setup == PRESETS["starter"].setup()


def test_clicks_can_be_made_again():
    first = starter()
    first.apply_preset("tiny")
    first.set("warmup_ratio", 0.2)
    first.set("dataset_path", __file__)
    second = starter()
    second.replay(first.clicks)
    assert second.setup == first.setup
    assert second.preset == "tiny"
    assert second.clicks == first.clicks
    assert "Warm-up" in second.clicks_sentence
    assert "before this cell ran again" in second.clicks_sentence


def test_clicks_are_kept_by_cell():
    here = cell_key(PRESETS["starter"], {"epochs": 2})
    others = [cell_key(PRESETS["tiny"], {"epochs": 2}), cell_key(PRESETS["starter"], {"epochs": 3})]
    clicks = Clicks(None, {"batch_size": 2})
    remember(here, clicks)
    assert remembered(here) == clicks
    assert not any(remembered(other) for other in others)
    remember(here, Clicks())
    assert not remembered(here)


@pytest.mark.parametrize(("vocab_size", "length"), [(64, 16), (32, 8), (4096, 128)])
def test_clicks_survive_a_change_of_the_model(vocab_size, length):
    first = starter(tiny_gpt(vocab_size=32, length=16))
    first.apply_preset("tiny")
    first.set("batch_size", 3)
    first.set("vocab_size", 30)
    first.set("max_length", 12)
    second = starter(tiny_gpt(vocab_size=vocab_size, length=length))
    second.replay(first.clicks)
    assert second.clicks == first.clicks
    # What is too large for the new model is a problem with its fix, not another setting.
    assert second.setup.max_length == 12
    assert [problem.field for problem in second.blockers("summary")] == (["max_length"] if length < 12 else [])


def test_clicks_that_no_longer_fit_are_named_and_the_others_are_kept():
    clicks = Clicks("tiny", {"batch_size": 3, "max_steps": 5, "warmup_steps": 9, "learning_rate": 7.0})
    state = starter(preset=None, max_steps=50)
    state.replay(clicks)
    assert (state.preset, state.setup.batch_size) == (AS_GIVEN, 3)
    assert "Left out, because it no longer fits: preset tiny, " in state.notice
    assert "Learning rate" in state.notice
    assert state.clicks.values["batch_size"] == 3
    assert "learning_rate" not in state.clicks.values


def test_a_preset_that_replaces_edits_can_be_undone():
    state = starter()
    state.set("epochs", 3)
    refused(state, "batch_size", 0)
    before, clicks = state.setup.copy(), state.clicks
    assert not state.can_undo
    state.apply_preset("tiny")
    assert state.can_undo
    state.undo()
    assert (state.setup, state.clicks, state.preset) == (before, clicks, "starter")
    assert state.entry("batch_size").value == 0
    assert not state.can_undo
    state.undo()
    assert state.setup == before


def test_a_reset_can_be_undone_and_what_was_clicked_since_stays():
    state = starter()
    state.set("epochs", 3)
    state.reset()
    state.set("batch_size", 5)
    state.undo()
    assert (state.setup.epochs, state.setup.batch_size) == (3, 5)
    assert set(state.clicks.values) == {"epochs", "batch_size"}


def test_a_preset_that_changes_nothing_leaves_nothing_to_undo():
    state = starter()
    state.reset()
    assert not state.can_undo


@pytest.mark.parametrize("name", ["starter", "tiny", "large"])
def test_a_preset_for_another_model_says_that_yours_stays_and_creates_its_own(name):
    preset, mine = PRESETS[name], facts_of(tiny_gpt())
    assert re.match(r"This preset does not change your model \([\d,]+ parameters\)", model_sentence(preset, mine))
    assert model_sentence(preset, None) == ""
    line = model_code(preset)
    assert line.startswith("model = ModelRegistry.create('gpt-small', vocab_size=")
    with torch.device("meta"):
        names = {}
        exec(line, {"ModelRegistry": ModelRegistry}, names)  # noqa: S102 - the line that the form shows
    assert model_sentence(preset, facts_of(names["model"])) == ""


# Observers


def test_every_change_is_told_once_whoever_makes_it():
    state = starter()
    told = []
    end = state.observe(lambda: told.append(state.setup.epochs))
    for change in (
        lambda: state.set("epochs", 2),
        lambda: state.setup.update(epochs=3, batch_size=3),
        lambda: state.apply_preset("tiny"),
        lambda: state.goto("summary"),
        lambda: refused(state, "epochs", 0),
    ):
        told.clear()
        change()
        assert len(told) == 1
    end()
    end()
    state.back()
    assert len(told) == 1


def test_an_entry_that_is_refused_names_its_choices():
    assert "did you mean 'local'" in refused(starter(), "dataset_source", "locl")
    assert wizard_field("dataset_source").choices == (
        "builtin", "local", "huggingface", "drive", "upload",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"dataset_path": "reviews.csv"}, "reviews"),
        ({"dataset_path": "folder/My talks, 2.tar.gz"}, "My-talks-2"),
        ({"dataset_path": "con.txt"}, "starter"),
        ({"dataset_name": "owner/set.v2"}, "set.v2"),
        ({"dataset_source": "builtin"}, "starter"),
        ({"dataset_path": "reviews.csv", "run_name": "mine"}, "mine"),
    ],
)
def test_a_presets_run_is_named_after_other_data_unless_it_has_a_name(data, named):
    assert starter(**data).setup.run_name == named, "given in the cell"
    state = starter()
    for name, value in data.items():
        state.set(name, value)
    assert state.setup.run_name == named


def test_a_run_name_that_was_typed_stays_and_one_that_follows_is_said():
    state = starter()
    state.set("dataset_path", "reviews.csv")
    assert state.notice.endswith("Set to suit it: Run name 'reviews'.")
    assert "Set to suit the model, data and task: Run name" in state.clicks_sentence
    state.set("dataset_source", "builtin")
    assert state.setup.run_name == "starter"
    state.set("run_name", "mine")
    state.set("dataset_path", "reviews.csv")
    assert state.setup.run_name == "mine"
