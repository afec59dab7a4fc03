"""The export panel: formats with what they are for, progress, how well each export agrees with the model, and a download."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from utils import colab
from utils.environment import ui_mode
from utils.errors import ConfigError, TrainbookError
from utils.ui.background import Cancelled, Progress
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
from utils.ui.live_picture import duration
from utils.views.design import styled
from utils.views.display import LiveOutput, show_html, show_text
from utils.views.html import Html, alert, columns, element, joined, status, text
from widgets.background_task import Outcome, TaskRow, watch_cells
from widgets.forms import button, heading, markup_box, panel, paragraph, primary, row, set_help, set_markup, small
from widgets.guarded import error_details, error_sentence
from widgets.pump import AwaitedWork, Pump

if TYPE_CHECKING:
    from utils.training.engine.results import TrainingResults
    from utils.training.export.result import Exports

# Larger archives are made on request only: they take as much disk space again.
_LARGEST_AT_ONCE = 500_000_000

_MORE = "Other formats"


def export_panel(
    results: TrainingResults, formats: Sequence[str] = ("hf", "onnx"), *, ui: str | None = None
) -> Exports:
    """Export `formats` now, and show a panel that exports others on request. In a notebook prefer `run_exports`, which can be
    stopped.

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
    shown, names, finish = _opened(results, formats, ui)
    try:
        shown.export(names)
    finally:
        finish()
    return shown.exports


async def run_exports(
    results: TrainingResults, formats: Sequence[str] = ("hf", "onnx"), *, ui: str | None = None
) -> Exports:
    """`export_panel`, awaited in a notebook's cell: a Stop button, what is being done and for how long.

    Stop and the kernel's interrupt take effect at the next stage of the format under way, of which no file remains. Formats
    that were written are kept and returned; the others are in `not_written`.

    Args, Raises: as for `export_panel`.
    """
    shown, names, finish = _opened(results, formats, ui)
    try:
        await shown.export_awaited(names)
    finally:
        finish()
    return shown.exports


def _opened(
    results: TrainingResults, formats: Sequence[str], ui: str | None
) -> tuple[_Exporting, list[str], Callable[[], None]]:
    """The exports, shown where they are a panel; the names of `formats`; and a function that leaves the final output."""
    mode = ui_mode(ui)
    shown = ExportPanel(results) if mode == "widget" else _Exporting(results, speaks=mode == "text")
    names = list(dict.fromkeys([formats] if isinstance(formats, str) else formats))
    known = [choice.name for choice in shown.choices]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"got the formats {', '.join(map(repr, unknown))}; this version exports: {', '.join(known)}.")
    output = LiveOutput(shown.box, "Exporting …") if isinstance(shown, ExportPanel) else None

    def finish() -> None:
        plain = shown.to_text()
        if output is not None:
            output.describe(plain)
        elif mode == "html":
            show_html(styled(shown.table(), _link(shown)), plain)
        elif mode == "text":
            show_text(plain)

    return shown, names, finish


