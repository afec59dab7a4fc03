"""A new model by clicks: chosen, sized, created, trained and copied, for text and for tags of words."""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise

import pytest

from cli.job_files import JobConfig, model_maker, setup_of
from tests.kit.toys import tiny_gpt
from utils.data import prepare_data
from utils.training import Trainer
from utils.ui import SetupWizard
from utils.ui.wizard_code import setup_code
from utils.views.design import sheet
from widgets.wizard_view import WizardView


def opened(monkeypatch, model=None, **overrides):
    monkeypatch.setattr("utils.ui.setup_wizard.ui_mode", lambda: "widget")
    monkeypatch.setattr("utils.ui.wizard_memory._clicks", {})  # those of the tests before
    monkeypatch.setattr(WizardView, "show", lambda self: None)
    wizard = SetupWizard()
    setup = wizard.run(model=model, preset="starter", **overrides)
    return wizard, setup, wizard.view


def choose_new(view, layers="1", width="16", heads="2"):
    view["step:model"].click()
    view["model-source"].value = "new"
    for name, value in (("n_layer", layers), ("n_embd", width), ("n_head", heads)):
        view[f"new-model:{name}"].value = value


def test_sizes_are_chosen_by_name_or_one_by_one_and_counted_at_once(monkeypatch):
    wizard, setup, view = opened(monkeypatch, tiny_gpt(vocab_size=64, length=32))
    assert view["preset-model"].layout.display is None, "the notebook's model is not the preset's"
    view["step:model"].click()
    menu = view["model-source"]
    menu.value = "new"
    assert view["preset-model"].layout.display == "none"
    assert (setup.vocab_size, setup.max_length) == (4096, 128), "the preset's, not those of the notebook's model"
    architecture, size = view["new-model:name"], view["new-model:size"]
    assert [name for _, name in architecture.options] == ["gpt-small"]
    assert size.value == "mini"
    size.value = "tiny"
    assert (setup.new_model["n_layer"], view["new-model:n_embd"].value) == (2, "128")
    assert "MiB for weights, gradients and Muon" in view["facts"].value
    assert f"{wizard.state.facts.parameters:,}" in view["facts"].value
    view["new-model:n_embd"].value = "130"
    assert size.value == ""
    view["new-model:n_head"].value = "4"
    assert "multiple of the heads" in view["error:new_model"].value
    view["new-model:n_embd"].value = "16"
    assert view["new-model:name"] is architecture, "the control that somebody uses stays"
    assert view["error:new_model"].value == ""
    before = wizard.state.facts.parameters
    view["load"].click()
    assert "Created" in view["load-result"].value
    assert wizard.model.num_parameters() == before
    menu.value = "pretrained"
    assert (setup.new_model, setup.vocab_size, view["new-model:name"].value) == (None, 64, "gpt-small")
    menu.value = "notebook"
    assert wizard.model.config.vocab_size == 64
    view["preset-model"].click()
    assert (menu.value, setup.new_model["n_layer"]) == ("new", 4)
    assert not view.errors


# Words whose tag they say, so that a model of one layer learns them.
_TAG_OF = {"anna": "PER", "omar": "PER", "berlin": "LOC", "oslo": "LOC", "goes": "O", "to": "O", "sees": "O"}
_PEOPLE, _PLACES = ("anna", "omar"), ("berlin", "oslo")


@pytest.fixture(scope="module")
def tagged(tmp_path_factory):
    """A file of words with a tag for each."""
    path = tmp_path_factory.mktemp("tags") / "words.jsonl"
    rows = [[_PEOPLE[n % 2], ("goes", "sees")[n % 3 % 2], "to", _PLACES[n // 2 % 2]] for n in range(48)]
    path.write_text("\n".join(json.dumps({"words": row, "entities": [_TAG_OF[word] for word in row]}) for row in rows))
    return path


def test_menus_whose_options_are_long_are_as_wide_as_these_within_the_page(monkeypatch):
    _, _, view = opened(monkeypatch, tiny_gpt(vocab_size=64, length=32))
    choose_new(view)
    for name in ("new-model:name", "new-model:size", "model-source", "model-run"):
        menu = view[name]
        (parent,) = [box for box in boxes_in(view) if menu in box.children]
        assert "tb-across" in (*menu._dom_classes, *parent._dom_classes), name
    rules = dict(re.findall(r"([^{}]*tb-across[^{}]*select)\{([^}]*)\}", str(sheet(controls=True))))
    ((selectors, rule),) = rules.items()
    assert all(f"tb-across{place}.widget-dropdown select" in selectors for place in (" ", ""))
    # A flex item that is not stretched and has no width of its own is as wide as its content, within its container.
    assert {"align-self:flex-start", "width:auto", "max-width:100%"} <= {part.strip() for part in rule.split(";")}


def boxes_in(box):
    """The boxes in a widget, itself included."""
    if hasattr(box, "children"):
        yield box
        for child in box.children:
            yield from boxes_in(child)


def test_tags_of_words_from_the_data_step_to_a_trained_new_model(tagged, monkeypatch):
    wizard, setup, view = opened(monkeypatch, vocab_size=300, max_length=16, batch_size=8, precision="32")
    view["step:dataset"].click()
    view["field:dataset_source"].value = "local"
    view["field:dataset_path"].value = str(tagged)
    assert "Suggested task: Token classification, because" in view["suggested-task"].value
    view["use-task"].click()
    view["field:text_column"].value, view["field:label_column"].value = "words", "entities"
    choose_new(view)
    assert "one output per tag" in view["new-model:name"].label
    assert "(none was given)" in dict(map(reversed, view["model-source"].options))["notebook"]
    view["step:dataset"].click()
    view["preview"].click()
    assert "PER" in view["preview-result"].value
    view["step:training"].click()
    for name, value in {"epochs": "6", "learning_rate": "3e-2", "run_name": "tags"}.items():
        view[f"field:{name}"].value = value
    view["step:summary"].click()
    view["check-now"].click()
    assert wizard.state.ready, [check.message for check in wizard.state.preflight.checks]
    assert wizard.model.config.num_labels == 3

    data = prepare_data(setup, wizard.model)
    trainer = Trainer(wizard.model, training_config=setup.training_config, task_spec=data.task_spec, tokenizer=data.tokenizer)
    results = trainer.train(data.train, data.validation)
    assert results.final_metrics["val/accuracy"] == 1.0
    assert set(wizard.model.config.id2label.values()) == {"PER", "LOC", "O"}

    words = shlex.split(setup_code("Command line", setup).replace("\\\n", " "))
    job = JobConfig.from_file(None, [word for before, word in pairwise(words) if before == "--set"])
    copied = model_maker(job)()
    assert (type(copied), copied.num_parameters()) == (type(wizard.model), wizard.model.num_parameters())
    assert setup_of(job, copied) == setup
    made: dict = {}
    exec(setup_code("Python", setup), made)  # noqa: S102 - the code that the form shows
    assert (made["setup"], made["model"].config.num_labels) == (setup, 3)
    assert not view.errors
