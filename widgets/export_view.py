"""The export panel: formats with what they are for, progress, how well each export agrees with the model, and a download."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from utils import colab
from utils.environment import ui_mode
from utils.errors import ConfigError, TrainbookError
from utils.ui.background import Progress
from utils.ui.export_choices import (
    HEADER,
    ExportChoice,
    archive_path,
    export_choices,
    export_one,
    panel_text,
    verification_rows,
    write_archive,
)
from utils.views.design import styled
from utils.views.display import LiveOutput, show_html, show_text
from utils.views.html import Html, alert, columns, element, joined, status, text
from widgets.background_task import Outcome, TaskRow, watch_cells
from widgets.forms import button, heading, markup_box, panel, paragraph, primary, row, set_help, set_markup, small
from widgets.guarded import error_details, error_sentence

if TYPE_CHECKING:
    from utils.training.engine.results import TrainingResults
    from utils.training.export.result import Exports

# Larger archives are made on request only: they take as much disk space again.
_LARGEST_AT_ONCE = 500_000_000

_MORE = "Other formats"


def export_panel(
    results: TrainingResults, formats: Sequence[str] = ("hf", "onnx"), *, ui: str | None = None
) -> Exports:
    """Export `formats` now, and show a panel that exports others on request.

    The panel lists every format with what it is for and, where the model cannot be exported so, why; then size, speed and
    agreement of what was exported, and one download of everything. A format that fails does not affect the others.
    Without widgets the same is shown as text, with the call that exports other formats.

    Args:
        results: of the training.
        formats: what is exported at once, so that a notebook that runs without anybody clicking exports too; (): nothing.
        ui: "auto", "widget", "html", "text" or "none" (`utils.environment.ui_mode`).
    Returns:
        {format: ExportResult} with `not_written` of those that failed; exports made later by a click are added to it.
    Raises:
        ConfigError: an unknown format.
    """
    mode = ui_mode(ui)
    shown = ExportPanel(results) if mode == "widget" else _Exporting(results)
    names = list(dict.fromkeys([formats] if isinstance(formats, str) else formats))
    known = [choice.name for choice in shown.choices]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"got the formats {', '.join(map(repr, unknown))}; this version exports: {', '.join(known)}.")
    output = LiveOutput(shown.box, "Exporting …") if isinstance(shown, ExportPanel) else None
    shown.export(names)
    plain = shown.to_text()
    if output is not None:
        output.describe(plain)
    elif mode == "html":
        show_html(styled(shown.table(), _link(shown)), plain)
    elif mode == "text":
        show_text(plain)
    return shown.exports


class _Exporting:
    """The exports of one run and what is known of them, without a widget: a saved notebook that never showed any holds none.

    Attributes:
        choices: every format; exports: what was written so far, and `not_written`.
        archive: the zip file with all exports; None until it was made.
    """

    def __init__(self, results: TrainingResults) -> None:
        from utils.training.export.result import Exports

        self.choices: list[ExportChoice] = export_choices(results)
        self.exports: Exports = Exports({}, {})
        self.archive: Path | None = None
        self._results = results
        self._problem = ""

    def export(self, names: Sequence[str]) -> None:
        """Export formats now, one after the other, and show each when it is done."""
        for name, sentence in _numbered(names):
            self._say(f"{sentence}, begun at {datetime.now():%H:%M:%S} …")
            self._export_one(name)
            self._draw()
        self._say("")
        self._pack_if_small()

    def _export_one(self, name: str) -> None:
        export_one(self._results, name, self.exports, self.exports.not_written)

    def table(self) -> Html:
        """Size, speed and agreement of every export."""
        rows = verification_rows(self.exports, self.exports.not_written)
        return columns("Exports", HEADER, rows) if rows else text("")

    def to_text(self) -> str:
        """The panel as text."""
        plain = panel_text(self.choices, self.exports, self.exports.not_written)
        packed = "" if self.archive is None else f"All exports in one file: {self.archive}"
        return "\n\n".join(filter(None, [plain, packed, self._problem]))

    def _pack_if_small(self) -> None:
        """Keep the archive that the link leads to up to date."""
        size = sum(result.size_bytes for result in self.exports.values())
        if not self.exports or (size > _LARGEST_AT_ONCE and self.archive is None):
            return
        try:
            self._pack()
        except TrainbookError as error:  # the exports themselves are there
            self._failed(error)

    def _pack(self) -> Path:
        self.archive = write_archive(self.exports, archive_path(self._results))
        return self.archive

    def _draw(self) -> None:
        """Show what was exported so far."""

    def _say(self, sentence: str) -> None:
        """Show what is being done."""

    def _failed(self, error: BaseException) -> None:
        self._problem = error_sentence(error)


class ExportPanel(_Exporting):
    """The panel of one run: what was exported, the download, and behind a button the other formats.

    Attributes:
        box: what is shown; boxes: format -> its checkbox; more: the button that shows and hides the formats; formats: the
            widget with them.
    """

    def __init__(self, results: TrainingResults) -> None:
        super().__init__(results)
        self.boxes = {choice.name: _checkbox(choice) for choice in self.choices}
        self._alert, self._table = markup_box("tb-export-alert"), markup_box("tb-export-table")
        self._progress = markup_box("tb-export-progress")
        self._status = ipywidgets.HTML(status("", spoken_only=True))
        self._job = TaskRow(
            "Export selected formats", "tb-export", self._work, self._done, self._failed, busy="Exporting …"
        )
        self.download = button(
            "Download all (zip)", "tb-export-download", lambda _: self._download(), self._failed,
            "One archive with everything that was exported.",
        )  # fmt: skip
        self._link = markup_box("tb-export-link")
        lines = [
            ipywidgets.VBox([self.boxes[choice.name], markup_box(markup=_explained(choice, before))])
            for before, choice in zip([None, *self.choices], self.choices, strict=False)
        ]
        primary(self._job.start)
        ticks = ipywidgets.VBox(lines)
        ticks.add_class("tb-fields")
        self.formats = ipywidgets.VBox([ticks, self._job.box])
        self.more = button(_MORE, "tb-fold", lambda _: self._show_formats(not self._open), self._failed)
        fold = ipywidgets.VBox([row(self.more), self.formats])
        fold.add_class("tb-topic")
        self.box = panel(
            markup_box(markup=heading(f"Exports of {results.run_name}")), self._progress, self._table,
            row(self.download, self._link), fold, self._alert, self._status,
        )  # fmt: skip
        self.box.add_class("tb-export-panel")
        self._show_formats(True)
        self._draw()
        watch_cells()

    def table(self) -> Html:
        """As the base, below the panel's own heading."""
        rows = verification_rows(self.exports, self.exports.not_written)
        return columns("", HEADER, rows) if rows else text("")

    def export(self, names: Sequence[str]) -> None:
        """As the base; the other formats are behind a button then, and cannot be exported meanwhile."""
        if names:
            self._show_formats(False)
        self.more.disabled = True
        try:
            super().export(names)
        finally:
            self.more.disabled = False

    def _show_formats(self, shown: bool) -> None:
        self._open = shown
        self.formats.layout.display = None if shown else "none"
        with self.more.hold_sync():
            self.more.icon = "caret-down" if shown else "caret-right"
            self.more.description = f"{_MORE}{', open' if shown else ''}"

    def _work(self, progress: Progress) -> None:
        names = [name for name, box in self.boxes.items() if box.value]
        if not names:
            raise ConfigError("No format is selected: tick at least one.")
        for name, sentence in _numbered(names):
            progress.report(sentence)
            with progress.undisturbed():
                self._export_one(name)

    def _done(self, outcome: Outcome) -> None:
        set_markup(self._alert, text(""))
        self._draw()
        if outcome.error is not None:
            self._failed(outcome.error)
            return
        self._pack_if_small()
        count = len(self.exports)
        self._status.value = status(f"{count} format{'' if count == 1 else 's'} exported.", spoken_only=True)

    def _download(self) -> None:
        archive = self._pack()
        if colab.is_colab():
            colab.download_file(archive)
            return
        note = paragraph(f"{archive} ({archive.stat().st_size / 1e6:.1f} MB)")
        set_markup(self._alert, joined([link_to(archive), note]))

    def _pack(self) -> Path:
        archive = super()._pack()
        self._draw()
        return archive

    def _draw(self) -> None:
        set_markup(self._table, self.table())
        link = _link(self)
        set_markup(self._link, link)
        self.download.layout.display = "none" if link or not self.exports else None
        for choice in self.choices:
            self.boxes[choice.name].description = _label(choice) + (", exported" if choice.name in self.exports else "")

    def _say(self, sentence: str) -> None:
        set_markup(self._progress, paragraph(sentence))
        self._status.value = status(sentence, spoken_only=True)

    def _failed(self, error: BaseException) -> None:
        set_markup(self._alert, alert(error_sentence(error), error_details(error)))


