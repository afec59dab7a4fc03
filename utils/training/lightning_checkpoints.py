"""Lightning's checkpoints in a folder: what is there, which is best, how they are read without running code."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import CheckpointError, CheckpointNotFoundError, ConfigError

if TYPE_CHECKING:
    from pytorch_lightning.callbacks import ModelCheckpoint
    from torch import nn

log = logging.getLogger("trainbook.checkpoints")

LAST = "last.ckpt"
_ORDERS = ("time", "epoch", "metric", "name")


@dataclass(frozen=True)
class LightningFile:
    """An intact `.ckpt` file.

    Attributes:
        epoch: completed epochs when it was saved; step: optimizer steps.
        value: the monitored metric, None where it was not measured.
        size_bytes, modified: of the file; `modified` in seconds since 1970.
    """

    path: Path
    epoch: int
    step: int
    value: float | None
    size_bytes: int
    modified: float


class LightningCheckpoints:
    """The `.ckpt` files of one folder.

    Args:
        monitor, mode: the metric by which they are compared, and "min" or "max".
        save_top_k, every_n_epochs, save_last, filename: Lightning's ModelCheckpoint's.
    Raises:
        ConfigError: a mode or count that cannot be.
    """

    def __init__(
        self, folder: Path, save_top_k: int, monitor: str, mode: str, every_n_epochs: int, save_last: bool,
        filename: str | None,
    ) -> None:  # fmt: skip
        if mode not in ("min", "max"):
            raise ConfigError(f"mode: got {mode!r}; must be 'min' or 'max'.")
        if not isinstance(save_top_k, int) or save_top_k < -1:
            raise ConfigError(f"save_top_k: got {save_top_k!r}; must be a count, or -1 for all.")
        self.folder, self.save_top_k, self.monitor, self.mode = folder, save_top_k, monitor, mode
        self._every, self._save_last = every_n_epochs, save_last
        self._filename = filename or f"{{epoch:02d}}-{{{monitor}:.4f}}"
        self._callback: ModelCheckpoint | None = None
        self._known: dict[Path, tuple[tuple[int, int], LightningFile | None]] = {}

    def callback(self) -> ModelCheckpoint:
        """Lightning's callback that saves here."""
        from pytorch_lightning.callbacks import ModelCheckpoint

        if self._callback is None:
            self._callback = ModelCheckpoint(
                dirpath=self.folder, filename=self._filename, monitor=self.monitor, mode=self.mode,
                save_top_k=self.save_top_k, save_last=self._save_last, every_n_epochs=self._every,
            )  # fmt: skip
        return self._callback

    def files(self) -> list[LightningFile]:
        """Intact files, oldest first. Damaged ones are skipped with a warning, once."""
        found = [self._examined(path) for path in self.folder.glob("*.ckpt") if path.is_file()]
        return sorted((file for file in found if file is not None), key=lambda file: (file.modified, file.path.name))

    def _examined(self, path: Path) -> LightningFile | None:
        facts = path.stat()
        version = (facts.st_mtime_ns, facts.st_size)
        if path not in self._known or self._known[path][0] != version:
            self._known[path] = (version, self._described(path))
        return self._known[path][1]

    def _described(self, path: Path) -> LightningFile | None:
        try:
            content = read_lightning(path, mapped=True)
        except CheckpointError as error:
            log.warning("Passed over: %s", error)
            return None
        facts = path.stat()
        return LightningFile(
            path, int(content.get("epoch", -1)) + 1, int(content.get("global_step", 0)), self._value(content),
            facts.st_size, facts.st_mtime,
        )  # fmt: skip

    def _value(self, content: Mapping[str, Any]) -> float | None:
        """The metric that ModelCheckpoint had before it when it saved this file."""
        for state in (content.get("callbacks") or {}).values():
            if isinstance(state, Mapping) and state.get("monitor") == self.monitor:
                score = state.get("current_score")
                value = math.nan if score is None else float(score)
                return None if math.isnan(value) else value
        return None

    def _rank(self, file: LightningFile) -> tuple[float, int, float]:
        """Smaller is better; files without a value come last."""
        if file.value is None:
            return math.inf, file.step, file.modified
        return (file.value if self.mode == "min" else -file.value), file.step, file.modified

    def listed(self, sort_by: str) -> list[LightningFile]:
        """The files in an order. Raises `ConfigError` that lists the orders."""
        if sort_by not in _ORDERS:
            raise ConfigError(f"sort_by: got {sort_by!r}; must be one of {', '.join(_ORDERS)}.")
        files = self.files()
        if sort_by == "metric":
            return sorted(files, key=self._rank)
        if sort_by == "epoch":
            return sorted(files, key=lambda file: (file.epoch, file.step, file.modified))
        if sort_by == "name":
            return sorted(files, key=lambda file: file.path.name)
        return files

    def best(self) -> Path | None:
        """The best file; last.ckpt only when it is the best and has no other name."""
        valued = [file for file in self.files() if file.value is not None]
        named = [file for file in valued if file.path.name != LAST]
        ranked = sorted(valued, key=lambda file: (self._rank(file)[0], file not in named, *self._rank(file)[1:]))
        return ranked[0].path if ranked else None

    def chosen(self, path: Path | None) -> Path:
        """The file that is meant: `path`, else the best, else the newest. Raises `CheckpointNotFoundError`."""
        if path is not None:
            from utils.training.engine.checkpointing.store import refuse_foreign_file_on_old_torch

            if path.resolve().parent != self.folder.resolve():
                refuse_foreign_file_on_old_torch(path)
            return path
        best = self.best()
        if best is not None:
            return best
        files = self.files()
        if not files:
            raise CheckpointNotFoundError(
                f"{self.folder} holds no intact .ckpt file. Train with get_callback() in Lightning's callbacks, or name a file."
            )
        return max(files, key=lambda file: (file.step, file.modified)).path

    def read(self, path: Path | None) -> dict[str, Any]:
        """The content of the file that is meant."""
        from utils.training.engine.checkpointing.store import read_plain

        path = self.chosen(path)
        content = read_lightning(path) if path.suffix == ".ckpt" else read_plain(path)
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} is no checkpoint: it holds a {type(content).__name__}.")
        return content

    def load_model(self, model_class: Any, path: Path | None, arguments: Mapping[str, Any]) -> nn.Module:
        """A new module of `model_class` with the weights of the file that is meant, in evaluation mode."""
        from utils.training.engine.checkpointing.weights import load_model_weights

        path = self.chosen(path)
        content = self.read(path)
        weights = content.get("state_dict")
        if not isinstance(weights, Mapping):
            raise CheckpointError(f"{path} has no state_dict; it holds {sorted(map(str, content))[:6]}.")
        model: nn.Module = _made(model_class, content.get("hyper_parameters") or {}, arguments, path)
        load_model_weights(model, weights, str(path))
        return model.eval()

    def clean_up(self, keep_top_k: int | None) -> list[Path]:
        """Remove all but the best `keep_top_k`, the newest and last.ckpt. Returns what was removed."""
        keep = self.save_top_k if keep_top_k is None else keep_top_k
        if not isinstance(keep, int) or isinstance(keep, bool) or keep < -1:
            raise ConfigError(f"keep_top_k: got {keep!r}; must be a count, or -1 for all.")
        files = [file for file in self.files() if file.path.name != LAST]
        if keep == -1 or not files:
            return []
        newest = max(files, key=lambda file: (file.step, file.modified))
        valued = [file for file in sorted(files, key=self._rank) if file.value is not None]
        kept = {newest.path, *(file.path for file in valued[:keep])}
        removed = [file.path for file in files if file.path not in kept]
        for path in removed:
            path.unlink(missing_ok=True)
        return removed

    def table(self) -> tuple[str, list[str], list[list[str]]]:
        """Title, header and rows for a reader."""
        best = self.best()
        rows = [
            [
                file.path.name, str(file.epoch), str(file.step), "unknown" if file.value is None else f"{file.value:.4f}",
                f"{file.size_bytes / 2**20:.1f} MiB", "best" if file.path == best else "",
            ]
            for file in self.listed("epoch")
        ]  # fmt: skip
        return f"Checkpoints in {self.folder}", ["file", "epochs", "steps", self.monitor, "size", ""], rows


