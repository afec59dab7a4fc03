"""Handlers of widgets whose errors are seen.

ipywidgets drops what a handler raises: in a kernel it ends up in a log, elsewhere in a warning, and the page looks as if
the click had done nothing. A guarded handler shows the error where the user looks, and tests can watch for it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from utils.errors import TrainbookError
from utils.scrubbing import describe_error, scrub

logger = logging.getLogger("trainbook.widgets")

_watchers: list[list[BaseException]] = []


def guarded(handler: Callable[[Any], object], report: Callable[[BaseException], None]) -> Callable[[Any], None]:
    """`handler`, for `on_click` or `observe`, with its errors logged and given to `report`, which shows them.

    An interrupt of the kernel propagates.
    """

    @functools.wraps(handler)
    def call(event: Any = None) -> None:
        try:
            handler(event)
        except Exception as error:  # whatever it is: nobody above would show it
            logger.error("A handler of the form failed: %s", error, exc_info=error)
            if _watchers:
                _watchers[-1].append(error)
            report(error)

    return call


@contextlib.contextmanager
def watching() -> Iterator[list[BaseException]]:
    """Collect the errors of every guarded handler in this process meanwhile, for a test that fails when there are any.

    Of several that are open, the innermost gets them: a test that expects an error opens its own.
    """
    failures: list[BaseException] = []
    _watchers.append(failures)
    try:
        yield failures
    finally:
        # By identity: two empty lists are equal.
        _watchers[:] = [watcher for watcher in _watchers if watcher is not failures]


def error_sentence(error: BaseException) -> str:
    """One sentence about an error for somebody who clicked: the library's own message, or else with its class."""
    if isinstance(error, TrainbookError):
        return str(error)
    return describe_error(error)


def error_details(error: BaseException) -> str:
    """The traceback, for whoever wants to report it."""
    return scrub("".join(traceback.format_exception(error)))
