"""A notebook client without a front end: this interpreter as kernel, output printed at once, time to save on Ctrl-C.

Imports the packages of the extra `notebook`; run_notebook.py imports this module only when it needs it.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Mapping
from typing import Any

import zmq
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode


class _ThisInterpreter(KernelSpecManager):
    """Answers every name with this interpreter: an installed kernel of the same name may belong to another one."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        description = get_kernel_dict()
        return KernelSpec(
            argv=description["argv"],
            display_name=kernel_name,
            language=description["language"],
            metadata=description["metadata"],
        )


class _ThisInterpreterManager(AsyncKernelManager):
    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return _ThisInterpreter(parent=self.parent)

    def _transport_encryption_default(self) -> str:  # the sockets are on 127.0.0.1, where other users could read along
        return "auto" if zmq.has("curve") else "disabled"


class PrintingClient(NotebookClient):
    """Prints text output and headings as they come; names figures.

    The first SIGINT or SIGTERM interrupts the running cell, which may then save; a second one ends the kernel.

    Attributes:
        interrupted_by: the first signal that was received, or None.
        running_cell: number of the cell that ran last, counting from 1, and the cell itself; None before the first.
    """

    def __init__(self, notebook: NotebookNode, folder: str, timeout_s: int | None) -> None:
        super().__init__(
            notebook,
            kernel_name="python3",
            kernel_manager_class=_ThisInterpreterManager,
            timeout=timeout_s,
            # The kernel's own log tells of its sockets; what a cell prints or raises comes another way.
            extra_arguments=["--log-level=CRITICAL"],
            resources={"metadata": {"path": folder}},
            on_notebook_start=self._take_signals,
            on_cell_start=self._print_heading,
            on_cell_execute=self._note_cell,
        )
        self.interrupted_by: signal.Signals | None = None
        self.running_cell: tuple[int, NotebookNode] | None = None
        self._pending: asyncio.Future[None] | None = None  # a reference, so that the task is not collected

    def output(
        self, outs: list[NotebookNode], msg: dict[str, Any], display_id: str | None, cell_index: int
    ) -> NotebookNode | None:
        """Record one output message and print its text form. Errors are described once, by whoever called."""
        text = _text_of(msg["msg_type"], msg["content"])
        sys.stdout.write(text)
        sys.stdout.flush()
        return super().output(outs, msg, display_id, cell_index)

    def _print_heading(self, cell: NotebookNode, cell_index: int) -> None:
        if cell.cell_type == "markdown":
            heading = next((line for line in cell.source.splitlines() if line.startswith("#")), None)
            if heading is not None:
                print(f"\n{heading}", flush=True)

    def _note_cell(self, cell: NotebookNode, cell_index: int) -> None:
        self.running_cell = (cell_index + 1, cell)

    def _take_signals(self, notebook: NotebookNode) -> None:
        # The client's own handlers kill the kernel after five seconds; a training cell may need longer to save.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                loop.add_signal_handler(number, self._on_signal, number)
            except (RuntimeError, NotImplementedError):  # not the main thread, or Windows: Ctrl-C ends the kernel there
                return

    def _on_signal(self, number: signal.Signals) -> None:
        if self.interrupted_by is None:
            self.interrupted_by = number
            print("\ninterrupting the running cell; once more to end at once", file=sys.stderr, flush=True)
            self._pending = asyncio.ensure_future(self._interrupt())
        else:
            self._pending = asyncio.ensure_future(self._kill())

    async def _interrupt(self) -> None:
        if isinstance(self.km, AsyncKernelManager):
            await self.km.interrupt_kernel()

    async def _kill(self) -> None:  # the client then finds the kernel dead and cleans up
        if isinstance(self.km, AsyncKernelManager):
            await self.km.signal_kernel(signal.SIGKILL)


def _text_of(kind: str, content: Mapping[str, Any]) -> str:
    if kind == "stream":
        return str(content["text"])
    if kind not in ("display_data", "execute_result"):
        return ""
    data = content["data"]
    text = str(data.get("text/plain", "")).rstrip("\n")
    pictures = [name for name in data if name.startswith("image/")]
    if pictures:
        return f"[figure] {text or pictures[0]}\n"
    if "application/vnd.jupyter.widget-view+json" in data:
        return "[widget]\n"
    return f"{text}\n" if text else ""
