"""A disk that takes as long as a test needs: one commit is held before its first byte is written."""

from __future__ import annotations

import builtins
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

#: Long enough for a loaded machine; reached only when the code under test waits for what it must not wait for.
PATIENCE_S = 120.0


class SlowDisk:
    """Holds the n-th checkpoint that is written while it is `held`, from 1.

    Attributes:
        reached: set when that commit has opened its file; let_go: set it to let the commit go on.
        overlaps: other checkpoints that came to theirs meanwhile; too_long: whether nobody let it go in time.
    """

    def __init__(self, n: int = 1, until: Callable[[], object] | None = None) -> None:
        self.reached, self.let_go = threading.Event(), threading.Event()
        self.overlaps, self.too_long = 0, False
        self._left, self._until = n, until or (lambda: self.let_go.wait(PATIENCE_S))

    @contextmanager
    def held(self) -> Iterator[SlowDisk]:
        """For the length of the block."""
        real = builtins.open

        def slow(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            file = real(path, mode, *arguments, **options)
            if mode == "wb" and ".pt." in Path(path).name:
                self._left -= 1
                if self._left == 0:
                    self.reached.set()
                    self.too_long = not self._until()
                elif self.reached.is_set() and not self.let_go.is_set():
                    self.overlaps += 1
            return file

        builtins.open = slow
        try:
            yield self
        finally:
            builtins.open = real
            assert self.reached.is_set(), "no checkpoint was held: the test shows nothing"
            assert not self.too_long, "training waited for the checkpoint"


def save_in_background(monkeypatch: pytest.MonkeyPatch, always: bool = True) -> None:
    """Toy models are written by a thread too, or (not `always`) nothing ever is."""
    monkeypatch.setattr("utils.training.engine.checkpointing.saver.SMALLEST_IN_BACKGROUND_BYTES", 0 if always else 1 << 62)
