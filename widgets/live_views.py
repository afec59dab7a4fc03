"""How a training in a cell is shown: as live widgets, as HTML or as text, or not at all."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from utils.environment import UiMode
from utils.ui.live_picture import live_picture, phase_text, sentence
from utils.ui.live_run import LiveRun, RunEvent
from utils.ui.progress import progress_line
from utils.views.display import LiveOutput, show_html, show_text
from utils.views.live import live_view
from widgets.attach import LIVE_TEXT
from widgets.pump import Pump, WaitingCell

if TYPE_CHECKING:
    from utils.training.engine.trainer import Trainer

# Seconds between two drawings: more often is not seen, and costs the training and the connection.
REDRAW_S = 0.5

# Most that drawing may take of the processor's time. Everything else that the view does (events, clicks) takes about 0.4 %
# of a slow core with steps of 50 ms (`python -m benchmarks.live_view`), and the whole is to stay under 1 %.
REDRAW_SHARE = 0.005


def live_view_for(mode: UiMode, trainer: Trainer, pump: Pump) -> View:
    """The view of `trainer`'s run in an output of this kind."""
    if mode == "widget":
        return WidgetView(trainer, pump)
    return {"html": HtmlView, "text": TextView, "none": View}[mode]()


class View:
    """How one training is shown; this one shows nothing."""

    def show(self, live: LiveRun, now_s: float, notices: Sequence[str]) -> None:
        """Draw, when it is time and something changed."""

    def hear(self, live: LiveRun, event: RunEvent) -> None:
        """An event that `live` has taken in."""

    def show_again(self) -> None:
        """Show the live view in the running cell's output too."""

    def show_in(self, cell: WaitingCell) -> None:
        """Show the view in the output of a cell that waits for this one to end."""

    def finish(self, live: LiveRun, stop_reason: str | None, notices: Sequence[str]) -> None:
        """Leave what stays in the saved notebook."""


class TextView(View):
    """A line an epoch, and one at the end."""

    def hear(self, live: LiveRun, event: RunEvent) -> None:
        if event.name == "on_epoch_end":
            show_text(progress_line(int(event.values["epoch"]), live.epochs, event.values))

    def finish(self, live: LiveRun, stop_reason: str | None, notices: Sequence[str]) -> None:
        show_text("\n".join([sentence(live, stop_reason), *notices]))


class HtmlView(View):
    """The final state, as static HTML."""

    def finish(self, live: LiveRun, stop_reason: str | None, notices: Sequence[str]) -> None:
        show_html(live_view(live_picture(live, notices, stop_reason)), sentence(live, stop_reason))


class Redraws:
    """When to draw: at most every `every_s` seconds, less often where drawings are slow, and only if something is new."""

    def __init__(self, every_s: float = REDRAW_S, share: float = REDRAW_SHARE) -> None:
        self._every_s = self._wait_s = every_s
        self._share = share
        self._last_s: float | None = None
        self._seen: Any = None

    def due(self, now_s: float, state: Any) -> bool:
        """Whether to draw `state`, something that compares equal when nothing changed; if so, it counts as drawn."""
        if self._last_s is not None and (now_s - self._last_s < self._wait_s or state == self._seen):
            return False
        self._last_s, self._seen = now_s, state
        return True

    def took(self, seconds: float) -> None:
        """Processor time of the last drawing: the next one comes when that is `share` of the time between them."""
        self._wait_s = max(self._every_s, seconds / self._share)


class WidgetView(View):
    """Live widgets; in the end their place is taken by static HTML, which a saved notebook and a code host can show."""

    def __init__(self, trainer: Trainer, pump: Pump) -> None:
        from widgets.dashboard import Dashboard

        self._pump = pump
        self.dashboard = Dashboard(
            trainer.control, can_finish=trainer.training_config.can_finish_early, keeps_copy=True
        )
        self._output = LiveOutput(self.dashboard.box, LIVE_TEXT)
        self._redraws = Redraws()

    def show(self, live: LiveRun, now_s: float, notices: Sequence[str]) -> None:
        said = (*notices, *(() if self._pump.delivers else (_INTERRUPT,)))
        if self._redraws.due(now_s, (live.step, live.phase, live.saved_file, live.sampled_step, said)):
            began = time.thread_time()
            self._draw(live, None, said)
            self._redraws.took(time.thread_time() - began)

    def show_again(self) -> None:
        self._output.show_again()

    def show_in(self, cell: WaitingCell) -> None:
        if self._output.display_id is not None:
            self._pump.show_in(cell, self._output.bundle, self._output.display_id)

    def finish(self, live: LiveRun, stop_reason: str | None, notices: Sequence[str]) -> None:
        self._draw(live, stop_reason, notices)
        # A page that was loaded again keeps the widget, whose last drawing is the final state too.
        self._output.replace(live_view(live_picture(live, notices, stop_reason)), sentence(live, stop_reason))

    def _draw(self, live: LiveRun, stop_reason: str | None, notices: Sequence[str]) -> None:
        picture = live_picture(live, notices, stop_reason)
        self.dashboard.draw(picture, live.phase, phase_text(live, stop_reason))


_INTERRUPT = (
    "This kernel holds clicks back until the cell ends: to stop, interrupt the kernel, or make the file STOP in the "
    "run's folder."
)
