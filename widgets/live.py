"""train_live: a training in the notebook's cell, with live curves and buttons that work while it runs.

The engine runs in a thread of its own and only puts events into a queue. The cell awaits: the kernel stays responsive,
and this, the main thread, takes the events, draws at most twice a second, and lets clicks through (`widgets.pump`).
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import math
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

from utils.environment import UiMode, ui_mode
from utils.errors import TrainingInterrupted
from utils.training.engine.interrupts import Interrupts
from utils.training.samples import SamplePredictions, SampleTexts, prompts_from
from utils.ui.live_run import LiveFeed, LiveRun, RunEvent
from utils.ui.run_on_disk import RunFollower
from utils.ui.run_past import past_of
from utils.views.display import show_text
from widgets.attach import asks_for_live_view, note_served, show_state
from widgets.live_views import REDRAW_S, live_view_for
from widgets.pump import AwaitedWork, Pump

if TYPE_CHECKING:
    from utils.training.engine.results import TrainingResults
    from utils.training.engine.trainer import Trainer

# Seconds that a kernel which shuts down waits for the checkpoint; Jupyter ends it after five.
_LAST_SAVE_S = 4.0


class TrainingData(Protocol):
    """Training data: a PreparedData, or anything with these attributes."""

    @property
    def train(self) -> Any:
        """As for `Trainer.train`."""

    @property
    def validation(self) -> Any:
        """As for `Trainer.train`; may be None."""


async def train_live(
    trainer: Trainer,
    data: TrainingData | Any,
    *,
    resume_from: Any = "auto",
    ui: str | None = None,
    prompts: Sequence[str] | None = None,
    strategy: str | None = None,
    devices: int | str | None = None,
) -> TrainingResults:
    """`trainer.train`, awaited in a notebook's cell: live curves, samples, and Stop, Pause and Save buttons.

    The cell ends when the training does, so later cells wait for it. Stop button, STOP file and time limit end it
    gracefully, with results; run the cell again to continue. The kernel's interrupt saves too and then raises; a second
    one gives the cell back at once, while the step under way still finishes and is saved. A page that was loaded again gets
    the view from `show_live`.

    Args:
        trainer: a Trainer; its `control` is what the buttons set.
        data: has `train` and `validation`; anything else is training data without validation, as `Trainer.train` takes it.
        resume_from: as for `Trainer.train`.
        ui: "auto", "widget", "html", "text" or "none" (`utils.environment.ui_mode`).
        prompts: beginnings that the model continues at every validation; None: the first words of two validation blocks,
            where the trainer has a tokenizer; (): none.
        strategy, devices: instead of those of the trainer's settings. With "ddp", "fsdp" or several devices the run is
            trained by processes of its own (docs/several-devices.md), which this view and its buttons follow.
    Raises:
        TrainingInterrupted: the kernel was interrupted; saved; carries the results.
        TrainbookError: as `Trainer.train`.
    """
    changes = {name: value for name, value in (("strategy", strategy), ("devices", devices)) if value is not None}
    own = trainer.training_config
    trainer.training_config = own.replace(**changes) if changes else own
    try:
        given = (
            data
            if hasattr(data, "train") and hasattr(data, "validation")
            else SimpleNamespace(train=data, validation=None)
        )
        session = _Session(trainer, given, resume_from, ui_mode(ui), prompts)
        await session.run()
        return session.outcome()
    finally:
        trainer.training_config = own


def _processes_for(config: Any) -> int | None:
    """How many processes the settings ask for; None: one, this one."""
    if getattr(config, "strategy", "auto") == "auto" and getattr(config, "devices", "auto") in ("auto", 1):
        return None
    from utils.training.jobs.handed import processes_for

    return processes_for(config)


class _Session:
    """One call of train_live."""

    def __init__(
        self, trainer: Trainer, data: TrainingData, resume_from: Any, mode: UiMode, prompts: Sequence[str] | None
    ) -> None:
        self.trainer, self.data, self.resume_from = trainer, data, resume_from
        self.events: queue.SimpleQueue[RunEvent] = queue.SimpleQueue()
        self.live = LiveRun()
        self.pump = Pump()
        self.at_once = False
        self.interrupts = Interrupts(trainer.control, self._second_interrupt)
        self.view = live_view_for(mode, trainer, self.pump)
        self.shows_curves = mode in ("widget", "html")
        self.processes = _processes_for(trainer.training_config)
        self.follower = RunFollower() if self.processes is not None else None
        self._looked_at_cells_s = -math.inf
        self.work = AwaitedWork("trainbook-training", self._train)
        self._prompts = prompts

    async def run(self) -> None:
        """Train in the thread until it ends or a second interrupt comes."""
        await _previous_to_end(self.pump)
        with self._watching(), self.interrupts.deferred(), _saved_at_exit(self):
            _Latest.session, _Latest.ended, _Latest.thread = self, None, self.work.thread
            try:
                await self.work.ended(self.pump, self._goes_on, self._stop_unseen)
            finally:
                _Latest.session = None
        if not self.work.thread.is_alive():
            self.trainer.control.clear()  # a request that came too late is not meant for the next training
        self._take_events()
        notices = (*self._take_stored_run(), *self.trainer.notices)
        stop_reason = self._stop_reason()
        if not self.at_once:
            _Latest.ended = EndedRun(self.live, stop_reason, notices)
        self.view.finish(self.live, stop_reason, notices)
        if self.work.result is not None:
            self.work.result.curves_shown = self.shows_curves

    def _stop_unseen(self, error: BaseException) -> None:
        """End a training whose cell was cancelled or could not be drawn."""
        self.trainer.request_stop("cancelled" if isinstance(error, asyncio.CancelledError) else "view_failed")

    def outcome(self) -> TrainingResults:
        """The results, or the error that a caller of `Trainer.train` would get."""
        if self.interrupts.received == signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)  # saved; now whatever this process does when it is terminated
        if self.work.error is not None:
            raise self.work.error
        if self.at_once:
            raise TrainingInterrupted(
                "Interrupted twice: the cell ended at once. The step under way still finishes and is saved; run the cell "
                "again to continue."
            )
        results = self.work.result
        assert results is not None
        if self.interrupts.received == signal.SIGINT:
            raise TrainingInterrupted(
                f"Interrupted after step {results.steps}; saved as {results.checkpoint_path}. "
                "Run the cell again to continue.",
                results,
            )
        return results

    def _train(self) -> TrainingResults:
        """In the thread. Prints nothing, draws nothing."""
        if self.processes is None or self.follower is None:
            return self.trainer.train(self.data.train, self.data.validation, resume_from=self.resume_from)
        from utils.training.jobs.handed import train_in_processes

        return train_in_processes(
            self.trainer, self.data.train, self.data.validation, self.processes, resume_from=self.resume_from,
            callbacks=self.trainer.callbacks, tell=self.follower.tell,
        )  # fmt: skip

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """The trainer with the callbacks that feed the view."""
        before = self.trainer.callbacks
        tokenizer = self.trainer.tokenizer
        prompts = prompts_from(self.data.validation, tokenizer) if self._prompts is None else tuple(self._prompts)
        here = self.follower is None  # else samples come from the run's folder, as everything does
        tell = self._tell_samples if here else None
        self.trainer.callbacks = [*before, *([LiveFeed(self.events.put)] if here else [])]
        if prompts and tokenizer is not None:
            self.trainer.callbacks.append(SampleTexts(tokenizer, prompts, tell=tell))
        self.trainer.callbacks.append(SamplePredictions(tokenizer, tell=tell))
        try:
            yield
        finally:
            self.trainer.callbacks = before

    def _tell_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        self.events.put(RunEvent("on_samples", time.monotonic(), step, {"samples": rows}))

    def _goes_on(self) -> bool:
        """Take what happened, draw when it is time; False when there is nothing left to wait for."""
        alive = self.work.thread.is_alive()
        self._take_events()
        now = time.monotonic()
        self.view.show(self.live, now, tuple(self.trainer.notices))
        if now - self._looked_at_cells_s >= REDRAW_S:
            self._looked_at_cells_s = now
            self._show_in_waiting_cells()
        return alive and not self.at_once

    def _show_in_waiting_cells(self) -> None:
        """A page that was loaded again lost this cell's output: it gets it in a cell that waits to call `show_live()`."""
        for cell in self.pump.waiting_cells():
            if asks_for_live_view(cell.code) and note_served(cell.request_id):
                self.view.show_in(cell)

    def show_again(self, mode: UiMode) -> None:
        """Show the view in the output of the running cell too."""
        if mode == "widget":
            self.view.show_again()
        else:
            show_state(mode, self.live, None, self.trainer.notices)

    def _take_events(self) -> None:
        control = self.trainer.control
        if self.follower is not None:
            self._follow(self.follower, pause=control.pause.is_set(), stop=control.stop.is_set())
        self.live.requested(pause=control.pause.is_set(), stop=control.stop.is_set())
        with contextlib.suppress(queue.Empty):
            while True:
                event = self.events.get_nowait()
                self.live.apply(event)
                self.view.hear(self.live, event)

    def _follow(self, follower: RunFollower, *, pause: bool, stop: bool) -> None:
        """The run of other processes as its folder shows it."""
        found = follower.look(pause=pause, stop=stop, last=not self.work.thread.is_alive())
        if found is not None:
            self.live, events = found
            for event in events:
                self.view.hear(self.live, event)

    def _take_stored_run(self) -> tuple[str, ...]:
        """The curves of a run that was finished before, of which no event tells. Returns a sentence that says so."""
        results = self.work.result
        if results is None or self.live.run_dir is not None:
            return ()
        folder = results.run_dir
        best = {"best_value": results.best_value, "best_step": results.state.best.step}
        values = {"run_dir": str(folder), **past_of(folder), **best}
        self.live.apply(RunEvent("on_train_begin", time.monotonic(), results.steps, values))
        return ("This run was finished before; nothing was trained now.",)

    def _stop_reason(self) -> str | None:
        if self.work.error is not None:
            self.live.failed(self.work.error)
        elif not self.at_once:
            self.live.ended()
        return None if self.work.result is None else self.work.result.stop_reason

    def _second_interrupt(self) -> None:
        # Not raised here: this runs wherever the main thread is, which may be the kernel's own event loop.
        self.at_once = True


