"""Asking a run to stop, pause or save, from anywhere; and turning signals into such requests."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

log = logging.getLogger("trainbook.engine")


class Request:
    """A flag that one thread sets and another polls. `threading.Event` without its lock.

    A signal handler runs in the main thread between two of its instructions. If it set an Event while the main thread holds
    that Event's lock, the process would wait for itself forever. Reading and writing an attribute needs no lock.
    """

    _POLL_S = 0.01

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        """Make the request."""
        self._set = True

    def clear(self) -> None:
        """Withdraw it."""
        self._set = False

    def is_set(self) -> bool:
        """Whether it is made."""
        return self._set

    def wait(self, timeout: float | None = None) -> bool:
        """Poll until it is made, for at most `timeout` seconds; returns whether it is."""
        until = None if timeout is None else time.monotonic() + timeout
        while not self._set:
            left = self._POLL_S if until is None else until - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(self._POLL_S, left))
        return self._set


#: Reason to stop that gives the results the weights of the best checkpoint.
KEEP_BEST = "keep_best"


class Control:
    """Requests to a training loop, which polls them once a step. Safe to use from any thread and from signal handlers.

    Requests made before training starts are honoured by that training. They are cleared when it ends.

    Attributes:
        stop, pause, save_now, finish: `Request`s; clearing `pause` resumes a paused run. `finish` lets the decay of the wsd
            schedule begin at once.
        reason: why training should stop: the first reason given wins.
    """

    def __init__(self) -> None:
        self.stop, self.pause, self.save_now, self.finish = Request(), Request(), Request(), Request()
        self._reasons: list[str] = []

    @property
    def reason(self) -> str | None:
        """The first reason to stop that was given."""
        return next(iter(self._reasons), None)

    def request_stop(self, reason: str) -> None:
        """Finish the step, save, and return the results with `stop_reason=reason`.

        With the reason `KEEP_BEST`, the model of the results has the weights of the best checkpoint instead of the last step's.
        """
        self._reasons.append(reason)  # appending is atomic, "assign unless set" is not
        self.stop.set()

    def request_finish(self) -> None:
        """Begin the decay of the wsd schedule with the next step, and end after it; other schedules go on, with a notice."""
        self.finish.set()

    def agree(self, reason: str) -> None:
        """Stop for `reason`, on which all processes agreed, whatever was given here."""
        self._reasons = [reason]
        self.stop.set()

    def clear(self) -> None:
        """Withdraw all requests."""
        for request in (self.stop, self.pause, self.save_now, self.finish):
            request.clear()
        self._reasons = []


def stop_at_once() -> NoReturn:
    """Raise KeyboardInterrupt: the default action of a second signal."""
    raise KeyboardInterrupt("second interrupt: stopped at once")


class Interrupts:
    """SIGINT and SIGTERM as requests, for as long as a training runs.

    The first signal asks for a graceful stop; a second one calls `on_second`, by default `stop_at_once`. Handlers are put
    back at the end. Off the main thread no handler can be installed: the front end must use `Control`. The handler only
    assigns attributes, and `on_second` must do no more: the interrupted code may hold any lock.

    Attributes:
        received: the first signal's number, None before; again: whether a second one followed.
    """

    def __init__(self, control: Control, on_second: Callable[[], None] = stop_at_once) -> None:
        self._control, self._on_second = control, on_second
        self.received: int | None = None
        self.again = False
        self._told = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Signals become requests for the length of the block; of several blocks the first signal counts."""
        if threading.current_thread() is not threading.main_thread():
            level, self._told = (logging.DEBUG if self._told else logging.INFO), True
            log.log(
                level, "Training runs off the main thread: signals keep their handlers; stop it through its control."
            )
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
            self.again = True
            self._on_second()
            return
        self.received = number
        self._control.request_stop("interrupt" if number == signal.SIGINT else "terminated")
