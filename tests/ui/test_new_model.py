"""A new model that the setup names: described in one way for the wizard, job files and copied code, and counted before it exists."""

from __future__ import annotations

import shlex
from itertools import pairwise

import pytest

from cli.job_files import JobConfig, model_maker
from tests.kit.toys import tiny_gpt
from utils.adapters.facts import model_facts
from utils.errors import ConfigError
from utils.models import ModelRegistry
from utils.ui import ConfigPresets, SetupConfig, SetupWizard, WizardState
from utils.ui.new_model import ARCHITECTURES, SIZES
from utils.ui.preset_fitting import prepared
from utils.ui.wizard_code import setup_code
from utils.ui.wizard_model import memory_rows

TINY = {"name": "gpt-small", "n_layer": 1, "n_embd": 16, "n_head": 2}


def state_of(**values):
    return WizardState(SetupConfig(**{"vocab_size": 64, "max_length": 32, **values}), tiny_gpt(vocab_size=64, length=32))


def sizes_of(model):
    return sum(parameter.numel() for parameter in model.parameters()), model.config.vocab_size, type(model).__name__


def test_its_size_is_known_before_it_is_created_and_afterwards_the_same():
    state = state_of(new_model=TINY)
    before = state.facts
    assert (before.vocab_size, before.max_length, state.model) == (64, 32, None)
    assert memory_rows(state.choice)["Training memory"].startswith(f"{before.parameters * 16 / 2**20:,.1f} MiB")
    model = state.choice.load()
    assert state.choice.load() is model is state.model
    assert sizes_of(model) == (before.parameters, 64, "GPT2LMHeadModel")
    assert state.facts.parameters == before.parameters
    state.set("max_length", 16)
    assert state.model is None, "another length is another model"
    state.set("new_model", None)
    assert sizes_of(state.model) == sizes_of(tiny_gpt(vocab_size=64, length=32))


def test_every_form_to_copy_makes_the_same_model(tmp_path):
    setup = SetupConfig(new_model={**TINY, "dropout": 0.0}, vocab_size=80, max_length=24, random_seed=5)
    made: dict = {}
    exec(setup_code("Python", setup), made)  # noqa: S102 - the code that the form shows
    (tmp_path / "job.yaml").write_text(setup_code("YAML", setup))
    words = shlex.split(setup_code("Command line", setup).replace("\\\n", " "))
    sets = [word for before, word in pairwise(words) if before == "--set"]
    jobs = [JobConfig.from_file(str(tmp_path / "job.yaml")), JobConfig.from_file(None, sets)]
    assert made["setup"] == SetupConfig.load(tmp_path / "job.yaml") == setup
    models = [made["model"], *(model_maker(job)() for job in jobs)]
    assert {sizes_of(model) for model in models} == {sizes_of(setup.load_model())}
    first = [next(model.parameters()).sum().item() for model in models]
    assert len(set(first)) == 1, "the same seed gives the same weights"


def test_a_name_alone_is_enough():
    setup = SetupConfig(new_model="gpt-small")
    assert setup.new_model == {"name": "gpt-small"}
    state = state_of(new_model="gpt-smal")
    assert "Did you mean 'gpt-small'" in state.blockers("model")[0].message
    with pytest.raises(ConfigError, match="must have the name of a registered model"):
        SetupConfig(new_model=" ")


def test_a_search_changes_its_sizes():
    job = JobConfig.from_file(None, [f"new_model={TINY}".replace("'", ""), "vocab_size=64", "max_length=32"])
    assert model_maker(job)(n_embd=8).config.n_embd == 8


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ({"name": "gpt-smal"}, "Did you mean 'gpt-small'"),
        ({**TINY, "n_embd": 17}, "the width must be a multiple of the heads"),
        ({**TINY, "n_layer": "two"}, "must be a whole number"),
        ({**TINY, "n_layer": 100_000}, "at most 256 layers"),
        ({**TINY, "widht": 3}, "unexpected keyword argument 'widht'"),
        ({"name": "t5-mini"}, "for the task Text to text; choose gpt-small for Next token"),
    ],
)
def test_what_cannot_be_created_blocks_the_model_step(description, words):
    problems = state_of(new_model=description).blockers("model")
    assert [problem.field for problem in problems] == ["new_model"]
    assert words in problems[0].message


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"new_model": {"n_layer": 2}}, "must have the name of a registered model"),
        ({"new_model": {**TINY, "vocab_size": 9}}, "comes from the setting vocab_size"),
        ({"new_model": TINY, "pretrained_model": "somewhere"}, "keep one of the two"),
    ],
)
def test_what_is_no_description_is_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        SetupConfig(**values)
    with pytest.raises(ConfigError, match="keep one"):
        model_maker(JobConfig(model={"name": "gpt-small"}, setup={"new_model": TINY}))


def test_new_and_pretrained_model_forget_each_other():
    setup = SetupConfig(new_model=TINY)
    setup.update(pretrained_model="somewhere")
    assert setup.new_model is None
    setup.update(new_model=TINY)
    assert setup.pretrained_model is None


