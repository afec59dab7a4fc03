"""CheckpointManager: checkpoints by hand, of a plain training loop or of Lightning. A face over the engine's checkpoints.

Files are committed completely or not at all, verified, and hold tensors and plain values only: `weights_only=True` loads them,
and nothing else is ever loaded.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import CheckpointError, CheckpointWriteError, ConfigError
from utils.storage import absolute_path, link_or_copy
from utils.training.lightning_backup import drive_backup_callback
from utils.training.lightning_checkpoints import LightningCheckpoints
from utils.training.mirror import Mirror, mirror_folder
from utils.training.restoring import (
    Restored,
    load_fitting_weights,
    load_optimizer,
    optimizer_kind,
    optimizer_misfit,
)

if TYPE_CHECKING:
    from pytorch_lightning import Callback
    from pytorch_lightning.callbacks import ModelCheckpoint
    from torch import nn
    from torch.optim import Optimizer

log = logging.getLogger("trainbook.checkpoints")

LATEST, BEST_MODEL = "latest_checkpoint.pt", "best_model.pt"

# Model -> the file that was last loaded into it.
_LOADED: weakref.WeakKeyDictionary[nn.Module, Path] = weakref.WeakKeyDictionary()

# What every file holds; additional information cannot have these names.
CORE_KEYS = (
    "epoch", "model_state_dict", "optimizer_state_dict", "optimizer_class", "loss", "accuracy", "model_config",
)  # fmt: skip


class CheckpointManager:
    """Saves and loads checkpoints in one folder, in either of two ways.

    For a loop of one's own: `CheckpointManager(checkpoints_dir, save_frequency=10)` with `save_best_model`,
    `save_latest_checkpoint`, `save_epoch_checkpoint` and `load_checkpoint(filepath, model, optimizer)`. Files are
    `latest_checkpoint.pt`, `best_model.pt` and `epoch_{N}.pt`, N = completed epochs.

    For Lightning: `CheckpointManager(checkpoint_dir=..., save_top_k=3, monitor="val_loss", mode="min")` with `get_callback()`,
    `load_checkpoint()`, `load_model_from_checkpoint(model_class)`, `list_checkpoints()`. Files are Lightning's `.ckpt`.

    Args:
        checkpoints_dir, checkpoint_dir: the folder, made when absent; two spellings of the same.
        save_frequency: `save_epoch_checkpoint` writes every n-th epoch.
        save_top_k: best checkpoints that Lightning's callback keeps; monitor, mode: the metric, and "min" or "max".
        save_every_n_epochs, save_last, filename: as Lightning's ModelCheckpoint has them (every_n_epochs, save_last, filename).
        drive_backup: copy each checkpoint to `drive_backup_path` as well, such as "MyDrive/checkpoints".
    Attributes:
        best_accuracy: accuracy (0 to 100) that `save_best_model` has to beat, 0.0 before the first model. It can be set.
        mirror: where copies go, or None.
    Raises:
        ConfigError: both folders, or neither; a frequency or mode that cannot be.
    """

    def __init__(
        self, checkpoints_dir: str | Path | None = None, save_frequency: int = 10, *,
        checkpoint_dir: str | Path | None = None, save_top_k: int = 3, monitor: str = "val_loss", mode: str = "min",
        save_every_n_epochs: int = 1, save_last: bool = True, filename: str | None = None, drive_backup: bool = False,
        drive_backup_path: str | Path | None = None,
    ) -> None:  # fmt: skip
        if (checkpoints_dir is None) == (checkpoint_dir is None):
            both = "both" if checkpoint_dir is not None else "neither"
            raise ConfigError(
                f"CheckpointManager takes one folder, as checkpoints_dir or as checkpoint_dir; got {both}."
            )
        _check_positive("save_frequency", save_frequency)
        folder = checkpoints_dir if checkpoints_dir is not None else checkpoint_dir
        self.folder = absolute_path(str(folder))
        self.save_frequency = save_frequency
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self.folder} cannot be made: {error.strerror}. Choose another folder.") from None
        self.mirror: Mirror | None = None
        if drive_backup:
            self.mirror = Mirror(mirror_folder(drive_backup_path or Path("MyDrive") / self.folder.name))
        self._lightning = LightningCheckpoints(
            self.folder, save_top_k, monitor, mode, save_every_n_epochs, save_last, filename
        )
        self._best: float | None = None

    @property
    def checkpoints_dir(self) -> str:
        """The folder."""
        return str(self.folder)

    @property
    def checkpoint_dir(self) -> str:
        """The folder, by its other name."""
        return str(self.folder)

    @property
    def best_accuracy(self) -> float:
        """Accuracy (0 to 100) of the best model so far, 0.0 before the first model."""
        return 0.0 if self._best is None else self._best

    @best_accuracy.setter
    def best_accuracy(self, accuracy: float | None) -> None:
        self._best = None if accuracy is None or math.isnan(accuracy) else float(accuracy)

    @property
    def has_best(self) -> bool:
        """Whether there is an accuracy to beat; one of 0 % is one."""
        return self._best is not None

    def save_checkpoint(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: int, loss: float, accuracy: float,
        filepath: str | Path, additional_info: Mapping[str, Any] | None = None,
    ) -> Path:  # fmt: skip
        """Commit a checkpoint as `filepath`; its folder is made when absent.

        Args:
            epoch: completed epochs; loss, accuracy (0 to 100): of the validation.
            additional_info: more entries, tensors and plain values.
        Returns:
            the file's path.
        Raises:
            ConfigError: additional_info has a name of `CORE_KEYS`.
            CheckpointWriteError: it could not be written; what was there before is intact.
        """
        from utils.training.engine.checkpointing.store import write_file

        extra = dict(additional_info or {})
        if taken := sorted(set(extra) & set(CORE_KEYS)):
            raise ConfigError(
                f"additional_info has {', '.join(taken)}, which the checkpoint itself holds; choose other names."
            )
        path = absolute_path(filepath)
        _make_folder(path.parent)
        write_file(path, {**self.core(model, optimizer, epoch, loss, accuracy), **extra})
        self._mirror(path)
        return path

    def core(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: int, loss: float, accuracy: float
    ) -> dict[str, Any]:
        """Content that every checkpoint holds, under `CORE_KEYS`."""
        return core_entries(model, optimizer, epoch, loss, accuracy)

    def save_best_model(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: int, loss: float, accuracy: float,
        additional_info: Mapping[str, Any] | None = None,
    ) -> bool:  # fmt: skip
        """Save `best_model.pt` if `accuracy` is higher than any before. Returns whether it was.

        The first one is saved whatever it is, 0 % included; NaN and an equal accuracy never are.
        """
        if not self.improves(accuracy):
            return False
        self.save_checkpoint(model, optimizer, epoch, loss, accuracy, self.folder / BEST_MODEL, additional_info)
        self.best_accuracy = float(accuracy)
        return True

    def improves(self, accuracy: float) -> bool:
        """Whether `accuracy` is higher than that of the best model so far."""
        value = float(accuracy)
        return not math.isnan(value) and (self._best is None or value > self._best)

    def save_latest_checkpoint(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: int, loss: float, accuracy: float,
        additional_info: Mapping[str, Any] | None = None,
    ) -> Path:  # fmt: skip
        """Save `latest_checkpoint.pt`, in place of the one before."""
        return self.save_checkpoint(
            model, optimizer, epoch, loss, accuracy, self.folder / LATEST, additional_info
        )  # fmt: skip

    def save_epoch_checkpoint(
        self, model: nn.Module, optimizer: Optimizer | None, epoch: int, loss: float, accuracy: float,
        additional_info: Mapping[str, Any] | None = None,
    ) -> Path | None:  # fmt: skip
        """Save `epoch_{epoch}.pt` when `epoch` is a multiple of `save_frequency`; None when it is not."""
        if epoch % self.save_frequency:
            return None
        path = self.folder / f"epoch_{epoch}.pt"
        return self.save_checkpoint(model, optimizer, epoch, loss, accuracy, path, additional_info)

    def take_names(self, path: Path, epoch: int, accuracy: float | None, *, best: bool | None = None) -> None:
        """Give a committed checkpoint the names it has here (latest, best, of its epoch) instead of writing it again.

        Args:
            path: a file with `CORE_KEYS`, such as an experiment's trainer commits.
            epoch: completed epochs that it holds; accuracy: of its validation, 0 to 100, or None.
            best: whether it is the best; None: when its accuracy is higher than any before.
        """
        names = [LATEST]
        improves = accuracy is not None and self.improves(accuracy)
        if improves:
            self.best_accuracy = accuracy
        if improves if best is None else best:
            names.append(BEST_MODEL)
        if epoch % self.save_frequency == 0 and path.parent.resolve() != self.folder.resolve():
            names.append(f"epoch_{epoch}.pt")
        for name in names:
            link_or_copy(path, self.folder / name)
            self._mirror(self.folder / name)

    def load_checkpoint(
        self, filepath: str | Path | None = None, model: nn.Module | None = None, optimizer: Optimizer | None = None,
        strict: bool = True, *, checkpoint_path: str | Path | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Load a checkpoint: into `model` and `optimizer` when they are given, else only its content.

        Args:
            filepath, checkpoint_path: the file, two spellings of the same. Without a model it may be left out: the best `.ckpt`
                file then, else the newest.
            strict: every entry must fit, or an error lists the differences and nothing is changed. False: what fits is loaded.
        Returns:
            Without a model: the file's content. With one: `epoch`, `loss`, `accuracy`, `fully_restored` (the model is exactly
            the one that was saved), `loaded_layers` and `total_layers` (entries of the file's state_dict), `skipped` (entry ->
            reason), `optimizer_restored` and `optimizer_reason`. An optimizer's state is loaded only into an optimizer of the
            same kind over a model that is fully restored.
        Raises:
            CheckpointNotFoundError, CheckpointError: no file; damaged; objects that could run code; it does not fit.
        """
        if filepath is not None and checkpoint_path is not None:
            raise ConfigError("load_checkpoint takes the file once, as filepath or as checkpoint_path; got both.")
        path = filepath if filepath is not None else checkpoint_path
        if model is None:
            return self._lightning.read(None if path is None else Path(path))
        from utils.training.engine.checkpointing.store import refuse_foreign_file_on_old_torch

        path = absolute_path(self.folder / LATEST if path is None else path)
        is_own = path.resolve().parent == self.folder.resolve()
        if not is_own:
            refuse_foreign_file_on_old_torch(path)
        info = restore(path, model, optimizer, strict)
        if is_own:
            self._adopt_best(info["fully_restored"])
        return info

    def _adopt_best(self, same_model: bool) -> None:
        """Take over the score of `best_model.pt` as the one to beat after a resume, unless it is of another model."""
        self._best = None
        path = self.folder / BEST_MODEL
        if not same_model or not path.is_file():
            return
        from utils.training.engine.checkpointing.store import read_plain

        try:
            content = read_plain(path, mapped=True)
        except CheckpointError as error:
            log.warning("The best model so far cannot be read, so the next one becomes the best: %s", error)
            return
        accuracy = content.get("accuracy") if isinstance(content, dict) else None
        self.best_accuracy = float(accuracy) if isinstance(accuracy, (int, float)) else math.nan

    def _mirror(self, path: Path) -> None:
        if self.mirror is not None:
            self.mirror.submit(path)

    def get_callback(self) -> ModelCheckpoint:
        """Lightning's ModelCheckpoint for this folder; the same one at each call."""
        return self._lightning.callback()

    def get_backup_callback(self) -> Callback | None:
        """A Lightning callback that copies each new checkpoint to the drive; None without `drive_backup`."""
        if self.mirror is None:
            return None
        return drive_backup_callback(self.folder, self.mirror)

    def load_model_from_checkpoint(
        self, model_class: Any, checkpoint_path: str | Path | None = None, **arguments: Any
    ) -> nn.Module:
        """A new LightningModule with a checkpoint's weights, in evaluation mode.

        Args:
            model_class: called with the hyper-parameters that the checkpoint keeps, and `arguments` over them.
            checkpoint_path: None: the best one, else the newest.
        Raises:
            CheckpointError: the file cannot be loaded safely, or is of another model.
            ConfigError: the class needs arguments that neither the checkpoint nor the caller gives; names them.
        """
        path = None if checkpoint_path is None else Path(checkpoint_path)
        return self._lightning.load_model(model_class, path, arguments)

    def get_best_checkpoint_path(self) -> str | None:
        """The `.ckpt` file with the best monitored metric, the earlier one of equals; None when none has one."""
        best = self._lightning.best()
        return None if best is None else str(best)

    def list_checkpoints(self, sort_by: str = "time") -> list[str]:
        """Paths of the intact `.ckpt` files.

        Args:
            sort_by: "time" or "epoch": oldest first; "metric": best first, those without one last; "name".
        """
        return [str(found.path) for found in self._lightning.listed(sort_by)]

    def cleanup_old_checkpoints(self, keep_top_k: int | None = None) -> list[str]:
        """Remove all `.ckpt` files but the best `keep_top_k` (None: `save_top_k`), the newest, and last.ckpt.

        Returns:
            what was removed. Damaged files are left for you to look at.
        """
        return [str(path) for path in self._lightning.clean_up(keep_top_k)]

    def print_checkpoint_info(self) -> None:
        """Show the `.ckpt` files in a table: epoch, step, metric, size, and which one is best."""
        from utils.views.display import show_columns

        title, header, rows = self._lightning.table()
        show_columns(title, header, rows)


