"""The wizard with a pretrained model: from its folder and a file of data to a trained export, by clicks alone."""

from __future__ import annotations

from pathlib import Path

import ipywidgets
import pytest
import torch

from tests.kit.hub_server import asked_here
from tests.kit.pretrained import save_bert, save_llama, write_conversations, write_reviews
from tests.kit.toys import tiny_gpt
from utils.data import prepare_data
from utils.training import Trainer, export_model
from utils.ui import SetupWizard
from widgets.wizard_view import WizardView

pytest.importorskip("peft")

# peft asks transformers for it by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("pretrained")
    return {"llama": str(save_llama(base / "llama")), "bert": str(save_bert(base / "bert"))}


def opened(monkeypatch, **overrides):
    """The wizard as the notebook's cell opens it, with its form."""
    monkeypatch.setattr("utils.ui.setup_wizard.ui_mode", lambda: "widget")
    monkeypatch.setattr(WizardView, "show", lambda self: None)
    monkeypatch.setattr("utils.ui.wizard_memory._clicks", {})  # those of the tests before
    wizard = SetupWizard()
    setup = wizard.run(model=tiny_gpt(vocab_size=64, length=32), preset="starter", **overrides)
    return wizard, setup, wizard.view


def page(view):
    """All visible markup."""

    def widgets(widget):
        if widget.layout.display != "none":
            yield widget
            for child in getattr(widget, "children", ()):
                yield from widgets(child)

    return "\n".join(widget.value for widget in widgets(view) if isinstance(widget, ipywidgets.HTML))


def the_cells_that_follow(wizard, setup, formats=("hf",)):
    """What the notebook does after the wizard."""
    data = prepare_data(setup, wizard.model)
    trainer = Trainer(
        wizard.model, training_config=setup.training_config, task_spec=data.task_spec, tokenizer=data.tokenizer
    )
    results = trainer.train(data.train, data.validation)
    return results, export_model(results, list(formats))


def test_a_model_of_the_hub_is_described_before_it_is_downloaded(folders, monkeypatch):
    files = {path.name: path.read_bytes() for path in Path(folders["bert"]).iterdir() if path.is_file()}
    files["README.md"] = b"---\nlicense: apache-2.0\n---\n"
    _, _, view = opened(monkeypatch)
    view["step:model"].click()
    view["model-source"].value = "pretrained"
    view["field:pretrained_model"].value = "me/bert"
    assert "not on this machine" in view["model-files"].value
    with asked_here({"me/bert": {"main": files}}) as hub:
        view["look-up"].click()
        assert not any("safetensors" in asked for asked in hub.asked), "weights are not downloaded"
    assert "apache-2.0" in view["model-files"].value
    assert "To download" in view["model-files"].value
    view["field:pretrained_model"].value = "me/other"
    assert "not on this machine" in view["model-files"].value
    with asked_here({}):
        view["look-up"].click()
    assert "has no model" in view["model-files"].value


@pytest.mark.slow
def test_a_pretrained_folder_with_lora_on_a_jsonl_of_conversations(folders, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_conversations(tmp_path / "chat.jsonl")
    wizard, setup, view = opened(monkeypatch)
    view["field:dataset_source"].value = "local"
    view["field:dataset_path"].value = "chat.jsonl"
    assert "Conversations found: messages." in view["recognised"].value
    view["step:model"].click()
    view["model-source"].value = "pretrained"
    view["field:pretrained_model"].value = folders["llama"]
    files = view["model-files"].value
    assert all(
        word in files for word in ("LlamaForCausalLM", "fp32", "96 tokens", "comes with the model", "not stated")
    )
    assert wizard.state.choice.loaded is None, "the files are described before the model is loaded"
    assert (setup.vocab_size, setup.max_length) == (wizard.state.facts.vocab_size, 96)
    view["step:tokenizer"].click()
    assert "The tokenizer of" in view["own-tokenizer"].value
    view["step:training"].click()
    for name, value in {
        "epochs": "3",
        "finetune": "lora",
        "lora_rank": "4",
        "learning_rate": "1e-3",  # at which the last epoch is the best one: the export has the best checkpoint's weights
        "precision": "32",
        "run_name": "chat",
    }.items():
        view[f"field:{name}"].value = value
    tuning = view["tuning"].value
    view["step:dataset"].click()
    view["preview"].click()
    preview = view["preview-result"].value
    assert "Trained on" in preview
    assert "Ends" in preview
    assert all(f"<strong>{role}</strong>" in preview for role in ("user", "assistant"))
    assert 'trained on" style=' in preview
    view["step:summary"].click()
    view["check-now"].click()
    assert wizard.state.ready, [check.message for check in wizard.state.preflight.checks]
    results, exported = the_cells_that_follow(wizard, setup)
    assert results.fine_tuning["mode"] == "lora"
    assert f"{results.fine_tuning['trained']:,} of {results.fine_tuning['total']:,}" in tuning
    assert results.fine_tuning["unmoved"] == []
    model = AutoModelForCausalLM.from_pretrained(exported["hf"].path)
    tokenizer = AutoTokenizer.from_pretrained(exported["hf"].path)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What comes after 3?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        assert torch.allclose(
            model(prompt["input_ids"]).logits, results.model.eval()(prompt["input_ids"]).logits, atol=1e-5
        )
    assert not view.errors


@pytest.mark.slow
def test_a_csv_classifier_from_a_pretrained_encoder(folders, tmp_path, monkeypatch):
    from transformers import AutoModelForSequenceClassification

    write_reviews(tmp_path / "reviews.csv")
    wizard, setup, view = opened(monkeypatch)
    view["field:dataset_source"].value = "local"
    view["field:dataset_path"].value = "reviews.csv"
    view["step:model"].click()
    view["model-source"].value = "pretrained"
    view["field:pretrained_model"].value = folders["bert"]
    assert "reads a text in both directions" in page(view), "an encoder cannot continue text"
    view["step:dataset"].click()
    view["field:task"].value = "text_classification"
    assert view["field:label_column"].value == ""
    view["step:model"].click()
    assert "reads a text in both directions" not in page(view)
    view["load"].click()
    loaded = view["load-result"].value
    assert "Not in the checkpoint" in loaded
    assert "classifier.weight" in loaded
    view["step:training"].click()
    for name, value in {"epochs": "20", "learning_rate": "1e-3", "precision": "32", "run_name": "reviews"}.items():
        view[f"field:{name}"].value = value
    view["step:dataset"].click()
    view["preview"].click()
    assert "negative" in view["preview-result"].value
    view["step:summary"].click()
    view["check-now"].click()
    assert wizard.state.ready, [check.message for check in wizard.state.preflight.checks]
    results, exported = the_cells_that_follow(wizard, setup)
    assert results.final_metrics["val/accuracy"] == 1.0
    model = AutoModelForSequenceClassification.from_pretrained(exported["hf"].path)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    # The run is a source in its turn; its classes keep their numbers.
    view["step:model"].click()
    view["model-source"].value = "run"
    assert view["model-run"].options[1] == ("runs/reviews", "runs/reviews")
    view["model-run"].value = "runs/reviews"
    assert setup.pretrained_model == "runs/reviews"
    assert wizard.model.config.id2label == {0: "negative", 1: "positive"}
    assert wizard.state.choice.loaded.missing == ()
    assert not view.errors
