"""A pretrained model in the setup: described by its files, fitted to, refused by name, and loaded with its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.kit.pretrained import save_bert, save_llama, write_conversations, write_reviews
from tests.kit.toys import tiny_gpt
from utils.data import prepare_data
from utils.errors import ConfigError
from utils.models.origins import tokenizer_of
from utils.training import TrainingConfig
from utils.training.finetuning import fine_tuned, tuning_plan
from utils.ui import PRESETS, ConfigPresets, SetupConfig, SetupWizard, WizardState
from utils.ui.new_model import with_size
from utils.ui.preset_fitting import prepared
from utils.ui.wizard_steps import facts_of


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("pretrained")
    return {"llama": str(save_llama(base / "llama")), "bert": str(save_bert(base / "bert"))}


def state_of(**values):
    return WizardState(SetupConfig(**values), tiny_gpt(vocab_size=64, length=32))


def problems(state, step):
    return {problem.field: problem.message for problem in state.blockers(step)}


# ---- the model ----


def test_the_model_is_loaded_once_and_again_for_another_run(folders):
    state = state_of(pretrained_model=folders["llama"])
    assert state.model is None
    assert state.facts.name == "LlamaForCausalLM"
    model = state.choice.load()
    assert state.choice.load() is model is state.model
    assert tokenizer_of(model) is not None
    state.set("epochs", 3)
    assert state.model is model
    state.set("run_name", "another")
    assert state.model is None, "a new run starts from the pretrained weights"
    state.set("pretrained_model", None)
    assert type(state.model).__name__ == "GPT2LMHeadModel"


def test_sizes_follow_the_model_unless_somebody_chose_them(folders):
    state = state_of(vocab_size=64, max_length=32)
    state.set("pretrained_model", folders["llama"])
    vocab_size = state.facts.vocab_size
    assert (state.setup.vocab_size, state.setup.max_length) == (vocab_size, 96)
    assert f"Vocabulary size {vocab_size} tokens" in state.notice
    state.set("pretrained_model", None)
    assert (state.setup.vocab_size, state.setup.max_length) == (64, 32)
    state.set("max_length", 16)
    state.set("pretrained_model", folders["llama"])
    assert (state.setup.vocab_size, state.setup.max_length) == (vocab_size, 16)


def test_a_pretrained_model_gets_the_learning_rate_of_its_way_of_fine_tuning(folders):
    muon = ConfigPresets().customize("starter", optimizer="muon", learning_rate=3e-3)
    state = WizardState(muon.setup(), tiny_gpt(vocab_size=64, length=32), muon)

    def now():
        return state.setup.learning_rate, state.setup.optimizer

    state.set("pretrained_model", folders["llama"])
    assert now() == (5e-5, "adamw")
    assert "Learning rate 5e-05" in state.notice
    state.set("finetune", "lora")
    assert now() == (2e-4, "adamw")
    state.set("finetune", "head")
    assert now() == (3e-3, "muon")
    state.set("finetune", "full")
    state.set("pretrained_model", None)
    assert now() == (3e-3, "muon")
    state.set("learning_rate", 1e-5)
    state.set("pretrained_model", folders["llama"])
    assert now() == (1e-5, "adamw"), "the rate was chosen"


def test_a_new_encoder_gets_a_rate_by_its_width_at_which_it_does_not_collapse():
    state = WizardState(PRESETS["starter"].setup(), tiny_gpt(vocab_size=64, length=32), "starter")
    usual = state.setup.learning_rate, state.setup.optimizer
    state.set("task", "text_classification")
    state.choose_new_model()
    assert (state.setup.new_model["name"], state.setup.new_model["n_embd"]) == ("bert-small-classifier", 256)
    assert (state.setup.learning_rate, state.setup.optimizer) == (3e-4, "adamw")
    state.set("new_model", with_size(state.setup.new_model, "base"))
    assert state.setup.learning_rate == 1e-4
    state.set("task", "causal_lm")
    assert state.setup.new_model["name"] == "gpt-small"
    assert (state.setup.learning_rate, state.setup.optimizer) == usual


BY_MUON, BY_ADAMW = ("muon", 3e-3, 4), ("adamw", 1e-3, 8)


def optimization(setup):
    return setup.optimizer, setup.learning_rate, setup.epochs


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, BY_MUON),
        ({"new_model": {"name": "gpt-small", "n_embd": 16, "n_head": 2}}, BY_MUON),
        ({"task": "seq2seq", "new_model": {"name": "t5-mini"}}, BY_ADAMW),
        ({"task": "text_classification"}, BY_ADAMW),
        ({"optimizer": "adamw"}, BY_ADAMW),
        ({"strategy": "fsdp"}, BY_ADAMW),
        ({"task": "regression", "new_model": {"name": "bert-small-classifier", "n_embd": 256}}, ("adamw", 3e-4, 8)),
        ({"learning_rate": 2e-3, "task": "text_classification"}, ("adamw", 2e-3, 8)),
        ({"epochs": 4, "optimizer": "muon", "task": "text_classification"}, ("muon", 1e-3, 4)),
        ({"epochs": 7}, ("muon", 3e-3, 7)),
    ],
    ids=str,
)
def test_the_starter_trains_new_causal_language_models_by_muon_and_all_else_by_adamw(chosen, expected):
    assert optimization(prepared(PRESETS["starter"], facts_of(tiny_gpt()), chosen)) == expected


def test_a_notebook_model_that_was_pretrained_is_trained_by_adamw(folders):
    from transformers import LlamaForCausalLM

    facts = facts_of(LlamaForCausalLM.from_pretrained(folders["llama"]))
    assert optimization(prepared(PRESETS["starter"], facts, {})) == BY_ADAMW


def test_the_optimizer_follows_the_task_and_what_was_chosen_stays():
    def state_with(**overrides):
        model = tiny_gpt(vocab_size=64, length=32)
        return WizardState(prepared(PRESETS["starter"], facts_of(model), overrides), model, "starter", overrides)

    state = state_with()
    state.set("task", "text_classification")
    assert optimization(state.setup) == BY_ADAMW
    state.set("task", "causal_lm")
    assert optimization(state.setup) == BY_MUON
    state.set("optimizer", "adamw")
    assert optimization(state.setup) == BY_ADAMW
    state.set("optimizer", "muon")
    assert optimization(state.setup) == BY_MUON
    state = state_with()
    state.set("epochs", 5)
    state.set("task", "text_classification")
    assert optimization(state.setup) == ("adamw", 1e-3, 5)
    state = state_with(learning_rate=3e-3)  # the preset's own, chosen all the same
    state.set("task", "text_classification")
    assert optimization(state.setup) == ("adamw", 3e-3, 8)


def test_a_rate_that_the_cell_or_code_gave_stays(folders):
    wizard = SetupWizard()
    quick = {"model": tiny_gpt(), "preset": "starter", "pretrained_model": folders["llama"]}
    assert wizard.quick_setup(**quick).learning_rate == 5e-5
    assert "5e-05 (changed; preset: 0.003)" in wizard.state.rows()["Learning rate"]
    assert wizard.quick_setup(**quick, finetune="lora").learning_rate == 2e-4
    assert wizard.quick_setup(**quick, learning_rate=3e-4).learning_rate == 3e-4
    state = state_of()
    state.setup.learning_rate = 3e-4
    state.set("pretrained_model", folders["llama"])
    assert state.setup.learning_rate == 3e-4


def test_clicks_on_a_model_are_made_again(folders):
    state = state_of(vocab_size=64, max_length=32)
    state.set("pretrained_model", folders["llama"])
    again = state_of(vocab_size=64, max_length=32)
    again.replay(state.clicks)
    assert again.setup == state.setup


@pytest.mark.parametrize(
    ("source", "task", "words"),
    [
        ("nowhere", "causal_lm", "no folder"),
        ("bert", "causal_lm", "reads a text in both directions"),
        ("empty", "causal_lm", "no config.json"),
        ("pickled", "causal_lm", "pickle"),
        ("code", "causal_lm", "asks for code"),
    ],
)
def test_what_cannot_be_used_blocks_the_model_step(source, task, words, folders, tmp_path):
    (tmp_path / "empty").mkdir()
    config = Path(folders["llama"], "config.json").read_text(encoding="utf-8")
    for name, files in (("pickled", ("pytorch_model.bin",)), ("code", ("model.safetensors",))):
        (tmp_path / name).mkdir()
        values = {**json.loads(config), **({"auto_map": {"AutoModel": "m.M"}} if name == "code" else {})}
        (tmp_path / name / "config.json").write_text(json.dumps(values), encoding="utf-8")
        for file in files:
            (tmp_path / name / file).write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    given = folders.get(source, str(tmp_path / source))
    state = state_of(pretrained_model=given, task=task)
    assert words in problems(state, "model")["pretrained_model"]


def test_the_wizard_without_a_form_gives_the_model(folders):
    wizard = SetupWizard()
    with pytest.raises(ConfigError, match="no setup yet"):
        _ = wizard.model
    given = tiny_gpt()
    wizard.run(model=given, interactive=False, preset=None, max_length=16)
    assert wizard.model is given
    setup = wizard.run(model=given, interactive=False, preset="starter", pretrained_model=folders["llama"])
    assert type(wizard.model).__name__ == "LlamaForCausalLM"
    assert setup.max_length == 96
    assert setup == SetupConfig.from_sections(setup.sections())


# ---- fine-tuning ----


@pytest.mark.parametrize("mode", ["full", "lora", "head", "last_layers"])
@pytest.mark.parametrize("name", ["llama", "bert", "gpt"])
def test_the_plan_counts_what_training_trains(mode, name, folders):
    pytest.importorskip("peft")
    from utils.models import load_pretrained

    spec = {"name": "classes", "task_type": "text_classification", "num_classes": 3}
    model = (
        tiny_gpt() if name == "gpt" else load_pretrained(folders[name], "causal_lm" if name == "llama" else spec).model
    )
    if name == "gpt" and mode == "head":
        model.lm_head.weight = type(model.lm_head.weight)(model.lm_head.weight.detach().clone())
    config = TrainingConfig(finetune=mode, lora_rank=3, finetune_layers=1)
    plan = tuning_plan(model, config)
    with fine_tuned(model, config) as tuned:
        assert (plan.trained, plan.total) == (tuned.trained, tuned.total)
    assert plan.share == pytest.approx(tuned.facts["share"])
    assert (plan.saved_bytes == 0) == (mode == "full")


# ---- the data ----


@pytest.fixture
def two_layouts(tmp_path):
    rows = [{"prompt": f"p{n}", "completion": f"c{n}", "question": f"q{n}", "answer": f"a{n}"} for n in range(30)]
    path = tmp_path / "both.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_two_layouts_are_a_choice(two_layouts, folders):
    state = state_of(dataset_path=str(two_layouts), pretrained_model=folders["llama"], max_length=64)
    assert state.recognised.layouts == ("prompt_completion", "question_answer")
    assert "choose one" in problems(state, "dataset")["conversation_layout"]
    assert "conversation_layout" in [field.name for field in state.fields("dataset")]
    state.set("conversation_layout", "question_answer")
    assert problems(state, "dataset") == {}
    data = prepare_data(state.setup, state.choice.load())
    assert data.report.layout == "question_answer (question, answer)"


def test_one_layout_is_no_choice(tmp_path):
    state = state_of(dataset_path=str(write_conversations(tmp_path / "chat.jsonl")))
    assert "conversation_layout" not in [field.name for field in state.fields("dataset")]
    state.set("conversation_layout", "sharegpt")
    assert "messages" in problems(state, "dataset")["conversation_layout"]


def test_classes_need_files_with_labels(tmp_path, folders):
    state = state_of(task="text_classification")
    assert "a table with labels" in problems(state, "dataset")["task"]
    state.set("dataset_path", str(write_reviews(tmp_path / "reviews.csv")))
    assert problems(state, "dataset") == {}
    state.set("label_column", "stars")
    assert "text, label" in problems(state, "dataset")["label_column"].replace('"', "")


def test_a_checkpoint_that_knows_the_classes_keeps_their_order(folders, tmp_path):
    path = str(write_reviews(tmp_path / "reviews.csv"))
    folder = tmp_path / "known"
    state = state_of(task="text_classification", dataset_path=path, pretrained_model=folders["bert"])
    model = state.choice.load()
    assert model.config.id2label == {0: "negative", 1: "positive"}
    model.config.id2label, model.config.label2id = {0: "positive", 1: "negative"}, {"positive": 0, "negative": 1}
    model.save_pretrained(folder)
    tokenizer_of(model).save_pretrained(folder)
    state.set("pretrained_model", str(folder))
    again = state.choice.load()
    data = prepare_data(state.setup, again)
    assert again.config.id2label == {0: "positive", 1: "negative"}
    assert data.task_spec.preprocessing_config["class_names"] == ["positive", "negative"]
