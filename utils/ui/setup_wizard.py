"""SetupWizard: from a model and a preset to a SetupConfig, with or without somebody clicking."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Set
from typing import Any, Protocol

from utils.environment import front_end, ui_mode
from utils.errors import ConfigError
from utils.schema import shown
from utils.ui.new_model import description_text
from utils.ui.preflight import Check, check_text
from utils.ui.preset_fitting import find_preset, prepared
from utils.ui.presets import Preset
from utils.ui.setting_values import counted, model_rows
from utils.ui.setup_config import SetupConfig
from utils.ui.wizard_memory import cell_key, remember, remembered
from utils.ui.wizard_model import tuning_sentence
from utils.ui.wizard_state import WizardState
from utils.ui.wizard_steps import STEPS, WizardStep, facts_of
from utils.views.design import styled
from utils.views.display import show_html, show_table, show_text
from utils.views.html import fact_cards
from utils.views.tables import sections_text

#: Name of the form that is shown unless `SetupWizard` is given one. It is looked up by its name when a form is first
#: shown: the wizard itself needs no front end.
DEFAULT_FORM = "widgets.wizard_view:WizardView"


class WizardForm(Protocol):
    """A front end of the wizard: shows a `WizardState` and changes it by what is clicked."""

    def show(self) -> None:
        """Show the form in the running cell's output, and return at once."""


class SetupWizard:
    """Five steps from a model to everything that its training needs.

    Args:
        form: makes the form over a state, where the caller has a front end of its own; None stands for the notebook's,
            `DEFAULT_FORM`.

    Attributes:
        state: the steps of the last `run` or `quick_setup`, with its setup and model; None before.
        view: the form that the last `run` showed; None when it showed none.
    """

    def __init__(self, form: Callable[[WizardState], WizardForm] | None = None) -> None:
        self.state: WizardState | None = None
        self.view: WizardForm | None = None
        self._make_form = form

    @property
    def model(self) -> Any:
        """The model that the setup of the last `run` trains: the one that `run` was given, or the pretrained or new model that
        the setup names, which is loaded or created when it is first asked for. Cells after the wizard take it from here.

        Raises:
            ConfigError: there was no `run` yet. TrainbookError: the model cannot be loaded or created; says what would work.
        """
        if self.state is None:
            raise ConfigError("there is no setup yet: run the cell with wizard.run(model=model) first.")
        return self.state.choice.load()

    def run(
        self,
        model: Any = None,
        interactive: bool | None = None,
        preset: str | Preset | None = "starter",
        **overrides: Any,
    ) -> SetupConfig:
        """A setup to train with. Returns at once; nothing waits for input.

        Values are taken from, in rising order: defaults, preset, model (its vocabulary, and its positions where they
        are fewer than the preset's), `overrides`, and what was clicked in this cell's form before. With a form the
        returned setup follows later clicks, and the form shows what stands in the way of training.

        Args:
            model: the `nn.Module` that will be trained, unless the setup names a pretrained or new model; None: its sizes are
                not compared.
            interactive: whether to show the form; None: where the front end can (`utils.environment.ui_mode`), and else
                a static summary, if anything. True without a notebook's kernel: one line says so, and it continues
                without. False: nothing is shown.
            preset: a name in PRESETS, a Preset, or None for the defaults alone.
            **overrides: SetupConfig's fields.
        Raises:
            ConfigError: lists every problem of the overrides, or else, without a form, everything that stands in the way
                of training.
            PresetNotFoundError: no preset of that name.
        """
        mode = ui_mode()
        chosen = find_preset(preset)
        facts = None if model is None else facts_of(model)
        state = WizardState(prepared(chosen, facts, overrides), model, chosen, overrides)
        self.state, self.view = state, None
        can_show = self._make_form is not None or front_end() != "plain"
        if (interactive is None and mode == "widget") or (interactive and can_show):
            self.view = self._show_form(state, cell_key(chosen, overrides))
            return state.setup
        if interactive:
            show_text("There is no notebook here to show the form in; the setup is made without it.")
        problems = state.blockers("summary")
        if problems:
            raise ConfigError.from_problems("the setup", problems)
        state.goto("summary")
        if interactive is None and mode != "none":
            show_table(f"Setup (preset: {state.preset})", state.rows())
        return state.setup

    def _show_form(self, state: WizardState, key: str) -> WizardForm:
        """The form over `state`, with what was clicked in this cell before; later clicks are kept for its next run."""
        clicks = remembered(key)
        if clicks:
            state.replay(clicks)
        state.observe(lambda: remember(key, state.clicks))
        view: WizardForm = (self._make_form or pkgutil.resolve_name(DEFAULT_FORM))(state)
        view.show()
        return view

    def quick_setup(
        self,
        model: Any = None,
        preset: str | Preset | None = "starter",
        dataset_name: str | None = None,
        dataset_path: str | None = None,
        **overrides: Any,
    ) -> SetupConfig:
        """`run` with nobody clicking, and the data named first.

        Args:
            model, preset, **overrides: see `run`.
            dataset_name: "builtin", or a dataset's id on the Hugging Face Hub.
            dataset_path: a file, a folder or a pattern of paths.
        """
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
            problems = WizardState(setup.copy(), model).blockers("summary")
        except ConfigError as error:
            problems = list(error.problems)
            if not problems:
                return False, [str(error)]
        return not problems, [f"{problem.field}: {problem.message}" for problem in problems]

    def preflight(self) -> tuple[Check, ...]:
        """Make the checks before training for the last `run`, and show what came of them.

        They open the data, take one batch through a copy of the model, forward and backward, look whether a causal model
        sees later tokens, ask the Hugging Face Hub where the data are there, and compare the run's name and settings with
        the runs on disk. `state.ready` says whether all passed. The form's Summary makes the same checks.

        Raises:
            ConfigError: there was no `run` yet.
        """
        if self.state is None:
            raise ConfigError("there is no setup to check yet: run the cell with wizard.run(model=model) first.")
        checks = self.state.preflight.run()
        show_table(self.state.verdict, {check.title: check_text(check) for check in checks})
        return checks

    def print_config(self, config: SetupConfig | Mapping[str, Any], model: Any = None) -> None:
        """Show the setup by the five steps: in a notebook as cards, elsewhere as text.

        `model` defaults to the one of the last `run`, when that made `config`.
        """
        setup = config if isinstance(config, SetupConfig) else _setup_of(config)
        known = self.state if self.state is not None and self.state.setup is setup else None
        if known is not None and (model is None or model is known.model):
            model = known.model
        else:
            known = None
        state = WizardState(setup.copy(), model)
        # Also what is at its default and differs from the preset that the wizard began with.
        changed = set() if known is None else set(known.changed())
        if known is not None:
            state.preflight, state.choice = known.preflight, known.choice
        sections = {
            f"{number}. {step.title}": _step_rows(step, state, changed) for number, step in enumerate(STEPS, start=1)
        }
        show_html(styled(fact_cards(sections)), sections_text(sections))


