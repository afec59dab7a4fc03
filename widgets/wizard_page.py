"""Page: one step of the wizard as a form, with its fields, problems and buttons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import ipywidgets

from utils.errors import Problem, TrainbookError
from utils.ui.background import Progress
from utils.ui.setting_values import folded_text, titled
from utils.ui.wizard_fields import Control, WizardField
from utils.ui.wizard_state import WizardState
from utils.ui.wizard_steps import STEPS, Topic, WizardStep
from utils.views.html import Html, joined
from widgets.background_task import Outcome, TaskRow
from widgets.focus import move_focus
from widgets.forms import (
    CardsForm,
    ColumnForm,
    FieldForm,
    FilesForm,
    Report,
    button,
    heading,
    markup_box,
    paragraph,
    primary,
    problem_line,
    row,
    set_markup,
    small,
)
from widgets.guarded import error_sentence
from widgets.wizard_new_model import NewModelForm

# Pages whose first control that takes the keyboard focus is not that of their first field.
_FIRST = {"dataset": "field:task", "model": "model-source", "summary": "check-now"}

_FORMS: Mapping[Control, type[FieldForm | NewModelForm]] = {
    "plain": FieldForm, "cards": CardsForm, "column": ColumnForm, "files": FilesForm,
    "new model": NewModelForm,
}  # fmt: skip

Problems = Mapping[str, list[Problem]]
Parts = MutableMapping[str, ipywidgets.Widget]


class Page:
    """A step: its title, its settings, and Back and Next.

    Attributes:
        box: what is shown.
    """

    def __init__(self, step: WizardStep, state: WizardState, parts: Parts, report: Report) -> None:
        self.step, self.state = step, state
        self._parts, self._report = parts, report
        self._forms: dict[str, FieldForm | NewModelForm] = {}
        self._fields = ipywidgets.VBox()
        self._topics = [_Fold(topic, self) for topic in step.topics]
        self._general = markup_box(f"tb-problems-{step.name}")
        self.box = ipywidgets.VBox()
        for name in ("tb-page", f"tb-page-{step.name}"):
            self.box.add_class(name)
        self._fields.add_class("tb-fields")

    def _arrange(self, above: Sequence[ipywidgets.Widget] = (), below: Sequence[ipywidgets.Widget] = ()) -> None:
        """Put the page together, with these widgets above and below its settings."""
        title = joined([heading(f"{STEPS.index(self.step) + 1}. {self.step.title}"), paragraph(self.step.help)])
        topics = [fold.box for fold in self._topics]
        self.box.children = (
            markup_box(markup=title), *above, self._fields, *below, *topics, self._general, row(*self._navigation())
        )  # fmt: skip

    def elsewhere(self) -> set[str]:
        """Fields without a form whose problems the page shows in a place of their own."""
        return set()

    def opened(self, problems: Problems) -> None:
        """Called when the page becomes the one that is shown."""

    def refresh(self, problems: Problems) -> None:
        """Show what the state says now."""
        current = self.state.fields(self.step)
        fields = [field for field in current if field in self.step.fields]
        self.show_fields(self._fields, fields, problems)
        for fold in self._topics:
            fold.refresh([field for field in current if field in fold.topic.fields], problems)
        shown = {field.name for field in (*fields, *self.step.advanced)}
        shown |= self.elsewhere()
        rest = [p for p in problems[self.step.name] if p.field not in shown] if self.step is not STEPS[-1] else []
        set_markup(self._general, joined(problem_line(f"{titled(p.field)}: {p.message}") for p in rest))

    def show_fields(self, place: ipywidgets.VBox, fields: Sequence[WizardField], problems: Problems) -> None:
        """Show the forms of these settings in `place`, in the state's values."""
        forms = [self._form(field.name) for field in fields]
        boxes = tuple(form.box for form in forms)
        if boxes != place.children:
            place.children = boxes
        for form in forms:
            form.refresh(problems)
            self._parts[f"field:{form.field.name}"] = form.control

    def _form(self, name: str) -> FieldForm | NewModelForm:
        if name not in self._forms:
            field = next(field for field in self.step.all_fields if field.name == name)
            form = self._forms[name] = _FORMS[field.control](field, self.state, self._report)
            self._parts[f"error:{name}"] = form.message
            if isinstance(form, NewModelForm):
                self._parts.update({f"new-model:{argument}": control for argument, control in form.controls.items()})
        return self._forms[name]

    def _navigation(self) -> list[ipywidgets.Widget]:
        # Each page has its own: the second click of a double click finds that its page is no longer the current one.
        place = STEPS.index(self.step)
        before = STEPS[place - 1].title if place else ""
        after = STEPS[place + 1].title if self.step is not STEPS[-1] else ""
        back = self._button(f"Back: {before}" if before else "Back", "back", self._back)
        forward = self._button(f"Next: {after}" if after else "Next", "next", self._next)
        back.disabled, forward.disabled = not before, not after
        if after:
            primary(forward)
        return [back, forward]

    def _next(self, _: Any) -> None:
        if self.state.current is self.step:
            self.state.next()
            self._turned()

    def _back(self, _: Any) -> None:
        if self.state.current is self.step:
            self.state.back()
            self._turned()

    def _turned(self) -> None:
        """The button that had the focus is gone with its page: give it to the first control of the one that is shown."""
        step = self.state.current
        if step is not self.step:
            first = _FIRST.get(step.name) or f"field:{self.state.fields(step)[0].name}"
            move_focus(self._parts.get(first))

    def _job(self, label: str, key: str, work: Callable[[Progress], Any], done: Callable[[Outcome], None]) -> TaskRow:
        """A button that starts work, known as `key`, with one that cancels it, `key-cancel`."""
        job = TaskRow(label, f"tb-{key}", work, done, self._report)
        self._parts[key], self._parts[f"{key}-cancel"], self._parts[f"{key}-progress"] = job.start, job.cancel, job.line
        return job

    def _failure(self, error: BaseException) -> Html:
        """Error box for work that failed. An unexpected error is reported as a handler's is."""
        if not isinstance(error, TrainbookError):
            self._report(error)
        return problem_line(error_sentence(error))

    def _button(self, label: str, key: str, handler: Any) -> Any:
        """A button of this page, known as `key:step`."""
        made = button(label, f"tb-{key}", handler, self._report)
        self._parts[f"{key}:{self.step.name}"] = made
        return made

    def fold_button(self, topic: Topic, handler: Any) -> Any:
        """The button that shows and hides a topic, known as `topic:title`."""
        made = self._parts[f"topic:{topic.title}"] = button(topic.title, "tb-fold", handler, self._report)
        return made


