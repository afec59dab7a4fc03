"""Schema of a checkpoint's content: checked before anything of it is used, and brought to this version's names.

Every change of the fields raises `SCHEMA` by one, so that an older version of Trainbook can say why it does not know a field.
What else it takes for older checkpoints to resume:

- a new field: nothing; where it is missing it takes its default (`TrainState.from_dict`, `Schema.from_saved`);
- a renamed one: an alias of the config, an entry of `TrainState.EARLIER`;
- a removed one: an entry of the config's `removed`, of `TrainState.EARLIER`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from torch import Tensor

from utils.errors import CheckpointError
from utils.schema import shown
from utils.training.engine import rng
from utils.training.engine.checkpointing.reading import Payload
from utils.training.engine.hardware.memory import Pieces
from utils.training.engine.state import TrainState
from utils.training.training_config import TrainingConfig

FORMAT = 1  # layout of the file: which entries there are
SCHEMA = 6  # fields of config and state; files that do not state it have 1

REQUIRED = (
    "format", "run", "state", "value", "regular", "model", "optimizer", "schedule", "rng", "config", "fingerprint",
    "environment",
)  # fmt: skip

_MAX_DEPTH = 64
_MAX_VALUES = 20_000_000  # entries of all containers, shared ones counted wherever they stand
_COUNTERS = ("step", "epoch", "samples_done", "targets_done", "rows_written")


class _WrongContentError(Exception):
    """Invalid content of a checkpoint: its place, what was got and what was expected."""


def checked_content(payload: Any, source: str, *, random_state: bool = True) -> Payload:
    """`payload` as a checkpoint of this version: entries of the right types, under this version's names.

    Args:
        source: the file, as messages name it.
        random_state: check the random state too, which lies in tensors.
    Raises:
        CheckpointError: it is no checkpoint of Trainbook, of a newer format, incomplete, wrong in a type, or has fields that
            this version does not know.
    """
    if not isinstance(payload, dict) or "format" not in payload:
        raise CheckpointError(_foreign(payload, source))
    if type(payload["format"]) is not int:
        raise CheckpointError(_damaged(source, f"format: {_wanted(payload['format'], 'a whole number')}"))
    if payload["format"] != FORMAT:
        made_by = _part(payload, "environment").get("trainbook", "another version")
        raise CheckpointError(
            f"{source} has checkpoint format {shown(payload['format'])} (Trainbook {shown(made_by)}); this version reads "
            f"format {FORMAT}. Update Trainbook, or continue with the version that wrote it."
        )
    missing = [key for key in REQUIRED if key not in payload]
    if missing:
        raise CheckpointError(f"{source} is incomplete: it lacks {', '.join(missing)}.")
    try:
        _check_size(payload, 0, {})
        _check_entries(payload)
        _check_model(payload["model"])
        _check_optimizer(payload["optimizer"])
        _check_averaged(payload.get("averaged"))
        if random_state:
            _check_random_state(payload)
        _check_config(payload["config"])
        payload["state"] = _checked_state(payload, source)
    except _WrongContentError as error:
        raise CheckpointError(_damaged(source, str(error))) from None
    return payload


def _part(payload: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = payload.get(name)
    return part if isinstance(part, Mapping) else {}


def _foreign(payload: Any, source: str) -> str:
    if not isinstance(payload, dict):
        return f"{source} is no Trainbook checkpoint: it holds a {type(payload).__name__}."
    names = [str(name)[:40] for name in list(payload)[:100] if isinstance(name, (str, int))]
    if "model_state_dict" in names:
        return (
            f"{source} is a checkpoint of another training loop (it holds {', '.join(sorted(names)[:6])}): it has no position "
            "in the data, schedule or random state to resume from. Load its weights, optimizer and epoch with "
            "CheckpointManager(folder).load_checkpoint(path, model, optimizer), then train from them in a new run "
            "(resume_from=None)."
        )
    return f"{source} is no Trainbook checkpoint: it holds a dict with {sorted(names)[:6]}."


def _damaged(source: str, reason: str) -> str:
    return f"{source} is damaged in its content: {reason}. Use an older checkpoint."


def _wanted(value: Any, wanted: str) -> str:
    got = shown(value) if isinstance(value, (int, float, str, type(None))) else f"a {type(value).__name__}"
    return f"got {got}; must be {wanted}"


def _require(right: bool, place: str, value: Any, wanted: str) -> None:
    if not right:
        raise _WrongContentError(f"{place}: {_wanted(value, wanted)}")


def _check_size(value: Any, depth: int, sizes: dict[int, int]) -> int:
    """Number of values in `value`, those in shared containers once for each place: what a walk without a memory would visit.

    A few kilobytes of lists that hold one another can take for ever to print, to compare or to save again.
    """
    if isinstance(value, str) and not value.isascii():
        _check_text(value)
    if not isinstance(value, (dict, list, tuple, set)):
        return 1
    if id(value) in sizes:
        return sizes[id(value)]
    if depth > _MAX_DEPTH:
        raise _WrongContentError(f"it is nested more than {_MAX_DEPTH} levels deep")
    entries = value.values() if isinstance(value, dict) else value
    total = 1 + sum(_check_size(entry, depth + 1, sizes) for entry in entries)
    if total > _MAX_VALUES:
        raise _WrongContentError(f"it expands to more than {_MAX_VALUES:,} values")
    sizes[id(value)] = total
    return total


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _WrongContentError(f"{shown(text)}: not Unicode text") from None


def _check_entries(payload: Payload) -> None:
    """The entries beside weights, optimizer, random state, config and state."""
    schema = payload.get("schema", 1)
    _require(type(schema) is int and schema >= 1, "schema", schema, "a whole number of at least 1")
    for name in ("run", "state", "model", "optimizer", "schedule", "rng", "config", "fingerprint", "environment"):
        _require(isinstance(payload[name], dict), name, payload[name], "a dict")
    for name in ("id", "name"):
        _require(isinstance(payload["run"].get(name), str), f"run.{name}", payload["run"].get(name), "text")
    value = payload["value"]
    _require(value is None or type(value) in (int, float), "value", value, "a number or None")
    _require(isinstance(payload["regular"], bool), "regular", payload["regular"], "True or False")
    for name, digest in payload["fingerprint"].items():
        if not isinstance(digest, str):
            _require(False, f"fingerprint.{shown(name)}", digest, "text")
    for name, fact in payload["environment"].items():
        if not isinstance(fact, (str, int, float, type(None))):
            _require(False, f"environment.{shown(name)}", fact, "text, a number or None")
    scaler, others = payload.get("scaler"), payload.get("other_processes", [])
    _require(scaler is None or isinstance(scaler, dict), "scaler", scaler, "a dict or None")
    _require(isinstance(others, list), "other_processes", others, "a list")
    for name in ("callbacks", "task_spec", "run_state", "base_model"):
        _require(isinstance(payload.get(name, {}), dict), name, payload.get(name), "a dict")


def _check_model(weights: dict[Any, Any]) -> None:
    for name, tensor in weights.items():
        _require(isinstance(name, str), "model", name, "names of parameters")
        extra = isinstance(name, str) and name.endswith("_extra_state")
        _require(extra or _is_dense(tensor), f"model.{name}", tensor, "a dense tensor")


def _is_dense(value: Any) -> bool:
    if not isinstance(value, Tensor):
        return False
    return value.layout is torch.strided and not value.is_quantized and value.device.type == "cpu"


def _check_optimizer(optimizer: dict[Any, Any]) -> None:
    if not optimizer:
        return
    state, groups = optimizer.get("state"), optimizer.get("param_groups")
    _require(isinstance(state, dict), "optimizer.state", state, "a dict")
    _require(isinstance(groups, list), "optimizer.param_groups", groups, "a list")
    assert isinstance(state, dict)
    assert isinstance(groups, list)
    for number, entries in state.items():
        _require(
            type(number) is int and isinstance(entries, dict), "optimizer.state", entries, "a dict for each parameter"
        )
        for name, entry in entries.items():
            # A large model has thousands of these: their names are put into words only where one is wrong.
            if type(entry) not in (bool, int, float, type(None)) and not _is_dense(entry):
                _require(False, f"optimizer.state.{number}.{shown(name)}", entry, "a number or a dense tensor")
    for group in groups:
        numbers = group.get("params") if isinstance(group, dict) else None
        right = isinstance(numbers, list) and all(type(number) is int for number in numbers)
        _require(right, "optimizer.param_groups", group, "dicts with the numbers of their params")


def _check_averaged(averaged: Any) -> None:
    if averaged is None:
        return
    _require(isinstance(averaged, dict), "averaged", averaged, "a dict")
    kind, count, better = (averaged.get(name) for name in ("kind", "count", "better"))
    _require(isinstance(kind, str), "averaged.kind", kind, "text")
    _require(type(count) is int and count >= 0, "averaged.count", count, "a whole number of at least 0")
    _require(isinstance(better, bool), "averaged.better", better, "True or False")
    weights = averaged.get("weights")
    _require(isinstance(weights, dict), "averaged.weights", weights, "a dict")
    assert isinstance(weights, dict)
    for name, tensor in weights.items():
        _require(isinstance(name, str), "averaged.weights", name, "names of parameters")
        _require(_is_dense(tensor), f"averaged.weights.{name}", tensor, "a dense tensor")


def _check_random_state(payload: Payload) -> None:
    states = [("rng", payload["rng"])]
    for rank, other in enumerate(payload.get("other_processes", []), 1):
        right = isinstance(other, dict) and isinstance(other.get("rng"), dict)
        _require(right, f"other_processes.{rank}", other, "a dict with a random state")
        states.append((f"other_processes.{rank}.rng", other["rng"]))
    for place, state in states:
        if reason := rng.problem(state):
            raise _WrongContentError(f"{place}.{reason}")


def _check_config(config: dict[Any, Any]) -> None:
    _require(all(isinstance(name, str) for name in config), "config", config, "a dict with text as keys")
    known, _ = TrainingConfig.from_saved(config)
    if problems := TrainingConfig.wrong_types(known):
        raise _WrongContentError("; ".join(f"config.{problem.field}: {problem.message}" for problem in problems[:3]))


def _checked_state(payload: Payload, source: str) -> dict[str, Any]:
    state = TrainState.renamed(payload["state"])
    unknown = [name for name in state if name not in _state_schema().model_fields]
    if unknown:
        listed = ", ".join(shown(name) for name in unknown[:5])
        made_by = _part(payload, "environment").get("trainbook", "an unknown version")
        raise CheckpointError(
            f"{source}: its state has fields that this version does not know: {listed}. It was saved by Trainbook "
            f"{shown(made_by)} with schema {payload.get('schema', 1)}; this version reads schemas up to {SCHEMA}. Update "
            "Trainbook."
        )
    try:
        _state_schema()(**state)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step)[:40] for step in ("state", *first["loc"]))
        raise _WrongContentError(
            f"{place}: {_wanted(first['input'], first['msg'].removeprefix('Input should be '))}"
        ) from None
    for name in ("step", "epoch"):
        _require(name in state, f"state.{name}", None, "a whole number")
    for name in _COUNTERS:
        _require(state.get(name, 0) >= 0, f"state.{name}", state.get(name), "at least 0")
    for number, row in enumerate(state.get("history", ())):
        _check_row(number, row)
    return state


def _check_row(number: int, row: Mapping[Any, Any]) -> None:
    place = f"state.history.{number}"
    _require(isinstance(row.get("event"), str), f"{place}.event", row.get("event"), "text")
    if row["event"] == "epoch":
        _require(type(row.get("epoch")) is int, f"{place}.epoch", row.get("epoch"), "a whole number")
    for name, value in row.items():
        _require(isinstance(name, str), place, name, "a dict with text as keys")
        if name.startswith(("train/", "val/")):
            _require(type(value) in (int, float, type(None)), f"{place}.{name}", value, "a number")


@functools.cache
def _state_schema() -> type[BaseModel]:
    """`TrainState` as its `to_dict` writes it, with every field optional: made from the class, so that both stay the same."""
    return _schema_of(TrainState)


def _schema_of(kind: type[Any]) -> type[BaseModel]:
    hints = get_type_hints(kind)
    kinds: dict[str, Any] = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    for name, hint in kinds.items():
        if hint is Pieces:
            kinds[name] = int | None
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
            kinds[name] = _schema_of(hint)
    if "counts" in kinds:
        kinds["correct"] = float  # the only count of schema 1's first files
    fields: dict[str, Any] = {name: (hint, None) for name, hint in kinds.items()}
    return create_model(kind.__name__, __config__=ConfigDict(extra="forbid", strict=True), **fields)
