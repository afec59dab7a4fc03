"""Load a model, or a run's results, that a command names: a run's folder, a checkpoint, or another source of models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from utils.errors import CheckpointError, CheckpointNotFoundError, ConfigError, ModelNotFoundError
from utils.schema import nearest
from utils.training.adapter_checkpoints import check_base
from utils.training.config_files import read_config_file
from utils.training.finetuning import note_new_tokens, with_lora
from utils.training.run_state import read_state
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from torch import nn

    from utils.training.engine.results import TrainingResults


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
    """Load the model that `source` names.

    A run's folder and a checkpoint hold weights, not the model's code: it is made by `load_model(name, **arguments)`, and every
    weight must fit. A run needs no name if it was exported for transformers (its export is loaded), or if it recorded that its
    model was made by `ModelRegistry` or from a folder of transformers.

    Args:
        source: path of a run's folder, of a checkpoint (.pt) or of a transformers folder; or any other source that
            `utils.models.load_model` takes, which is called with `given`.
        name, arguments: the run's model, as a source of `load_model`, and what it is made with.
        given: those of its arguments, and its name, that somebody chose; without any a run's export comes first.
    Raises:
        ConfigError, ModelError: `source` or `name` is not one of these kinds, or cannot be loaded.
        CheckpointError: the file cannot be read, or is of another model; says what to give.
    """
    path = Path(source)
    if path.is_dir() and (path / "config.json").is_file():
        return StoredModel(_of_transformers(path), f"transformers model in {path}")
    if path.is_dir():
        return _of_run(path, name, arguments, chosen=bool(given))
    if path.suffix == ".pt" and path.is_file():
        run = path.parent.parent
        return _of_checkpoint(path, run, *_maker_of(run, name, arguments, bool(given)))
    from utils.models.sources import load_described

    try:
        model = load_described(source, {key: value for key, value in given.items() if key != "name"})
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{source!r} is no run's folder and no checkpoint, and as a model: {error}") from error
    return StoredModel(model.eval(), f"made by {source}")


def run_folder_of(run: str | Path, runs: str | Path = "runs") -> Path:
    """The folder of a run: a path, or a name in `runs`. Raises `CheckpointNotFoundError` that lists those there are."""
    for path in (Path(run), Path(runs) / run):
        if read_state(path) is not None:
            return path.absolute()
    there = sorted(path.name for path in Path(runs).glob("*") if read_state(path) is not None)
    guess = nearest(str(run), there)
    hint = f" Did you mean {guess!r}?" if guess else ""
    raise CheckpointNotFoundError(
        f"{str(run)!r} is no run's folder, and no run of that name is in {runs}.{hint} "
        f"Runs there: {', '.join(there[:20]) or 'none'}."
    )


def load_results(
    folder: Path, name: str, arguments: Mapping[str, Any], given: Mapping[str, Any] = MappingProxyType({})
) -> TrainingResults:
    """The results of a finished or stopped run, from its folder alone.

    The model of a LoRA run has its adapters: its export, in which they are merged, is not used for it. The tokenizer is the one
    that the run's export for transformers holds; a run without that export has none.

    Args:
        folder: the run's folder; name, arguments, given: how its model is made, see `load_stored_model`.
    Raises:
        ConfigError, ModelError, CheckpointError: as `load_stored_model`.
    """
    from utils.training.engine.checkpointing.store import BEST, entries_of, newest, read_header
    from utils.training.engine.results import TrainingResults
    from utils.training.engine.state import TrainState

    settings = _config_of(folder).get("training") or {}
    config = TrainingConfig.from_dict(settings)
    own = Path(config.checkpoint_dir) if config.checkpoint_dir else folder / "checkpoints"
    path, _ = newest(own, mapped=True)
    header = read_header(path)
    stored = _of_run(folder, name, arguments, chosen=bool(given), adapted="base_model" in header)
    best = own / BEST
    kept = [entry.path for entry in sorted(entries_of(own)[0], key=lambda entry: entry.position) if entry.path != path]
    return TrainingResults(
        state=TrainState.from_dict(header["state"]), model=stored.model, tokenizer=_tokenizer_of(folder),
        task_spec=stored.task_spec, training_config=config, run_dir=folder,
        precision=header["environment"].get("precision", "32"), checkpoints=[*kept, path],
        best_model_path=best if best.is_file() else None, notices=[],
        weights=None,
    )  # fmt: skip


def _of_run(folder: Path, name: str, arguments: Mapping[str, Any], chosen: bool, adapted: bool = False) -> StoredModel:
    """The model of a run: its export, unless somebody chose how it is made or it has to have its adapters; else its weights."""
    from utils.training.engine.checkpointing.store import BEST, newest

    export = folder / "exports" / "hf"
    if not chosen and not adapted and (export / "config.json").is_file():
        task_spec, config = _of_config(folder)
        return StoredModel(_of_transformers(export), f"the run's export {export}", task_spec, config)
    elsewhere = (_config_of(folder).get("training") or {}).get("checkpoint_dir")
    places = [folder / "checkpoints", *([Path(elsewhere)] if elsewhere else [])]
    checkpoints = next((place for place in places if any(place.glob("*.pt"))), folder)
    best = checkpoints / BEST
    path = best if best.is_file() else newest(checkpoints)[0]
    return _of_checkpoint(path, folder, *_maker_of(folder, name, arguments, chosen))


def _maker_of(run: Path, name: str, arguments: Mapping[str, Any], chosen: bool) -> tuple[str, Mapping[str, Any]]:
    """What `load_model` makes the run's model from: what was chosen, else what the run recorded, else `name`.

    Of what the run recorded only names of `ModelRegistry` and folders of transformers without code of their own are taken: a
    run's folder may come from somebody else, and its record must not decide which code runs here.
    """
    recorded = {} if chosen else dict(_config_of(run).get("model") or {})
    source = recorded.pop("name", None)
    if not isinstance(source, str) or "trust" in recorded or not _runs_no_code(source):
        return name, arguments
    return source, recorded


def _runs_no_code(source: str) -> bool:
    from utils.models import ModelRegistry

    if source.strip().lower() in ModelRegistry.list_available():
        return True
    file = Path(source if Path(source).is_dir() else source.rpartition(":")[0]) / "config.json"
    if not file.is_file():
        return False
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "model_type" in values and not values.get("auto_map")


def _of_checkpoint(path: Path, run: Path, name: str, arguments: Mapping[str, Any]) -> StoredModel:
    from utils.models.sources import load_described
    from utils.training.engine.checkpointing.store import read_checkpoint
    from utils.training.engine.checkpointing.weights import load_model_weights, weights_to_use

    checkpoint = read_checkpoint(path)
    weights = weights_to_use(checkpoint)
    if name.strip().lower() == "pretrained":  # the head is that of the run's task
        arguments = {**_head_of(checkpoint), **arguments}
    model = load_described(name, arguments)
    if "base_model" in checkpoint:
        note_new_tokens(model, checkpoint["base_model"].get("new_tokens", ()))
        model = with_lora(model, TrainingConfig.from_dict(TrainingConfig.from_saved(checkpoint["config"])[0]))
        check_base(checkpoint, model, str(path))
    try:
        load_model_weights(model, weights, str(path))
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}\nThe model was made as {name} with {dict(arguments)}. Give the job's file with its `model` section "
            "(--config), or the arguments (--set model.NAME=VALUE)."
        ) from None
    task_spec, config = _of_config(run)
    return StoredModel(model.eval(), f"{name} with the weights of {path}", task_spec, config)


def _head_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `load_pretrained` for the task that a checkpoint was trained for."""
    task = checkpoint.get("task_spec")
    if not task:
        return {}
    names = (task.get("preprocessing_config") or {}).get("class_names")
    return {"task_spec": dict(task), **({"labels": list(names)} if names else {})}


def _of_config(run: Path) -> tuple[TaskSpec | None, Mapping[str, Any] | None]:
    """Task and sizes in a run's config.yaml, or None."""
    content = _config_of(run)
    if not content:
        return None, None
    task, training = content.get("task"), content.get("training") or {}
    sizes = {name: training[name] for name in ("batch_size", "max_length") if training.get(name)}
    return (TaskSpec.from_dict(task) if task else None), sizes


def _config_of(run: Path) -> dict[str, Any]:
    """The content of a run's config.yaml, or {}."""
    file = run / "config.yaml"
    return read_config_file(file) if file.is_file() else {}


def _tokenizer_of(run: Path) -> Any:
    """The tokenizer in a run's export for transformers, or None."""
    folder = run / "exports" / "hf"
    if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


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
    from utils.models.transformers_models import without_progress_bars

    try:
        with without_progress_bars():
            model: nn.Module = kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} could not be loaded by transformers: {error}") from error
    return model.eval()
