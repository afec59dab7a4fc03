"""Stop, Pause and Save now: buttons that set a run's control and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets

from widgets.guarded import guarded

if TYPE_CHECKING:
    from utils.training.engine.interrupts import Control
    from utils.ui.live_run import Phase

_CONTINUE = "Continue"


class RunControls:
    """The buttons of one run. A second click on the same button asks for nothing new.

    Attributes:
        box: what is shown; stop, pause, save: the buttons.
    """

    def __init__(self, control: Control, report: Callable[[BaseException], None]) -> None:
        self._control = control
        self.stop = _button("Stop", "tb-stop", "Finish this step, save, and end the cell. Run it again to continue.")
        self.pause = _button("Pause", "tb-pause", "Finish this step, save, and wait.")
        self.save = _button("Save now", "tb-save", "Write a checkpoint after this step.")
        self.stop.on_click(guarded(self._stop, report))
        self.pause.on_click(guarded(self._pause, report))
        self.save.on_click(guarded(self._save, report))
        self.box = ipywidgets.HBox([self.stop, self.pause, self.save], layout=ipywidgets.Layout(flex_flow="row wrap"))

    def show(self, phase: Phase) -> None:
        """Labels and availability that fit what the run is doing."""
        over = phase in ("ended", "failed")
        stopping = over or phase == "stopping"
        self.stop.disabled = self.pause.disabled = stopping
        self.save.disabled = stopping or phase in ("paused", "pausing")
        self.stop.description = "Stopping…" if phase == "stopping" else "Stop"
        self.pause.description = _CONTINUE if phase in ("paused", "pausing") else "Pause"

    def _stop(self, _: Any) -> None:
        self._control.request_stop("stop_button")

    def _pause(self, _: Any) -> None:
        # By the label that was clicked, which changes with the next drawing: a double click is not pause and continue.
        if self.pause.description == _CONTINUE:
            self._control.pause.clear()
        else:
            self._control.pause.set()

    def _save(self, _: Any) -> None:
        self._control.save_now.set()


def _button(label: str, css_class: str, help_text: str) -> ipywidgets.Button:
    button = ipywidgets.Button(description=label, tooltip=help_text)
    button.add_class(css_class)
    return button
