"""Asking a run to stop, pause or save, from anywhere; and turning signals into such requests."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

log = logging.getLogger("trainbook.engine")


class Control:
    """Requests to a running loop, which looks at them once a step. Safe to use from any thread.

    Attributes:
        stop, pause, save_now: events; setting one is the request, clearing `pause` lets the run go on.
        reason: why it should stop: the first reason given wins.
    """

    def __init__(self) -> None:
        self.stop, self.pause, self.save_now = threading.Event(), threading.Event(), threading.Event()
        self.reason: str | None = None
        self._lock = threading.Lock()

    def request_stop(self, reason: str) -> None:
        """Finish the step, save, and return the results with `stop_reason=reason`."""
        with self._lock:
            self.reason = self.reason or reason
        self.stop.set()

    def clear(self) -> None:
        """Forget all requests: a new training begins."""
        for event in (self.stop, self.pause, self.save_now):
            event.clear()
        self.reason = None


def stop_at_once() -> None:
    """What a second signal does when nothing else is said. Raises KeyboardInterrupt."""
    raise KeyboardInterrupt("second interrupt: stopped at once")


class Interrupts:
    """SIGINT and SIGTERM as requests, for as long as a training runs.

    The first signal asks for a graceful stop; a second one calls `on_second`, by default `stop_at_once`. Handlers are put
    back at the end. Off the main thread no handler can be installed: the front end must use `Control`.

    Attributes:
        received: the first signal's number; None: none came.
    """

    def __init__(self, control: Control, on_second: Callable[[], None] = stop_at_once) -> None:
        self._control, self._on_second = control, on_second
        self.received: int | None = None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Signals become requests for the length of the block."""
        self.received = None
        if threading.current_thread() is not threading.main_thread():
            log.info("Training runs off the main thread: signals keep their handlers; stop it through its control.")
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(
                    number, signal.SIG_DFL if handler is None else handler
                )  # None: it was not set from Python

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            self._on_second()
            return
        self.received = number
        self._control.request_stop("interrupt" if number == signal.SIGINT else "terminated")
