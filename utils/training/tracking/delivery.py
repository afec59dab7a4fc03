"""Delivers rows to trackers: the training loop only puts them into queues, one thread per tracker takes them out."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.errors import first_line
from utils.scrubbing import scrub
from utils.training.engine.callbacks import Callback, Logs
from utils.training.tracking.tracker import RunEnding, RunFacts, Tracker

# Rows that wait for a slow service; further ones are dropped, and counted.
_LONGEST_QUEUE = 10_000
# Files of a run's folder that describe it. Small ones only: checkpoints stay where they are.
_ARTIFACTS = ("config.yaml", "environment.json")
# Stop reasons after which a run has nothing left to do.
_COMPLETE = ("finished", "max_steps", "early_stopping", "finish_now", "time_limit")


class Trackers(Callback):
    """Sends a run's rows to several trackers. All of them together delay the end of a training by at most one patience.

    Args:
        trackers: what to send to.
        run: the run's facts.
        notices: where a tracker's failure is reported, in one sentence.
    """

    main_only = True
    may_be_late = True

    def __init__(self, trackers: Sequence[Tracker], run: RunFacts, notices: list[str]) -> None:
        self._deliveries = [_Delivery(tracker, run) for tracker in trackers]
        self._notices = notices

    def on_train_begin(self, trainer: Any, logs: Logs | None = None) -> None:
        for delivery in self._deliveries:
            delivery.begin()

    def on_step_end(self, step: int, trainer: Any, logs: Logs | None = None) -> None:
        self._put({"step": step, **(logs or {})})

    def on_evaluate_end(self, trainer: Any, logs: Logs | None = None) -> None:
        self._put({"step": trainer.state.step, **(logs or {})})

    def on_epoch_end(self, epoch: int, trainer: Any, logs: Logs | None = None) -> None:
        self._put({**(logs or {}), "epoch": epoch, "step": trainer.state.step})

    def on_train_end(self, trainer: Any, logs: Logs | None = None) -> None:
        self._close("finished" if (logs or {}).get("stop_reason") in _COMPLETE else "stopped")

    def on_error(self, error: BaseException, trainer: Any, logs: Logs | None = None) -> None:
        self._close("failed")

    def _put(self, row: Logs) -> None:
        numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        for delivery in self._deliveries:
            delivery.put(numbers)

    def _close(self, status: RunEnding) -> None:
        """Wait a little for what is still to be sent, and report what went wrong."""
        for delivery in self._deliveries:
            delivery.end(status)
        waited = 0.0
        for delivery in self._deliveries:
            begun = time.monotonic()
            report = delivery.wait(max(0.0, delivery.patience_s - waited))
            waited += time.monotonic() - begun
            if report is not None:
                self._notices.append(report)


class _Delivery:
    """One tracker with its queue and its thread."""

    def __init__(self, tracker: Tracker, run: RunFacts) -> None:
        self._tracker, self._run = tracker, run
        self._rows: queue.Queue[Logs] = queue.Queue(maxsize=_LONGEST_QUEUE)
        # Set, never queued: a full queue must not keep the end from arriving.
        self._ending: RunEnding | None = None
        self._ended = threading.Event()
        self._failure, self._dropped = "", 0
        self._notice: str | None = None
        self._thread: threading.Thread | None = None

    @property
    def patience_s(self) -> float:
        return self._tracker.patience_s

    def begin(self) -> None:
        name = f"trainbook-{self._tracker.name.lower().replace('&', 'and')}"
        # A daemon: a service that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, row: Logs) -> None:
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self._dropped += 1

    def end(self, status: RunEnding) -> None:
        self._ending = status
        self._ended.set()
        self._wake()

    def wait(self, patience_s: float) -> str | None:
        """Wait for the thread. Returns what went wrong, or what the tracker has to say."""
        if self._thread is None:
            return None
        self._thread.join(patience_s)
        alive, self._thread = self._thread.is_alive(), None
        name = self._tracker.name
        if self._failure:
            return f"{name} stopped tracking ({self._failure}); history.jsonl holds everything."
        if alive:
            return f"{name} did not answer in time; what it lacks is in history.jsonl."
        if self._dropped:
            return f"{name} was too slow for {self._dropped} rows; history.jsonl holds them."
        return self._notice

    def _wake(self) -> None:
        try:
            self._rows.put_nowait({})
        except queue.Full:
            return  # the thread has rows to take, and looks at the event after each

    def _work(self) -> None:
        try:
            self._notice = self._tracker.start(self._run)
            while not (self._ended.is_set() and self._rows.empty()):
                if row := self._rows.get():
                    self._tracker.log(row)
            for path in filter(Path.is_file, (self._run.folder / name for name in _ARTIFACTS)):
                self._tracker.artifact(path)
            self._tracker.finish(self._ending or "stopped")
        except BaseException as error:  # noqa: BLE001 - a tool that fails ends its tracking, and nothing else; W&B exits too
            self._failure = scrub(f"{first_line(error, with_class=True)}")
