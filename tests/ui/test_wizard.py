"""The wizard without a front end: five steps as data, what blocks them, and a setup that is ready to train with."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from torch import nn

from tests.kit.fresh import before_its_import
from utils.data.mixture_settings import MixtureSource
from utils.data.source_kinds import SOURCE_KINDS, DatasetSource
from utils.errors import ConfigError
from utils.models import ModelRegistry
from utils.training.training_config import TrainingConfig
from utils.ui import PRESETS, ConfigPresets, SetupConfig, SetupWizard, WizardState
from utils.ui.choice_names import CHOICE_NAMES
from utils.ui.data_settings import DataSettings
from utils.ui.setting_values import help_text, value_text
from utils.ui.wizard_fields import wizard_field
from utils.ui.wizard_steps import STEPS


class Bigram(nn.Module):
    """Logits of the next token from the last one: a plain module without a config."""

    def __init__(self, vocab_size=50, max_seq_len=16):
        super().__init__()
        self.max_seq_len = max_seq_len
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, input_ids):
        return self.table(input_ids)


@pytest.fixture(scope="module")
def gpt():
    return ModelRegistry.create("gpt-small", vocab_size=300, max_seq_len=32)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "my.txt"
    path.write_text("to be or not to be\n" * 50)
    return path


def blocked(setup, model=None, step="summary"):
    return {problem.field for problem in WizardState(setup, model).blockers(step)}


# Steps and fields


def test_there_are_five_steps():
    assert [step.name for step in STEPS] == ["dataset", "tokenizer", "model", "training", "summary"]
    assert all(step.title and step.help for step in STEPS)


def test_every_field_says_what_the_schema_says():
    for step in STEPS:
        for field in step.all_fields:
            owner = DataSettings if field.name in DataSettings.model_fields else TrainingConfig
            schema = owner.model_fields[field.name]
            assert (field.title, field.description, field.default) == (schema.title, schema.description, schema.default)
            assert getattr(SetupConfig(), field.name) == field.default


def test_no_field_stands_in_two_steps():
    names = [field.name for step in STEPS for field in step.all_fields]
    assert len(set(names)) == len(names)


def test_fields_know_their_control_range_and_unit():
    rate, split, batch = (wizard_field(name) for name in ("learning_rate", "val_split", "batch_size"))
    assert (rate.kind, rate.minimum, rate.minimum_excluded, rate.maximum, rate.maximum_excluded) == (
        "number",
        0,
        True,
        1,
        True,
    )
    assert (split.kind, split.minimum, split.minimum_excluded, split.maximum) == ("number", 0, False, 0.5)
    assert (batch.kind, batch.minimum, batch.unit, batch.optional) == ("whole number", 1, "samples", False)
    assert wizard_field("dataset_source").choices == (
        "builtin", "local", "huggingface", "drive", "upload",
    )  # fmt: skip
    assert wizard_field("early_stopping_patience").optional
    assert wizard_field("dataset_path").kind == wizard_field("output_dir").kind == "path"
    assert wizard_field("deterministic").kind == "switch"
    assert wizard_field("run_name").kind == "text"
    assert wizard_field("betas").kind == wizard_field("eval_every").kind == "value"


def test_help_says_range_unit_and_whether_a_field_may_be_empty():
    assert help_text(wizard_field("learning_rate")).endswith("More than 0, less than 1.")
    assert help_text(wizard_field("batch_size")).endswith("1–65,536 samples.")
    assert help_text(wizard_field("max_steps")).endswith("Leave empty for no limit. At least 1 step.")
    assert help_text(wizard_field("wandb_project")).endswith("May be left empty.")
    assert help_text(wizard_field("run_name")).count("empty") == 1
    assert "empty" not in help_text(wizard_field("dataset_path"))


@pytest.mark.parametrize(
    "name", ["strategy", "devices", "num_nodes", "compile_mode", "auto_batch_size", "export_bundle"]
)
def test_what_the_engine_refuses_is_not_offered(name):
    assert name not in [field.name for step in STEPS for field in step.all_fields]


def test_the_bounds_that_a_field_states_are_those_that_hold():
    for step in STEPS:
        for field in step.all_fields:
            for bound, excluded, beyond in (
                (field.minimum, field.minimum_excluded, -1),
                (field.maximum, field.maximum_excluded, 1),
            ):
                if bound is None:
                    continue
                whole = field.kind in ("whole number", "value")
                refused = bound if excluded else bound + beyond * (1 if whole else 1e-3)
                with pytest.raises(ConfigError):
                    SetupConfig(**{field.name: int(refused) if whole else float(refused)})
                if not excluded:
                    SetupConfig(**{field.name: int(bound) if whole else float(bound)})


# What blocks


def test_the_starter_blocks_nowhere(gpt):
    setup = PRESETS["starter"].setup()
    setup.update(vocab_size=300, max_length=32)
    state = WizardState(setup, gpt)
    assert state.complete
    assert [state.blockers(step.name) for step in STEPS] == [[]] * 5


def test_a_data_set_whose_name_cannot_be_one_blocks_the_first_step():
    assert blocked(SetupConfig(dataset_name="a/b/c", vocab_size=300), step="dataset") == {"dataset_name"}
    assert blocked(SetupConfig(dataset_name="Salesforce/wikitext", vocab_size=300)) == set()


def test_a_file_that_is_missing_or_empty_and_a_folder_without_data_block_the_first_step(tmp_path, text_file):
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in (tmp_path / "nowhere.txt", bare, empty, tmp_path / "*.csv"):
        assert blocked(SetupConfig(dataset_path=path, vocab_size=300), step="dataset") == {"dataset_path"}
    for path in (text_file, tmp_path, tmp_path / "*.txt"):
        assert blocked(SetupConfig(dataset_path=path, vocab_size=300)) == set()


def test_sizes_beyond_the_model_block_and_come_with_a_fix(gpt):
    setup = SetupConfig(vocab_size=301, max_length=33)
    problems = WizardState(setup, gpt).blockers("tokenizer")
    assert {problem.field: problem.fix for problem in problems} == {"vocab_size": 300, "max_length": 32}
    assert "301" in problems[0].message
    assert "300" in problems[0].message
    setup.update(**{problem.field: problem.fix for problem in problems})
    assert WizardState(setup, gpt).complete


def test_a_plain_modules_sizes_count_too():
    assert blocked(SetupConfig(vocab_size=51, max_length=17), Bigram(), "tokenizer") == {"vocab_size", "max_length"}
    assert blocked(SetupConfig(max_length=16), Bigram()) == set()


def test_a_vocabulary_that_nobody_knows_blocks():
    assert blocked(SetupConfig(), step="tokenizer") == {"vocab_size"}
    assert blocked(SetupConfig(), nn.Linear(3, 3), "tokenizer") == {"vocab_size"}


@pytest.mark.parametrize("model", [object(), nn.ReLU(), "gpt-small"])
def test_a_model_that_cannot_be_trained_blocks(model):
    assert blocked(SetupConfig(vocab_size=50), model, "model") == {"model"}


def test_a_frozen_model_blocks():
    assert blocked(SetupConfig(vocab_size=50), Bigram().requires_grad_(False), "model") == {"model"}


def test_an_output_folder_under_a_file_blocks(text_file):
    assert blocked(SetupConfig(vocab_size=50, output_dir=text_file / "runs"), step="training") == {"output_dir"}


def test_the_summary_lists_the_problems_of_all_steps(text_file):
    setup = SetupConfig(dataset_path=text_file.with_name("x"), vocab_size=99, output_dir=text_file, max_length=16)
    assert blocked(setup, Bigram()) == {"dataset_path", "vocab_size", "output_dir"}


# Walking through


def test_next_and_back_stop_at_the_ends(gpt):
    state = WizardState(PRESETS["starter"].setup())
    walked = [state.next().name for _ in range(6)]
    assert walked == ["tokenizer", "model", "training", "summary", "summary", "summary"]
    assert state.is_last
    walked = [state.back().name for _ in range(6)]
    assert walked == ["training", "model", "tokenizer", "dataset", "dataset", "dataset"]
    assert state.is_first


def test_next_waits_for_what_blocks_and_goto_does_not(tmp_path, text_file):
    state = WizardState(SetupConfig(dataset_path=tmp_path / "nowhere.txt", vocab_size=300))
    assert state.next().name == "dataset"
    assert state.goto("training").name == "training"
    assert not state.complete
    state.goto(0)
    state.setup.dataset_path = text_file
    assert state.next().name == "tokenizer"
    assert state.complete


@pytest.mark.parametrize("step", ["trainin", 5, -1, None, True])
def test_a_step_that_is_not_there_is_named(step):
    state = WizardState(SetupConfig())
    with pytest.raises(ConfigError, match="there are: dataset, tokenizer"):
        state.goto(step)
    assert state.current.name == "dataset"


# SetupWizard


def test_a_headless_run_fits_the_setup_to_the_model(gpt):
    setup = SetupWizard().run(model=gpt, interactive=False, preset="starter")
    assert (setup.vocab_size, setup.max_length) == (300, 32)
    assert setup.epochs == PRESETS["starter"].values["epochs"]


def test_the_setup_follows_later_changes(gpt):
    wizard = SetupWizard()
    setup = wizard.run(model=gpt)
    wizard.state.setup.batch_size = 3
    assert setup.batch_size == setup.training_config.batch_size == 3


def test_overrides_win_over_preset_and_model(gpt, text_file):
    setup = SetupWizard().run(model=gpt, vocab_size=200, max_epochs=2, dataset_path=text_file)
    assert (setup.vocab_size, setup.epochs, setup.dataset_source) == (200, 2, "local")


def test_presets_may_be_none_or_customized():
    assert SetupWizard().run(preset=None, vocab_size=50).epochs == TrainingConfig().epochs
    custom = ConfigPresets().customize("starter", epochs=33)
    assert SetupWizard().run(preset=custom).epochs == 33


def test_run_reports_everything_that_stands_in_the_way(gpt, tmp_path):
    with pytest.raises(ConfigError) as error:
        SetupWizard().run(model=gpt, dataset_path=tmp_path / "nowhere.txt", vocab_size=400, max_length=99)
    assert {problem.field for problem in error.value.problems} == {"dataset_path", "vocab_size", "max_length"}


def test_a_mistyped_override_is_one_clear_message(gpt):
    with pytest.raises(ConfigError, match="did you mean epochs"):
        SetupWizard().run(model=gpt, epocs=3)


def test_asked_for_a_form_where_there_is_no_notebook_it_says_so_and_goes_on(gpt, capsys):
    wizard = SetupWizard()
    assert wizard.run(model=gpt, interactive=True, epochs=2).epochs == 2
    assert wizard.view is None
    assert capsys.readouterr().out.startswith("There is no notebook here")


def test_a_notebook_shows_an_error_with_the_lines_of_its_own_cell(monkeypatch):
    with pytest.raises(ConfigError) as caught:
        SetupWizard().run(epocs=3)
    *lines, message, _, hint = caught.value._render_traceback_()
    assert [line.split(": ", 1)[1] for line in lines] == ["SetupWizard().run(epocs=3)"]
    assert "did you mean epochs?" in message
    monkeypatch.setenv("TRAINBOOK_TRACEBACK", "full")
    assert hint.startswith("(TRAINBOOK_TRACEBACK=full")
    assert any("setup_wizard.py" in line for line in caught.value._render_traceback_())


def test_what_the_cell_gave_is_no_default_of_the_preset():
    wizard = SetupWizard()
    wizard.run(interactive=False, run_name="mine", epochs=2)
    assert wizard.state.clicks_sentence == "Preset defaults, except those set in this cell: Epochs, Run name."
    wizard.run(interactive=False)
    assert wizard.state.clicks_sentence == "Preset defaults."


def test_settings_that_follow_from_the_model_and_the_task_are_named_beside_those_that_were_changed(gpt):
    wizard = SetupWizard()
    wizard.run(interactive=False, model=gpt)
    assert wizard.state.clicks_sentence.startswith("Preset defaults. Set to suit the model, data and task: Vocabulary size")
    wizard.run(interactive=False)
    wizard.state.set("task", "text_classification")
    first, following = wizard.state.clicks_sentence.split(". Set to suit the model, data and task: ")
    assert first == "Changed from preset: Task"
    assert following == "Epochs, Learning rate, Optimizer."
    wizard.state.set("learning_rate", 0.01)
    assert wizard.state.clicks_sentence.endswith("Set to suit the model, data and task: Epochs, Optimizer.")


def test_a_front_end_of_ones_own_shows_the_steps_and_changes_the_setup(gpt):
    class Form:
        def __init__(self, state):
            self.state, self.shown = state, False

        def show(self):
            self.shown = True

    wizard = SetupWizard(form=Form)
    setup = wizard.run(model=gpt, interactive=True)
    assert wizard.view.shown
    wizard.view.state.set("epochs", 5)
    assert setup.epochs == 5


@pytest.mark.parametrize(
    ("mode", "interactive", "said"), [("text", None, True), ("none", None, False), ("text", False, False)]
)
def test_without_a_form_a_summary_is_shown_unless_nothing_is_wanted(mode, interactive, said, monkeypatch, capsys):
    monkeypatch.setenv("TRAINBOOK_UI", mode)
    SetupWizard().run(interactive=interactive, epochs=3)
    assert ("3 (changed; preset: 4)" in capsys.readouterr().out) is said


def test_quick_setup_names_the_data_first(gpt, text_file):
    wizard = SetupWizard()
    assert wizard.quick_setup(gpt, "starter", dataset_path=text_file).dataset_path == str(text_file)
    assert wizard.quick_setup(gpt, dataset_name="builtin", epochs=2).dataset_source == "builtin"
    assert wizard.quick_setup(gpt, dataset_name="Salesforce/wikitext").dataset_source == "huggingface"


def test_validate_config_says_yes_or_lists_sentences(gpt, tmp_path):
    wizard = SetupWizard()
    good = wizard.run(model=gpt)
    assert wizard.validate_config(good) == (True, [])
    assert wizard.validate_config(good.to_dict()) == (True, [])
    valid, errors = wizard.validate_config({"epocs": 2, "batch_size": 0})
    assert not valid
    assert [error.split(":")[0] for error in errors] == ["epocs", "batch_size"]
    valid, errors = wizard.validate_config(SetupConfig(vocab_size=301), gpt)
    assert not valid
    assert len(errors) == 2
    assert wizard.validate_config(3) == (False, ["a configuration is a SetupConfig or a mapping of its values; got 3"])


def test_print_config_shows_every_step_and_every_value(gpt, capsys):
    wizard = SetupWizard()
    setup = wizard.run(model=gpt, random_seed=12345, max_time_hours=2.5)
    wizard.print_config(setup)
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line[:1].isdigit()] == [
        f"{n}. {s.title}" for n, s in enumerate(STEPS, 1)
    ]
    for shown in ("12345", "2.5 hours", "GPT2LMHeadModel", "300 tokens", "not checked", "4 checks pending", "Built-in text"):
        assert shown in printed


def test_values_of_all_steps_stand_in_one_column_and_a_detected_column_has_its_name(capsys, tmp_path):
    rows = "".join(f"nice film {number},{'good' if number % 2 else 'bad'}\n" for number in range(20))
    (tmp_path / "films.csv").write_text(f"review,sentiment\n{rows}")
    setup = SetupConfig(dataset_path=tmp_path / "films.csv", task="text_classification", vocab_size=300)
    SetupWizard().print_config(setup)
    lines = capsys.readouterr().out.splitlines()
    assert "  Text column             review (detected)" in lines
    assert "  Label or target column  sentiment (detected)" in lines
    assert "  Epochs                  10" in lines
    assert WizardState(setup).rows()["Text column"] == "review (detected)"
    setup.text_column = "review"
    assert WizardState(setup).rows()["Text column"].startswith("review (changed")


def test_a_summary_lists_no_setting_that_does_not_apply(gpt, capsys, tmp_path):
    (tmp_path / "my.txt").write_text("A line of the text.\n" * 400)
    (tmp_path / "my.csv").write_text("text,title\n" + "A line of the text.,x\n" * 400)

    def listed(**changes):
        setup = SetupConfig(vocab_size=300, **changes)
        SetupWizard().print_config(setup)
        return capsys.readouterr().out, WizardState(setup).rows()

    for shown in listed(dataset_path=tmp_path / "my.txt"):
        assert "Text column" not in shown
        assert "Pretrained model" not in shown
    for shown in listed(dataset_path=tmp_path / "my.csv"):
        assert "Text column" in shown
    for shown in listed(dataset_path=tmp_path / "my.txt", text_column="words", pretrained_model=str(tmp_path)):
        assert "Text column" in shown
        assert "Pretrained model" in shown


def test_print_config_shows_what_blocks(capsys, tmp_path):
    SetupWizard().print_config(SetupConfig(dataset_path=tmp_path / "nowhere.txt", vocab_size=300))
    assert "no, 1 problem" in capsys.readouterr().out


def test_the_ui_needs_neither_torch_nor_widgets():
    code = (
        "import sys; from utils.ui import SetupWizard; w = SetupWizard(); w.print_config(w.run());"
        "heavy = {'torch', 'numpy', 'ipywidgets', 'transformers', 'matplotlib', 'pandas', 'IPython'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=300, stdout=subprocess.DEVNULL)


def test_importing_the_forms_makes_each_schema_once():
    """A schema is of all settings together: made for each of them, it took half of the time until the first cell was done."""

    def made():
        found = []
        real = BaseModel.model_json_schema.__func__
        BaseModel.model_json_schema = classmethod(lambda owner: found.append(owner.__name__) or real(owner))
        importlib.import_module("utils.ui.wizard_steps")
        return sorted(found)

    assert before_its_import(made) == ["DataSettings", "TrainingConfig"]


#: Settings that a cell or a file gives: the wizard has no field for them.
FOR_CODE_ONLY = {
    "auto_batch_size", "checkpoint_dir", "compile_mode", "devices", "eps", "export_bundle", "export_dir", "export_formats",
    "fused_loss", "isolate_callbacks", "lora_targets", "min_delta", "mixture", "mode", "monitor",
    "num_nodes", "on_save_error", "strategy", "use_lr_schedule", "use_wandb", "wandb_entity", "wandb_project",
}  # fmt: skip


def test_a_new_setting_is_in_a_step_or_known_to_be_for_code_only():
    shown = {field.name for step in STEPS for field in step.all_fields}
    assert set(SetupConfig.field_names()) - shown == FOR_CODE_ONLY


def test_every_list_of_data_sources_has_all_of_them():
    for cls in (DataSettings, MixtureSource):
        assert get_args(cls.model_fields["dataset_source"].annotation) == tuple(SOURCE_KINDS) == get_args(DatasetSource)
    assert {field for kind in SOURCE_KINDS.values() for field in kind.fields} <= set(SetupConfig.field_names())


def test_every_choice_has_a_name_of_its_own():
    fields = [wizard_field(name) for name in SetupConfig.field_names()]
    choices = {field.name: field.choices for field in fields if field.choices}
    assert {name: set(names) for name, names in CHOICE_NAMES.items()} == {name: set(these) for name, these in choices.items()}
    assert all(len(set(names.values())) == len(names) for names in CHOICE_NAMES.values())


def test_help_and_tables_have_the_names_of_choices():
    help_of = {name: help_text(wizard_field(name)) for name in CHOICE_NAMES}
    assert "Subwords (BPE): subwords trained on the text." in help_of["tokenizer_strategy"]
    for name, names in CHOICE_NAMES.items():
        ids = {choice for choice, called in names.items() if choice != called.lower()}
        assert not ids & {sentence.partition(":")[0] for sentence in help_of[name].split(". ")}
    assert value_text(wizard_field("lr_schedule"), "wsd") == "Warmup-stable-decay"


def test_the_summary_lists_what_differs_from_the_preset_also_at_its_default(capsys):
    wizard = SetupWizard()
    setup = wizard.run(preset="starter")
    wizard.print_config(setup)
    assert re.search(r"Optimizer +Muon", capsys.readouterr().out)
    wizard.state.set("optimizer", SetupConfig().optimizer)
    wizard.print_config(setup)
    assert re.search(r"Optimizer +AdamW", capsys.readouterr().out)
