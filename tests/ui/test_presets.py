"""Presets are complete, cannot be spoilt, and unknown names are helped along."""

from __future__ import annotations

import copy
import pickle

import pytest

from utils.errors import ConfigError
from utils.models import ModelRegistry
from utils.ui import PRESETS, ConfigPresets, SetupConfig


@pytest.fixture
def presets():
    return ConfigPresets()


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_preset_is_a_valid_setup_that_fits_its_model(presets, name):
    preset = presets.get(name)
    setup = preset.setup()
    assert preset.name == name
    assert preset.description.endswith(".")
    assert preset.estimated_time_hours > 0
    assert setup.vocab_size == preset.model_arguments["vocab_size"]
    assert setup.max_length <= preset.model_arguments["max_seq_len"]
    assert SetupConfig(**preset.to_dict()) == setup


def test_the_starter_uses_the_builtin_corpus(presets):
    starter = presets.get("starter")
    assert (starter.dataset_source, starter.run_name, starter.vocab_size, starter.max_length) == (
        "builtin",
        "starter",
        4096,
        128,
    )


def test_what_get_returns_cannot_change_the_preset(presets):
    preset = presets.get("starter")
    setup = preset.setup()
    setup.epochs = 99
    with pytest.raises(TypeError):
        preset.values["epochs"] = 99
    with pytest.raises(AttributeError):
        preset.description = "other"
    assert presets.get("starter").epochs != 99


def test_customize_changes_a_copy(presets):
    custom = presets.customize("starter", max_epochs=10, batch_size=32, warmup_steps=7)
    assert (custom.epochs, custom.batch_size, custom.warmup_steps, custom.warmup_ratio) == (10, 32, 7, None)
    assert custom.learning_rate == presets.get("starter").learning_rate
    assert presets.get("starter").epochs == PRESETS["starter"].values["epochs"]


def test_customize_reports_every_mistake(presets):
    with pytest.raises(ConfigError) as error:
        presets.customize("starter", epocs=1, batch_size=0)
    assert {problem.field for problem in error.value.problems} == {"epocs", "batch_size"}


@pytest.mark.parametrize("kind", [ConfigError, KeyError, ValueError])
def test_an_unknown_name_lists_the_known_ones(presets, kind):
    with pytest.raises(kind) as error:
        presets.get("startr")
    assert str(error.value) == f"There is no preset 'startr'; there are: {', '.join(PRESETS)}. Did you mean 'starter'?"


@pytest.mark.parametrize("name", [None, 3, ["starter"]])
def test_a_name_that_is_no_text_is_refused(presets, name):
    with pytest.raises(ConfigError, match="there are: starter"):
        presets.get(name)


def test_presets_are_listed(presets, capsys):
    assert presets.list_presets() == list(PRESETS)
    presets.print_all_presets()
    printed = capsys.readouterr().out
    for preset in PRESETS.values():
        assert preset.name in printed
        assert preset.description in printed


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("tiny", 10),
        ("small", 125),
        ("medium", 350),
        ("large", 774),
        ("code_generation", 125),
        ("chat", 125),
        ("summarization", 125),
    ],
)
def test_the_models_have_the_documented_sizes(presets, name, millions):
    import torch

    preset = presets.get(name)
    with torch.device("meta"):
        model = ModelRegistry.create(preset.model_name, **preset.model_arguments)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)


