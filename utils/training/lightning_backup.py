"""A Lightning callback that copies each new checkpoint to a mirror. Lightning is imported when the first one is made."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.training.mirror import Mirror

if TYPE_CHECKING:
    from pytorch_lightning import Callback


class MirroredFolder:
    """Keeps a mirror of the `.ckpt` files of a folder: copies what is new or changed, removes what was removed.

    Args:
        folder: where Lightning saves; mirror: where copies go.
    """

    def __init__(self, folder: Path, mirror: Mirror) -> None:
        self.folder, self.mirror = folder, mirror
        self._seen: dict[str, tuple[int, int]] = {}

    def look(self) -> None:
        """Hand over what has changed since the last look."""
        there = {path.name: path for path in self.folder.glob("*.ckpt")}
        for name in set(self._seen) - set(there):
            del self._seen[name]
            self.mirror.remove(name)
        for name, path in sorted(there.items()):
            facts = path.stat()
            version = (facts.st_mtime_ns, facts.st_size)
            if self._seen.get(name) != version:
                self._seen[name] = version
                self.mirror.submit(path)


def drive_backup_callback(folder: Path, mirror: Mirror) -> Callback:
    """A `DriveBackupCallback` for `folder`; put it behind the ModelCheckpoint."""
    made: Callback = _callback_class()(MirroredFolder(folder, mirror))
    return made


@functools.cache
def _callback_class() -> Any:
    from pytorch_lightning import Callback

    class DriveBackupCallback(Callback):
        """Looks when an epoch's training and validation are over, after Lightning has saved."""

        def __init__(self, watched: MirroredFolder) -> None:
            self.watched, self.mirror = watched, watched.mirror

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            """Copy what was saved since the last look."""
            self._look(trainer)

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            """The same, for checkpoints that a validation has caused."""
            self._look(trainer)

        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            """The last look, and a wait of at most a minute."""
            self._look(trainer)
            if trainer.is_global_zero:
                self.mirror.finish()

        def _look(self, trainer: Any) -> None:
            if trainer.is_global_zero and not trainer.sanity_checking:
                self.watched.look()

    return DriveBackupCallback