def core_entries(
    model: nn.Module, optimizer: Optimizer | None, epoch: int, loss: float, accuracy: float
) -> dict[str, Any]:
    """A checkpoint's entries under `CORE_KEYS`."""
    return {
        "epoch": int(epoch),
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": None if optimizer is None else optimizer.state_dict(),
        "optimizer_class": None if optimizer is None else optimizer_kind(optimizer),
        "loss": float(loss),
        "accuracy": float(accuracy),
        "model_config": _model_config(model),
    }


def restore(path: Path, model: nn.Module, optimizer: Optimizer | None, strict: bool) -> dict[str, Any]:
    """Put a checkpoint into `model` and `optimizer`; see `CheckpointManager.load_checkpoint`."""
    from utils.training.engine.checkpointing.store import read_plain
    from utils.training.engine.checkpointing.weights import load_model_weights

    content = read_plain(path)
    if isinstance(content, dict) and "model_state_dict" not in content and "format" in content:
        content = _core_of_run(content)
    if not isinstance(content, dict) or not isinstance(content.get("model_state_dict"), Mapping):
        held = sorted(map(str, content))[:6] if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path} has no model_state_dict; it holds {held}.")
    weights, state = content["model_state_dict"], content.get("optimizer_state_dict")
    reason = None
    if optimizer is not None:
        kind = content.get("optimizer_class")
        reason = "the file has none" if state is None else optimizer_misfit(optimizer, state, kind)
        if strict and reason is not None and state is not None:
            raise CheckpointError(
                f"{path}: the optimizer's state does not fit: {reason}. Load without the optimizer, or with strict=False."
            )
    if strict:
        load_model_weights(model, weights, str(path))
        found = Restored(loaded=len(weights), total=len(weights))
    else:
        found = load_fitting_weights(model, weights)
    if optimizer is not None:
        found.optimizer_reason = reason or (None if found.complete else "the model is only partly restored")
        if found.optimizer_reason is None and state is not None:
            load_optimizer(optimizer, state)
            found.optimizer = True
    _LOADED[model] = path.resolve()
    epoch = content.get("epoch")
    epoch = int(epoch) if isinstance(epoch, (int, float)) else 0
    if found.skipped or found.optimizer_reason:
        log.warning("%s: %s", path, _told(found))
    return {
        "epoch": epoch, "loss": content.get("loss"), "accuracy": content.get("accuracy"),
        "fully_restored": found.complete, "loaded_layers": found.loaded, "total_layers": found.total,
        "skipped": found.skipped, "optimizer_restored": found.optimizer, "optimizer_reason": found.optimizer_reason,
    }  # fmt: skip


