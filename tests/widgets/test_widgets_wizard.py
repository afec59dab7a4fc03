"""The wizard's form in plain Python: controls and state follow each other, whatever is clicked in whatever order."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from typing import ClassVar

import comm
import ipywidgets
import nbformat
import pytest
from nbclient import NotebookClient
from torch import nn

from tests.kit.toys import tiny_gpt
from tests.kit.tree import ROOT
from utils.data import prepare_data
from utils.errors import ConfigError
from utils.training import Trainer
from utils.ui import PRESETS, ConfigPresets, WizardState
from utils.ui.choice_names import CHOICE_NAMES
from utils.ui.preset_fitting import find_preset, prepared
from utils.ui.wizard_steps import STEPS, facts_of
from widgets.forms import uploaded_files
from widgets.guarded import watching
from widgets.wizard_view import WizardView

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"&"


def form(model=None, preset="starter", **overrides):
    """A form as `SetupWizard.run` opens it."""
    chosen = find_preset(preset)
    facts = None if model is None else facts_of(model)
    return WizardView(WizardState(prepared(chosen, facts, overrides), model, preset, overrides))


def widgets_in(widget):
    """`widget` and everything in it that is not hidden."""
    if widget.layout.display != "none":
        yield widget
        for child in getattr(widget, "children", ()):
            yield from widgets_in(child)


def shown(view):
    """All markup that is on the page."""
    return "\n".join(widget.value for widget in widgets_in(view) if isinstance(widget, ipywidgets.HTML))


def walk(view):
    """Show every page, with everything on it."""
    for step in STEPS:
        view[f"step:{step.name}"].click()
        for topic in step.topics:
            view[f"topic:{topic.title}"].click()
        yield step


# Walking


def test_next_and_back_walk_through_the_five_steps_and_stop_at_the_ends():
    view = form()
    walked = []
    for _ in range(6):
        view["next"].click()
        walked.append(view.state.current.name)
    assert walked == ["tokenizer", "model", "training", "summary", "summary", "summary"]
    for _ in range(6):
        view["back"].click()
    assert view.state.is_first
    assert view["step:dataset"].description == "1 Data, current"
    assert view["step:summary"].description == "5 Summary, done"


def test_a_double_click_goes_one_step():
    view = form()
    forward = view["next"]
    forward.click()
    forward.click()
    assert view.state.current.name == "tokenizer"
    view["back"].click()
    forward.click()
    assert view.state.current.name == "tokenizer"


def test_buttons_of_a_page_that_is_gone_do_nothing():
    view = form()
    view["next"].click()
    back, forward = view["back"], view["next"]
    view["step:summary"].click()
    back.click()
    forward.click()
    assert view.state.current.name == "summary"


def test_pages_are_built_when_they_are_first_shown():
    view = form()
    with pytest.raises(KeyError, match="no part 'field:epochs' yet"):
        view["field:epochs"]
    view["step:training"].click()
    assert view["field:epochs"].value == "4"


def test_the_text_form_says_where_one_is():
    view = form()
    view["next"].click()
    assert repr(view) == "Setup wizard, step 2 of 5: Tokenizer"


# Settings


def test_every_setting_has_a_labelled_control_that_shows_and_sets_it(tmp_path):
    (tmp_path / "my.txt").write_text("text")
    view = form()
    for step in walk(view):
        for field in view.state.fields(step):
            control = view[f"field:{field.name}"]
            assert control.description.partition(":")[0] == field.title
            if isinstance(control, ipywidgets.Checkbox):
                control.value = not control.value
                assert getattr(view.state.setup, field.name) is control.value
    view["step:training"].click()
    for name, typed, value in (
        ("epochs", "3", 3), ("learning_rate", "1e-2", 0.01), ("precision", "32", "32"), ("max_time_hours", "2.5", 2.5),
        ("run_name", "mine", "mine"), ("betas", "[0.5, 0.6]", (0.5, 0.6)), ("warmup_steps", "7", 7),
    ):  # fmt: skip
        view[f"field:{name}"].value = typed
        assert getattr(view.state.setup, name) == value
    assert view["field:learning_rate"].value == "0.01"
    assert view["field:warmup_ratio"].value == ""
    assert view.state.complete


def test_sources_of_data_are_cards_whose_label_names_the_chosen_one():
    view = form()
    cards = view["field:dataset_source"]
    assert [label.partition("\n")[0] for label, _ in cards.options] == list(CHOICE_NAMES["dataset_source"].values())
    assert all(words for _, _, words in (label.partition("\n") for label, _ in cards.options))
    assert cards.description == "Data: Built-in text"
    cards.value = "huggingface"
    assert view.state.source == "huggingface"
    assert cards.description == "Data: Hugging Face"


def test_what_is_refused_stays_in_its_control_with_the_reason_beside_it():
    view = form()
    view["step:training"].click()
    view["field:batch_size"].value = "many"
    assert view["field:batch_size"].value == "many"
    assert view.state.setup.batch_size == 8
    assert "must be a whole number" in view["error:batch_size"].value
    assert view["error:epochs"].layout.display == "none"
    view["next"].click()
    assert view.state.current.name == "training"
    assert "1 problem to solve" in view["status"].value
    view["field:batch_size"].value = "16"
    assert view["error:batch_size"].value == ""
    view["next"].click()
    assert view.state.current.name == "summary"


def test_changes_by_code_appear_in_the_form():
    view = form()
    view["step:training"].click()
    view.state.setup.update(epochs=3, precision="32")
    assert (view["field:epochs"].value, view["field:precision"].value) == ("3", "32")
    view.state.set("epochs", 5)
    assert view["field:epochs"].value == "5"
    view.state.goto("summary")
    assert "5 (changed; preset: 4)" in view["settings"].value


def test_a_choice_that_code_makes_and_the_setup_refuses_is_explained():
    view = form()
    for wrong in ("locl", 1, None, True):
        with pytest.raises(ConfigError):
            view.state.set("dataset_source", wrong)
        assert view["field:dataset_source"].value == "builtin"
        assert "must be" in view["error:dataset_source"].value


def test_a_source_shows_its_own_settings(tmp_path):
    (tmp_path / "my.txt").write_text("text")
    view = form()
    view["field:dataset_source"].value = "local"
    assert view["field:dataset_source"].value == "local"
    assert view["upload"] in widgets_in(view)
    assert "Enter a file or folder path. Until then" in view["error:dataset_path"].value
    assert "Problem" not in shown(view)
    assert view["step:dataset"].description == "1 Data, current"
    assert view["field:dataset_path"].options == ("my.txt",)
    view["field:dataset_path"].value = "my.txt"
    assert view.state.setup.dataset_source == "local"
    view["field:dataset_source"].value = "huggingface"
    visible = [widget.description for widget in widgets_in(view) if isinstance(widget, ipywidgets.Text)]
    assert visible == ["Dataset", "Configuration", "Split", "Text column", "Validation split"]
    assert view["upload"] not in widgets_in(view)
    view["field:dataset_source"].value = "local"
    assert view["field:dataset_path"].value == "my.txt"


def test_a_topic_is_shown_when_asked_for_and_when_one_of_its_settings_has_a_problem():
    view = form()
    view["step:training"].click()

    def titles():
        return {widget.description for widget in widgets_in(view) if isinstance(widget, (ipywidgets.Text, ipywidgets.Dropdown))}

    assert {"Epochs", "Batch size", "Learning rate", "Fine-tuning", "Precision", "Run name"} <= titles()
    assert not {"Betas", "Output folder", "LoRA rank", "Exponential moving average"} & titles()
    with pytest.raises(ValueError, match="output_dir"):
        view.state.set("output_dir", "")
    assert "Output folder" in titles()
    assert "Betas" not in titles()
    assert view["field:output_dir"].value == ""
    view.state.set("output_dir", "runs")
    assert "Output folder" not in titles()
    fold = view["topic:Optimizer and schedule"]
    assert (fold.icon, fold.description) == ("caret-right", "Optimizer and schedule")
    fold.click()
    assert (fold.icon, fold.description) == ("caret-down", "Optimizer and schedule, open")
    assert "Betas" in titles()


def test_a_folded_topic_says_which_of_its_settings_are_not_at_their_defaults():
    view = form()
    view["step:training"].click()
    view.state.set("keep_last_n", 5)

    def beside():
        return [widget.value for widget in widgets_in(view) if "tb-folded" in widget._dom_classes]

    assert len(beside()) == 6
    assert sum("Last checkpoints kept: 5" in markup for markup in beside()) == 1
    view["topic:Checkpoints"].click()
    assert not any("Last checkpoints kept" in markup for markup in beside())


# Summary


def test_the_summary_lists_every_problem_with_its_ways_out():
    view = form(tiny_gpt(), vocab_size=99, max_length=99)
    view["step:training"].click()
    view["field:epochs"].value = "0"
    view["step:summary"].click()
    assert "3 problems" in view["verdict"].value
    assert view["step:tokenizer"].description == "2 Tokenizer, 2 problems"
    fix = view["fix:max_length"]
    assert fix.description == "Use 16 tokens"
    fix.click()
    view.state.setup.max_length = 8
    fix.click()
    assert view.state.setup.max_length == 8
    view["fix:vocab_size"].click()
    view["goto:epochs"].click()
    assert view.state.current.name == "training"
    view["field:epochs"].value = "1"
    view["step:summary"].click()
    assert "4 checks pending." in view["verdict"].value


def test_ready_is_said_after_the_checks_and_one_click_takes_a_way_out(tmp_path):
    (tmp_path / "my.txt").write_text("to be or not to be, that is the question\n" * 60)
    view = form(tiny_gpt(vocab_size=64), preset=None, dataset_path="my.txt", epochs=1, max_length=16, run_name="mine")
    train_as_it_is(view.state)
    view["step:training"].click()
    view["field:learning_rate"].value = "1e-3"
    view["step:summary"].click()
    assert "Ready" not in view["verdict"].value
    assert "…</span><span>Data</span>" in view["check:data"].value
    view["check-now"].click()
    assert "✓</span><span>Data</span>" in view["check:data"].value
    assert "✕</span><span>Run name</span></span> failed. Run mine exists with other settings" in view["check:run"].value
    assert "Not ready to train: 1 check failed." in view["verdict"].value
    assert view["way-out:run:1"].description == "Continue with the new settings"
    assert view["way-out:run:0"].description == "Use run name mine-2"
    view["way-out:run:0"].click()
    assert view.state.setup.run_name == "mine-2"
    assert "Ready to train." in view["verdict"].value
    assert "✓</span><span>Run name</span></span> Run name mine-2 is free." in view["check:run"].value
    view["step:training"].click()
    view["field:batch_size"].value = "2"
    view["step:summary"].click()
    assert "3 checks pending." in view["verdict"].value


def train_as_it_is(state):
    data = prepare_data(state.setup, state.model)
    config = state.setup.training_config
    Trainer(tiny_gpt(vocab_size=64), training_config=config, task_spec=data.task_spec, tokenizer=data.tokenizer).train(
        data.train, data.validation
    )


def test_the_code_to_copy_follows_the_settings_and_cannot_be_changed():
    view = form()
    view["step:summary"].click()
    texts = {}
    for name in ("Python", "YAML", "Command line"):
        view["copy-form"].value = name
        texts[name] = view["copy"].value
    assert texts["Python"].startswith("from utils.ui import SetupConfig")
    assert texts["YAML"].startswith("setup:")
    assert texts["Command line"].startswith("python cli/run_training.py")
    view.state.setup.epochs = 3
    assert "--set epochs=3" in view["copy"].value
    view["copy"].value = "mine"
    assert "--set epochs=3" in view["copy"].value


# Presets


def test_choosing_a_preset_applies_it_and_says_what_it_replaced():
    view = form()
    view["step:training"].click()
    view["preset"].value = "tiny"
    assert view["field:batch_size"].value == "32"
    assert "settings changed" in view["status"].value
    assert view["reset"].disabled


def test_a_preset_that_replaced_edits_is_undone_with_one_click():
    view = form()
    view["step:training"].click()
    assert view["undo"].layout.display == "none"
    view["field:epochs"].value = "3"
    view["preset"].value = "tiny"
    assert view["undo"] in widgets_in(view)
    view["undo"].click()
    assert (view["preset"].value, view["field:epochs"].value) == ("starter", "3")
    assert "Changed from preset: Epochs" in view["clicks"].value
    assert view["undo"].layout.display == "none"


def test_a_preset_for_another_model_offers_the_line_that_creates_it():
    view = form(tiny_gpt())
    view["preset"].value = "tiny"
    assert "does not change your model" in view["preset-help"].value
    assert "ModelRegistry.create(&#x27;gpt-small&#x27;, vocab_size=10000" in view["preset-help"].value
    assert "Reference time" not in view["preset-help"].value


def test_back_to_the_preset_undoes_what_was_clicked():
    view = form()
    view["step:training"].click()
    view["field:epochs"].value = "3"
    view["field:batch_size"].value = "0"
    assert "Epochs" in view["clicks"].value
    view["reset"].click()
    assert view.state.setup == PRESETS["starter"].setup()
    assert (view["field:epochs"].value, view["field:batch_size"].value) == ("4", "8")


def test_a_preset_that_contradicts_the_cell_is_refused_beside_it():
    view = form(preset=None, max_steps=50)
    view["preset"].value = "tiny"
    assert view["preset"].value == view.state.preset == "as given"
    assert "warmup_steps" in view["error:preset"].value
    view["preset"].value = "starter"
    assert view["error:preset"].value == ""


# Data and model


def test_an_uploaded_file_becomes_the_data(tmp_path):
    view = form()
    view["field:dataset_source"].value = "local"
    view["upload"].value = (uploaded("my.txt", b"to be or not to be"),)
    assert view.state.setup.dataset_path == "uploads/my.txt"
    assert view["field:dataset_path"].value == "uploads/my.txt"
    assert "18 bytes" in view["status"].value
    view["upload"].value = (uploaded("none.txt", b""),)
    assert "is empty" in view["error:upload"].value
    assert view.state.setup.dataset_path == "uploads/my.txt"


def uploaded(name, content):
    return {
        "name": name, "type": "text/plain", "size": len(content), "content": memoryview(content),
        "last_modified": datetime(2024, 1, 1, tzinfo=UTC),
    }  # fmt: skip


def test_uploads_are_read_as_either_ipywidgets_gives_them():
    seven = {"a.txt": {"metadata": {"name": "a.txt"}, "content": b"one"}}
    eight = ({"name": "a.txt", "content": memoryview(b"one")},)
    assert uploaded_files(seven) == uploaded_files(eight) == [("a.txt", b"one")]


def test_the_preview_shows_the_data_as_the_model_sees_it(tmp_path):
    (tmp_path / "my.txt").write_text(f"{HOSTILE}\n" * 40)
    view = form(tiny_gpt(vocab_size=64), dataset_path="my.txt")
    view["preview"].click()
    result = view["preview-result"].value
    assert "1 document" in result
    assert "s|c|r|i|p|t|&gt;" in result
    assert (view["preview"].description, view["preview"].disabled) == ("Preview the data", False)
    view["field:val_split"].value = "0"
    assert "have changed since this preview" in shown(view)


def test_a_preview_that_cannot_be_is_explained(tmp_path):
    (tmp_path / "short.txt").write_text("short")
    view = form(dataset_path="short.txt")
    view["preview"].click()
    assert "too little text" in view["preview-result"].value
    assert not view.errors
    assert not view["preview"].disabled


def test_the_model_page_shows_its_facts_and_checks_it():
    view = form(tiny_gpt())
    view["step:model"].click()
    assert "GPT2LMHeadModel" in view["facts"].value
    view["check"].click()
    assert "6 pass" in view["check-result"].value
    assert not view["check"].disabled


def test_without_a_model_there_is_nothing_to_check():
    view = form()
    view["step:model"].click()
    assert view["check"].disabled
    assert "none given" in view["facts"].value


def test_the_training_page_measures_and_says_when_that_is_outdated():
    view = form(tiny_gpt(vocab_size=600, length=32), tokenizer_strategy="bpe")
    view["step:training"].click()
    view["measure"].click()
    assert "Measured on this machine" in view["estimate"].value
    assert "MiB" in view["estimate"].value
    assert not view["measure"].disabled
    view["field:epochs"].value = "3"
    assert "have changed since it was measured" in view["estimate"].value


def test_the_training_page_finds_a_learning_rate_that_one_click_takes():
    setup = {"tokenizer_strategy": "bpe", "batch_size": 2, "optimizer": "sgd"}
    view = form(tiny_gpt(vocab_size=600, length=32), **setup)
    view["step:training"].click()
    assert view["use-rate"].layout.display == "none"
    view["find-rate"].click()
    assert "<svg" in view["found-rate"].value
    assert "falls fastest at" in view["found-rate"].value
    suggested = view["use-rate"].description.removeprefix("Use ")
    assert f"suggestion {suggested}" in view["found-rate"].value
    view["use-rate"].click()
    assert view.state.setup.learning_rate == float(suggested)
    assert "<svg" in view["found-rate"].value  # taking it does not make it outdated; another batch size does
    view["field:batch_size"].value = "4"
    assert "have changed since" in view["found-rate"].value
    assert view["use-rate"].layout.display == "none"


def test_a_measurement_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "short.txt").write_text("too short")
    view = form(tiny_gpt(vocab_size=600, length=32), dataset_path=str(tmp_path / "short.txt"))
    view["step:training"].click()
    view["measure"].click()
    assert "too little text" in view["estimate"].value


# Errors and hostile text


class Breaking(nn.Linear):
    """A model whose code fails once it is told to."""

    broken = False

    def parameters(self, recurse=True):
        if self.broken:
            raise ZeroDivisionError(HOSTILE)
        return super().parameters(recurse)


def test_a_handler_that_raises_shows_its_error_and_is_recorded():
    model = Breaking(3, 3)
    view = form(model, vocab_size=50)
    model.broken = True
    with watching() as failures:
        view["next"].click()
    assert failures
    assert set(map(type, failures)) == {ZeroDivisionError}
    assert view.errors == failures
    assert 'role="alert"' in view["alert"].value
    assert "ZeroDivisionError" in view["alert"].value
    assert "Traceback" in view["alert"].value
    assert "<script" not in view["alert"].value
    model.broken = False
    view["next"].click()
    assert view.state.current.name == "tokenizer"


def test_hostile_text_stays_text_wherever_it_comes_from(tmp_path):
    name = "<img src=x onerror=alert(3)>.txt"
    (tmp_path / name).write_text(f"{HOSTILE} " * 30)
    model = type("<script>alert(0)</script>", (Breaking,), {})(3, 3)
    preset = ConfigPresets().customize("starter", notes=HOSTILE)
    object.__setattr__(preset, "description", HOSTILE)
    object.__setattr__(preset, "reference", HOSTILE)
    view = form(model, preset, dataset_path=name, vocab_size=64, max_length=8, output_dir=HOSTILE)
    view["preview"].click()
    view["upload"].value = (uploaded(f"{HOSTILE}.txt", b"x"), uploaded(f"{HOSTILE}.txt", b""))
    pages = []
    for step in walk(view):
        if step.name == "model":
            view["check"].click()
        pages.append(shown(view))
        for field in view.state.fields(step):
            control = view[f"field:{field.name}"]
            if isinstance(control, ipywidgets.Text):
                control.value = HOSTILE
        pages.append(shown(view))
    view["preset"].value = "tiny"
    model.broken = True
    with watching() as failures:
        view["step:model"].click()
    assert failures
    pages.append(shown(view))
    markup = "\n".join(pages)
    assert markup.count("&lt;script&gt;") > 10
    assert not re.search(r"<(script|img)", markup)


def test_colours_come_from_the_page():
    view = form(tiny_gpt(), vocab_size=99)
    markup = re.sub(r"<style>.*?</style>", "", "\n".join(shown(view) for _ in walk(view)))  # the design's own
    assert not re.findall(r"(?:^|[;\"\s-])color:(?!inherit|currentColor)[^;\"]*", markup)
    assert "#" not in re.sub(r"&#x?\w+;", "", markup)


# Cost


class RecordingComm(comm.DummyComm):
    """Counts what would go to the browser."""

    messages: ClassVar[list] = []

    def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys):
        if msg_type == "comm_msg" and (data or {}).get("method") == "update":
            self.messages.append(data["state"])


def test_a_click_sends_few_messages(monkeypatch):
    monkeypatch.setattr(comm, "create_comm", RecordingComm)
    monkeypatch.setattr(RecordingComm, "messages", messages := [])
    view = form()
    for _ in walk(view):
        pass
    view["step:training"].click()
    messages.clear()
    view["field:epochs"].value = "3"
    # Its own value, the status line, and what was clicked, with its button.
    assert 1 <= len(messages) <= 6, messages
    messages.clear()
    view["step:summary"].click()
    # Two step buttons, the page, its table and code, the status line.
    assert 1 <= len(messages) <= 10, messages
    messages.clear()
    view["step:summary"].click()
    assert not messages


def test_the_form_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; from utils.ui import SetupConfig, WizardState;"
        "from widgets.wizard_view import WizardView; view = WizardView(WizardState(SetupConfig(vocab_size=50)));"
        "[view['next'].click() for _ in range(4)]; assert not view.errors and view.state.is_last;"
        "heavy = {'transformers', 'matplotlib', 'pandas', 'datasets', 'tokenizers'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=300)


# In a kernel


@pytest.mark.notebook
def test_a_cell_run_twice_keeps_what_was_clicked(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINBOOK_UI", "widget")
    wizard_cell = (
        "wizard = SetupWizard(); setup = wizard.run(epochs=2); print(setup.batch_size, setup.epochs, setup.optimizer)"
    )
    cells = [
        "from utils.ui import SetupWizard",
        wizard_cell,
        "wizard.state.goto('training'); wizard.view['field:batch_size'].value = '3'; setup.optimizer = 'sgd'",
        wizard_cell,
        "print(wizard.view['clicks'].value); wizard.view['reset'].click(); print(setup.batch_size, wizard.view.errors)",
        wizard_cell,
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(
        notebook, timeout=300, startup_timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [
        "".join(output.get("text", "") for output in cell.outputs if output.output_type == "stream")
        for cell in notebook.cells
    ]
    assert outputs[1] == "8 2 muon\n"
    assert outputs[3] == "3 2 muon\n"
    assert "before this cell ran again" in outputs[4]
    assert outputs[4].endswith("8 []\n")
    assert outputs[5] == "8 2 muon\n"
    displayed = [output.data for output in notebook.cells[1].outputs if output.output_type == "display_data"]
    assert ["application/vnd.jupyter.widget-view+json" in data for data in displayed] == [True]
    assert displayed[0]["text/plain"] == "Setup wizard, step 1 of 5: Data"