class _Exporting:
    """The exports of one run and what is known of them, without a widget: a saved notebook that never showed any holds none.

    Attributes:
        choices: every format; exports: what was written so far, and `not_written`.
        archive: the zip file with all exports; None until it was made.

    Args:
        speaks: whether each format is announced in a printed line.
    """

    def __init__(self, results: TrainingResults, *, speaks: bool = False) -> None:
        from utils.training.export.result import Exports

        self.choices: list[ExportChoice] = export_choices(results)
        self.exports: Exports = Exports({}, {})
        self.archive: Path | None = None
        self._results, self._speaks = results, speaks
        self._problem = self._said = ""

    def export(self, names: Sequence[str]) -> None:
        """Export formats now, one after the other, and show each when it is done."""
        with self._exporting(names):
            for name, sentence in _numbered(names):
                self._export_one(name, sentence, Progress(self._say))
                self._draw()

    async def export_awaited(self, names: Sequence[str]) -> None:
        """The same in a thread, while the kernel delivers clicks. A stop is no error."""
        progress, pump, began_s = Progress(), Pump(), time.monotonic()
        with self._exporting(names, progress), contextlib.suppress(Cancelled):
            for name, sentence in _numbered(names):
                # A thread for each, so that nothing is drawn while one of them changes the exports.
                work = AwaitedWork("trainbook-export", partial(self._export_one, name, sentence, progress))

                def alive(thread: threading.Thread = work.thread) -> bool:
                    self._follow(progress, time.monotonic() - began_s, pump.delivers)
                    return thread.is_alive()

                try:
                    await work.ended(pump, alive, lambda _: progress.cancel())
                except (KeyboardInterrupt, asyncio.CancelledError):  # which one depends on ipykernel
                    if work.thread.is_alive():  # interrupted again
                        raise
                if work.error is not None:
                    raise work.error
                self._draw()

    @contextlib.contextmanager
    def _exporting(self, names: Sequence[str], progress: Progress | None = None) -> Iterator[None]:
        """Around the export of formats. What was not written when it ends early says so."""
        self._begins(names, progress)
        try:
            yield
        finally:
            for name in names:
                if name not in self.exports:
                    self.exports.not_written.setdefault(name, "stopped before it was written")
            self._ends()
        self._pack_if_small()

    def _export_one(self, name: str, sentence: str, progress: Progress) -> None:
        progress.report(sentence)
        with progress.undisturbed():
            export_one(
                self._results, name, self.exports, self.exports.not_written,
                lambda doing: progress.report(f"{sentence}: {doing}"),
            )  # fmt: skip

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

    def _begins(self, names: Sequence[str], progress: Progress | None) -> None:
        """Get ready for an export, which `progress`, if there is one, can cancel."""

    def _ends(self) -> None:
        """Show that nothing is being exported any more."""
        self._draw()

    def _draw(self) -> None:
        """Show what was exported so far."""

    def _follow(self, progress: Progress, seconds: float, delivers: bool) -> None:
        """Show what has been done for how long; called several times a second."""
        self._say(progress.sentence)

    def _say(self, sentence: str) -> None:
        """Show what is being done."""
        announced = sentence.partition(":")[0]  # each format once, not each stage
        if self._speaks and announced not in ("", self._said):
            show_text(f"{announced} …")
        self._said = announced

    def _failed(self, error: BaseException) -> None:
        self._problem = error_sentence(error)


class ExportPanel(_Exporting):
    """The panel of one run: what was exported, the download, and behind a button the other formats.

    Attributes:
        box: what is shown; boxes: format -> its checkbox; more: the button that shows and hides the formats; formats: the
            widget with them; stop: the button that ends an awaited export.
    """

    def __init__(self, results: TrainingResults) -> None:
        super().__init__(results)
        self.boxes = {choice.name: _checkbox(choice) for choice in self.choices}
        self._alert, self._table = markup_box("tb-export-alert"), markup_box("tb-export-table")
        self._progress = markup_box("tb-export-progress")
        self._under_way: Progress | None = None
        self.stop = button(
            "Stop", "tb-export-stop", lambda _: self._stop(), self._failed, "Keep what was exported and end the rest."
        )
        self.stop.layout.display = "none"
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
            markup_box(markup=heading(f"Exports of {results.run_name}")), row(self.stop, self._progress), self._table,
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

    def _begins(self, names: Sequence[str], progress: Progress | None) -> None:
        """The other formats are behind a button from now on, and cannot be exported meanwhile."""
        if names:
            self._show_formats(False)
        self.more.disabled, self._under_way = True, progress
        self.stop.layout.display = None if progress is not None and names else "none"

    def _ends(self) -> None:
        self.more.disabled, self._under_way = False, None
        self.stop.layout.display = "none"
        self._say("")
        self._draw()

    def _stop(self) -> None:
        if self._under_way is not None:
            self._under_way.cancel()
            self.stop.disabled, self.stop.description = True, "Stopping…"

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
            self._export_one(name, sentence, progress)

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
        # While formats are exported the archive would hold some of them only.
        self.download.layout.display = "none" if link or not self.exports or self.more.disabled else None
        for choice in self.choices:
            self.boxes[choice.name].description = _label(choice) + (", exported" if choice.name in self.exports else "")

    def _follow(self, progress: Progress, seconds: float, delivers: bool) -> None:
        stopping = "Stopping. " if progress.cancelled else ""
        by_hand = "" if delivers else " Stop with the kernel's interrupt: this kernel delivers no clicks meanwhile."
        self._say(progress.sentence, f"{stopping}{progress.sentence}, {duration(seconds)} …{by_hand}")

    def _say(self, sentence: str, shown: str = "") -> None:
        set_markup(self._progress, paragraph(shown or (sentence and f"{sentence} …")))
        announced = sentence.partition(":")[0]
        if announced != self._said:  # screen readers hear each format once, not each stage
            self._said = announced
            self._status.value = status(announced, spoken_only=True)

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