def loaded_from(model: nn.Module) -> Path | None:
    """The file that was last loaded into `model` in this process; None: none was."""
    return _LOADED.get(model)


def _core_of_run(payload: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint of the engine's, by the names that are used here."""
    state = payload.get("state", {})
    last: dict[str, Any] = next((row for row in reversed(state.get("history", ())) if "val/loss" in row), {})
    return {
        "epoch": state.get("epoch", 0), "model_state_dict": payload.get("model"),
        "optimizer_state_dict": payload.get("optimizer"), "optimizer_class": payload.get("optimizer_kind"),
        "loss": last.get("val/loss"), "accuracy": None if "val/accuracy" not in last else 100 * last["val/accuracy"],
    }  # fmt: skip


def _told(found: Restored) -> str:
    said = []
    if found.skipped:
        first = "; ".join(f"{name}: {reason}" for name, reason in list(found.skipped.items())[:5])
        more = f" and {len(found.skipped) - 5} more" if len(found.skipped) > 5 else ""
        said.append(f"{found.loaded} of {found.total} entries loaded ({first}{more})")
    if found.optimizer_reason:
        said.append(f"the optimizer starts afresh: {found.optimizer_reason}")
    return "; ".join(said)


def _model_config(model: nn.Module) -> dict[str, Any]:
    """The model's config as plain values; {} when it has none."""
    describe = getattr(model, "get_model_info", None)
    found = describe() if callable(describe) else {}
    return {str(name): _plain(value) for name, value in found.items()} if isinstance(found, Mapping) else {}


def _plain(value: Any) -> Any:
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    return value.item() if getattr(value, "ndim", None) == 0 else str(value)


def _check_positive(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name}: got {value!r}; must be a whole number of at least 1.")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointWriteError(f"{folder} cannot be made: {error.strerror}. Choose another path.") from None
