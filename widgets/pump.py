"""Clicks while a cell runs: lets the kernel deliver widget messages during an awaited cell.

What a kernel does with messages that arrive while a cell awaits depends on ipykernel:

- 7.4 and newer dispatch them by themselves. So do 7.0 to 7.3 where the front end opens subshells (JupyterLab).
- Before 7 (Colab has 6.17) they wait in a queue until the cell ends. `_deliver_waiting` takes the widget messages out of
  that queue; requests to execute cells keep their place. It reads private names of ipykernel, so a version that lacks
  them ends the attempt, and `delivers` says so: then the kernel's interrupt is the way to stop.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

log = logging.getLogger("trainbook.widgets")


class Pump:
    """Waits without blocking the kernel.

    Attributes:
        delivers: whether clicks arrive while a cell awaits, as far as can be known.
    """

    def __init__(self) -> None:
        self._kernel = _kernel()
        self._queued = self._kernel is not None and int(version("ipykernel").split(".")[0]) < 7
        self.delivers = True

    async def wait(self, alive: Callable[[], bool], every_s: float = 0.1) -> None:
        """Return when `alive()` is False; it is called every `every_s` seconds, in this thread."""
        while alive():
            if self._queued:
                await self._deliver()
            await asyncio.sleep(every_s)

    async def _deliver(self) -> None:
        try:
            await _deliver_waiting(self._kernel)
        except Exception as error:  # noqa: BLE001 - private names of ipykernel; the training must not end for them
            log.warning("Clicks cannot be delivered while a cell runs (%s: %s).", type(error).__name__, error)
            self._queued = self.delivers = False


async def _deliver_waiting(kernel: Any) -> None:
    """Handle the widget messages in the kernel's queue; everything else is put back in its order."""
    kernel.shell_stream.flush()
    identity = kernel._parent_ident
    identity = identity["shell"] if isinstance(identity, dict) else identity
    parent = kernel.get_parent("shell")
    later = []
    try:
        while not kernel.msg_queue.empty():
            entry = kernel.msg_queue.get_nowait()
            dispatch, arguments = entry[-2], entry[-1]
            if not _is_comm(kernel, arguments[0]):
                later.append(entry)
                continue
            try:
                await dispatch(*arguments)
            finally:
                # The handler's message became the parent: what the cell shows next must belong to the cell again.
                kernel.set_parent(identity, parent, channel="shell")
    finally:
        for entry in later:
            kernel.msg_queue.put_nowait(entry)


def _is_comm(kernel: Any, frames: Any) -> bool:
    """Whether a raw message belongs to a widget. Only its header is read: deserializing checks the signature once."""
    _, parts = kernel.session.feed_identities(frames, copy=False)
    return str(kernel.session.unpack(parts[1].bytes)["msg_type"]).startswith("comm_")


def _kernel() -> Any:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None)