def test_the_documented_presets_have_their_values(presets):
    """Vocabulary, length, batch, accumulation, rate, epochs, warm-up, hours, data: as documented."""
    documented = {
        "tiny": (10000, 256, 32, 1, 5e-4, 3, 100, 1, "wikitext", "wikitext-2-raw-v1"),
        "small": (50257, 512, 16, 2, 1e-4, 5, 500, 4, "wikitext", "wikitext-103-raw-v1"),
        "medium": (50257, 1024, 8, 4, 5e-5, 10, 1000, 12, "openwebtext", None),
        "large": (50257, 1024, 4, 8, 2e-5, 20, 2000, 48, "openwebtext", None),
        "code_generation": (50257, 2048, 8, 2, 1e-4, 5, 500, 8, "code_search_net", "python"),
        "chat": (50257, 512, 16, 2, 1e-4, 10, 1000, 6, "daily_dialog", None),
        "summarization": (50257, 1024, 8, 4, 5e-5, 5, 500, 10, "cnn_dailymail", "3.0.0"),
    }
    assert list(PRESETS) == ["starter", *documented]
    for name, expected in documented.items():
        one = presets.get(name)
        training = (one.batch_size, one.gradient_accumulation_steps, one.learning_rate, one.epochs, one.warmup_steps)
        data = (one.dataset_name.partition("/")[2], one.config_name)
        assert (one.vocab_size, one.max_length, *training, one.estimated_time_hours, *data) == expected
        assert one.precision == "16"
        assert "not this machine" in one.reference


@pytest.mark.parametrize(
    ("goal", "hours", "name"),
    [
        ("quick_test", 2, "tiny"),
        ("learning", 5.0, "small"),
        ("learning", 1, "tiny"),
        ("production", None, "medium"),
        ("production", 5, "small"),
        ("research", 48, "large"),
        ("research", 47.9, "medium"),
        ("code", 8, "code_generation"),
        ("chat", None, "chat"),
        ("summarization", 9, "starter"),
        ("quick_test", 0.5, "starter"),
        ("research", 0.001, "starter"),
    ],
)
def test_a_recommendation_serves_the_goal_within_the_time(presets, goal, hours, name):
    assert presets.get_recommendation(goal, time_budget_hours=hours) == name


def test_a_recommendation_for_something_unknown_says_what_there_is(presets):
    with pytest.raises(ConfigError, match=r"quick_test, learning.*did you mean 'research'") as error:
        presets.get_recommendation(goal="reserch", time_budget_hours=-1)
    assert {problem.field for problem in error.value.problems} == {"goal", "time_budget_hours"}


@pytest.mark.parametrize("hours", [0, "4", True, float("nan"), float("inf")])
def test_a_budget_that_is_no_time_is_refused(presets, hours):
    with pytest.raises(ConfigError, match="time_budget_hours"):
        presets.get_recommendation("learning", hours)


def test_one_preset_is_printed_with_every_value(presets, capsys):
    presets.print_preset("chat")
    printed = capsys.readouterr().out
    for shown in ("OpenRL/daily_dialog", "not this machine", "n_embd=768", "0.0001", "dialogues"):
        assert shown in printed


def test_presets_survive_copy_and_pickle(presets):
    preset = presets.get("starter")
    assert copy.deepcopy(preset).to_dict() == preset.to_dict()
    assert pickle.loads(pickle.dumps(preset)) == preset


def test_a_customized_value_holds_for_every_task(presets):
    custom = presets.customize("starter", max_epochs=33)
    assert (custom.setup().epochs, custom.setup(otherwise=True).epochs) == (33, 33)
    assert custom.setup(otherwise=True).optimizer == presets.get("starter").setup(otherwise=True).optimizer == "adamw"


def test_a_preset_says_what_its_rows_are(presets):
    kinds = {name: presets.get(name).data_kind for name in PRESETS}
    assert (kinds.pop("chat"), kinds.pop("summarization")) == ("conversations", "pairs")
    assert set(kinds.values()) == {"auto"}


def test_a_preset_creates_the_model_that_it_starts_from(presets, capsys):
    preset = presets.get("starter")
    model = preset.create_model(n_layer=1, n_embd=16, n_head=2)
    assert (model.config.vocab_size, model.config.n_positions) == (4096, 128)
    assert (model.config.n_layer, model.config.n_embd) == (1, 16)
    presets.print_preset("starter")
    assert "starts from" in capsys.readouterr().out
