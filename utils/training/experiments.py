"""ExperimentManager: experiments as numbered runs, made anew, resumed, or forked from another one's weights."""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from utils.storage import absolute_path
from utils.training.checkpoint_manager import BEST_MODEL, LATEST, loaded_from, restore
from utils.training.config_files import read_config_file
from utils.training.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

log = logging.getLogger("trainbook.experiments")

_EPOCH_FILE = re.compile(r"^epoch_(\d+)\.pt$")


class ExperimentManager:
    """One experiment's folder: `base_dir/expN`, a run as every other one (`utils.training.run_folder`).

    Making the folder reserves its number, also against other processes that start at the same moment.

    Args:
        base_dir: folder of all experiments, made when absent.
        resume_exp: name of an experiment to continue in its own folder.
        fork_exp: name of an experiment whose newest weights and optimizer state a new one starts from, with a history of its
            own; learning rates are those that are set now.
    Attributes:
        experiment_dir, base_dir: paths, as text; fork_source_dir: the experiment that is forked, else None.
        resumed: whether an experiment is continued.
        settings: plain values that are kept in config.yaml, under `experiment`, when training starts.
    Raises:
        ConfigError: both resume_exp and fork_exp, or a folder that cannot be made.
        CheckpointNotFoundError: no such experiment (a FileNotFoundError too); lists those there are. Nothing is made then.
    """

    def __init__(
        self, base_dir: str | Path = "runs", resume_exp: str | None = None, fork_exp: str | None = None
    ) -> None:
        if resume_exp is not None and fork_exp is not None:
            raise ConfigError(
                f"an experiment is resumed or forked; got resume_exp={resume_exp!r} and fork_exp={fork_exp!r}."
            )
        base = absolute_path(base_dir)
        self.base_dir = str(base)
        self.resumed = resume_exp is not None
        self.fork_source_dir: str | None = None
        self.settings: dict[str, Any] = {}
        self._restored: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        if fork_exp is not None:
            self.fork_source_dir = str(existing_experiment(base, fork_exp))
        if resume_exp is not None:
            self._path = existing_experiment(base, resume_exp)
            self.settings = kept_settings(self._path)
        else:
            folder = RunFolder.reserve(base, None)
            self._path = folder.path
            if self.fork_source_dir is not None:
                folder.write_lineage("fork", Path(self.fork_source_dir).name)
        try:
            (self._path / "checkpoints").mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{self._path / 'checkpoints'} cannot be made: {error.strerror}.") from None

    @property
    def name(self) -> str:
        """The experiment's name, such as exp1."""
        return self._path.name

    @property
    def experiment_dir(self) -> str:
        """The experiment's folder."""
        return str(self._path)

    @property
    def checkpoints_dir(self) -> str:
        """Folder of its checkpoints."""
        return str(self._path / "checkpoints")

    @property
    def log_file(self) -> str:
        """The table of epochs, as text."""
        return str(self._path / "training_log.txt")

    @property
    def plot_file(self) -> str:
        """The picture of the curves."""
        return str(self._path / "training_curves.png")

    @property
    def config_file(self) -> str:
        """File with its settings."""
        return str(self._path / "config.yaml")

    def get_experiment_info(self) -> str:
        """A sentence that says where the experiment is."""
        return f"Experiment directory: {self.experiment_dir}"

    def kept_seed(self) -> int | None:
        """The seed with which this experiment was trained before; None when it was not."""
        training = _kept(self.experiment_dir).get("training")
        seed = training.get("random_seed") if isinstance(training, Mapping) else None
        return seed if isinstance(seed, int) else None

    def restore_fork(
        self, model: nn.Module, optimizer: Optimizer | None = None, strict: bool = False
    ) -> dict[str, Any]:
        """Put the source's newest intact checkpoint into `model` and `optimizer`; learning rates stay as they are set.

        Args:
            strict: every entry must fit; False: what fits is loaded and the rest is said.
        Returns:
            as `CheckpointManager.load_checkpoint`, and `source`: the file.
        Raises:
            ConfigError: this experiment is no fork.
            CheckpointError: the source holds no checkpoint that can be loaded; lists what was tried.
        """
        if self.fork_source_dir is None:
            raise ConfigError(f"{self.name} is no fork; make it with fork_exp=.")
        rates = [] if optimizer is None else [_rates(group) for group in optimizer.param_groups]
        path = newest_file(Path(self.fork_source_dir) / "checkpoints")
        info = restore(path, model, optimizer, strict)
        if optimizer is not None:
            for group, own in zip(optimizer.param_groups, rates, strict=True):
                group.update(own)
        self._restored.add(model)
        return {**info, "source": str(path)}

    def is_restored(self, model: nn.Module) -> bool:
        """Whether `model` has the source's weights already: by `restore_fork`, or loaded from a file of the source."""
        source = loaded_from(model)
        own = self.fork_source_dir
        return model in self._restored or (
            source is not None and own is not None and source.parent == (Path(own) / "checkpoints").resolve()
        )


def _rates(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: group[name] for name in ("lr", "initial_lr") if name in group}


def existing_experiment(base: Path, name: str) -> Path:
    """The folder of an experiment. Raises `CheckpointNotFoundError` that lists those there are."""
    path = base / name
    if name != ".." and path.parent == base and path.is_dir():
        return path
    there = sorted(entry.name for entry in base.iterdir() if entry.is_dir()) if base.is_dir() else []
    listed = ", ".join(there[:20]) or "none yet"
    raise CheckpointNotFoundError(f"experiment {name!r} is not in {base}; there are: {listed}.")


def kept_settings(folder: Path) -> dict[str, Any]:
    """The settings that the config.yaml of an experiment keeps, or {}."""
    kept = _kept(folder).get("experiment")
    return dict(kept) if isinstance(kept, Mapping) else {}


def _kept(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        return {}
    try:
        return read_config_file(path)
    except ConfigError as error:
        log.warning("Passed over: %s", error)
        return {}


def newest_file(folder: Path) -> Path:
    """The newest intact checkpoint of an experiment, of ours or of another system with the same names.

    Raises:
        CheckpointError: no intact one; says what was tried. CheckpointNotFoundError: there is no file at all.
    """
    from utils.training.engine.checkpointing.store import newest, read_plain

    try:
        return newest(folder, mapped=True)[0]
    except CheckpointError as error:
        reasons = [] if isinstance(error, CheckpointNotFoundError) else [str(error)]
    epochs = [(int(match[1]), path) for path in folder.glob("epoch_*.pt") if (match := _EPOCH_FILE.match(path.name))]
    candidates = [folder / LATEST, *(path for _, path in sorted(epochs, reverse=True)), folder / BEST_MODEL]
    for path in candidates:
        if not path.is_file():
            continue
        try:
            read_plain(path, mapped=True)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        return path
    if reasons:
        raise CheckpointError(f"{folder} holds no intact checkpoint:\n  " + "\n  ".join(reasons))
    raise CheckpointNotFoundError(f"{folder} holds no checkpoint.")
