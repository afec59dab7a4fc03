"""The wizard for tables with labels: the task that the data suggest, menus of columns, and a batch through the model."""

from __future__ import annotations

import json

import ipywidgets
import pytest

from utils.models import ModelRegistry
from utils.ui import SetupConfig
from utils.ui.choice_names import choice_name
from utils.ui.wizard_code import setup_code
from utils.ui.wizard_state import WizardState
from widgets.wizard_view import WizardView

SIZES = {"vocab_size": 300, "n_layer": 1, "n_embd": 16, "n_head": 2, "max_seq_len": 32}

# Task -> rows of a table, the columns of inputs and labels, the registry's model, and a word of the statistics.
TABLES = {
    "regression": (
        [{"comment": f"item {n % 7} costs", "price": n + 0.5, "id": n} for n in range(40)],
        ("comment", "price"), ("bert-small-classifier", {"num_classes": 1}), "0.5 to 39.5, mean 20",
    ),
    "seq2seq": (
        [{"article": f"number {n} and more words", "summary": f"number {n}"} for n in range(40)],
        ("article", "summary"), ("t5-mini", {}), "median ",
    ),
    "text_classification": (
        [{"review": f"film {n} was {'good' if n % 2 else 'bad'}", "mood": "up" if n % 2 else "down"} for n in range(40)],
        ("review", "mood"), ("bert-small-classifier", {"num_classes": 2}), "50.0% (18)",
    ),
}  # fmt: skip


def opened(folder, kind, **settings):
    rows, _, (name, arguments), _ = TABLES[kind]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sizes = {key: value for key, value in SIZES.items() if name != "t5-mini" or key != "max_seq_len"}
    model = ModelRegistry.create(name, **sizes, **arguments)
    setup = SetupConfig(max_length=32, vocab_size=300, batch_size=4, precision="32", **settings)
    state = WizardState(setup, model)
    return state, WizardView(state)


@pytest.mark.parametrize("task", TABLES)
def test_the_suggested_task_is_one_click_and_its_checks_pass(task, tmp_path):
    state, view = opened(tmp_path, task)
    _, (text, label), _, statistics = TABLES[task]
    view["field:dataset_source"].value = "local"
    view["field:dataset_path"].value = str(tmp_path / "rows.jsonl")
    assert f"Suggested task: {choice_name('task', task)}, because" in view["suggested-task"].value
    assert label in view["suggested-task"].value
    view["use-task"].click()
    assert state.setup.task == task
    assert "Task of these data" in view["suggested-task"].value
    menu = view["field:label_column"]
    assert isinstance(menu, ipywidgets.Dropdown)
    assert [option for _, option in menu.options] == ["", *TABLES[task][0][0]]
    menu.value = label
    view["field:text_column"].value = text
    assert (state.setup.text_column, state.setup.label_column) == (text, label)
    view["preview"].click()
    assert statistics in view["preview-result"].value
    view["step:summary"].click()
    view["check-now"].click()
    assert state.ready, [check.message for check in state.preflight.checks]
    assert not view.errors


@pytest.mark.parametrize("task", TABLES)
def test_the_copied_command_names_a_model_that_learns_the_task(task, tmp_path):
    from cli.job_files import JobConfig
    from cli.run_training import _prepared

    state, _ = opened(tmp_path, task, dataset_path=str(tmp_path / "rows.jsonl"), task=task)
    words = setup_code("Command line", state.setup, state.facts)
    sets = [line.partition("--set ")[2].rstrip("\\ \n").strip("'") for line in words.splitlines() if "--set" in line]
    job = JobConfig.from_file(None, [*sets, "model.n_layer=1", "model.n_embd=16", "model.n_head=2"])
    model, _, setup, data = _prepared(job)
    assert (setup.task, data.task_spec.task_type) == (task, task)
    assert type(model) is type(state.model)


def test_an_unknown_or_unclear_column_blocks_the_data_step(tmp_path):
    state, _ = opened(tmp_path, "regression", dataset_path=str(tmp_path / "rows.jsonl"), task="regression")

    def blocked():
        return {problem.field: problem.message for problem in state.blockers("dataset")}

    assert blocked() == {}
    state.setup.update(label_column="prices")
    assert "the columns are comment, price, id" in blocked()["label_column"]
    rows = [{"comment": "a", "first": 1.5, "second": 2.5}] * 3
    (tmp_path / "two.jsonl").write_text("\n".join(map(json.dumps, rows)))
    state.setup.update(dataset_path=str(tmp_path / "two.jsonl"))
    assert "choose one" in blocked()["label_column"]
    state.setup.update(label_column="second")
    assert blocked() == {}
    (tmp_path / "plain.txt").write_text("no columns")
    state.setup.update(dataset_path=str(tmp_path / "plain.txt"))
    assert "plain text" in blocked()["task"]


def test_a_decoder_is_refused_for_text_to_text(tmp_path):
    state, _ = opened(tmp_path, "seq2seq", dataset_path=str(tmp_path / "rows.jsonl"), task="seq2seq")
    gpt = ModelRegistry.create("gpt-small", **SIZES)
    checks = WizardState(state.setup.copy(), gpt).preflight.run()
    assert any(check.verdict == "failed" and "encoder-decoder such as T5" in check.message for check in checks)


def test_classes_of_a_named_dataset_keep_their_names_and_their_split(tmp_path):
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    from utils.data import prepare_data

    features = Features({"review": Value("string"), "mood": ClassLabel(names=["down", "up"])})
    rows = {"review": [f"film {n} was {'good' if n % 2 else 'bad'}" for n in range(40)], "mood": [n % 2 for n in range(40)]}
    table = Dataset.from_dict(rows, features=features)
    DatasetDict(train=table, other=table.select(range(30))).save_to_disk(tmp_path / "reviews")
    state, view = opened(tmp_path, "text_classification")
    view["field:dataset_source"].value = "huggingface"
    view["field:dataset_name"].value = str(tmp_path / "reviews")
    view["first-rows"].click()
    assert isinstance(view["field:text_column"], ipywidgets.Dropdown)
    view["use-task"].click()
    assert state.setup.task == "text_classification"
    view["field:label_column"].value = "mood"
    view["field:dataset_split"].value = "other[:20]"
    data = prepare_data(state.setup, state.model)
    assert data.task_spec.preprocessing_config["class_names"] == ["down", "up"]
    assert (data.report.num_rows, len(data.train) + len(data.validation)) == (20, 20)
    view["step:summary"].click()
    view["check-now"].click()
    assert state.ready, [check.message for check in state.preflight.checks]
    assert not view.errors
