"""The runs panel: every run of a folder with what became of it; open, compare, report, annotate, archive and delete runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets

from utils.environment import ui_mode
from utils.ui.managed_runs import ManagedRun, ManagedRuns
from utils.ui.runs import show_runs
from utils.views.display import LiveOutput
from utils.views.html import element, text
from widgets.follow_slot import FollowSlot
from widgets.forms import button, heading, markup_box, panel, paragraph, primary, problem_line, row, set_markup, small
from widgets.guarded import error_sentence, guarded

# Rows that are drawn at first, and that "Show more" adds: each is a checkbox in the page.
PAGE = 20

_HELP = "Tick runs, then choose what to do with them. An archived run keeps its folder and can be restored."


def runs_panel(output_dir: str | Path = "runs", *, ui: str | None = None) -> ManagedRuns:
    """Show the runs in `output_dir` with buttons to open, compare, report, annotate, archive and delete them.

    Args:
        output_dir: where runs are.
        ui: "auto", "widget", "html", "text" or "none" (`utils.environment.ui_mode`). Without widgets the runs are a table.
    Returns:
        the runs, with `annotate`, `archive`, `restore` and `delete` for those who rather type.
    """
    runs = ManagedRuns(output_dir)
    mode = ui_mode(ui)
    if mode == "widget":
        LiveOutput(RunsPanel(runs).box, runs.to_text())
    elif mode != "none":
        show_runs(output_dir)
    return runs


class _Row:
    """One run's checkbox and cells; drawn again in place, so that the focus stays where it is."""

    def __init__(self, name: str, changed: Callable[[Any], None]) -> None:
        self.tick = ipywidgets.Checkbox(
            value=False, description=name, indent=False, layout=ipywidgets.Layout(width="220px")
        )
        self.tick.add_class("tb-run-tick")
        self.cells = ipywidgets.HTML(layout=ipywidgets.Layout(flex="1 1 380px"))
        self.box = ipywidgets.HBox([self.tick, self.cells], layout=ipywidgets.Layout(flex_flow="row wrap"))
        self.box.add_class("tb-run-row")
        self.tick.observe(changed, "value")

    def draw(self, run: ManagedRun) -> None:
        markup = run.markup()
        if self.cells.value != markup:
            self.cells.value = markup