class _Fold:
    """The settings of one topic behind a button, with those that are not at their defaults beside it.

    They are shown when asked for, and when one of them has a problem.
    """

    def __init__(self, topic: Topic, page: Page) -> None:
        self.topic, self._page, self._is_open = topic, page, False
        self._button = page.fold_button(topic, self._toggle)
        self._values, self._fields = markup_box("tb-folded"), ipywidgets.VBox()
        self._fields.add_class("tb-fields")
        self.box = ipywidgets.VBox([row(self._button, self._values), self._fields])
        self.box.add_class("tb-topic")

    def refresh(self, fields: Sequence[WizardField], problems: Problems) -> None:
        names = {field.name for field in self.topic.fields}
        is_open = self._is_open or any(problem.field in names for problem in problems[self._page.step.name])
        self._page.show_fields(self._fields, fields if is_open else (), problems)
        self.box.layout.display = None if fields else "none"
        with self._button.hold_sync():
            self._button.icon = "caret-down" if is_open else "caret-right"
            self._button.description = f"{self.topic.title}{', open' if is_open else ''}"  # which screen readers say
        set_markup(self._values, small("" if is_open else folded_text(fields, self._page.state.setup)))

    def _toggle(self, _: Any) -> None:
        self._is_open = not self._is_open
        self._page.refresh(self._page.state.visible_problems())
