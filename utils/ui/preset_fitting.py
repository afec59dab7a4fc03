"""Presets fitted to a model: the setup that one gives, what it replaces, and the model that it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from utils.adapters.facts import ModelFacts
from utils.ui.presets import ConfigPresets, Preset
from utils.ui.setup_config import SetupConfig
from utils.ui.wizard_texts import parameters_text, shown_value, titled


def find_preset(preset: str | Preset | None) -> Preset | None:
    """A preset by name; a Preset and None are themselves. Raises `PresetNotFoundError`."""
    return preset if preset is None or isinstance(preset, Preset) else ConfigPresets().get(preset)


def prepared(preset: Preset | None, facts: ModelFacts | None, overrides: Mapping[str, Any]) -> SetupConfig:
    """A setup from preset (None: the defaults), then model, then overrides, each over the one before.

    The model gives its vocabulary, and its positions where they are fewer than the preset's. Raises `ConfigError`.
    """
    setup = SetupConfig() if preset is None else preset.setup()
    if facts is not None and facts.vocab_size is not None:
        setup.vocab_size = facts.vocab_size
    if facts is not None and facts.max_length is not None:
        setup.max_length = min(setup.max_length, facts.max_length)
    setup.update(**overrides)
    return setup


def differences(before: SetupConfig, after: SetupConfig) -> list[str]:
    """What differs between two setups, a phrase each."""
    pairs = {name: (getattr(before, name), getattr(after, name)) for name in SetupConfig.field_names()}
    return [
        f"{titled(name)} {shown_value(name, old)} → {shown_value(name, new)}"
        for name, (old, new) in pairs.items()
        if old != new
    ]


def model_code(preset: Preset) -> str:
    """The line of Python that creates the model that a preset was made for."""
    arguments = "".join(f", {name}={value!r}" for name, value in preset.model_arguments.items())
    return f"model = ModelRegistry.create({preset.model_name!r}{arguments})"


def made_for(preset: Preset, facts: ModelFacts | None) -> bool:
    """Whether a model has the size that a preset was made for: vocabulary, positions and parameters.

    Only a model that agrees in the first two is compared in the third, for which the preset's is created on torch's
    meta device, where it takes no memory.
    """
    if facts is None or facts.parameters is None:
        return False
    sizes = preset.model_arguments
    if (facts.vocab_size, facts.max_length) != (sizes.get("vocab_size"), sizes.get("max_seq_len")):
        return False
    return facts.parameters == _num_parameters(preset.model_name, tuple(sizes.items()))


@cache
def _num_parameters(name: str, arguments: tuple[tuple[str, Any], ...]) -> int:
    from utils.models import ModelRegistry

    return ModelRegistry.num_parameters(name, **dict(arguments))


def model_sentence(preset: Preset | None, facts: ModelFacts | None) -> str:
    """That a preset leaves the model as it is, where the model is not the one that the preset was made for; else ""."""
    if preset is None or facts is None or made_for(preset, facts):
        return ""
    size = "" if facts.parameters is None else f" ({parameters_text(facts.parameters)})"
    return (
        f"This preset does not change your model{size}. It was made for the model below: to train that one, put this line "
        "into the Model cell and run the cells from there on."
    )
