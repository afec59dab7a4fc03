"""The wizard's pages: each draws one step of a WizardState, when it is first shown."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import ipywidgets

from utils.errors import ConfigError, Problem, TrainbookError
from utils.ui.background import Progress
from utils.ui.model_source import adapters_here, exported_runs, source_facts, source_rows, tokenizer_sentence
from utils.ui.preflight import Check, WayOut
from utils.ui.wizard_code import CODE_FORMS, setup_code
from utils.ui.wizard_model import MODEL_SOURCES, tuning_sentence
from utils.ui.wizard_preview import DataPreview, check_model, estimate_rows, preview_data
from utils.ui.wizard_state import WizardState
from utils.ui.wizard_steps import STEPS, WizardField, WizardStep, step_of
from utils.ui.wizard_texts import model_rows, shown_value, titled
from utils.views.html import Html, element, joined, text
from utils.views.samples import samples_html
from widgets.forms import (
    CONTROL_WIDTH,
    LABEL_WIDTH,
    FieldForm,
    Report,
    button,
    check_line,
    data_table,
    heading,
    markup_box,
    paragraph,
    primary,
    problem_line,
    row,
    set_markup,
    small,
)
from widgets.guarded import error_sentence, guarded
from widgets.jobs import JobRow, Outcome

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
            *self.above(),
            self._fields,
            *self.extras(),
            *([row(self._more), self._advanced] if step.advanced else []),
            self._general,
            row(*self._navigation()),
        ])  # fmt: skip
        for name in ("tb-page", f"tb-page-{step.name}"):
            self.box.add_class(name)
        for fields in (self._fields, self._advanced):
            fields.add_class("tb-fields")

    def above(self) -> list[ipywidgets.Widget]:
        """What the page has before its settings."""
        return []

    def extras(self) -> list[ipywidgets.Widget]:
        """What the page has behind its settings."""
        return []

    def opened(self, problems: Problems) -> None:
        """Called when the page becomes the one that is shown."""

    def refresh(self, problems: Problems) -> None:
        """Show what the state says now."""
        is_open = self._is_open(problems)
        fields = [f for f in self.state.fields(self.step) if f not in self.step.advanced]
        self._show(self._fields, fields, problems)
        advanced = [f for f in self.state.fields(self.step) if f in self.step.advanced]
        self._show(self._advanced, advanced if is_open else (), problems)
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
        if after:
            primary(forward)
        return [back, forward]

    def _next(self, _: Any) -> None:
        if self.state.current is self.step:
            self.state.next()

    def _back(self, _: Any) -> None:
        if self.state.current is self.step:
            self.state.back()

    def _job(self, label: str, key: str, work: Callable[[Progress], Any], done: Callable[[Outcome], None]) -> JobRow:
        """A button that starts work, known as `key`, with one that cancels it, `key-cancel`."""
        job = JobRow(label, f"tb-{key}", work, done, self._report)
        self._parts[key], self._parts[f"{key}-cancel"], self._parts[f"{key}-progress"] = job.start, job.cancel, job.line
        return job

    def _failure(self, error: BaseException) -> Html:
        """What to show of work that failed. An error that nobody foresaw is reported as a handler's is."""
        if not isinstance(error, TrainbookError):
            self._report(error)
        return problem_line(error_sentence(error))

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
        self._preview = self._job("Preview the data", "preview", self._read, self._show_preview)
        self._result = self._parts["preview-result"] = markup_box("tb-preview-result")
        self._stale = markup_box()
        self._found = self._parts["recognised"] = markup_box("tb-recognised")
        self._previewed: dict[str, Any] | None = None
        return [self._found, self._upload_row, self._upload_message, self._preview.box, self._stale, self._result]

    def refresh(self, problems: Problems) -> None:
        super().refresh(problems)
        self._upload_row.layout.display = None if self.state.source in ("local", "upload") else "none"
        found = self.state.recognised
        set_markup(self._found, paragraph(f"In the file: {found.sentence}" if found.columns else ""))
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

    def _read(self, progress: Progress) -> tuple[DataPreview, dict[str, Any]]:
        progress.report("Reading the data")
        setup = self.state.setup.copy()
        return preview_data(setup, self.state.choice.load()), setup.sections()["setup"]

    def _show_preview(self, outcome: Outcome) -> None:
        if outcome.cancelled:
            return
        self._previewed = None
        if outcome.error is not None:
            set_markup(self._result, self._failure(outcome.error))
        else:
            preview, self._previewed = outcome.result
            set_markup(self._result, _preview_markup(preview))
        self.refresh(self.state.visible_problems())


