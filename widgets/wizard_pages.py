"""The wizard's pages: each draws one step of a WizardState, when it is first shown."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets

from utils.data.source_kinds import SOURCE_KINDS
from utils.errors import ConfigError, Problem, TrainbookError
from utils.ui.background import Progress
from utils.ui.choice_names import choice_name
from utils.ui.model_source import tokenizer_sentence
from utils.ui.preflight import Check, WayOut
from utils.ui.setting_values import shown_value, titled
from utils.ui.setup_config import SetupConfig
from utils.ui.wizard_code import CODE_FORMS, setup_code
from utils.ui.wizard_model import tuning_sentence
from utils.ui.wizard_preview import DataPreview, estimate_rows, find_rate, preview_data
from utils.ui.wizard_state import WizardState
from utils.ui.wizard_steps import STEPS, WizardStep, recognise_dataset, step_of
from utils.views.html import Html, element, joined, table, text
from utils.views.samples import samples_html
from widgets.background_task import Outcome
from widgets.focus import move_focus
from widgets.forms import (
    Report,
    button,
    check_line,
    markup_box,
    paragraph,
    problem_line,
    row,
    set_markup,
    small,
    uploaded_files,
)
from widgets.guarded import guarded
from widgets.wizard_mixture import MixtureRows
from widgets.wizard_model_page import ModelPage
from widgets.wizard_page import Page, Parts, Problems


class DataPage(Page):
    """The data, an upload for a file, and a preview of what the model will see."""

    def __init__(self, step: WizardStep, state: WizardState, parts: Parts, report: Report) -> None:
        super().__init__(step, state, parts, report)
        self._upload = ipywidgets.FileUpload(
            description="Upload a file", multiple=False, layout=ipywidgets.Layout(width="auto")
        )
        self._upload.add_class("tb-upload")
        self._upload.observe(guarded(self._uploaded, self._report), "value")
        self._parts["upload"] = self._upload
        large = "For a large file: put it beside the notebook, and give its path above."
        self._upload_row = row(self._upload, markup_box(markup=small(large)))
        self._upload_message = self._parts["error:upload"] = markup_box("tb-error-upload")
        self._preview_job = self._job("Preview the data", "preview", self._preview, self._show_preview)
        self._result = self._parts["preview-result"] = markup_box("tb-preview-result")
        self._stale = markup_box()
        self._found = self._parts["recognised"] = markup_box("tb-recognised")
        self._first_rows_job = self._job("Read the first rows", "first-rows", self._read_first, self._show_first)
        self._suggested = self._parts["suggested-task"] = markup_box("tb-suggested-task")
        self._use_task = self._parts["use-task"] = button("Use task", "tb-use-task", self._take_task, self._report)
        self._suggestion = row(self._suggested, self._use_task)
        self._mixture = MixtureRows(self.state, self._parts, self._report)
        self._previewed: dict[str, Any] | None = None
        self._arrange(below=[
            self._first_rows_job.box, self._found, self._suggestion, self._upload_row, self._upload_message,
            row(self._mixture.box, self._preview_job.box), self._stale, self._result,
        ])  # fmt: skip

    def refresh(self, problems: Problems) -> None:
        super().refresh(problems)
        uploads = SOURCE_KINDS[self.state.source].offers_upload and not self.state.setup.mixture
        self._upload_row.layout.display = None if uploads else "none"
        found = self.state.recognised
        self._mixture.refresh()
        self._mixture.box.layout.width = "100%" if self.state.setup.mixture else "auto"  # beside the preview's button
        is_named = SOURCE_KINDS[self.state.setup.dataset_source].reader == "hub" and not found.columns
        self._first_rows_job.box.layout.display = None if is_named else "none"
        set_markup(self._found, paragraph(found.sentence if found.columns else ""))
        sentence = self.state.task_sentence
        set_markup(self._suggested, paragraph(sentence))
        self._suggestion.layout.display = None if sentence else "none"
        differs = bool(sentence) and found.task != self.state.setup.task
        self._use_task.layout.display = None if differs else "none"
        if differs:
            self._use_task.description = f"Use task: {choice_name('task', found.task)}"
        stale = self._previewed is not None and self._previewed != self.state.setup.sections()["setup"]
        set_markup(self._stale, paragraph("The settings have changed since this preview." if stale else ""))

    def _read_first(self, progress: Progress) -> None:
        progress.report("Reading the first rows")
        recognise_dataset(self.state.setup.copy())

    def _show_first(self, outcome: Outcome) -> None:
        self.refresh(self.state.visible_problems())
        if outcome.error is not None:
            set_markup(self._found, self._failure(outcome.error))

    def _take_task(self, _: Any) -> None:
        self.state.set("task", self.state.recognised.task)
        move_focus(self._parts["field:task"])  # the button is gone

    def _uploaded(self, change: Mapping[str, Any]) -> None:
        problem = ""
        for name, content in uploaded_files(change["new"]):
            try:
                self.state.upload(name, content)
            except TrainbookError as error:
                problem = str(error)
        set_markup(self._upload_message, problem_line(problem))

    def _preview(self, progress: Progress) -> tuple[DataPreview, dict[str, Any]]:
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

    def __init__(self, step: WizardStep, state: WizardState, parts: Parts, report: Report) -> None:
        super().__init__(step, state, parts, report)
        self._own = self._parts["own-tokenizer"] = markup_box("tb-own-tokenizer")
        self._arrange(below=[self._own])

    def refresh(self, problems: Problems) -> None:
        super().refresh(problems)
        set_markup(self._own, paragraph(tokenizer_sentence(self.state.setup)))


class TrainingPage(Page):
    """How to train, and how long that will take here."""

    def __init__(self, step: WizardStep, state: WizardState, parts: Parts, report: Report) -> None:
        super().__init__(step, state, parts, report)
        self._measure_job = self._job("Measure time and memory", "measure", self._measure, self._show_estimate)
        self._tuning = parts["tuning"] = markup_box("tb-tuning")
        self._estimate = _Dated("tb-estimate", _all_but_words, "it was measured")
        self._find_job = self._job("Find a learning rate", "find-rate", self._find, self._show_rate)
        self._found = _Dated("tb-found-rate", _all_but_the_rate, "the learning rate was searched")
        parts["estimate"], parts["found-rate"] = self._estimate.box, self._found.box
        self._use = parts["use-rate"] = button("Use it", "tb-use-rate", self._use_rate, report)
        self._offer(None)
        self._arrange(below=[
            self._tuning, row(self._measure_job.box, self._find_job.box), self._estimate.box, self._found.box,
            row(self._use),
        ])  # fmt: skip

    def refresh(self, problems: Problems) -> None:
        super().refresh(problems)
        self._measure_job.start.disabled = self._find_job.start.disabled = not self.state.choice.exists
        set_markup(self._tuning, paragraph(tuning_sentence(self.state.choice)))
        self._estimate.drop_outdated(self.state.setup)
        if self._found.drop_outdated(self.state.setup):
            self._offer(None)

    def _measure(self, progress: Progress) -> tuple[Mapping[str, str], SetupConfig]:
        setup = self.state.setup.copy()
        return estimate_rows(setup, self.state.choice.load(), progress), setup

    def _show_estimate(self, outcome: Outcome) -> None:
        if outcome.cancelled:
            return
        if outcome.error is not None:
            self._estimate.show(self._failure(outcome.error))
            return
        rows, setup = outcome.result
        self._estimate.show(table("Measured on this machine, on a copy of the model", rows), setup)
        self.refresh(self.state.visible_problems())

    def _find(self, progress: Progress) -> tuple[Any, SetupConfig]:
        setup = self.state.setup.copy()
        return find_rate(setup, self.state.choice.load(), progress), setup

    def _show_rate(self, outcome: Outcome) -> None:
        if outcome.cancelled:
            return
        self._offer(None)
        if outcome.error is not None:
            self._found.show(self._failure(outcome.error))
            return
        found, setup = outcome.result
        self._found.show(found.to_html(), setup)
        if found.applies and found.suggestion is not None:
            self._offer(float(f"{found.suggestion:.2g}"))
        self.refresh(self.state.visible_problems())

    def _offer(self, rate: float | None) -> None:
        """The button that takes the suggestion; hidden with None."""
        self._suggested = rate
        self._use.layout.display = "none" if rate is None else None
        if rate is not None:
            self._use.description = f"Use {rate:.2g}"

    def _use_rate(self, _: Any) -> None:
        if self._suggested is not None:
            self.state.set("learning_rate", self._suggested)


class _Dated:
    """Something found for the settings of a moment. Once these have changed, a sentence takes its place.

    Attributes:
        box: what is shown.
    Args:
        depends_on: the settings on which it depends; made: what was done then, for the sentence.
    """

    def __init__(self, css_class: str, depends_on: Callable[[SetupConfig], Any], made: str) -> None:
        self.box = markup_box(css_class)
        self._depends_on, self._made = depends_on, made
        self._settings: Any = None

    def show(self, markup: Html, setup: SetupConfig | None = None) -> None:
        """Show the result for `setup`; without a setup it never becomes outdated."""
        self._settings = None if setup is None else self._depends_on(setup)
        set_markup(self.box, markup)

    def drop_outdated(self, setup: SetupConfig) -> bool:
        """Show the sentence if the settings have changed; whether they have."""
        if self._settings is None or self._settings == self._depends_on(setup):
            return False
        self.show(paragraph(f"The settings have changed since {self._made}."))
        return True


def _all_but_words(setup: SetupConfig) -> Any:
    """What time and memory depend on: every setting but how the run is called and what is noted of it."""
    sections = setup.sections()
    return {**sections, "training": {**sections["training"], "run_name": None, "notes": None}}


def _all_but_the_rate(setup: SetupConfig) -> Any:
    """What a suggested learning rate depends on."""
    kept = _all_but_words(setup)
    return {**kept, "training": {**kept["training"], "learning_rate": None}}


class SummaryPage(Page):
    """All problems and checks with their ways out, all settings, and the setup as code to copy."""

    def __init__(self, step: WizardStep, state: WizardState, parts: Parts, report: Report) -> None:
        super().__init__(step, state, parts, report)
        self._verdict = self._parts["verdict"] = markup_box("tb-verdict")
        self._problems, self._checks = ipywidgets.VBox(), ipywidgets.VBox()
        self._drawn: list[Problem] | None = None
        self._drawn_checks: tuple[Check, ...] = ()
        self._check_job = self._job("Check now", "check-now", self.state.preflight.run, self._checked)
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
        self._arrange(below=[
            self._verdict, self._problems, self._checks, self._check_job.box, self._table, self._form_of_code, self._code,
        ])  # fmt: skip

    def opened(self, problems: Problems) -> None:
        if not problems[self.step.name] and self.state.preflight.pending and self._check_job.runs_beside:
            self._check_job.begin()

    def refresh(self, problems: Problems) -> None:
        super().refresh(problems)
        found = problems[self.step.name]
        set_markup(self._verdict, element("div", element("strong", text(self.state.verdict)), role="status"))
        checks = self.state.preflight.checks
        if checks != self._drawn_checks:
            self._drawn_checks = checks
            self._checks.children = tuple(self._check_row(check) for check in checks)
        label = "Check now" if self.state.preflight.pending else "Check again"
        if self._check_job.start.description != label:
            self._check_job.start.description = label
        if found != self._drawn:
            self._drawn = list(found)
            self._problems.children = tuple(self._problem_row(problem) for problem in found)
        set_markup(self._table, table("Settings", self.state.rows()))
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
        self._check_job.begin()
        move_focus(self._check_job.start)  # the button is gone

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
            move_focus(self._check_job.start)  # the button is gone


PAGES: Mapping[str, type[Page]] = {
    "dataset": DataPage,
    "tokenizer": TokenizerPage,
    "model": ModelPage,
    "training": TrainingPage,
    "summary": SummaryPage,
}


def _preview_markup(preview: DataPreview) -> Html:
    style = (
        "white-space:pre-wrap;overflow-wrap:anywhere;word-break:normal;line-height:1.4;margin:0 0 8px 0;color:inherit;"
        "background:none"
    )
    if preview.samples:
        title = paragraph("The first training samples, as the model sees them.")
        return joined([table("Data", preview.rows), title, samples_html(preview.samples)])
    blocks = [
        joined(
            [element("pre", text(written), style=style), element("pre", text(tokens), style=f"{style};opacity:0.85")]
        )
        for written, tokens in preview.blocks
    ]
    title = paragraph("The beginnings of the first training blocks: the text, then its tokens with | between them.")
    return joined([table("Data", preview.rows), title, *blocks])
