"""Presets are complete, cannot be spoilt, and unknown names are helped along."""

from __future__ import annotations

import copy
import pickle

import pytest

from utils.errors import ConfigError
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
    assert str(error.value) == "There is no preset 'startr'; there are: starter. Did you mean 'starter'?"


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


def test_presets_survive_copy_and_pickle(presets):
    preset = presets.get("starter")
    assert copy.deepcopy(preset).to_dict() == preset.to_dict()
    assert pickle.loads(pickle.dumps(preset)).to_dict() == preset.to_dict()
