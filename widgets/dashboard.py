"""The live view of one run as widgets: what it does, its curves and samples, and its buttons."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import ipywidgets

from utils.views.display import KeptCopy
from utils.views.html import alert, status
from utils.views.live import LivePicture, Notice, live_content, live_view
from widgets.forms import panel
from widgets.guarded import error_details, error_sentence
from widgets.run_controls import RunControls

if TYPE_CHECKING:
    from utils.training.engine.interrupts import Control
    from utils.ui.live_run import Phase
    from widgets.run_controls import Stoppable

# Kept free from the start, so that the page does not jump when the first curve appears.
_HEIGHT = "400px"

# Seconds between two static copies, which are saved with the notebook.
COPY_S = 30.0

_ENDED = (
    "The kernel of this view has ended. What it shows is the state at that time: execute show_live() to see the run as it "
    "is now, or run the training cell again to continue it."
)


class Dashboard:
    """Draws what it is given; each drawing is one message to the browser, whatever changed.

    Attributes:
        box: the widget to display; controls: its buttons; errors: what handlers raised.
    Args:
        keeps_copy: whether the running cell also keeps a static copy, hidden while the widgets live: what a notebook that was
            saved during the run shows without them.
    """

    def __init__(
        self, control: Control | Stoppable, note: str = "", *, can_finish: bool = False, keeps_copy: bool = False
    ) -> None:
        self.errors: list[BaseException] = []
        self._copy = KeptCopy() if keeps_copy else None
        self._copied_s = time.monotonic()
        self._view = ipywidgets.HTML(layout=ipywidgets.Layout(min_height=_HEIGHT))
        self._view.add_class("tb-live")
        self._status = ipywidgets.HTML(status(note, spoken_only=True))
        self._status.add_class("tb-live-status")
        self._alert = ipywidgets.HTML()
        self._alert.add_class("tb-live-alert")
        self.controls = RunControls(control, self.report, can_finish=can_finish)
        self._said = note
        self.box = panel(self.controls.box, self._status, self._alert, self._view, ended=_ENDED)
        self.box.add_class("tb-dashboard")

    def draw(self, picture: LivePicture, phase: Phase, said: str) -> None:
        """Show `picture`; `said` goes to screen readers, and only when it changed."""
        self._view.value = live_content(picture)
        self._keep(picture)
        self.controls.show(phase)
        if said != self._said:
            self._said = said
            self._status.value = status(said, spoken_only=True)

    def _keep(self, picture: LivePicture) -> None:
        """Bring the static copy up to date now and then; a run that is over needs none."""
        if self._copy is None:
            return
        if picture.over:
            self._copy.drop()
        elif time.monotonic() - self._copied_s >= COPY_S:
            self._copied_s = time.monotonic()
            gone = replace(picture, state="broken off", left="", notices=[Notice("warn", "kernel ended", _ENDED)])
            self._copy.keep(live_view(gone), _ENDED)

    def report(self, error: BaseException) -> None:
        """Show an error where the user looks."""
        self.errors.append(error)
        self._alert.value = alert(error_sentence(error), error_details(error))
