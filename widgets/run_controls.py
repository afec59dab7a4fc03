"""Stop, Pause and Save now: buttons that set a run's control and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import ipywidgets

from utils.training.engine.interrupts import Control
from widgets.guarded import guarded

if TYPE_CHECKING:
    from utils.ui.live_run import Phase

_CONTINUE = "Continue"


class Stoppable(Protocol):
    """Target of a stop request: a run's `Control`, or the STOP file of a run in another process."""

    def request_stop(self, reason: str) -> None:
        """Finish the step, save and end."""


class RunControls:
    """The buttons of one run. A second click on the same button asks for nothing new.

    Attributes:
        box: what is shown; stop, pause, save: the buttons. Pause and save are shown for a `Control` only.
    """

    def __init__(self, control: Control | Stoppable, report: Callable[[BaseException], None]) -> None:
        self._stoppable = control
        self.stop = _button("Stop", "tb-stop", "Finish this step, save, and end the cell. Run it again to continue.")
        self.pause = _button("Pause", "tb-pause", "Finish this step, save, and wait.")
        self.save = _button("Save now", "tb-save", "Write a checkpoint after this step.")
        self.stop.add_class("tb-danger")
        self.stop.on_click(guarded(self._stop, report))
        shown = [self.stop]
        if isinstance(control, Control):
            self.pause.on_click(guarded(partial(self._pause, control), report))
            self.save.on_click(guarded(partial(self._save, control), report))
            shown += [self.pause, self.save]
        self.box = ipywidgets.HBox(shown, layout=ipywidgets.Layout(flex_flow="row wrap"))

    def show(self, phase: Phase) -> None:
        """Labels and availability that fit what the run is doing."""
        over = phase in ("ended", "failed")
        stopping = over or phase == "stopping"
        self.stop.disabled = self.pause.disabled = stopping
        self.save.disabled = stopping or phase in ("paused", "pausing")
        self.stop.description = "Stopping…" if phase == "stopping" else "Stop"
        self.pause.description = _CONTINUE if phase in ("paused", "pausing") else "Pause"

    def _stop(self, _: Any) -> None:
        self._stoppable.request_stop("stop_button")

    def _pause(self, control: Control, _: Any) -> None:
        # By the label that was clicked, which changes with the next drawing: a double click is not pause and continue.
        if self.pause.description == _CONTINUE:
            control.pause.clear()
        else:
            control.pause.set()

    def _save(self, control: Control, _: Any) -> None:
        control.save_now.set()


def _button(label: str, css_class: str, help_text: str) -> ipywidgets.Button:
    button = ipywidgets.Button(description=label, tooltip=help_text)
    button.add_class(css_class)
    return button
