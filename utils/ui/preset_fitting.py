"""Presets fitted to a model: the setup that one gives, what it replaces, and the model that it was made for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from utils.adapters.facts import ModelFacts
from utils.training.config_rules import run_name_problem
from utils.ui.model_source import named_facts
from utils.ui.new_model import POST_NORM
from utils.ui.presets import ConfigPresets, Preset
from utils.ui.setting_values import parameters_text, shown_value, titled
from utils.ui.setup_config import SetupConfig


def find_preset(preset: str | Preset | None) -> Preset | None:
    """A preset by name; a Preset and None are themselves. Raises `PresetNotFoundError`."""
    return preset if preset is None or isinstance(preset, Preset) else ConfigPresets().get(preset)


def prepared(preset: Preset | None, facts: ModelFacts | None, overrides: Mapping[str, Any]) -> SetupConfig:
    """A setup from preset (None: the defaults), then model, then overrides, each over the one before.

    The model gives its vocabulary, and its positions where they are fewer than the preset's: the pretrained or new one that
    `overrides` name, else the one of `facts`. `optimization_for` gives its optimizer, learning rate and epochs, `run_name_for`
    its run name, where `overrides` have none. Raises `ConfigError`.
    """
    setup = SetupConfig() if preset is None else preset.setup()
    named = ("pretrained_model", "new_model")
    if any(overrides.get(name) is not None for name in named):
        sizes = ("vocab_size", "max_length") if overrides.get("new_model") is not None else ()
        setup.update(**{name: overrides[name] for name in (*named, "task", "finetune", *sizes) if name in overrides})
        found = named_facts(setup)
        facts = None if found is None else found.model_facts
    optimization = optimization_for(setup, preset, facts, overrides)
    setup.update(**fitted_sizes(setup, facts), **optimization)
    setup.update(**overrides)
    if "run_name" not in overrides:
        setup.update(run_name=run_name_for(setup, preset))
    return setup


def run_name_for(setup: SetupConfig, preset: Preset | None) -> str | None:
    """The run name of a preset; where the data are not the preset's own, one made from their name.

    A run of the preset's name could not be continued on other data.
    """
    usual = SetupConfig() if preset is None else preset.setup()
    own_name: str | None = usual.run_name
    place = setup.dataset_path or setup.dataset_name
    if own_name is None or place is None or place in (usual.dataset_path, usual.dataset_name):
        return own_name
    # Of a file without what says its kind; a name on the Hub may have dots.
    name = Path(place).name if setup.dataset_path is None else Path(place).name.partition(".")[0]
    named = re.sub(r"[^\w.-]+", "-", name).strip("-._")[:_LONGEST_NAME]
    return named if named and run_name_problem(named) is None else own_name


# Characters of a run name that is made from a file's name.
_LONGEST_NAME = 40


# Way of fine-tuning -> highest learning rate that a preset keeps for it. All parameters: Devlin et al. 2019 (BERT), appendix
# A.3, 2e-5 to 5e-5. LoRA: Hu et al. 2021, appendix D, GPT-2 with 2e-4. A head alone is a new model, with the preset's rate.
_FINE_TUNING_RATES = {"full": 5e-5, "last_layers": 5e-5, "lora": 2e-4}
# Learning rate times width of a new model that normalises after its residuals: 1e-4 at BERT's width of 768 (Devlin et al. 2019,
# appendix A.2), falling with the width as Yang et al. 2021 have it for Adam. Higher rates make such models collapse to one
# answer (Xiong et al. 2020, section 3).
_POST_NORM_RATE_BY_WIDTH = 1e-4 * 768


def optimization_for(
    setup: SetupConfig, preset: Preset | None, facts: ModelFacts | None, chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """Optimizer, learning rate and epochs of a preset, or of the defaults, that suit the model and task of `setup`.

    The preset's own are for new models that learn causal language modelling. Other tasks, pretrained models and settings that
    Muon cannot be used with take those that it has for them (`Preset.otherwise`). A pretrained model would forget at the rate
    of a new one. It is trained by AdamW, as it was before: Muon gains little on weights that AdamW made (arXiv 2502.16982,
    section 3.5). New encoders as BERT take a lower rate, and AdamW, for which that is known.

    Args:
        facts: about the model where `setup` names none.
        chosen: settings that somebody chose, which count instead of the setup's.
    """
    named = setup.pretrained_model is not None or setup.new_model is not None
    pretrained = setup.pretrained_model is not None or (not named and facts is not None and facts.pretrained)
    causal = chosen.get("task", setup.task) == "causal_lm"
    by_muon = chosen.get("optimizer", "muon") == "muon" and chosen.get("strategy", setup.strategy) != "fsdp"
    usual = SetupConfig() if preset is None else preset.setup(otherwise=pretrained or not (causal and by_muon))
    rate = None
    if setup.pretrained_model is not None:
        rate = _FINE_TUNING_RATES.get(setup.finetune)
    elif setup.new_model is not None and setup.new_model.get("name") in POST_NORM:
        rate = _POST_NORM_RATE_BY_WIDTH / int(setup.new_model.get("n_embd", 768))
    optimizer, learning_rate = usual.optimizer, usual.learning_rate
    if rate is not None:
        optimizer = "adamw" if optimizer == "muon" else optimizer
        learning_rate = min(learning_rate, float(f"{rate:.2g}"))
    return {"learning_rate": learning_rate, "optimizer": optimizer, "epochs": usual.epochs}


def fitted_sizes(setup: SetupConfig, facts: ModelFacts | None, longest: int | None = None) -> dict[str, Any]:
    """The sizes of `setup` that a model changes: its vocabulary, and its positions where they are fewer than `longest` (None:
    the setup's)."""
    if facts is None:
        return {}
    length = setup.max_length if longest is None else longest
    wanted = {
        "vocab_size": facts.vocab_size or setup.vocab_size,
        "max_length": length if facts.max_length is None else min(length, facts.max_length),
    }
    return {name: value for name, value in wanted.items() if value != getattr(setup, name)}


def differences(before: SetupConfig, after: SetupConfig) -> list[str]:
    """Differences between two setups, a phrase each."""
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
    """Notice that a preset leaves the model as it is, where the model is not the one that the preset was made for; else ""."""
    if preset is None or facts is None or made_for(preset, facts):
        return ""
    size = "" if facts.parameters is None else f" ({parameters_text(facts.parameters)})"
    return (
        f"This preset does not change your model{size}. It was made for the model below: to train that one, choose it "
        "here, or put this line into the Model cell and run the cells from there on."
    )
