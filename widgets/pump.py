"""Clicks while a cell runs: lets the kernel deliver widget messages during an awaited cell.

What a kernel does with messages that arrive while a cell awaits depends on ipykernel:

- 7.4 and newer dispatch them by themselves, but publish no status for them, which `_with_status` makes up for.
- 7.0 to 7.3 dispatch them, with a status, where the front end opens subshells (JupyterLab).
- Before 7 (Colab has 6.17) they wait in a queue until the cell ends. `_deliver_waiting` takes the widget messages out of
  that queue; requests to execute cells keep their place. It reads private names of ipykernel, so a version that lacks
  them ends the attempt, and `delivers` says so: then the kernel's interrupt is the way to stop.

No version runs a second cell before the first one has ended, and that is right: cells run in their order. But a page that was
loaded again no longer shows the outputs of the cell that runs. `waiting_cells` lists the cells that wait for their turn, and
`show_in` puts an output into one of them, which the page shows at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Generic, TypeVar

T = TypeVar("T")

log = logging.getLogger("trainbook.widgets")


@dataclass(frozen=True)
class WaitingCell:
    """A cell that the kernel will execute once the running one has ended.

    Attributes:
        code: its source; header: the header of the request to execute it.
    """

    code: str
    header: Mapping[str, Any]

    @property
    def request_id(self) -> str:
        """Identity of the request."""
        return str(self.header["msg_id"])


class Pump:
    """Waits without blocking the kernel.

    Attributes:
        delivers: whether clicks arrive while a cell awaits, as far as can be known.
    """

    def __init__(self) -> None:
        self._kernel = _kernel()
        self._old = self._kernel is not None and int(version("ipykernel").split(".")[0]) < 7
        self._queued = self._old
        self._held_back: list[Any] = []  # messages that `_deliver` left in the queue
        self.delivers = True
        self._sees_cells = self._kernel is not None

    async def wait(self, alive: Callable[[], bool], every_s: float = 0.2) -> None:
        """Return when `alive()` is False; it is called every `every_s` seconds, in this thread."""
        with _with_status(self._kernel):
            while alive():
                if self._queued:
                    await self._deliver()
                await asyncio.sleep(every_s)

    async def _deliver(self) -> None:
        try:
            self._held_back = await _deliver_waiting(self._kernel)
        except Exception as error:  # noqa: BLE001 - private names of ipykernel; the training must not end for them
            log.warning("Clicks cannot be delivered while a cell runs (%s: %s).", type(error).__name__, error)
            self._queued = self.delivers = False

    def waiting_cells(self) -> list[WaitingCell]:
        """Cells that wait for the running one to end, called from within it; [] where that cannot be known."""
        if not self._sees_cells:
            return []
        try:
            messages = self._held_back if self._old else list(_messages_at_the_lock())
            cells = [cell for frames in messages if (cell := _waiting_cell(self._kernel, frames)) is not None]
        except Exception as error:  # noqa: BLE001 - private names of ipykernel; the training must not end for them
            log.warning("Waiting cells cannot be listed (%s: %s).", type(error).__name__, error)
            self._sees_cells = False
            return []
        running = running_request(self._kernel)
        return [cell for cell in cells if cell.request_id != running]

    def show_in(self, cell: WaitingCell, bundle: Mapping[str, Any], display_id: str) -> None:
        """Publish an output, by MIME type, as one of `cell`, which may still be waiting."""
        content = {"data": dict(bundle), "metadata": {}, "transient": {"display_id": display_id}}
        self._kernel.session.send(
            self._kernel.iopub_socket, "display_data", content, parent={"header": dict(cell.header)}
        )


class AwaitedWork(Generic[T]):
    """Work that a cell awaits, in a thread of its own. A process that ends does not wait for it.

    Attributes:
        thread: that of the work, which holds nothing of it once it has ended.
        result: what the work returned; error: what it raised. None until then.
    """

    def __init__(self, name: str, work: Callable[[], T]) -> None:
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.result: T | None = None
        self.error: BaseException | None = None
        self._work = work

    def _run(self) -> None:
        try:
            self.result = self._work()
        except BaseException as error:  # noqa: BLE001 - the cell raises it
            self.error = error

    async def ended(self, pump: Pump, alive: Callable[[], bool], stop: Callable[[BaseException], object]) -> None:
        """Start, and return when `alive()`, called as by `Pump.wait`, is False.

        Where the waiting itself fails or is cancelled, `stop` gets the error and has to end the work, which is waited for:
        nothing continues that nobody sees and nothing can stop.
        """
        self.thread.start()
        try:
            await pump.wait(alive)
        except BaseException as error:
            stop(error)
            self.thread.join()
            raise


def running_request(kernel: Any = None) -> str | None:
    """Identity of the request whose cell runs now; None outside a kernel."""
    kernel = kernel or _kernel()
    header = {} if kernel is None else kernel.get_parent("shell").get("header", {})
    return header.get("msg_id")


def _messages_at_the_lock() -> Iterator[Any]:
    """Raw messages that ipykernel 7 and newer hold back: each is in a task of its own, which waits for a lock."""
    for task in asyncio.all_tasks():
        coroutine = task.get_coro()
        if inspect.iscoroutine(coroutine) and coroutine.cr_code.co_name == "shell_main":
            yield inspect.getcoroutinelocals(coroutine)["msg"]


def _waiting_cell(kernel: Any, frames: Any) -> WaitingCell | None:
    """The cell that a raw message asks to execute; None for another message. Read as by `_is_comm`."""
    _, parts = kernel.session.feed_identities(frames, copy=False)
    header = kernel.session.unpack(parts[1].bytes)
    if header["msg_type"] != "execute_request":
        return None
    return WaitingCell(str(kernel.session.unpack(parts[4].bytes)["code"]), header)


@contextlib.contextmanager
def _with_status(kernel: Any) -> Iterator[None]:
    """Publish the status "idle" for each widget message that the kernel has handled during an awaited cell.

    ipykernel 7.4 publishes no status for these messages. The front-end part of ipywidgets waits for it before it sends the
    next values of the same widget: without it, what is typed into a field after its first letter would never arrive, even
    after the end of the cell.
    """
    dispatch = getattr(kernel, "dispatch_shell", None)
    publishes_already = "dispatch_shell" in getattr(kernel, "__dict__", {})  # for another wait of the same cell
    if dispatch is None or publishes_already or "concurrent" not in inspect.signature(dispatch).parameters:
        yield
        return

    async def dispatch_and_say(message: Any, /, *arguments: Any, concurrent: bool = False, **named: Any) -> None:
        cell = kernel.get_parent("shell")
        await dispatch(message, *arguments, concurrent=concurrent, **named)
        if concurrent:
            _publish_status(kernel, "idle", kernel.get_parent("shell"))
            _publish_status(kernel, "busy", cell)  # otherwise the front end would show an idle kernel

    kernel.dispatch_shell = dispatch_and_say
    try:
        yield
    finally:
        del kernel.dispatch_shell  # restores the method of its class


def _publish_status(kernel: Any, state: str, parent: Mapping[str, Any]) -> None:
    kernel.session.send(kernel.iopub_socket, "status", {"execution_state": state}, parent=parent)


async def _deliver_waiting(kernel: Any) -> list[Any]:
    """Handle the widget messages in the kernel's queue; everything else is put back in its order.

    Returns:
        The raw messages that were put back.
    """
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
    return [entry[-1][0] for entry in later]


def _is_comm(kernel: Any, frames: Any) -> bool:
    """Whether a raw message belongs to a widget. Only its header is read: deserializing checks the signature once."""
    _, parts = kernel.session.feed_identities(frames, copy=False)
    return str(kernel.session.unpack(parts[1].bytes)["msg_type"]).startswith("comm_")


def _kernel() -> Any:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None)
