"""The wizard's Model step: where the model comes from, what its files or sizes say, loading and checking it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import ipywidgets

from utils.errors import Problem
from utils.ui.background import Progress
from utils.ui.model_source import adapters_here, describe_source, exported_runs, source_facts, source_rows
from utils.ui.setting_values import model_rows
from utils.ui.wizard_model import MODEL_SOURCES, ModelChoice, memory_rows
from utils.ui.wizard_preview import check_model
from utils.ui.wizard_state import WizardState
from utils.ui.wizard_steps import WizardStep
from utils.views.html import Html, element, joined, table, text
from widgets.background_task import Outcome
from widgets.focus import move_focus
from widgets.forms import (
    Drawing,
    Report,
    button,
    look,
    markup_box,
    paragraph,
    problem_line,
    row,
    set_markup,
)
from widgets.guarded import guarded
from widgets.wizard_page import Page, Parts, Problems

if TYPE_CHECKING:
    from utils.models.pretrained_facts import PretrainedDescription


_NOTHING_GIVEN = (
    "The cell was given no model. Make a new one here, choose another source above, or pass one: wizard.run(model=…)."
)


class ModelPage(Page):
    """Where the model comes from, what it says about itself, and a check of it."""

    def __init__(self, step: WizardStep, state: WizardState, parts: Parts, report: Report) -> None:
        super().__init__(step, state, parts, report)
        self._drawing = Drawing()
        self._named = self.state.setup.pretrained_model
        self._chosen = "notebook"
        self._source = self._menu("Model source", "model-source", self._source_chosen)
        none_given = "" if self.state.choice.is_given else " (none was given)"
        with self._drawing:  # ipywidgets 7 chooses the first of new options by itself
            self._source.options = [
                (f"{label}{none_given if name == 'notebook' else ''}", name) for name, label in MODEL_SOURCES.items()
            ]
        self._runs = self._menu("Run", "model-run", self._run_chosen)
        self._no_runs = self._parts["no-runs"] = markup_box("tb-no-runs")
        menus = ipywidgets.VBox([self._source, self._runs])
        menus.add_class("tb-fields")
        self._on_hub: tuple[str | None, PretrainedDescription] | None = None
        self._files = self._parts["model-files"] = markup_box("tb-model-files")
        self._look_up_job = self._job("Look it up on the Hub", "look-up", self._look_up, self._show_found)
        self._load_job = self._job("Load the model", "load", self._load, self._show_loaded)
        self._loaded = self._parts["load-result"] = markup_box("tb-load-result")
        self._facts = self._parts["facts"] = markup_box("tb-facts")
        self._check_job = self._job("Check the model", "check", self._check, self._show_check)
        self._result = self._parts["check-result"] = markup_box("tb-check-result")
        self._unfit = self._parts["unfit-model"] = markup_box("tb-unfit-model")
        self._replace = self._parts["use-new-model"] = button(
            "Use a new model for this task", "tb-use-new-model", self._replaced, self._report
        )
        self._replacement = ipywidgets.VBox([self._unfit, row(self._replace)])
        self._arrange([menus, self._no_runs], [
            self._replacement, self._files, self._look_up_job.box, self._load_job.box, self._loaded, self._facts,
            self._check_job.box, self._result,
        ])  # fmt: skip

    def refresh(self, problems: Problems) -> None:
        super().refresh(problems)
        setup = self.state.setup
        if setup.new_model is not None:
            self._chosen = "new"
        elif setup.pretrained_model is not None and self._chosen in ("notebook", "new"):
            self._chosen = "pretrained"
        elif (setup.pretrained_model is None and self._named is not None) or self._chosen == "new":
            self._chosen = "notebook"
        self._named = setup.pretrained_model
        runs = exported_runs(setup) if self._chosen == "run" else []
        with self._drawing:
            self._source.value = self._chosen
            self._runs.options = [("choose a run", ""), *((run, run) for run in runs)]
            self._runs.value = self._named if self._named in runs else ""
        self._runs.layout.display = None if runs else "none"
        hint = f"No run in {setup.output_dir} has an export of the format hf. The folder of one elsewhere can be entered below."
        set_markup(self._no_runs, paragraph(hint if self._chosen == "run" and not runs else ""))
        self._fields.layout.display = None if self._chosen != "notebook" else "none"
        self._load_job.box.layout.display = None if setup.names_model else "none"
        self._load_job.start.description = "Create it now (optional)" if self._chosen == "new" else "Load the model"
        unknown = self._named is not None and source_facts(setup) is None
        self._look_up_job.box.layout.display = None if unknown else "none"
        set_markup(self._files, self._files_markup())
        set_markup(self._loaded, _loaded_markup(self.state.choice))
        rows = {**model_rows(self.state.facts), **memory_rows(self.state.choice)}
        set_markup(self._facts, table("The model to train", rows))
        self._check_job.start.disabled = not self.state.choice.exists
        unfit, nothing_given = self._unfit_head(), self._chosen == "notebook" and not self.state.choice.exists
        set_markup(self._unfit, problem_line(unfit.message) if unfit else paragraph(_NOTHING_GIVEN))
        self._replacement.layout.display = None if unfit or nothing_given else "none"

    def elsewhere(self) -> set[str]:
        return {"new_model"} if self._chosen == "notebook" else set()

    def _unfit_head(self) -> Problem | None:
        """The problem of a notebook's model that is for another task."""
        if self._chosen != "notebook":
            return None
        return next((problem for problem in self.state.blockers(self.step.name) if problem.field == "new_model"), None)

    def _replaced(self, _: Any) -> None:
        problem = self._unfit_head()
        if problem is not None:
            self.state.apply_fix(problem)
        else:
            self.state.choose_new_model()
        move_focus(self._source)  # the button is gone

    def _menu(self, title: str, key: str, handler: Callable[[Mapping[str, Any]], None]) -> Any:
        made = ipywidgets.Dropdown(**look(title))
        made.add_class(f"tb-{key}")
        made.add_class("tb-across")  # names and folders of runs may be long
        made.observe(guarded(handler, self._report), "value")
        self._parts[key] = made
        return made

    def _files_markup(self) -> Html:
        """Facts from the files of a pretrained model, before it is loaded."""
        if self.state.setup.pretrained_model is None:
            return text("")
        found = source_facts(self.state.setup)
        if found is None:
            if self._on_hub is not None and self._on_hub[0] == self.state.setup.pretrained_model:
                return table("The pretrained model, as the Hub describes it", source_rows(self._on_hub[1]))
            return paragraph("Its files are not on this machine. Loading the model downloads them from the Hub.")
        if found.facts is None:
            return text("")
        tokenizer = "comes with the model" if found.has_tokenizer else "none: it has to come with the model"
        rows = {**source_rows(found.facts), "Tokenizer": tokenizer}
        if adapters := adapters_here(self.state.setup):
            rows["Adapters made here"] = adapters
        return table("The pretrained model, by its files", rows)

    def _source_chosen(self, change: Mapping[str, Any]) -> None:
        if self._drawing or not change["new"]:
            return
        setup, self._chosen = self.state.setup, change["new"]
        if self._chosen == "new":
            self.state.choose_new_model()
        elif setup.new_model is not None:
            chosen = self._chosen
            self.state.set("new_model", None)  # which draws the notebook's model
            self._chosen = chosen
        if self._chosen == "notebook" and setup.pretrained_model is not None:
            self.state.set("pretrained_model", None)
        self.refresh(self.state.visible_problems())

    def _run_chosen(self, change: Mapping[str, Any]) -> None:
        if not self._drawing and change["new"]:
            self.state.set("pretrained_model", change["new"])

    def _look_up(self, progress: Progress) -> tuple[str | None, PretrainedDescription]:
        progress.report("Asking the Hub")
        setup = self.state.setup.copy()
        return setup.pretrained_model, describe_source(setup)

    def _show_found(self, outcome: Outcome) -> None:
        self._on_hub = outcome.result if outcome.error is None and not outcome.cancelled else None
        self.refresh(self.state.visible_problems())
        if outcome.error is not None:
            set_markup(self._files, self._failure(outcome.error))

    def _load(self, progress: Progress) -> None:
        progress.report("Loading the model" if self.state.setup.new_model is None else "Creating the model")
        self.state.choice.load()

    def _show_loaded(self, outcome: Outcome) -> None:
        self.refresh(self.state.visible_problems())
        if outcome.error is not None:
            set_markup(self._loaded, self._failure(outcome.error))

    def _check(self, progress: Progress) -> Html:
        progress.report("Checking")
        with progress.undisturbed():
            return check_model(self.state.choice.load(), self.state.setup.copy())

    def _show_check(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            set_markup(self._result, self._failure(outcome.error))
        elif not outcome.cancelled:
            set_markup(self._result, element("div", outcome.result, style="line-height:1.4"))


def _loaded_markup(choice: ModelChoice) -> Html:
    """Tensors that a checkpoint did not contain, and mismatches of tokenizer and model; that a new model is created."""
    if not choice.is_made:
        return text("")
    if choice.loaded is None:
        return paragraph("Created. Every weight is new.")
    if not choice.loaded.notices:
        return paragraph("Loaded. The checkpoint contains every weight of the model, and its tokenizer fits.")
    return joined([paragraph("Loaded."), *(paragraph(notice) for notice in choice.loaded.notices)])
