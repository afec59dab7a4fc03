"""Enter in a text field: acts on the text that stands in the field, not on what had arrived of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ipywidgets

from widgets.background_task import event_loop
from widgets.forms import Report
from widgets.guarded import guarded

# Seconds after the message of Enter within which the text has arrived, where it changed: the page sends both at once.
_WAIT_S = 0.3


def on_enter(field: ipywidgets.Text, act: Callable[[], object], report: Report) -> None:
    """Call `act()` when Enter is pressed in `field`, once its value is the text that was typed.

    A field that sends each letter holds letters back while an earlier one is on its way, but not the message of Enter, which
    would arrive before the end of the text. So the field sends its text as a whole, with Enter or when it is left. Where no
    event loop could wait for it (Colab), letters are sent one by one and Enter acts at once.
    """
    field.continuous_update = event_loop() is None
    enter = _Enter(guarded(lambda _: act(), report))
    # The front end's message for Enter; `on_submit` is deprecated in ipywidgets 8.
    field.on_msg(lambda _, content, __: enter.pressed() if content.get("event") == "submit" else None)
    field.observe(lambda _: enter.arrived(), "value")


class _Enter:
    """One field's Enter that waits for its text."""

    def __init__(self, act: Callable[[Any], object]) -> None:
        self._act = act
        self._timer: asyncio.TimerHandle | None = None

    def pressed(self) -> None:
        """The message of Enter."""
        loop = event_loop()
        if loop is None:
            self._act(None)
        elif self._timer is None:
            self._timer = loop.call_later(_WAIT_S, self.arrived)

    def arrived(self) -> None:
        """The text changed, or did not in time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._act(None)
