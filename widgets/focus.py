"""The keyboard focus: kept when a click takes away the control that had it."""

from __future__ import annotations

import asyncio
from typing import Any

# The front end draws new controls a moment after their model arrives.
_UNTIL_DRAWN_S = 0.3


def move_focus(widget: Any) -> None:
    """Give the keyboard focus to a control that is shown, or will be in a moment. ipywidgets 7 cannot: nothing happens."""
    if not hasattr(widget, "focus"):
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # no front end, or one whose handlers run without a loop
        widget.focus()
    else:
        loop.call_later(_UNTIL_DRAWN_S, widget.focus)
