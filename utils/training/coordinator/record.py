"""Record of a run's data, so that a checkpoint's path alone is enough to resume it."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.data.mixture_settings import mixture_sources
from utils.data.source_kinds import SOURCE_KINDS
from utils.errors import ConfigError
from utils.storage import absolute_path, write_json
from utils.training.coordinator.arguments import BUILTIN, DataArguments
from utils.training.engine.callbacks import Callback

if TYPE_CHECKING:
    from torch import nn

    from utils.training.engine.trainer import Trainer

#: The file in a run's folder that holds the data's arguments.
DATA_FILE = "data.json"

_OBJECTS = ("rows", "table", "texts")
_PLAIN = (
    "config_name", "dataset_split", "text_column", "vocab_size", "val_split", "tokenizer_strategy", "dataset_source",
    "data_kind", "seed", "task", "label_column", "conversation_layout", "shuffle_documents", "document_masks", "packing",
)  # fmt: skip


class KeepDataArguments(Callback):
    """Writes `data.json` into a run's folder: the arguments that name its data, or which of them were objects.

    Args:
        given: the arguments.
        model: its sizes decide how long blocks are.
    """

    main_only = True

    def __init__(self, given: DataArguments, model: nn.Module) -> None:
        self._kept = _plain(given, model)

    def on_train_begin(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """Write them, once for each run."""
        assert trainer.run_dir is not None
        path = trainer.run_dir / DATA_FILE
        if not path.exists():
            write_json(path, self._kept)


def is_given_again(run_dir: Path, named: DataArguments) -> bool:
    """Whether `named` is the object that the run was trained on, as far as its kind tells."""
    objects = _kept(run_dir)["objects"]
    if named.datamodule is not None:
        return "datamodule" in objects
    return "dataset" in objects and named.kind in (*_OBJECTS, "module")


def kept_arguments(run_dir: Path, given: Collection[str]) -> dict[str, Any]:
    """The arguments with which the run in `run_dir` was given its data.

    Args:
        given: arguments that are given again.
    Raises:
        ConfigError: they were objects of a program that has ended, or nothing is written down; says what to give again.
    """
    kept = _kept(run_dir)
    missing = [name for name in kept["objects"] if name not in given]
    if missing:
        again = ", ".join(f"{name}=..." for name in missing)
        raise ConfigError(
            f"run {run_dir.name} does not hold its {' and '.join(missing)}: an object of the program that started it, and no "
            f"name. Give the same again: resume_training(path, model, {again})."
        )
    return {
        name: str(Path(value).expanduser())
        if name in ("dataset", "dataset_path") and str(value).startswith("~/")
        else value
        for name, value in kept["arguments"].items()
    }


def _kept(run_dir: Path) -> dict[str, Any]:
    """The file's content; of a run that was started otherwise, or whose file is damaged, that its data were an object."""
    try:
        kept = json.loads((run_dir / DATA_FILE).read_text(encoding="utf-8"))
        return {"arguments": dict(kept["arguments"]), "objects": list(kept["objects"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"arguments": {}, "objects": ["dataset"]}


def _plain(given: DataArguments, model: nn.Module) -> dict[str, Any]:
    objects = [name for name in ("tokenizer", "datamodule") if getattr(given, name) is not None]
    if given.kind in (*_OBJECTS, "module") and given.datamodule is None:
        objects.append("dataset")
    arguments: dict[str, Any] = {name: getattr(given, name) for name in _PLAIN}
    if given.mixture is not None:
        sources = [_lasting_source(source.to_dict()) for source in mixture_sources(given.mixture)]
        by, temperature = given.mixture_by, given.mixture_temperature
        arguments |= {"mixture": sources, "mixture_by": by, "mixture_temperature": temperature}
    if given.is_text:
        arguments["max_length"] = given.max_length if given.is_labelled else given.block_length(model)
    if given.dataset_path is not None:
        path = Path(given.dataset_path).expanduser()
        arguments["dataset_path"] = str(path) if given.is_on_drive else _without_home(path)
    elif given.mixture is None and not {"dataset", "datamodule"} & set(objects):
        arguments["dataset"] = _lasting(given.dataset)
    return {"arguments": arguments, "objects": objects}


def _lasting_source(source: dict[str, Any]) -> dict[str, Any]:
    """A dataset of a mixture whose path means the same from another folder."""
    path = source["dataset_path"]
    if path is None or SOURCE_KINDS[source["dataset_source"]].on_drive:
        return source
    return {**source, "dataset_path": str(absolute_path(path))}


def _lasting(name: Any) -> str:
    """A name that means the same from another folder."""
    if name is None or name == BUILTIN:
        return BUILTIN
    path = Path(name).expanduser()
    return _without_home(path) if path.exists() else str(name)


def _without_home(path: Path) -> str:
    """The absolute path, with "~" for the home folder: run folders are passed on, and its name is often a person's."""
    path = path.absolute()
    home = Path.home()
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else str(path)
