"""SetupWizard: from a model and a preset to a SetupConfig, with or without somebody clicking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from utils.errors import ConfigError
from utils.schema import shown
from utils.ui.presets import ConfigPresets, Preset
from utils.ui.setup_config import SetupConfig
from utils.ui.wizard_state import STEPS, WizardField, WizardState, WizardStep, facts_of
from utils.views.display import show_text
from utils.views.tables import summary_text


class SetupWizard:
    """Five steps from a model to everything that its training needs.

    Attributes:
        state: the steps of the last `run` or `quick_setup`, with its setup and model; None before.
    """

    def __init__(self) -> None:
        self.state: WizardState | None = None

    def run(
        self,
        model: Any = None,
        interactive: bool | None = None,
        preset: str | Preset | None = "starter",
        **overrides: Any,
    ) -> SetupConfig:
        """A setup that is ready to train with. Returns at once; nothing waits for input.

        Values are taken from, in rising order: defaults, preset, model (its vocabulary, and its positions where they
        are fewer than the preset's), `overrides`.

        Args:
            model: the `nn.Module` that will be trained; None: its sizes are not compared.
            interactive: None or False: no form is shown. True needs the drawn wizard.
            preset: a name in PRESETS, a Preset, or None for the defaults alone.
            **overrides: SetupConfig's fields.
        Raises:
            ConfigError: lists every problem of the overrides, or else everything that stands in the way of training.
            PresetNotFoundError: no preset of that name.
        """
        if interactive:
            raise ConfigError(
                "The wizard's forms are not part of this version. Use interactive=False and give what differs from the "
                "preset as arguments, for instance run(model=model, interactive=False, epochs=2)."
            )
        setup = self._prepared(model, preset, overrides)
        self.state = WizardState(setup, model)
        problems = self.state.blockers("summary")
        if problems:
            raise ConfigError.from_problems("the setup", problems)
        self.state.goto("summary")
        return setup

    def quick_setup(
        self,
        model: Any = None,
        preset: str | Preset | None = "starter",
        dataset_name: str | None = None,
        dataset_path: str | None = None,
        **overrides: Any,
    ) -> SetupConfig:
        """`run` with nobody clicking, and the data named first: `dataset_name="builtin"` or the path of a text file."""
        named = {"dataset_name": dataset_name, "dataset_path": dataset_path}
        given = {name: value for name, value in named.items() if value is not None}
        return self.run(model, interactive=False, preset=preset, **given, **overrides)

    def validate_config(self, config: SetupConfig | Mapping[str, Any], model: Any = None) -> tuple[bool, list[str]]:
        """Whether training could start, and one sentence for each thing that stands in the way.

        Args:
            config: a setup, or a mapping of its values (also what `to_dict` returned).
            model: compared with the setup when given.
        """
        try:
            setup = config if isinstance(config, SetupConfig) else _setup_of(config)
            problems = list(WizardState(setup, model).blockers("summary"))
        except ConfigError as error:
            problems = list(error.problems)
            if not problems:
                return False, [str(error)]
        return not problems, [f"{problem.field}: {problem.message}" for problem in problems]

    def print_config(self, config: SetupConfig | Mapping[str, Any], model: Any = None) -> None:
        """Print the setup by the five steps. `model` defaults to the one of the last `run`, when that made `config`."""
        setup = config if isinstance(config, SetupConfig) else _setup_of(config)
        if model is None and self.state is not None and self.state.setup is setup:
            model = self.state.model
        show_text("\n".join(_step_text(number, step, setup, model) for number, step in enumerate(STEPS, start=1)))

    def _prepared(self, model: Any, preset: str | Preset | None, overrides: Mapping[str, Any]) -> SetupConfig:
        """Preset, then model, then overrides, each over the one before."""
        if isinstance(preset, Preset):
            setup = preset.setup()
        else:
            setup = SetupConfig() if preset is None else ConfigPresets().get(preset).setup()
        if model is not None:
            facts = facts_of(model)
            if facts.vocab_size is not None:
                setup.vocab_size = facts.vocab_size
            if facts.max_length is not None:
                setup.max_length = min(setup.max_length, facts.max_length)
        setup.update(**overrides)
        return setup


def _setup_of(values: Mapping[str, Any]) -> SetupConfig:
    if not isinstance(values, Mapping):
        raise ConfigError(f"a configuration is a SetupConfig or a mapping of its values; got {shown(values)}")
    return SetupConfig(**{str(name): value for name, value in values.items()})


def _step_text(number: int, step: WizardStep, setup: SetupConfig, model: Any) -> str:
    rows = {field.title: _value_text(field, getattr(setup, field.name)) for field in step.fields}
    if step.name == "model":
        rows = _model_rows(model)
    problems = step.blockers(setup, model)
    if step.name == "summary":
        rows = {"Ready": "yes" if not problems else f"no, {len(problems)} problem{'s' if len(problems) > 1 else ''}"}
        rows |= {problem.field: problem.message for problem in problems}
    return summary_text(f"{number}. {step.title}", rows)


def _model_rows(model: Any) -> dict[str, str]:
    if model is None:
        return {"Class": "none given: sizes are not compared"}
    facts = facts_of(model)
    counts = {"Parameters": facts.parameters, "Vocabulary": facts.vocab_size, "Positions": facts.max_length}
    return {
        "Class": facts.name,
        **{name: "not stated" if count is None else f"{count:,}" for name, count in counts.items()},
    }


def _value_text(field: WizardField, value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    text = f"{value:,}" if isinstance(value, int) and field.name != "random_seed" else f"{value}"
    return f"{text} {field.unit}" if field.unit else text