class RunsPanel:
    """The panel's widgets.

    Attributes:
        box: what is shown; list: the rows; message: what was done or went wrong; view: what was opened last.
        archived: whether archived runs are shown; notes, tags: the form of the one run that is ticked.
        refresh, open, report, compare, archive, delete, save, confirm, keep, more: the buttons. `confirm` and `keep` answer the
            question that `delete` asks.
    """

    def __init__(self, runs: ManagedRuns) -> None:
        self._runs = runs
        self._rows: dict[str, _Row] = {}
        self._shown, self._limit, self._doomed = [""], PAGE, list[str]()
        self._edited = ""
        self.message, self.question = markup_box("tb-runs-message"), markup_box("tb-runs-question")
        self._slot = FollowSlot("tb-runs-live")
        self.list, self.view = ipywidgets.VBox([]), self._slot.box
        self.archived = ipywidgets.Checkbox(value=False, description="Archived runs", indent=False)
        self.archived.add_class("tb-runs-archived")
        self.archived.observe(guarded(self._show_other, self._report_error), "value")
        self.refresh = self._button("Refresh", "refresh", lambda _: self._say(""))
        self.open = primary(
            self._button("Open", "open", self._open, "The live view of a run under way, or how it ended.")
        )
        self.report = self._button("Report", "report", self._write_report, "Write report.html into the run's folder.")
        self.compare = self._button(
            "Compare", "compare", self._compare, "Curves and differing settings of two to ten runs."
        )
        self.archive = self._button(
            "Archive", "archive", self._archive, "Leave the runs out of lists; nothing is deleted."
        )
        self.delete = self._button("Delete…", "delete", self._ask, "Asks first.")
        self.confirm = self._button("Delete for good", "confirm", self._delete)
        self.keep = self._button("Keep", "keep", lambda _: self._say("Nothing was deleted."))
        self.more = self._button("Show more", "more", self._show_more)
        for made in (self.delete, self.confirm):
            made.add_class("tb-danger")
        self._confirming = row(self.question, self.confirm, self.keep)
        self._withdraw()
        wide = ipywidgets.Layout(width="auto", flex="1 1 320px", max_width="560px")
        self.notes = ipywidgets.Textarea(description="Notes", rows=2, layout=wide)
        self.tags = ipywidgets.Text(description="Tags", placeholder="separated by commas", layout=wide)
        self.notes.add_class("tb-runs-notes")
        self.tags.add_class("tb-runs-tags")
        self.save = self._button("Save notes and tags", "save", self._annotate)
        self._form = row(self.notes, self.tags, self.save)
        self.box = panel(
            markup_box(markup=heading(f"Runs in {runs.folder}")), markup_box(markup=small(_HELP)),
            row(self.refresh, self.archived), self.list, self.more,
            row(self.open, self.compare, self.report, self.archive, self.delete), self._confirming, self._form, self.message,
            self.view,
        )  # fmt: skip
        self.box.add_class("tb-runs-panel")
        self.draw()

    @property
    def ticked(self) -> list[str]:
        """Names of the ticked runs, in the list's order."""
        return [name for name in self._shown if name in self._rows and self._rows[name].tick.value]

    def tick(self, *names: str) -> None:
        """Tick exactly these runs."""
        for name, found in self._rows.items():
            found.tick.value = name in names

    def draw(self) -> None:
        """Show the runs as they are now."""
        found = self._runs.rows(archived=self.archived.value)
        names = [run.name for run in found[: self._limit]]
        for run in found[: self._limit]:
            if run.name not in self._rows:
                self._rows[run.name] = _Row(run.name, guarded(lambda _: self._choice_changed(), self._report_error))
            self._rows[run.name].draw(run)
        if names != self._shown:
            self._shown = names
            self._rows = {name: self._rows[name] for name in names}
            none = "No archived run." if self.archived.value else f"No run in {self._runs.folder} yet."
            self.list.children = [self._rows[name].box for name in names] or [markup_box(markup=paragraph(none))]
        self.more.layout.display = None if len(found) > len(names) else "none"
        self._notes_of = {run.name: (run.run.notes, ", ".join(run.run.tags)) for run in found}
        self._choice_changed()

    def _choice_changed(self) -> None:
        """What the ticked runs allow; a question about others is withdrawn."""
        chosen = self.ticked
        one = chosen[0] if len(chosen) == 1 else ""
        self.open.disabled = self.report.disabled = not one
        self.compare.disabled = len(chosen) < 2
        self.archive.disabled = self.delete.disabled = not chosen
        self.archive.description = "Restore" if self.archived.value else "Archive"
        self._form.layout.display = None if one else "none"
        if one != self._edited:
            self._edited = one
            self.notes.value, self.tags.value = self._notes_of.get(one, ("", ""))
        if chosen != self._doomed:
            self._withdraw()

    def _withdraw(self) -> None:
        self._doomed = []
        set_markup(self.question, paragraph(""))
        self._confirming.layout.display = "none"

    def _button(self, label: str, name: str, handler: Callable[[Any], object], help_text: str = "") -> Any:
        return button(label, f"tb-runs-{name}", handler, self._report_error, help_text)

    def _report_error(self, error: BaseException) -> None:
        set_markup(self.message, problem_line(error_sentence(error)))

    def _say(self, sentence: str) -> None:
        self._withdraw()
        set_markup(self.message, paragraph(sentence))
        self.draw()

    def _show_other(self, _: Any) -> None:
        self._limit = PAGE
        self.tick()
        self._say("")

    def _show_more(self, _: Any) -> None:
        self._limit += PAGE
        self.draw()

    def _annotate(self, _: Any) -> None:
        self._say(self._runs.annotate(self._edited, self.notes.value, self.tags.value))

    def _write_report(self, _: Any) -> None:
        self._say(self._runs.report(self.ticked[0]))

    def _archive(self, _: Any) -> None:
        self._say((self._runs.restore if self.archived.value else self._runs.archive)(self.ticked))

    def _ask(self, _: Any) -> None:
        chosen = self.ticked
        asked = element("div", text(self._runs.question(chosen)), aria_live="assertive", class_="tb-problem")
        set_markup(self.question, asked)
        set_markup(self.message, paragraph(""))
        self._doomed = chosen
        self._confirming.layout.display = None

    def _delete(self, _: Any) -> None:
        doomed = self._doomed
        if not doomed:  # a second click
            return
        try:
            said = self._runs.delete(doomed)
        finally:
            self._withdraw()
            self.draw()
        self._say(said)

    def _compare(self, _: Any) -> None:
        self._slot.show(markup_box("tb-runs-compared", self._runs.compared(self.ticked)))

    def _open(self, _: Any) -> None:
        """The live view of the ticked run from its folder, in place of what was shown before."""
        name = self.ticked[0]
        folder = self._runs.path(name)
        if self._slot.open(folder):
            self._say(f"Run {name} is under way in {folder}.")
