"""Pretrained models: the model with a head for the task, and its tokenizer. What a checkpoint is before it is loaded reads
`utils.models.pretrained_facts`.

Weights are read from safetensors; files that can run code when they are read (pickle) are read only with consent, and code that
a repository carries is never run from here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from utils.errors import ConfigError, ModelError
from utils.models.origins import note_origin, note_tokenizer
from utils.models.pretrained_facts import PretrainedFacts, inspect_pretrained
from utils.models.registry import ModelRegistry
from utils.models.transformers_models import (
    config_of_file,
    model_class,
    quiet_loading,
    read_json,
)
from utils.schema import shown
from utils.training.finetuning import NEW_PARAMETERS, note_new_tokens
from utils.training.task_kinds import TASK_KINDS, kind_of_task
from utils.training.task_spec import TaskSpec

if TYPE_CHECKING:
    from torch import nn

#: Names of files that hold a tokenizer.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model",
)  # fmt: skip

# Task type -> transformers' table of the classes with the head for it.
_HEADS: Mapping[str, str] = {name: kind.head for name, kind in TASK_KINDS.items() if kind.head}


@dataclass(frozen=True)
class Pretrained:
    """A loaded model with its tokenizer and what the checkpoint did not contain.

    Attributes:
        model: in evaluation mode; tokenizer: None where the source has none.
        facts: what the files say; task_spec: the task that the head was chosen for, None where none was given.
        missing: parameters of the model that the checkpoint does not hold, now with new values.
        unexpected: tensors of the checkpoint that the model does not use.
        reinitialised: parameters that the checkpoint holds in another shape, now with new values.
        notices: sentences for the user: the lists above, and where tokenizer and model do not fit.
    """

    model: nn.Module
    tokenizer: Any
    facts: PretrainedFacts
    task_spec: TaskSpec | None
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reinitialised: tuple[str, ...]
    notices: tuple[str, ...] = field(default=())


def load_pretrained(
    source: str | os.PathLike[str],
    task_spec: TaskSpec | Mapping[str, Any] | str | None = None,
    *,
    labels: Sequence[str] | None = None,
    dtype: str = "auto",
    safetensors_only: bool = True,
    seed: int = 0,
) -> Pretrained:
    """Load a pretrained model with the head that a task needs, and its tokenizer.

    Args:
        source: as `inspect_pretrained`.
        task_spec: the task, as an object, a mapping or its name ("text_classification"); None: the class that the weights
            were saved from. A head that the checkpoint does not have is initialised anew and listed.
        labels: names of the classes, in the order of their numbers.
        dtype: number format of the weights: "auto" (as saved), "float32", "bfloat16", "float16".
        safetensors_only: as `inspect_pretrained`.
        seed: of the new values of what the checkpoint does not contain.
    Raises:
        ModelNotFoundError, HubError: as `inspect_pretrained`.
        ConfigError: transformers has no such head for this architecture, or the number of classes is missing.
        ModelError: the weights are of another model, or the repository needs code of its own.
    """
    facts = inspect_pretrained(source, safetensors_only=safetensors_only)
    spec = _spec_of(task_spec)
    _refuse_own_code(facts)
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise ConfigError(f"dtype: got {shown(dtype)}; must be 'auto', 'float32', 'bfloat16' or 'float16'.")
    config = config_of_file(facts.folder / "config.json", read_json(facts.folder / "config.json"))
    chosen = model_class(config, None, str(source)) if spec is None else _class_for(config, spec, str(source))
    if spec is not None and kind_of_task(spec.task_type).has_own_outputs:
        _set_labels(config, spec, labels)
    elif labels is not None:
        raise ConfigError(
            f"labels: got {len(labels)} names, and the task has no classes; give a task such as classification."
        )
    # New values are the same each time, so that adapters on top of them can be resumed.
    with quiet_loading(str(source)), torch.random.fork_rng():
        torch.manual_seed(seed)
        model, report = chosen.from_pretrained(
            facts.folder, config=config, local_files_only=True, output_loading_info=True, use_safetensors=facts.safe,
            weights_only=True, ignore_mismatched_sizes=spec is not None and kind_of_task(spec.task_type).has_own_outputs,
            dtype="auto" if dtype == "auto" else getattr(torch, dtype),
        )  # fmt: skip
    own = {name for name, _ in model.named_parameters()}
    missing = tuple(sorted(name for name in report.get("missing_keys") or () if name in own))
    unexpected = tuple(sorted(report.get("unexpected_keys") or ()))
    reshaped = tuple(sorted(entry[0] for entry in report.get("mismatched_keys") or ()))
    if len(missing) >= len(own):
        raise ModelError(
            f"{source}: none of its weights has a name that {type(model).__name__} has, so the model would be untrained."
        )
    tokenizer = _tokenizer_of(facts.folder)
    if tokenizer is not None:
        note_tokenizer(model, tokenizer)
    notices = [*_listed(missing, unexpected, reshaped, type(model).__name__), *_mismatches(model, tokenizer)]
    if tokenizer is None and isinstance(getattr(config, "vocab_size", None), int):
        notices.append(
            f"{source} has no tokenizer. The ids of another one mean nothing to these weights: put the tokenizer's files into "
            "the folder, or train the model as one with new weights."
        )
    arguments: dict[str, Any] = {} if spec is None or spec.num_classes is None else {"num_labels": spec.num_classes}
    model.__dict__[NEW_PARAMETERS] = (*missing, *reshaped)
    note_origin(model, f"{facts.folder}:{type(model).__name__}", arguments)
    return Pretrained(model.eval(), tokenizer, facts, spec, missing, unexpected, reshaped, tuple(notices))


def outline_pretrained(
    source: str | os.PathLike[str],
    task_spec: TaskSpec | Mapping[str, Any] | str | None = None,
    *,
    safetensors_only: bool = True,
) -> nn.Module:
    """The model that `load_pretrained` would load, on torch's meta device: its sizes without its weights.

    It takes no memory and cannot compute. Arguments and errors are those of `load_pretrained`, of which this finds all that do
    not need the weights.
    """
    facts = inspect_pretrained(source, safetensors_only=safetensors_only)
    _refuse_own_code(facts)
    spec = _spec_of(task_spec)
    config = config_of_file(facts.folder / "config.json", read_json(facts.folder / "config.json"))
    chosen = model_class(config, None, str(source)) if spec is None else _class_for(config, spec, str(source))
    if spec is not None and kind_of_task(spec.task_type).has_own_outputs:
        _set_labels(config, spec, None)
    with torch.device("meta"), quiet_loading(str(source)):
        outlined: nn.Module = chosen(config)
    return outlined.eval()


def checkpoint_labels(facts: PretrainedFacts) -> tuple[str, ...]:
    """The names of the classes that a checkpoint was trained on, in order; () where its config only numbers them."""
    names = read_json(facts.folder / "config.json").get("id2label")
    if not isinstance(names, Mapping):
        return ()
    try:
        found = tuple(str(names[number]) for number in sorted(names, key=int))
    except ValueError:
        return ()
    return () if all(name.startswith("LABEL_") for name in found) else found


@ModelRegistry.register("pretrained")
def pretrained_model(
    source: str | os.PathLike[str],
    task_spec: TaskSpec | Mapping[str, Any] | str | None = None,
    labels: Sequence[str] | None = None,
    dtype: str = "auto",
    safetensors_only: bool = True,
) -> nn.Module:
    """The model of `load_pretrained`, without its tokenizer; for `ModelRegistry.create("pretrained", source=...)`."""
    return load_pretrained(source, task_spec, labels=labels, dtype=dtype, safetensors_only=safetensors_only).model


def extend_vocabulary(model: nn.Module, tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """Add special tokens to a tokenizer and rows for them to a model. Returns the ids of `tokens`.

    New rows, of the input embeddings and of the output layer, start as the mean of the rows in use; tied weights stay tied.
    Tokens that the tokenizer has already keep their ids and their rows.
    """
    transformer: Any = model
    known = tokenizer.get_vocab()
    new = [token for token in dict.fromkeys(tokens) if token not in known]
    used = len(tokenizer)
    tokenizer.add_tokens(new, special_tokens=True)
    ids = [int(tokenizer.convert_tokens_to_ids(token)) for token in tokens]
    added = [int(tokenizer.convert_tokens_to_ids(token)) for token in new]
    if not added:
        return ids
    rows = transformer.get_input_embeddings().weight.shape[0]
    if max(added) >= rows:
        transformer.resize_token_embeddings(max(len(tokenizer), max(added) + 1), mean_resizing=False)
    seen: set[int] = set()
    with torch.no_grad():
        for layer in (transformer.get_input_embeddings(), transformer.get_output_embeddings()):
            for parameter in () if layer is None else (layer.weight, getattr(layer, "bias", None)):
                if parameter is None or id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                mean = parameter[: min(used, rows)].float().mean(0)
                parameter[added] = mean.to(parameter.dtype)
    note_new_tokens(model, added)
    return ids


def _refuse_own_code(facts: PretrainedFacts) -> None:
    if facts.own_code:
        raise ModelError(
            f"{facts.source}: its config.json asks for code of the repository (auto_map), which is not run from here. "
            f"load_model({facts.source!r}) shows the code and loads the model if you trust it."
        )


def _spec_of(given: TaskSpec | Mapping[str, Any] | str | None) -> TaskSpec | None:
    if given is None or isinstance(given, TaskSpec):
        return given
    return TaskSpec(given, task_type=given) if isinstance(given, str) else TaskSpec.from_dict(given)


def _class_for(config: Any, spec: TaskSpec, source: str) -> Any:
    from transformers.models.auto import modeling_auto

    kind = spec.task_type or ""
    table = getattr(modeling_auto, _HEADS[kind]) if kind in _HEADS else {}
    if type(config) not in table:
        fitting = [task for task, name in _HEADS.items() if type(config) in getattr(modeling_auto, name)]
        raise ConfigError(
            f"task_spec: got the task {kind!r}, and transformers has no such head for {source} "
            f"({type(config).__name__}); it has heads for {', '.join(fitting) or 'none of the tasks here'}."
        )
    found = table[type(config)]
    return found[0] if isinstance(found, (tuple, list)) else found


def tasks_of(class_name: str) -> tuple[str, ...]:
    """Tasks that a model class of transformers has the head for, as its tables of auto classes say; () for other classes."""
    from transformers.models.auto import modeling_auto

    return tuple(
        task for task, table in _HEADS.items()
        if any(class_name == entry or class_name in entry for entry in getattr(modeling_auto, f"{table}_NAMES").values())
    )  # fmt: skip


def _set_labels(config: Any, spec: TaskSpec, labels: Sequence[str] | None) -> None:
    count = spec.num_classes or (len(labels) if labels is not None else None)
    if count is None and spec.task_type == "regression":
        count = 1
    if count is None:
        return  # as the checkpoint has them
    if labels is not None and len(labels) != count:
        raise ConfigError(f"labels: got {len(labels)} names for {count} classes.")
    if labels is not None or config.num_labels != count:
        names = list(labels) if labels is not None else [f"LABEL_{number}" for number in range(count)]
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
    if spec.task_type == "regression":
        config.problem_type = "regression"
    elif spec.multi_label is not None:
        config.problem_type = "multi_label_classification" if spec.multi_label else "single_label_classification"


def _tokenizer_of(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    with quiet_loading(f"the tokenizer in {folder}"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _listed(missing: Sequence[str], unexpected: Sequence[str], reshaped: Sequence[str], kind: str) -> list[str]:
    def names(found: Sequence[str]) -> str:
        return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")

    said = []
    if missing:
        said.append(f"Not in the checkpoint, so {kind} starts with new values for them: {names(missing)}.")
    if reshaped:
        said.append(
            f"Of another shape in the checkpoint, so {kind} starts with new values for them: {names(reshaped)}."
        )
    if unexpected:
        said.append(f"In the checkpoint and not used by {kind}: {names(unexpected)}.")
    return said


def _mismatches(model: Any, tokenizer: Any) -> list[str]:
    """Mismatches between tokenizer and model."""
    embeddings = model.get_input_embeddings() if tokenizer is not None else None
    rows = getattr(getattr(embeddings, "weight", None), "shape", (None,))[0]
    said = []
    if rows is not None and len(tokenizer) > rows:
        said.append(
            f"The tokenizer has {len(tokenizer):,} tokens and the model {rows:,} rows: ids from {rows:,} on have no embedding. "
            "Use the model's own tokenizer, or extend_vocabulary."
        )
    for name in ("pad_token_id", "bos_token_id", "eos_token_id") if tokenizer is not None else ():
        here, there = getattr(model.config, name, None), getattr(tokenizer, name, None)
        accepted = here if isinstance(here, list) else [here]
        if here is not None and there is not None and there not in accepted:
            said.append(
                f"{name}: {there} in the tokenizer and {here} in the model's config; training sets the tokenizer's."
            )
    return said