def _setup_of(values: Mapping[str, Any]) -> SetupConfig:
    if not isinstance(values, Mapping):
        raise ConfigError(f"a configuration is a SetupConfig or a mapping of its values; got {shown(values)}")
    return SetupConfig(**{str(name): value for name, value in values.items()})


def _source_rows(state: WizardState) -> dict[str, str]:
    """Where a pretrained or new model comes from, and what its checkpoint does not contain."""
    if state.setup.new_model is not None:
        return {"New model": description_text(state.setup.new_model)}
    if state.setup.pretrained_model is None:
        return {}
    loaded = state.choice.loaded
    rows = {"Pretrained model": state.setup.pretrained_model, "Fine-tuning": tuning_sentence(state.choice)}
    return rows if loaded is None else {**rows, **({"Notices": "\n".join(loaded.notices)} if loaded.notices else {})}


def _step_rows(step: WizardStep, state: WizardState, changed: Set[str]) -> dict[str, str]:
    changed = (SetupConfig().differences().keys() ^ state.setup.differences().keys()) | changed
    fields = [f for f in state.listed_fields(step) if f not in step.advanced or f.name in changed]
    rows = {f.title: state.shown_value(f) for f in fields}
    if step.name == "model":
        rows = {**_source_rows(state), **model_rows(state.facts)}
    problems = step.check(state.setup, state.facts)
    if step.name == "summary":
        rows = {
            "Ready": "yes" if state.ready else f"no, {counted(len(problems), 'problem')}" if problems else "not checked"
        }
        rows |= {problem.field: problem.message for problem in problems}
        rows |= {check.title: check_text(check) for check in state.preflight.checks if check.verdict != "pending"}
        if state.preflight.pending:
            rows["Checks"] = (
                f"{state.preflight.verdict} wizard.preflight() runs them, and so does the wizard's Summary step; training "
                "begins without them."
            )
    return rows
