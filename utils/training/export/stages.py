"""What an export is doing, for whoever watches it, and the points at which it can be ended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_listener: ContextVar[Callable[[str], None] | None] = ContextVar("export_stage_listener", default=None)


@contextlib.contextmanager
def watched(listener: Callable[[str], None] | None) -> Iterator[None]:
    """Within the block, call `listener` with every stage that this thread's exports reach.

    Args:
        listener: gets a few words such as "comparing logits"; may be None. What it raises ends the export, which then leaves
            no files. Exporters that continue after errors catch `Exception`: raise another class to end them too.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def stage(sentence: str) -> None:
    """Say what an exporter does next."""
    listener = _listener.get()
    if listener is not None:
        listener(sentence)
