"""Stop, Stop and keep best, Pause, Save now and Finish now: buttons that set a run's control and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import ipywidgets

from utils.training.engine.interrupts import KEEP_BEST, Control
from widgets.guarded import guarded

if TYPE_CHECKING:
    from utils.ui.live_run import Phase

_CONTINUE = "Continue"


class Stoppable(Protocol):
    """Target of a stop request: a run's `Control`, or the STOP file of a run in another process."""

    def request_stop(self, reason: str) -> None:
        """Finish the step, save and end."""

    def request_finish(self) -> None:
        """Begin the decay of the schedule now."""


class RunControls:
    """The buttons of one run. A second click on the same button asks for nothing new.

    Attributes:
        box: what is shown; stop, keep_best, pause, save, finish: the buttons. Pause and save are shown for a `Control` only.

    Args:
        report: shows an error of a handler.
        can_finish: whether the schedule's decay can begin at any step, so that "Finish now" is shown.
    """

    def __init__(
        self, control: Control | Stoppable, report: Callable[[BaseException], None], *, can_finish: bool = False
    ) -> None:
        self._stoppable = control
        self._finishing = False
        self.stop = _button("Stop", "tb-stop", "Finish this step, save, and end the cell. Run it again to continue.")
        self.pause = _button("Pause", "tb-pause", "Finish this step, save, and wait.")
        self.save = _button("Save now", "tb-save", "Write a checkpoint after this step.")
        self.keep_best = _button(
            "Stop and keep best",
            "tb-keep-best",
            "Stop; the model of the results has the weights of the best checkpoint.",
        )
        self.finish = _button(
            "Finish now", "tb-finish", "Begin the decay of the learning rate with the next step, and end after it."
        )
        for made in (self.stop, self.keep_best):
            made.add_class("tb-danger")
        self.stop.on_click(guarded(self._stop, report))
        self.keep_best.on_click(guarded(lambda _: control.request_stop(KEEP_BEST), report))
        self.finish.on_click(guarded(self._finish, report))
        shown = [self.stop, self.keep_best]
        if isinstance(control, Control):
            self.pause.on_click(guarded(partial(self._pause, control), report))
            self.save.on_click(guarded(partial(self._save, control), report))
            shown += [self.pause, self.save]
        if can_finish:
            shown.append(self.finish)
        self.box = ipywidgets.HBox(shown, layout=ipywidgets.Layout(flex_flow="row wrap"))

    def show(self, phase: Phase) -> None:
        """Labels and availability that fit what the run is doing."""
        over = phase in ("ended", "failed")
        stopping = over or phase == "stopping"
        self.stop.disabled = self.keep_best.disabled = self.pause.disabled = stopping
        self.finish.disabled = stopping or self._finishing
        self.finish.description = "Finishing…" if self._finishing and not over else "Finish now"
        self.save.disabled = stopping or phase in ("paused", "pausing")
        self.stop.description = "Stopping…" if phase == "stopping" else "Stop"
        self.pause.description = _CONTINUE if phase in ("paused", "pausing") else "Pause"

    def _stop(self, _: Any) -> None:
        self._stoppable.request_stop("stop_button")

    def _finish(self, _: Any) -> None:
        if not self._finishing:
            self._stoppable.request_finish()
            self._finishing = True

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
