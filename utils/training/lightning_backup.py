"""A Lightning callback that copies each new checkpoint to a mirror."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning import Callback

from utils.training.mirror import Mirror


class DriveBackupCallback(Callback):
    """Keeps a mirror of the `.ckpt` files of a folder: copies what is new or changed, removes what Lightning has removed.

    It looks when an epoch's training and validation are over, after Lightning has saved; put it behind the ModelCheckpoint.

    Args:
        folder: where ModelCheckpoint saves; mirror: where copies go.
    """

    def __init__(self, folder: Path, mirror: Mirror) -> None:
        self.folder, self.mirror = folder, mirror
        self._seen: dict[str, tuple[int, int]] = {}

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
        if not trainer.is_global_zero or trainer.sanity_checking or not self.folder.is_dir():
            return
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
