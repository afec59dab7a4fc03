"""The setup wizard as widgets: draws a `WizardState` and turns clicks into its methods. It holds no settings itself."""

from __future__ import annotations

from typing import Any

import ipywidgets

from utils.errors import ConfigError
from utils.ui.preset_fitting import model_code, model_sentence
from utils.ui.presets import Preset
from utils.ui.setting_values import counted, preset_help
from utils.ui.wizard_state import WizardState
from utils.ui.wizard_steps import STEPS, WizardStep
from utils.views.html import alert, element, joined, status
from widgets.background_task import watch_cells
from widgets.focus import move_focus
from widgets.forms import (
    Drawing,
    button,
    code,
    fill_panel,
    look,
    markup_box,
    paragraph,
    problem_line,
    row,
    set_markup,
    small,
)
from widgets.guarded import error_details, error_sentence, guarded
from widgets.wizard_page import Page
from widgets.wizard_pages import PAGES

# State of a step -> its icon, by its name in Font Awesome 4, which every front end's widgets bring along.
_ICONS = {"done": "check", "current": "circle"}

# Keys that every page has; they mean the current page's.
_OF_PAGE = ("next", "back")


class WizardView(ipywidgets.VBox):  # type: ignore[misc]  # ipywidgets is not typed
    """The form over a WizardState. Every change of the state shows in it, whoever made it.

    Parts are found by key: `view["next"]`, `view["step:training"]`, `view["field:batch_size"]`, `view["preset"]` … A
    page's parts exist once the page was shown. In a browser the same parts have CSS classes: `tb-next`,
    `tb-step-training`, `tb-field-batch_size`; the page itself is `tb-page-training`.

    Attributes:
        state: what is drawn; errors: what handlers raised.
    """

    def __init__(self, state: WizardState) -> None:
        self.state = state
        self.errors: list[BaseException] = []
        self._parts: dict[str, Any] = {}
        self._pages: dict[str, Page] = {}
        self._drawing = Drawing()
        self._status = self._parts["status"] = markup_box("tb-status")
        self._alert = self._parts["alert"] = markup_box("tb-alert")
        self._place = ipywidgets.VBox()
        super().__init__()
        fill_panel(self, *self._header(), self._status, self._alert, self._place)
        self.add_class("tb-wizard")
        self._said = ("", "", False)
        state.observe(lambda: guarded(self._refresh, self.report)(None))
        self._refresh(None)

    def __getitem__(self, key: str) -> Any:
        name = f"{key}:{self.state.current.name}" if key in _OF_PAGE else key
        if name not in self._parts:
            raise KeyError(f"the wizard's form has no part {key!r} yet; there are: {', '.join(sorted(self._parts))}")
        return self._parts[name]

    def __repr__(self) -> str:
        # The text form of the output: what a saved notebook shows of it.
        return f"Setup wizard, step {STEPS.index(self.state.current) + 1} of {len(STEPS)}: {self.state.current.title}"

    def show(self) -> None:
        """Display it as output of the cell that runs."""
        from IPython.display import display

        watch_cells()
        display(self)  # type: ignore[no-untyped-call]

    def report(self, error: BaseException) -> None:
        """Show an error of a handler, until the next one."""
        self.errors.append(error)
        set_markup(self._alert, alert(error_sentence(error), error_details(error)))

    def _header(self) -> list[ipywidgets.Widget]:
        steps = [self._step_button(step) for step in STEPS]
        self._preset = self._parts["preset"] = ipywidgets.Dropdown(
            options=list(self.state.presets),
            value=self.state.preset,
            **look("Preset"),
        )
        self._preset.add_class("tb-preset")
        self._preset.observe(guarded(self._choose_preset, self.report), "value")
        self._preset_message = self._parts["error:preset"] = markup_box("tb-error-preset")
        self._preset_help = self._parts["preset-help"] = markup_box("tb-preset-help")
        self._use_model = self._parts["preset-model"] = button(
            "Train the preset's model", "tb-preset-model", lambda _: self._choose_model(), self.report,
            "A new model of this size instead of the notebook's",
        )  # fmt: skip
        self._clicks = self._parts["clicks"] = markup_box("tb-clicks")
        self._reset = self._parts["reset"] = button("Reset to preset", "tb-reset", self._back_to_preset, self.report)
        self._undo = self._parts["undo"] = button(
            "Undo preset",
            "tb-undo",
            lambda _: self._undo_preset(),
            self.report,
            "Bring back the settings that it replaced",
        )
        changes = row(self._clicks, self._reset, self._undo)
        stepper = row(*steps)
        stepper.add_class("tb-steps")
        return [stepper, self._preset, self._preset_message, self._preset_help, row(self._use_model), changes]

    def _step_button(self, step: WizardStep) -> Any:
        made = button(step.title, f"tb-step-{step.name}", lambda _: self.state.goto(step.name), self.report)
        self._parts[f"step:{step.name}"] = made
        return made

    def _refresh(self, _: Any) -> None:
        problems = self.state.visible_problems()
        page = self._page()  # before anything is drawn: a page that is shown for the first time takes a moment to make
        page.refresh(problems)
        for index, step in enumerate(STEPS):
            self._draw_step(self._parts[f"step:{step.name}"], index, problems)
        self._show_preset()
        if self._place.children != (page.box,):
            self._place.children = (page.box,)
            page.opened(problems)
        said = (self.state.notice, self.state.notice_details, self.state.notice_is_seen)
        if said != self._said:
            self._said = said
            set_markup(self._status, element("div", status(said[0], spoken_only=said[2]), small(said[1])))

    def _draw_step(self, made: Any, index: int, problems: Any) -> None:
        """The step's label, icon and colour."""
        reached, wrong = self.state.status(index, problems), bool(problems[STEPS[index].name])
        states = {"problem": wrong, "current": reached == "current", "done": reached == "done" and not wrong}
        states["open"] = not any(states.values())
        with made.hold_sync():  # one message for all of it
            made.description = self._step_label(index, problems)
            made.icon = "exclamation-circle" if wrong else _ICONS.get(reached, "circle-o")
            for state, holds in states.items():
                (made.add_class if holds else made.remove_class)(f"tb-state-{state}")

    def _step_label(self, index: int, problems: Any) -> str:
        step = STEPS[index]
        found = len(problems[step.name])
        words = {"current": "current", "done": "done", "open": "", "blocked": ""}[self.state.status(index, problems)]
        parts = [f"{index + 1} {step.title}", words, counted(found, "problem") if found else ""]
        return ", ".join(part for part in parts if part)

    def _show_preset(self) -> None:
        with self._drawing:
            self._preset.value = self.state.preset
        preset = self.state.presets[self.state.preset]
        lines = [paragraph(preset_help(preset))]
        sentence = "" if preset is None else self._model_sentence(preset)
        if preset is not None and sentence:
            lines += [small(sentence), code(model_code(preset))]
        self._use_model.layout.display = None if sentence else "none"
        set_markup(self._preset_help, joined(lines))
        set_markup(self._clicks, paragraph(self.state.clicks_sentence))
        self._reset.disabled = not self.state.clicks.values
        self._undo.layout.display = None if self.state.can_undo else "none"

    def _model_sentence(self, preset: Preset) -> str:
        # A pretrained or new model was chosen in the form: no preset is meant to replace it.
        return "" if self.state.setup.names_model else model_sentence(preset, self.state.facts)

    def _page(self) -> Page:
        """The current step's page, made when it is first shown."""
        step = self.state.current
        if step.name not in self._pages:
            self._pages[step.name] = PAGES[step.name](step, self.state, self._parts, self.report)
        return self._pages[step.name]

    def _choose_preset(self, change: Any) -> None:
        if not self._drawing:
            self._apply(change["new"])

    def _back_to_preset(self, _: Any) -> None:
        self._apply(self.state.preset)
        move_focus(self._preset)  # this button is disabled now, and those below are gone

    def _choose_model(self) -> None:
        self.state.choose_new_model()
        move_focus(self._preset)

    def _undo_preset(self) -> None:
        self.state.undo()
        move_focus(self._preset)

    def _apply(self, key: str) -> None:
        try:
            self.state.apply_preset(key)
        except ConfigError as error:
            # Such as settings of the cell that do not fit to it: the preset before holds.
            set_markup(self._preset_message, problem_line(str(error)))
            self._show_preset()
        else:
            set_markup(self._preset_message, paragraph(""))
