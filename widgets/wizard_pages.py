"""The wizard's pages: each draws one step of a WizardState, when it is first shown."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import ipywidgets

from utils.errors import ConfigError, Problem, TrainbookError
from utils.ui.wizard_code import CODE_FORMS, setup_code
from utils.ui.wizard_preview import DataPreview, check_model, estimate_rows, preview_data
from utils.ui.wizard_state import WizardState
from utils.ui.wizard_steps import STEPS, WizardField, WizardStep, step_of
from utils.ui.wizard_texts import counted, model_rows, shown_value, titled
from utils.views.html import Html, element, joined, text
from widgets.forms import (
    FieldForm,
    Report,
    button,
    data_table,
    heading,
    markup_box,
    paragraph,
    problem_line,
    row,
    set_markup,
    small,
)
from widgets.guarded import guarded

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
        self._forms: dict[str, FieldForm] = {}
        self._shows_advanced = False
        self._fields, self._advanced = ipywidgets.VBox(), ipywidgets.VBox()
        self._more = self._button("Show advanced settings", "advanced", self._toggle_advanced)
        self._general = markup_box(f"tb-problems-{step.name}")
        self.box = ipywidgets.VBox([
            markup_box(markup=joined([heading(f"{STEPS.index(step) + 1}. {step.title}"), paragraph(step.help)])),
            self._fields,
            *self.extras(),
            *([row(self._more), self._advanced] if step.advanced else []),
            self._general,
            row(*self._navigation()),
        ])  # fmt: skip
        self.box.add_class(f"tb-page-{step.name}")

    def extras(self) -> list[ipywidgets.Widget]:
        """What the page has besides its settings."""
        return []

    def refresh(self, problems: Problems) -> None:
        """Show what the state says now."""
        is_open = self._is_open(problems)
        fields = [f for f in self.state.fields(self.step) if f not in self.step.advanced]
        self._show(self._fields, fields, problems)
        self._show(self._advanced, self.step.advanced if is_open else (), problems)
        self._more.description = f"{'Hide' if is_open else 'Show'} advanced settings"
        shown = {field.name for field in (*fields, *self.step.advanced)}
        rest = [p for p in problems[self.step.name] if p.field not in shown] if self.step is not STEPS[-1] else []
        set_markup(self._general, joined(problem_line(f"{titled(p.field)}: {p.message}") for p in rest))

    def _show(self, place: ipywidgets.VBox, fields: Sequence[WizardField], problems: Problems) -> None:
        forms = [self._form(field.name) for field in fields]
        boxes = tuple(form.box for form in forms)
        if boxes != place.children:
            place.children = boxes
        for form in forms:
            form.refresh(problems)

    def _is_open(self, problems: Problems) -> bool:
        """Whether advanced settings are shown: when asked for, and when one of them has a problem."""
        advanced = {field.name for field in self.step.advanced}
        return self._shows_advanced or any(problem.field in advanced for problem in problems[self.step.name])

    def _form(self, name: str) -> FieldForm:
        if name not in self._forms:
            field = next(field for field in self.step.all_fields if field.name == name)
            form = self._forms[name] = FieldForm(field, self.state, self._report)
            self._parts[f"field:{name}"], self._parts[f"error:{name}"] = form.control, form.message
        return self._forms[name]

    def _toggle_advanced(self, _: Any) -> None:
        self._shows_advanced = not self._shows_advanced
        self.refresh(self.state.visible_problems())

    def _navigation(self) -> list[ipywidgets.Widget]:
        # Each page has its own: the second click of a double click finds that its page is no longer the current one.
        place = STEPS.index(self.step)
        before = STEPS[place - 1].title if place else ""
        after = STEPS[place + 1].title if self.step is not STEPS[-1] else ""
        back = self._button(f"Back: {before}" if before else "Back", "back", self._back)
        forward = self._button(f"Next: {after}" if after else "Next", "next", self._next)
        back.disabled, forward.disabled = not before, not after
        return [back, forward]

    def _next(self, _: Any) -> None:
        if self.state.current is self.step:
            self.state.next()

    def _back(self, _: Any) -> None:
        if self.state.current is self.step:
            self.state.back()

    def _button(self, label: str, key: str, handler: Any) -> Any:
        """A button of this page, known as `key:step`."""
        made = button(label, f"tb-{key}", handler, self._report)
        self._parts[f"{key}:{self.step.name}"] = made
        return made


class DataPage(Page):
    """The data, an upload for a file, and a preview of what the model will see."""

    def extras(self) -> list[ipywidgets.Widget]:
        self._upload = ipywidgets.FileUpload(
            description="Upload a file", multiple=False, layout=ipywidgets.Layout(width="auto")
        )
        self._upload.add_class("tb-upload")
        self._upload.observe(guarded(self._uploaded, self._report), "value")
        self._parts["upload"] = self._upload
        large = "For a large file: put it beside the notebook, and give its path above."
        self._upload_row = row(self._upload, markup_box(markup=small(large)))
        self._upload_message = self._parts["error:upload"] = markup_box("tb-error-upload")
        self._preview_button = button("Preview the data", "tb-preview", self._preview, self._report)
        self._parts["preview"] = self._preview_button
        self._result = self._parts["preview-result"] = markup_box("tb-preview-result")
        self._stale = markup_box()
        self._previewed: dict[str, Any] | None = None
        return [self._upload_row, self._upload_message, row(self._preview_button), self._stale, self._result]

    def refresh(self, problems: Problems) -> None:
        super().refresh(problems)
        self._upload_row.layout.display = None if self.state.source in ("local", "upload") else "none"
        stale = self._previewed is not None and self._previewed != self.state.setup.sections()["setup"]
        set_markup(self._stale, paragraph("The settings have changed since this preview." if stale else ""))

    def _uploaded(self, change: Mapping[str, Any]) -> None:
        problem = ""
        for name, content in uploaded_files(change["new"]):
            try:
                self.state.upload(name, content)
            except TrainbookError as error:
                problem = str(error)
        set_markup(self._upload_message, problem_line(problem))

    def _preview(self, _: Any) -> None:
        with _busy(self._preview_button, "Reading the data…"):
            try:
                markup = _preview_markup(preview_data(self.state.setup, self.state.model))
            except TrainbookError as error:
                markup = problem_line(str(error))
        set_markup(self._result, markup)
        self._previewed = self.state.setup.sections()["setup"]
        set_markup(self._stale, text(""))


class ModelPage(Page):
    """What the model says about itself, and a check of it."""

    def extras(self) -> list[ipywidgets.Widget]:
        self._facts = self._parts["facts"] = markup_box("tb-facts")
        self._check_button = self._parts["check"] = button("Check the model", "tb-check", self._check, self._report)
        self._check_button.disabled = self.state.model is None
        self._result = self._parts["check-result"] = markup_box("tb-check-result")
        return [self._facts, row(self._check_button), self._result]

    def refresh(self, problems: Problems) -> None:
        super().refresh(problems)
        set_markup(self._facts, data_table("The model", model_rows(self.state.facts)))

    def _check(self, _: Any) -> None:
        with _busy(self._check_button, "Checking…"):
            try:
                markup = element("div", check_model(self.state.model, self.state.setup), style="line-height:1.4")
            except TrainbookError as error:
                markup = problem_line(str(error))
        set_markup(self._result, markup)


class TrainingPage(Page):
    """How to train, and how long that will take here."""

    def extras(self) -> list[ipywidgets.Widget]:
        self._measure_button = self._parts["measure"] = button(
            "Measure time and memory", "tb-measure", self._measure, self._report
        )
        self._measure_button.disabled = self.state.model is None
        self._estimate = self._parts["estimate"] = markup_box("tb-estimate")
        self._measured_with: Any = None
        return [row(self._measure_button), self._estimate]

    def refresh(self, problems: Problems) -> None:
        super().refresh(problems)
        if self._measured_with is not None and self._measured_with != self.state.setup.sections():
            self._measured_with = None
            set_markup(self._estimate, paragraph("The settings have changed since it was measured."))

    def _measure(self, _: Any) -> None:
        with _busy(self._measure_button, "Measuring: a few steps…"):
            try:
                estimate = estimate_rows(self.state.setup, self.state.model)
                markup = data_table("Measured on this machine, on a copy of the model", estimate)
                self._measured_with = self.state.setup.sections()
            except TrainbookError as error:
                markup = problem_line(str(error))
        set_markup(self._estimate, markup)


class SummaryPage(Page):
    """All problems with their ways out, all settings, and the setup as code to copy."""

    def extras(self) -> list[ipywidgets.Widget]:
        self._verdict = self._parts["verdict"] = markup_box("tb-verdict")
        self._problems = ipywidgets.VBox()
        self._drawn: list[Problem] | None = None
        self._table = self._parts["settings"] = markup_box("tb-settings")
        self._form_of_code = self._parts["copy-form"] = ipywidgets.ToggleButtons(
            options=list(CODE_FORMS), description="Copy as", style={"description_width": "initial"}
        )
        self._form_of_code.add_class("tb-copy-form")
        self._code = self._parts["copy"] = ipywidgets.Textarea(
            description="Code",
            rows=14,
            continuous_update=False,
            style={"description_width": "initial"},
            layout=ipywidgets.Layout(width="auto", max_width="720px"),
        )
        self._code.add_class("tb-copy")
        self._form_of_code.observe(guarded(self._write_code, self._report), "value")
        # Read-only, but still to be selected and reached by keyboard, which a disabled control is not.
        self._code.observe(guarded(self._write_code, self._report), "value")
        return [self._verdict, self._problems, self._table, self._form_of_code, self._code]

    def refresh(self, problems: Problems) -> None:
        super().refresh(problems)
        found = problems[self.step.name]
        ready = f"{counted(len(found), 'problem')} to solve before training." if found else "Ready to train."
        set_markup(self._verdict, element("div", element("strong", text(ready))))
        if found != self._drawn:
            self._drawn = list(found)
            self._problems.children = tuple(self._problem_row(problem) for problem in found)
        set_markup(self._table, data_table("Settings", self.state.rows()))
        self._write_code(None)

    def _write_code(self, _: Any) -> None:
        self._code.value = setup_code(self._form_of_code.value, self.state.setup, self.state.facts)

    def _problem_row(self, problem: Problem) -> ipywidgets.Widget:
        step = step_of(problem.field)
        self._parts[f"goto:{problem.field}"] = goto = button(
            f"Go to {STEPS.index(step) + 1} {step.title}", "tb-goto", lambda _: self.state.goto(step.name), self._report
        )
        buttons = [goto]
        if problem.fix is not None:
            label = f"Use {shown_value(problem.field, problem.fix)}"
            fix = button(label, "tb-fix", lambda _: self._fix(problem), self._report)
            self._parts[f"fix:{problem.field}"] = fix
            buttons.append(fix)
        return ipywidgets.VBox(
            [markup_box(markup=problem_line(f"{titled(problem.field)}: {problem.message}")), row(*buttons)]
        )

    def _fix(self, problem: Problem) -> None:
        # Not one that was solved meanwhile. A fix that is refused is shown as its field's entry.
        if problem in self.state.blockers("summary"):
            with contextlib.suppress(ConfigError):
                self.state.apply_fix(problem)


PAGES: Mapping[str, type[Page]] = {
    "dataset": DataPage,
    "tokenizer": Page,
    "model": ModelPage,
    "training": TrainingPage,
    "summary": SummaryPage,
}


def uploaded_files(value: Any) -> list[tuple[str, bytes]]:
    """Name and content of each file in a FileUpload's value: a dict by name in ipywidgets 7, a tuple of dicts in 8."""
    if isinstance(value, Mapping):
        return [(str(name), bytes(file["content"])) for name, file in value.items()]
    return [(str(file["name"]), bytes(file["content"])) for file in value]


@contextlib.contextmanager
def _busy(widget: Any, label: str) -> Any:
    """The button says what it does and takes no clicks meanwhile."""
    before, widget.description, widget.disabled = widget.description, label, True
    try:
        yield
    finally:
        widget.description, widget.disabled = before, False


def _preview_markup(preview: DataPreview) -> Html:
    style = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.4;margin:0 0 8px 0;color:inherit;background:none"
    blocks = [
        joined(
            [element("pre", text(written), style=style), element("pre", text(tokens), style=f"{style};opacity:0.85")]
        )
        for written, tokens in preview.blocks
    ]
    title = paragraph("The beginnings of the first training blocks: the text, then its tokens with | between them.")
    return joined([data_table("Data", preview.rows), title, *blocks])
