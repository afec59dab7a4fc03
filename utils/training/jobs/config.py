"""JobConfig: what a job trains. In its durable form every part is plain data or an importable name."""

from __future__ import annotations

import importlib
import json
import re
import secrets
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from utils.errors import ConfigError, Problem
from utils.schema import plain, shown
from utils.scrubbing import scrubbed
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_LARGEST_SPEC = 1_000_000

# Jobs that hold objects of this process, by key: model factories that are lambdas, data in memory.
_local: dict[str, JobConfig] = {}
_local_lock = threading.Lock()


class JobConfig:
    """One training, as a queue keeps it.

    Args:
        model_factory: makes the model: a function that can be imported, as an object or as "module:function"; or a lambda or
            nested function, which only this process can run.
        config, training_config, task_spec, tokenizer: as for `Trainer`. The tokenizer may be "module:function" as well.
        train_data, val_data: what `Trainer.train` takes, which only this process can run; or "module:function", called when the
            job runs. It may return a PreparedData, whose validation data, task and tokenizer are used where none are given.
        arguments: keyword arguments of the model factory; plain values. data_arguments: of the functions that make data. Such a
            function gets the model too when it has a parameter `model`.
        name: begins the name of the run's folder; None: the config's run_name, else "job".
        priority: from 1 to 10; larger ones are claimed first. job_type: a label to filter by.
        max_attempts: how often the job may fail, or its worker die, before the job is failed.
        max_retries: how often `retry_job` may put it back after that.
        devices: processes on one host that train it together, started by torchrun; None: training_config's devices.
        durable: whether a job that other processes cannot run is refused (True), accepted in a queue of several hosts too
            (False), or accepted on SQLite only (None).
    Raises:
        ConfigError: lists every problem.
    """

    def __init__(
        self, model_factory: Callable[..., Any] | str, config: Any = None, train_data: Any = None, val_data: Any = None,
        training_config: TrainingConfig | Mapping[str, Any] | None = None,
        task_spec: TaskSpec | Mapping[str, Any] | None = None,
        *, tokenizer: Any = None, arguments: Mapping[str, Any] | None = None, data_arguments: Mapping[str, Any] | None = None,
        name: str | None = None, priority: int = 5, job_type: str = "training", max_attempts: int = 3, max_retries: int = 3,
        devices: int | None = None, durable: bool | None = None,
    ) -> None:  # fmt: skip
        if isinstance(training_config, Mapping):
            training_config = TrainingConfig.from_dict(training_config)
        if isinstance(task_spec, Mapping):
            task_spec = TaskSpec.from_dict(task_spec)
        self.model_factory: Any = model_factory
        self.config, self.tokenizer = config, tokenizer
        self.train_data, self.val_data = train_data, val_data
        self.training_config: Any = TrainingConfig() if training_config is None else training_config
        self.task_spec: Any = task_spec
        self.arguments, self.data_arguments = dict(arguments or {}), dict(data_arguments or {})
        own_name = getattr(self.training_config, "run_name", None)
        self.name = name if name is not None else own_name or "job"
        self.priority, self.job_type = priority, job_type
        self.max_attempts, self.max_retries, self.durable = max_attempts, max_retries, durable
        configured = getattr(self.training_config, "devices", 1)
        self.devices = devices if devices is not None else configured if isinstance(configured, int) else 1
        self._check()

    def _check(self) -> None:
        problems = []
        if not isinstance(self.training_config, TrainingConfig):
            problems.append(Problem("training_config", f"got {shown(self.training_config)}; must be a TrainingConfig"))
        else:
            # At once, so that a working folder that changes before the submission changes nothing.
            self.training_config = self.training_config.at(Path.cwd())
        if self.task_spec is not None and not isinstance(self.task_spec, TaskSpec):
            problems.append(Problem("task_spec", f"got {shown(self.task_spec)}; must be a TaskSpec"))
        if hasattr(self.model_factory, "state_dict") and not isinstance(self.model_factory, type):
            problems.append(
                Problem(
                    "model_factory", "got a model; give a function that makes it, since every attempt needs a new one"
                )
            )
        elif not callable(self.model_factory) and not isinstance(self.model_factory, str):
            problems.append(Problem("model_factory", f"got {shown(self.model_factory)}; {_MUST_BE}"))
        for name in ("model_factory", "train_data", "val_data", "tokenizer"):
            value = getattr(self, name)
            if isinstance(value, str) and (reason := _why_not_importable(value)) is not None:
                problems.append(Problem(name, reason))
        if self.train_data is None:
            problems.append(Problem("train_data", 'not set; give the data, or "module:function" that makes them'))
        if not _is_whole(self.priority, 1, 10):
            problems.append(Problem("priority", f"Priority must be 1-10; got {shown(self.priority)}"))
        for name, least in (("max_attempts", 1), ("max_retries", 0), ("devices", 1)):
            if not _is_whole(getattr(self, name), least, 1000):
                got = shown(getattr(self, name))
                problems.append(Problem(name, f"got {got}; must be a whole number from {least} to 1000"))
        for name in ("name", "job_type"):
            value = getattr(self, name)
            if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,59}", value):
                problems.append(
                    Problem(
                        name,
                        f"got {shown(value)}; must be 1 to 60 letters, digits, _ - . and begin with one of the first two",
                    )
                )
        if problems:
            raise ConfigError.from_problems("JobConfig", problems)

    def obstacles(self) -> list[Problem]:
        """Parts that exist in this process only, so that no other one can run the job; empty for a durable job."""
        found = []
        if reference_of(self.model_factory) is None:
            found.append(Problem("model_factory", f"{_described(self.model_factory)} cannot be imported; {_MUST_BE}"))
        for name in ("train_data", "val_data", "tokenizer"):
            value = getattr(self, name)
            if value is not None and reference_of(value) is None:
                message = f'a {type(value).__name__} of this process; name a function that makes it: "module:function"'
                found.append(Problem(name, message))
        for name in ("config", "arguments", "data_arguments"):
            try:
                plain(_as_mapping(getattr(self, name)))
            except ValueError as error:
                found.append(Problem(name, str(error)))
        return found

    def spec(self) -> dict[str, Any]:
        """The durable form: plain data that any process can run. Paths are absolute.

        Raises:
            ConfigError: the job is not durable, holds a secret, or is too large.
        """
        if obstacles := self.obstacles():
            raise ConfigError.from_problems("JobConfig, which other processes are to run", obstacles)
        spec = {
            **{
                name: None if getattr(self, name) is None else reference_of(getattr(self, name))
                for name in ("model_factory", "train_data", "val_data", "tokenizer")
            },
            **{name: plain(_as_mapping(getattr(self, name))) for name in ("config", "arguments", "data_arguments")},
            "training_config": self.training_config.with_absolute_paths().to_dict(),
            "task_spec": None if self.task_spec is None else self.task_spec.to_dict(),
            "devices": self.devices,
        }
        if scrubbed(spec) != spec:
            raise ConfigError(
                "the job's settings hold what looks like a password or token, which a queue must not store. Read it from an "
                "environment variable within the model factory or the data function."
            )
        if (size := len(json.dumps(spec))) > _LARGEST_SPEC:
            raise ConfigError(
                f"the job's settings have {size:,} characters, more than {_LARGEST_SPEC:,}: data belong in a file."
            )
        return spec

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> JobConfig:
        """Load from the durable form, or from the key of a job of this process.

        Raises:
            ConfigError: something cannot be imported here, or the settings are of another version.
        """
        if "local" in spec:
            with _local_lock:
                kept = _local.get(spec["local"])
            if kept is None:
                raise ConfigError("the objects that this job was submitted with are gone; submit it again.")
            return kept
        return cls(**spec)

    def keep_here(self) -> str:
        """Keep the objects in this process; the key by which `from_spec` finds them."""
        key = secrets.token_hex(8)
        with _local_lock:
            _local[key] = self
        return key

    @staticmethod
    def forget(spec: Mapping[str, Any]) -> None:
        """The objects of a job of this process are no longer needed."""
        with _local_lock:
            _local.pop(str(spec.get("local")), None)

    # ---- when it runs ----

    def make_model(self) -> Any:
        """A new model."""
        return resolved(self.model_factory)(**self.arguments)

    def make(self, name: str, model: Any) -> Any:
        """train_data, val_data or tokenizer: the object that was given, or what the function of that name returns."""
        value = getattr(self, name)
        if reference_of(value) is None:
            return value
        return _called(resolved(value), {} if name == "tokenizer" else self.data_arguments, model)