def read_lightning(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """The content of a `.ckpt` file: weights, and hyper-parameters that are plain values.

    Hyper-parameters that are objects (a module, a tokenizer) are in the file as code that would run on loading.
    Raises:
        CheckpointError: such objects, with what to do; or a damaged file.
    """
    from utils.training.engine.checkpointing.store import read_plain

    try:
        content = read_plain(path, mapped=mapped)
    except CheckpointError as error:
        if "could run code" not in str(error):
            raise
        raise CheckpointError(
            f"{error} A Lightning module puts such objects there with save_hyperparameters(): leave them out with "
            "save_hyperparameters(ignore=['model']), and give them to load_model_from_checkpoint(..., model=...)."
        ) from None
    if not isinstance(content, dict) or "state_dict" not in content:
        raise CheckpointError(f"{path} is no checkpoint of Lightning: it has no state_dict.")
    return content


def _made(model_class: Any, hyper_parameters: Mapping[str, Any], arguments: Mapping[str, Any], path: Path) -> Any:
    signature = inspect.signature(model_class)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    kept = {name: value for name, value in hyper_parameters.items() if takes_any or name in signature.parameters}
    given = {**kept, **arguments}
    try:
        signature.bind(**given)
    except TypeError as error:
        raise ConfigError(
            f"{getattr(model_class, '__name__', model_class)}: {error}; {path.name} keeps {sorted(kept) or 'no arguments'}. "
            "Give the others: load_model_from_checkpoint(model_class, path, model=...)."
        ) from None
    return model_class(**given)