@dataclass(frozen=True)
class EndedRun:
    """How a run of this kernel ended. It holds neither model nor data, whose memory may be needed."""

    live: LiveRun
    stop_reason: str | None
    notices: tuple[str, ...]


class _Latest:
    """The last call: while its cell awaits it; how it ended; and its thread, which a second interrupt may have left behind."""

    session: _Session | None = None
    ended: EndedRun | None = None
    thread: threading.Thread | None = None


def current_session() -> _Session | None:
    """The call of `train_live` that is under way in this kernel; None when there is none."""
    return _Latest.session


def last_run() -> EndedRun | None:
    """How the last call of `train_live` in this kernel ended; None before any has, and where it was interrupted twice."""
    return _Latest.ended


async def _previous_to_end(pump: Pump) -> None:
    thread = _Latest.thread
    if thread is not None and thread.is_alive():
        show_text("The interrupted training is still finishing its step; this one starts after it.")
        await pump.wait(thread.is_alive)


@contextlib.contextmanager
def _saved_at_exit(session: _Session) -> Iterator[None]:
    """A kernel that is shut down or restarted mid-run saves first, as far as the time that it is given goes."""

    def save() -> None:
        session.trainer.request_stop("kernel_shutdown")
        session.work.thread.join(_LAST_SAVE_S)

    atexit.register(save)
    try:
        yield
    finally:
        atexit.unregister(save)