_MUST_BE = 'must be a function that can be imported, as "module:function"'


def reference_of(value: Any) -> str | None:
    """ "module:function" for a function or class that another process can import; None for anything else."""
    if isinstance(value, str):
        return value if _REFERENCE.fullmatch(value) else None
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not callable(value) or not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}:{name}" if found is value else None


def resolved(value: Any) -> Any:
    """Import the object that "module:function" names; return other values unchanged. Raises `ConfigError`."""
    if not isinstance(value, str):
        return value
    if (reason := _why_not_importable(value)) is not None:
        raise ConfigError(reason)
    module, _, name = value.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _why_not_importable(reference: str) -> str | None:
    if not _REFERENCE.fullmatch(reference):
        return f"got {shown(reference)}; {_MUST_BE}"
    module, _, name = reference.partition(":")
    if module == "__main__":
        return (
            f"got {shown(reference)}: another process has another __main__; put the function into a module of its own"
        )
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - the user's module may raise anything when it is imported
        return (
            f"got {shown(reference)}, and module {module} cannot be imported here: {type(error).__name__}: {error}. Start in "
            "the folder that holds it, or add that folder to PYTHONPATH"
        )
    for part in name.split("."):
        if not hasattr(found, part):
            return f"got {shown(reference)}; module {module} has no {name}"
        found = getattr(found, part)
    return None if callable(found) else f"got {shown(reference)}, which is not a function"


def _called(function: Callable[..., Any], arguments: Mapping[str, Any], model: Any) -> Any:
    import inspect

    try:
        takes_model = "model" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some functions written in C have no signature
        takes_model = False
    return function(**arguments, **({"model": model} if takes_model and "model" not in arguments else {}))


def _as_mapping(value: Any) -> Any:
    """A model's configuration as a mapping, where it is one of the usual kinds of object."""
    if isinstance(value, SimpleNamespace):
        return vars(value)
    to_dict = getattr(value, "to_dict", None)
    return to_dict() if callable(to_dict) and not isinstance(value, type) else value


def _described(function: Any) -> str:
    name = getattr(function, "__qualname__", type(function).__name__)
    return "a lambda" if "<lambda>" in name else f"{name}, which is nested or belongs to a script,"


def _is_whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
