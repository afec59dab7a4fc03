"""A background task of a few seconds that a button starts, with progress and a Cancel button.

The work runs in a thread, and the kernel's event loop draws: only the main thread sends to widgets. Where no event loop
would draw (outside a kernel, and in Colab, which applies updates only while it handles a message or runs a cell) the work
is done in the button's handler instead, and the kernel's interrupt cancels it.

A cell that starts cancels the work and waits until the model and the random generators are free: what the cell computes
must not depend on what was measured beside it. For the same reason a click while a cell runs waits for the cell's end.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from utils.environment import front_end
from utils.ui.background import Cancelled, Progress
from utils.ui.live_picture import duration
from widgets.forms import Report, button, markup_box, paragraph, row, set_markup
from widgets.guarded import guarded

# Seconds between two looks at the work's progress.
_LOOK_S = 0.2

# The work of a click that waited starts after this many looks at which no cell ran: between two cells of Run All none does.
_IDLE_LOOKS = 2

# Characters of a cell's code that are shown at most.
_LONGEST_CODE = 60

# Work that takes longer than this many seconds says for how long it has been under way.
_ELAPSED_S = 3.0


@dataclass(frozen=True)
class Outcome:
    """How work ended: with its result, with an error, or cancelled."""

    result: Any = None
    error: BaseException | None = None
    cancelled: bool = False


class TaskRow:
    """A button that starts work, one that cancels it, and a line that says what it does.

    Attributes:
        box: what is shown; start, cancel: the buttons; line: the widget with the progress.

    Args:
        label: of the button that starts.
        css_class: of that button; the others have it with `-cancel` and `-progress` after it.
        work: what is done; called in another thread where there is an event loop.
        done: called with the outcome, in the thread of the widgets.
        busy: the starting button's label while work is under way; "": `label`.
    """

    def __init__(
        self,
        label: str,
        css_class: str,
        work: Callable[[Progress], Any],
        done: Callable[[Outcome], None],
        report: Report,
        busy: str = "",
    ) -> None:
        self._labels = {False: label, True: busy or label}
        self.start = button(label, css_class, lambda _: self.begin(), report)
        self.cancel = button("Cancel", f"{css_class}-cancel", lambda _: self._cancel(), report)
        self.line = markup_box(f"{css_class}-progress")
        self.box = row(self.start, self.cancel, self.line)
        self._work, self._done, self._report = work, done, report
        self._progress: Progress | None = None
        self._waiting: asyncio.Task[None] | None = None  # for the end of a cell
        self._outcome = Outcome()
        self._task: asyncio.Task[None] | None = None
        self._drawn = ""
        self._show_running(False)

    @property
    def runs_beside(self) -> bool:
        """Whether work would be done beside the kernel's own, so that it may start without having been asked for."""
        return event_loop() is not None and not _Cells.running

    def begin(self) -> None:
        """Start the work, if it is not under way; while a cell runs, as soon as no cell runs any more."""
        if self._progress is not None or self._waiting is not None:
            return
        watch_cells()
        loop = event_loop()
        if _Cells.running and loop is not None:
            self._show_running(True)
            self._waiting = loop.create_task(self._start_after_cells(loop))
        else:
            self._start(loop)

    async def _start_after_cells(self, loop: asyncio.AbstractEventLoop) -> None:
        idle = 0
        while idle < _IDLE_LOOKS:
            idle = 0 if _Cells.running else idle + 1
            guarded(lambda _: self._draw(f"Waiting for the running cell to end: {_Cells.code}"), self._report)(None)
            await asyncio.sleep(_LOOK_S)
        self._waiting = None
        guarded(lambda _: self._start(loop), self._report)(None)

    def _start(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._show_running(True)
        self._draw("")
        if loop is None:
            self._progress = Progress(self._draw)
            self._run(self._progress)
            self._finish()
            return
        progress = self._progress = Progress()
        _Cells.under_way.add(progress)
        thread = threading.Thread(target=self._run, args=(progress,), name="trainbook-wizard", daemon=True)
        thread.start()
        self._task = loop.create_task(self._watch(thread, progress))

    def _run(self, progress: Progress) -> None:
        try:
            self._outcome = Outcome(self._work(progress))
        except (Cancelled, KeyboardInterrupt):
            self._outcome = Outcome(cancelled=True)
        except Exception as error:  # noqa: BLE001 - `_finish` gives it to `done`, which shows it
            self._outcome = Outcome(error=error)

    async def _watch(self, thread: threading.Thread, progress: Progress) -> None:
        while thread.is_alive():
            guarded(lambda _: self._draw_progress(progress), self._report)(None)
            await asyncio.sleep(_LOOK_S)
        _Cells.under_way.discard(progress)
        guarded(lambda _: self._finish(), self._report)(None)

    def _draw_progress(self, progress: Progress) -> None:
        spent = time.monotonic() - self._began_s
        elapsed = f", {duration(spent)}" if spent >= _ELAPSED_S else ""
        self._draw("Cancelling" if progress.cancelled else f"{progress.sentence}{elapsed}")

    def _finish(self) -> None:
        outcome, self._outcome = self._outcome, Outcome()
        by_a_cell = self._progress in _Cells.made_way
        _Cells.made_way.discard(self._progress)
        self._progress = None
        self._show_running(False)
        said = (
            "Cancelled, because a cell was run: start it again when the cell has ended." if by_a_cell else "Cancelled."
        )
        self._draw(said if outcome.cancelled else "")
        self._done(outcome)

    def _cancel(self) -> None:
        if self._progress is not None:
            self._progress.cancel()
            self._draw("Cancelling")
        elif self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
            self._show_running(False)
            self._draw("")

    def _show_running(self, running: bool) -> None:
        # Not disabled, which would take the keyboard focus away; `begin` ignores clicks meanwhile.
        (self.start.add_class if running else self.start.remove_class)("tb-busy")
        self._began_s = time.monotonic()
        if self.start.description == self._labels[not running]:
            self.start.description = self._labels[running]
        self.cancel.layout.display = None if running and event_loop() is not None else "none"

    def _draw(self, sentence: str) -> None:
        if sentence != self._drawn:
            self._drawn = sentence
            is_whole = not sentence or sentence.endswith((".", "…"))
            set_markup(self.line, paragraph(sentence if is_whole else f"{sentence} …"))


def event_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that draws after a handler has returned, or None."""
    if front_end() != "notebook":
        return None
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


class _Cells:
    """Whether a cell runs, and the work that is under way beside the kernel's own."""

    running = False
    code = ""  # the line by which a reader finds the running cell
    under_way: set[Progress] = set()  # noqa: RUF012 - one for the process, as the kernel is
    made_way: set[Progress] = set()  # noqa: RUF012 - those that were cancelled for a cell


def watch_cells() -> None:
    """From now on, know whether a cell runs. Outside a kernel nothing happens; a second call changes nothing."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None:
        return
    for event, handler in (("pre_run_cell", _cell_begins), ("post_run_cell", _cell_ends)):
        # By name: after a reload of this module the function registered before is another object.
        known = [function.__name__ for function in shell.events.callbacks[event] if hasattr(function, "__name__")]
        if handler.__name__ not in known:
            shell.events.register(event, handler)


def _cell_begins(info: Any) -> None:
    _Cells.running, _Cells.code = True, _awaiting_line(getattr(info, "raw_cell", None) or "")
    for progress in list(_Cells.under_way):
        _Cells.made_way.add(progress)
        progress.cancel_and_wait()


def _awaiting_line(code: str) -> str:
    """The line of a cell that awaits, which is the one that takes long; else the first one; cut."""
    lines = [line.strip() for line in code.splitlines() if line.strip()]
    chosen = next((line for line in lines if "await " in line), lines[0] if lines else "")
    return chosen if len(chosen) <= _LONGEST_CODE else f"{chosen[: _LONGEST_CODE - 1]}…"


def _cell_ends(result: Any) -> None:
    _Cells.running = False
