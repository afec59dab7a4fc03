"""A commit in a thread of its own, while training continues."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from utils.training.engine.checkpointing.store import CheckpointStore, Entry, Payload


class _Abandoned(Exception):  # noqa: N818 - no error: the way out of a commit that nobody waits for
    """The commit is no longer wanted."""


class BackgroundCommit:
    """Commits `payload`, which nobody changes meanwhile. The same steps in the same order as `CheckpointStore.commit`.

    At most one at a time for a store; until `outcome` or `abandon` it is the store's `pending` entry.

    Args:
        after_commit: called in the thread with the file and its content.
    """

    def __init__(
        self, store: CheckpointStore, payload: Payload, name: str, after_commit: Callable[[Path, Payload], None]
    ) -> None:
        self._store, self._payload, self._name, self._after_commit = store, payload, name, after_commit
        self._abandoned = threading.Event()
        self._path: Path | None = None
        self._error: BaseException | None = None
        # Not a daemon: the interpreter waits at its end instead of tearing the thread out of torch's writer.
        self._thread = threading.Thread(target=self._run, name="trainbook-checkpoint", daemon=False)
        store.pending = Entry.of(store.folder / name, payload)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether `outcome` would have to wait."""
        return self._thread.is_alive()

    def wait(self) -> None:
        """Wait for the end. A signal's handler runs meanwhile, and may raise."""
        self._thread.join()

    def outcome(self) -> Path:
        """The committed file. Raises what `commit` raised."""
        self.wait()
        self._store.pending = None
        if self._error is not None:
            raise self._error
        assert self._path is not None
        return self._path

    def abandon(self) -> None:
        """End it as soon as can be, with nothing left behind but what is committed already."""
        self._abandoned.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._store.pending = None

    def _run(self) -> None:
        try:
            self._path = self._store.commit(self._payload, self._name, self._go_on)
            self._after_commit(self._path, self._payload)
        except BaseException as error:  # noqa: BLE001 - raised again by `outcome`, in the training's own thread
            self._error = error
        finally:
            self._payload = {}

    def _go_on(self) -> None:
        if self._abandoned.is_set():
            raise _Abandoned
