"""Load a model that a command names: a run's folder, a checkpoint, a transformers folder, or module:factory."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from utils.errors import CheckpointError, ConfigError
from utils.training.config_files import read_config_file
from utils.training.task_spec import TaskSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class StoredModel:
    """A model with what is known about it.

    Attributes:
        model: in evaluation mode.
        description: where model and weights come from, in a sentence.
        task_spec: of the run that trained it; None where it is not of a run.
        config: sizes that its run was trained with, by name: max_length, batch_size.
    """

    model: nn.Module
    description: str
    task_spec: TaskSpec | None = None
    config: Mapping[str, Any] | None = None


def load_stored_model(
    source: str, name: str, arguments: Mapping[str, Any], given: Mapping[str, Any] = MappingProxyType({})
) -> StoredModel:
    """Load the model that `source` names. Nothing is downloaded, and no code is run but that of `module:factory`.

    A run's folder and a checkpoint hold weights, not the model's code: it is made by ModelRegistry as `name` with `arguments`,
    and every weight must fit. A run that was exported for transformers needs no name: its export is loaded.

    Args:
        source: path of a run's folder, of a checkpoint (.pt) or of a transformers folder; or module:factory, importable from
            the current folder, called with `given`.
        name, arguments: the model in ModelRegistry, and what it is made with.
        given: those of its arguments, and its name, that somebody chose; without any a run's export comes first.
    Raises:
        ConfigError: there is no such file, module or factory, or it is of none of these kinds.
        CheckpointError: the file cannot be read, or is of another model; says what to give.
    """
    path = Path(source)
    if path.is_dir() and (path / "config.json").is_file():
        return StoredModel(_of_transformers(path), f"transformers model in {path}")
    if path.is_dir():
        return _of_run(path, name, arguments, exported=not given)
    if path.is_file():
        return _of_checkpoint(path, path.parent.parent, name, arguments)
    module, colon, factory = source.partition(":")
    if colon and factory.isidentifier():
        return StoredModel(_of_factory(module, factory, given), f"made by {source}")
    raise ConfigError(
        f"{source!r} is no run's folder, checkpoint, transformers folder or module:factory. Absolute path: {path.absolute()}."
    )


def _of_run(folder: Path, name: str, arguments: Mapping[str, Any], exported: bool) -> StoredModel:
    from utils.training.engine.checkpoint import BEST, newest

    export = folder / "exports" / "hf"
    if exported and (export / "config.json").is_file():
        task_spec, config = _of_config(folder)
        return StoredModel(_of_transformers(export), f"the run's export {export}", task_spec, config)
    checkpoints = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    best = checkpoints / BEST
    return _of_checkpoint(best if best.is_file() else newest(checkpoints)[0], folder, name, arguments)


def _of_checkpoint(path: Path, run: Path, name: str, arguments: Mapping[str, Any]) -> StoredModel:
    from utils.models import ModelRegistry
    from utils.training.engine.checkpoint import load_model_weights, read_checkpoint

    weights = read_checkpoint(path)["model"]
    model = ModelRegistry.create(name, **arguments)
    try:
        load_model_weights(model, weights, str(path))
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}\nThe model was made as {name} with {dict(arguments)}. Give the job's file with its `model` section "
            "(--config), or the arguments (--set model.NAME=VALUE)."
        ) from None
    task_spec, config = _of_config(run)
    return StoredModel(model.eval(), f"{name} with the weights of {path}", task_spec, config)


def _of_config(run: Path) -> tuple[TaskSpec | None, Mapping[str, Any] | None]:
    """Task and sizes in a run's config.yaml; None where there is none."""
    file = run / "config.yaml"
    if not file.is_file():
        return None, None
    content = read_config_file(file)
    task, training = content.get("task"), content.get("training") or {}
    sizes = {name: training[name] for name in ("batch_size", "max_length") if training.get(name)}
    return (TaskSpec.from_dict(task) if task else None), sizes


def _of_transformers(folder: Path) -> nn.Module:
    import transformers

    try:
        names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{folder / 'config.json'} cannot be read as a model's config: {error}.") from error
    kind = getattr(transformers, names[0], None) if names else None
    if kind is None:
        raise ConfigError(
            f"{folder / 'config.json'} names the class {names[0] if names else None!r}, which transformers does not have. Give "
            "module:factory for a model whose code is your own."
        )
    try:
        model: nn.Module = kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} could not be loaded by transformers: {error}") from error
    return model.eval()


def _of_factory(module: str, factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    from torch import nn

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{module}:{factory} cannot be imported from {os.getcwd()}: {error}.") from error
    arguments = {name: value for name, value in arguments.items() if name != "name"}
    model = made(**arguments) if callable(made) and not isinstance(made, nn.Module) else made
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"{module}:{factory} gave a {type(model).__name__}; it must be, or return, a torch.nn.Module."
        )
    return model.eval()