def _numbered(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each format with the sentence that says that it is being exported."""
    return [(name, f"Exporting {name} ({number} of {len(names)})") for number, name in enumerate(names, 1)]


def link_to(file: Path) -> Html:
    """A link that downloads a file below the notebook's folder; empty for files elsewhere, which no server offers."""
    here = Path(os.getcwd())
    if not file.is_relative_to(here):
        return text("")
    name = file.relative_to(here).as_posix()
    return element("a", text(f"Download {file.name}"), href=name, download=file.name)


def _link(exporting: _Exporting) -> Html:
    return text("") if exporting.archive is None or colab.is_colab() else link_to(exporting.archive)


def _label(choice: ExportChoice) -> str:
    return choice.title if choice.title.lower() == choice.name else f"{choice.title} ({choice.name})"


def _checkbox(choice: ExportChoice) -> Any:
    possible = choice.refusal is None
    box = ipywidgets.Checkbox(
        value=False, description=_label(choice), indent=False, disabled=not possible,
        layout=ipywidgets.Layout(width="auto"),
    )  # fmt: skip
    box.add_class(f"tb-export-{choice.name}")
    set_help(box, choice.purpose)
    return box


def _explained(choice: ExportChoice, before: ExportChoice | None) -> Html:
    """What a format is for, and why this model cannot be exported so, unless the line before says it."""
    purpose = f"{choice.purpose[0].upper()}{choice.purpose[1:]}."
    if choice.refusal is None:
        return small(purpose, "24px")
    is_said = before is not None and before.refusal == choice.refusal
    why = "Not for this model, for the same reason." if is_said else f"Not for this model: {choice.refusal}"
    return small(f"{purpose} {why}", "24px")
