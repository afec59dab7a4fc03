"""Work that takes seconds: it reports progress, can be cancelled, and says when nothing else may use the random state."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


class Cancelled(BaseException):
    """Somebody cancelled the work under way.

    No `Exception`, because it is no error: work that goes on after errors of one of its parts must end here too.
    """


class Progress:
    """Between work that takes seconds and whoever waits for it. Every method may be called from any thread.

    The work calls `report`, and runs what uses torch's random state or the model inside `undisturbed`. Whoever waits
    reads `sentence`, and may call `cancel`.

    Args:
        listener: called with each sentence, in the thread of the work.
    """

    def __init__(self, listener: Callable[[str], None] = lambda sentence: None) -> None:
        self._sentence, self._listener = "", listener
        self._cancelled = threading.Event()
        self._undisturbed = threading.Lock()

    @property
    def sentence(self) -> str:
        """Current activity, without a full stop."""
        return self._sentence

    def report(self, sentence: str) -> None:
        """Say what is being done now. Raises `Cancelled` when the work is to end here."""
        self.raise_if_cancelled()
        self._sentence = sentence
        self._listener(sentence)

    @property
    def cancelled(self) -> bool:
        """Whether somebody cancelled."""
        return self._cancelled.is_set()

    def raise_if_cancelled(self) -> None:
        """Raise `Cancelled` when somebody cancelled."""
        if self.cancelled:
            raise Cancelled

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[None]:
        """A part of the work during which nobody else may use the model or any random generator.

        Raises:
            Cancelled: instead of beginning.
        """
        with self._undisturbed:
            self.raise_if_cancelled()
            yield

    def cancel(self) -> None:
        """Ask the work to end at the next point where it can."""
        self._cancelled.set()

    def cancel_and_wait(self) -> None:
        """Cancel, and return when the model and the random generators are free for somebody else."""
        self.cancel()
        with self._undisturbed:
            pass