class TokenizerPage(Page):
    """How text becomes token ids, and whose tokenizer it is."""

    def extras(self) -> list[ipywidgets.Widget]:
        self._own = self._parts["own-tokenizer"] = markup_box("tb-own-tokenizer")
        return [self._own]

    def refresh(self, problems: Problems) -> None:
        super().refresh(problems)
        set_markup(self._own, paragraph(tokenizer_sentence(self.state.setup)))


class ModelPage(Page):
    """Where the model comes from, what it says about itself, and a check of it."""

    def above(self) -> list[ipywidgets.Widget]:
        self._drawing = True  # ipywidgets 7 chooses the first of new options by itself
        self._named = self.state.setup.pretrained_model
        self._chosen = "notebook" if self._named is None else "pretrained"
        self._source = self._menu("Model source", "model-source", self._source_chosen)
        self._source.options = [(label, name) for name, label in MODEL_SOURCES.items()]
        self._runs = self._menu("Run", "model-run", self._run_chosen)
        self._no_runs = self._parts["no-runs"] = markup_box("tb-no-runs")
        self._drawing = False
        return [self._source, self._runs, self._no_runs]

    def extras(self) -> list[ipywidgets.Widget]:
        self._files = self._parts["model-files"] = markup_box("tb-model-files")
        self._load = self._job("Load the model", "load", self._load_it, self._show_loaded)
        self._loaded = self._parts["load-result"] = markup_box("tb-load-result")
        self._facts = self._parts["facts"] = markup_box("tb-facts")
        self._check = self._job("Check the model", "check", self._check_it, self._show_check)
        self._result = self._parts["check-result"] = markup_box("tb-check-result")
        return [self._files, self._load.box, self._loaded, self._facts, self._check.box, self._result]

    def refresh(self, problems: Problems) -> None:
        super().refresh(problems)
        setup = self.state.setup
        if setup.pretrained_model is not None and self._chosen == "notebook":
            self._chosen = "pretrained"
        elif setup.pretrained_model is None and self._named is not None:
            self._chosen = "notebook"
        self._named = setup.pretrained_model
        runs = exported_runs(setup) if self._chosen == "run" else []
        self._drawing = True
        try:
            self._source.value = self._chosen
            self._runs.options = [("choose a run", ""), *((run, run) for run in runs)]
            self._runs.value = self._named if self._named in runs else ""
        finally:
            self._drawing = False
        self._runs.layout.display = None if runs else "none"
        hint = f"No run in {setup.output_dir} has an export of the format hf. The folder of one elsewhere can be entered below."
        set_markup(self._no_runs, paragraph(hint if self._chosen == "run" and not runs else ""))
        self._fields.layout.display = None if self._chosen != "notebook" else "none"
        self._load.box.layout.display = None if self._named is not None else "none"
        set_markup(self._files, self._files_markup())
        loaded = self.state.choice.loaded
        set_markup(self._loaded, text("") if loaded is None else _loaded_markup(loaded.notices))
        set_markup(self._facts, data_table("The model in training", model_rows(self.state.facts)))
        self._check.start.disabled = not self.state.choice.exists

    def _menu(self, title: str, key: str, handler: Callable[[Mapping[str, Any]], None]) -> Any:
        layout = ipywidgets.Layout(width="auto", max_width=CONTROL_WIDTH)
        made = ipywidgets.Dropdown(description=title, style={"description_width": LABEL_WIDTH}, layout=layout)
        made.add_class(f"tb-{key}")
        made.observe(guarded(handler, self._report), "value")
        self._parts[key] = made
        return made

    def _files_markup(self) -> Html:
        """What the files of a pretrained model say, before it is loaded."""
        if self.state.setup.pretrained_model is None:
            return text("")
        found = source_facts(self.state.setup)
        if found is None:
            return paragraph("Its files are not on this machine. Loading the model downloads them from the Hub.")
        if found.facts is None:
            return text("")
        tokenizer = "comes with the model" if found.has_tokenizer else "none: it has to come with the model"
        rows = {**source_rows(found.facts), "Tokenizer": tokenizer}
        if adapters := adapters_here(self.state.setup):
            rows["Adapters made here"] = adapters
        return data_table("The pretrained model, by its files", rows)

    def _source_chosen(self, change: Mapping[str, Any]) -> None:
        if self._drawing or not change["new"]:
            return
        self._chosen = change["new"]
        if self._chosen == "notebook" and self._named is not None:
            self.state.set("pretrained_model", None)
        self.refresh(self.state.visible_problems())

    def _run_chosen(self, change: Mapping[str, Any]) -> None:
        if not self._drawing and change["new"]:
            self.state.set("pretrained_model", change["new"])

    def _load_it(self, progress: Progress) -> None:
        progress.report("Loading the model")
        self.state.choice.load()

    def _show_loaded(self, outcome: Outcome) -> None:
        self.refresh(self.state.visible_problems())
        if outcome.error is not None:
            set_markup(self._loaded, self._failure(outcome.error))

    def _check_it(self, progress: Progress) -> Html:
        progress.report("Checking")
        with progress.undisturbed():
            return check_model(self.state.choice.load(), self.state.setup.copy())

    def _show_check(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            set_markup(self._result, self._failure(outcome.error))
        elif not outcome.cancelled:
            set_markup(self._result, element("div", outcome.result, style="line-height:1.4"))


class TrainingPage(Page):
    """How to train, and how long that will take here."""

    def extras(self) -> list[ipywidgets.Widget]:
        self._measure = self._job("Measure time and memory", "measure", self._measure_it, self._show_estimate)
        self._tuning = self._parts["tuning"] = markup_box("tb-tuning")
        self._estimate = self._parts["estimate"] = markup_box("tb-estimate")
        self._measured_with: Any = None
        return [self._tuning, self._measure.box, self._estimate]

    def refresh(self, problems: Problems) -> None:
        super().refresh(problems)
        self._measure.start.disabled = not self.state.choice.exists
        set_markup(self._tuning, paragraph(tuning_sentence(self.state.choice)))
        if self._measured_with is not None and self._measured_with != self.state.setup.sections():
            self._measured_with = None
            set_markup(self._estimate, paragraph("The settings have changed since it was measured."))

    def _measure_it(self, progress: Progress) -> tuple[Mapping[str, str], Any]:
        setup = self.state.setup.copy()
        return estimate_rows(setup, self.state.choice.load(), progress), setup.sections()

    def _show_estimate(self, outcome: Outcome) -> None:
        if outcome.cancelled:
            return
        self._measured_with = None
        if outcome.error is not None:
            set_markup(self._estimate, self._failure(outcome.error))
            return
        rows, self._measured_with = outcome.result
        set_markup(self._estimate, data_table("Measured on this machine, on a copy of the model", rows))
        self.refresh(self.state.visible_problems())


class SummaryPage(Page):
    """All problems and checks with their ways out, all settings, and the setup as code to copy."""

    def extras(self) -> list[ipywidgets.Widget]:
        self._verdict = self._parts["verdict"] = markup_box("tb-verdict")
        self._problems, self._checks = ipywidgets.VBox(), ipywidgets.VBox()
        self._drawn: list[Problem] | None = None
        self._drawn_checks: tuple[Check, ...] = ()
        self._check = self._job("Check now", "check-now", self.state.preflight.run, self._checked)
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
        return [
            self._verdict, self._problems, self._checks, self._check.box, self._table, self._form_of_code, self._code,
        ]  # fmt: skip

    def opened(self, problems: Problems) -> None:
        if not problems[self.step.name] and self.state.preflight.pending and self._check.runs_beside:
            self._check.begin()

    def refresh(self, problems: Problems) -> None:
        super().refresh(problems)
        found = problems[self.step.name]
        set_markup(self._verdict, element("div", element("strong", text(self.state.verdict)), role="status"))
        checks = self.state.preflight.checks
        if checks != self._drawn_checks:
            self._drawn_checks = checks
            self._checks.children = tuple(self._check_row(check) for check in checks)
        if self._check.start.description != (
            label := "Check again" if not self.state.preflight.pending else "Check now"
        ):
            self._check.start.description = label
        if found != self._drawn:
            self._drawn = list(found)
            self._problems.children = tuple(self._problem_row(problem) for problem in found)
        set_markup(self._table, data_table("Settings", self.state.rows()))
        self._write_code(None)

    def _write_code(self, _: Any) -> None:
        self._code.value = setup_code(self._form_of_code.value, self.state.setup, self.state.facts)

    def _checked(self, outcome: Outcome) -> None:
        if outcome.error is not None:
            self._report(outcome.error)
        self.refresh(self.state.visible_problems())

    def _check_row(self, check: Check) -> ipywidgets.Widget:
        line = self._parts[f"check:{check.name}"] = markup_box(f"tb-check-{check.name}", check_line(check))
        buttons = []
        for number, way in enumerate(check.ways_out):
            taken = button(way.label, "tb-way-out", functools.partial(self._take, way), self._report)
            self._parts[f"way-out:{check.name}:{number}"] = taken
            buttons.append(taken)
        if check.verdict == "failed":
            step = next(step for step in STEPS if step.name == check.step)
            label = f"Go to {STEPS.index(step) + 1} {step.title}"
            buttons.append(button(label, "tb-goto", lambda _: self.state.goto(step.name), self._report))
        return ipywidgets.VBox([line, row(*buttons)] if buttons else [line])

    def _take(self, way: WayOut, _: Any) -> None:
        self.state.take(way)
        self._check.begin()

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
    "tokenizer": TokenizerPage,
    "model": ModelPage,
    "training": TrainingPage,
    "summary": SummaryPage,
}