def test_the_architecture_follows_the_task():
    state = state_of(new_model=TINY)
    for task in ("seq2seq", "token_classification", "causal_lm"):
        state.set("task", task)
        assert state.setup.new_model == {**TINY, "name": ARCHITECTURES[task][0]}
        assert "Set to suit it: New model" in state.notice
    again = state_of()
    again.replay(state.clicks)
    assert again.setup == state.setup


def test_the_presets_own_model_is_replaced_for_a_task_that_it_cannot_learn_and_comes_back():
    preset = ConfigPresets().get("starter")
    model = ModelRegistry.create(preset.model_name, **preset.model_arguments)
    state = WizardState(prepared(preset, model_facts(model), {}), model, preset)
    before = state.setup.copy()
    state.set("task", "text_classification")
    assert state.setup.new_model["name"] == ARCHITECTURES["text_classification"][0]
    assert "Set to suit it: New model" in state.notice
    assert state.blockers("model") == []
    again = WizardState(prepared(preset, model_facts(model), {}), model, preset)
    again.replay(state.clicks)
    assert again.setup == state.setup
    state.set("task", "causal_lm")
    assert state.setup == before


@pytest.mark.parametrize("changes", [{}, {"new_model": TINY}], ids=["another model", "a new model was chosen"])
def test_a_model_that_somebody_chose_is_not_replaced_for_a_task(changes):
    state = WizardState(SetupConfig(vocab_size=64, max_length=32), tiny_gpt(vocab_size=64, length=32), "starter")
    for name, value in changes.items():
        state.set(name, value)
    state.set("task", "text_classification")
    assert (state.setup.new_model is None) == (not changes)
    state.set("task", "causal_lm")
    assert (state.setup.new_model is None) == (not changes)


def test_a_preset_brings_its_own_new_model():
    state = WizardState(SetupConfig(vocab_size=64, max_length=32), tiny_gpt(vocab_size=64, length=32), "starter")
    state.choose_new_model()
    layers, width, heads = SIZES["mini"]
    assert state.setup.new_model == {"name": "gpt-small", "n_layer": layers, "n_embd": width, "n_head": heads}
    assert (state.setup.vocab_size, state.setup.max_length) == (4096, 128), "the preset's, not the notebook's model's"
    state.apply_preset("tiny")
    assert state.setup.new_model["n_layer"] == state.presets["tiny"].model_arguments["n_layer"]
    assert state.facts.parameters == ModelRegistry.num_parameters("gpt-small", **state.presets["tiny"].model_arguments)
    again = WizardState(SetupConfig(vocab_size=64, max_length=32), tiny_gpt(vocab_size=64, length=32), "starter")
    again.replay(state.clicks)
    assert (again.setup.new_model, again.setup.vocab_size) == (state.setup.new_model, 10_000)
    state.undo()
    assert state.setup.new_model["n_layer"] == layers
    state.reset()
    assert state.setup.new_model is None


def test_a_wizard_without_a_model_trains_a_new_one():
    wizard = SetupWizard()
    setup = wizard.run(interactive=False, preset=None, new_model=TINY, max_length=24)
    assert sizes_of(wizard.model)[1:] == (setup.vocab_size, "GPT2LMHeadModel")


def test_a_model_of_the_users_can_be_chosen():
    from utils.ui.new_model import architectures

    ModelRegistry.register("my-gpt", lambda vocab_size=64, max_seq_len=16: tiny_gpt(vocab_size=vocab_size, length=max_seq_len))
    try:
        assert ("my-gpt, registered here", "my-gpt") in architectures("causal_lm")
        assert sizes_of(SetupConfig(new_model={"name": "my-gpt"}, vocab_size=70).load_model())[1] == 70
    finally:
        del ModelRegistry._factories["my-gpt"]


@pytest.mark.parametrize(("name", "task", "fitting"), [
    ("gpt-small", "text_classification", "bert-small-classifier"), ("gpt-small", "seq2seq", "t5-mini"),
    ("bert-small-classifier", "causal_lm", "gpt-small"), ("bert-small-classifier", "token_classification", "bert-small-token-classifier"),
    ("bert-small-classifier", "regression", None), ("gpt-small", "causal_lm", None),
])  # fmt: skip
def test_a_model_for_another_task_blocks_the_model_step_and_one_click_mends_it(name, task, fitting, tmp_path):
    classes = {"num_classes": 2} if name != "gpt-small" else {}
    model = ModelRegistry.create(name, vocab_size=64, n_layer=1, n_embd=8, n_head=2, max_seq_len=16, **classes)
    state = WizardState(SetupConfig(dataset_path=str(tmp_path), task=task), model)
    problems = [problem for problem in state.blockers("model") if problem.field == "new_model"]
    if fitting is None:
        assert not problems
        return
    assert f"{type(model).__name__} is for the task" in problems[0].message
    state.apply_fix(problems[0])
    assert state.setup.new_model["name"] == fitting
    assert not state.blockers("model")