def uploaded_files(value: Any) -> list[tuple[str, bytes]]:
    """Name and content of each file in a FileUpload's value: a dict by name in ipywidgets 7, a tuple of dicts in 8."""
    if isinstance(value, Mapping):
        return [(str(name), bytes(file["content"])) for name, file in value.items()]
    return [(str(file["name"]), bytes(file["content"])) for file in value]


def _loaded_markup(notices: Sequence[str]) -> Html:
    """What a checkpoint did not contain, and where tokenizer and model do not fit."""
    if not notices:
        return paragraph("Loaded. The checkpoint contains every weight of the model, and its tokenizer fits.")
    return joined([paragraph("Loaded."), *(paragraph(notice) for notice in notices)])


def _preview_markup(preview: DataPreview) -> Html:
    style = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.4;margin:0 0 8px 0;color:inherit;background:none"
    if preview.samples:
        title = paragraph("The first training samples, as the model sees them.")
        return joined([data_table("Data", preview.rows), title, samples_html(preview.samples)])
    blocks = [
        joined(
            [element("pre", text(written), style=style), element("pre", text(tokens), style=f"{style};opacity:0.85")]
        )
        for written, tokens in preview.blocks
    ]
    title = paragraph("The beginnings of the first training blocks: the text, then its tokens with | between them.")
    return joined([data_table("Data", preview.rows), title, *blocks])
