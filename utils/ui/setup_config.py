"""SetupConfig: everything that a training needs besides the model: data, tokenizer, TrainingConfig.

It is the wizard's model: mutable, valid at every moment, observable, so that what `SetupWizard.run` returned follows
the clicks. No front end and no torch in here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Self

from utils.data.mixture_settings import MixtureSource
from utils.data.source_kinds import is_implied
from utils.errors import ConfigError, Problem
from utils.schema import equal, nearest, path_text, shown
from utils.scrubbing import scrubbed
from utils.training.config_files import read_config_file, save_config_file
from utils.training.training_config import TrainingConfig
from utils.ui.data_settings import BUILTIN, PARTS, PLACE_SOURCES, DataSettings

if TYPE_CHECKING:
    from torch import nn

Observer = Callable[[tuple[str, ...]], None]


# The names that seed data and training settings have as arguments of TrainingCoordinator.train.
_TRAIN_ARGUMENTS: Mapping[str, str] = {
    "epochs": "max_epochs",
    "gradient_accumulation_steps": "accumulate_grad_batches",
    "keep_best_k": "save_top_k",
    "random_seed": "seed",
}
_ALWAYS = (
    "batch_size", "learning_rate", "epochs", "gradient_accumulation_steps", "early_stopping_patience", "keep_best_k",
    "random_seed",
)  # fmt: skip


class SetupConfig:
    """Result of the wizard: data source, tokenizer and training settings as one object.

    Every field of `DataSettings` and of `TrainingConfig` is an attribute, under its own name and its aliases:
    `setup.batch_size` reads; `setup.batch_size = 8`, `setup.set("batch_size", 8)` and
    `setup.update(batch_size=8, epochs=2)` write. A write that would make it invalid raises `ConfigError` that lists
    every problem, and changes nothing.
    """

    if TYPE_CHECKING:
        dataset_source: str
        dataset_path: str | None
        dataset_name: str | None
        config_name: str | None
        dataset_split: str | None
        text_column: str | None
        task: str
        label_column: str | None
        conversation_layout: str | None
        pretrained_model: str | None
        new_model: dict[str, Any] | None
        val_split: float
        data_kind: str
        mixture: tuple[MixtureSource, ...]
        mixture_by: str
        mixture_temperature: float
        tokenizer_strategy: str
        packing: str
        shuffle_documents: bool
        document_masks: bool
        vocab_size: int | None
        max_length: int
        random_seed: int

    _data: DataSettings
    _training: TrainingConfig
    _observers: list[Observer]
    _home: Path

    def __init__(self, /, **values: Any) -> None:
        object.__setattr__(self, "_data", DataSettings())
        object.__setattr__(self, "_training", TrainingConfig())
        object.__setattr__(self, "_observers", [])
        object.__setattr__(self, "_home", Path.cwd())
        self.update(**values)

    @property
    def training_config(self) -> TrainingConfig:
        """The training settings as they are now; later changes do not reach the returned object."""
        return self._training.at(self._home)

    @property
    def home(self) -> Path:
        """The working folder when this setup was made, at which its relative paths start."""
        return self._home

    @property
    def names_model(self) -> bool:
        """Whether the setup names the model to train, a pretrained or a new one, instead of the notebook's."""
        return self.pretrained_model is not None or self.new_model is not None

    def load_model(self) -> nn.Module:
        """The model that the setup names: the pretrained one with its weights, or the new one with new weights.

        Raises:
            ConfigError: it names none. TrainbookError: the model cannot be loaded or created; says what would work.
        """
        from utils.ui.model_source import load_named

        return load_named(self)

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Every field, data first."""
        return (*DataSettings.model_fields, *TrainingConfig.model_fields)

    def set(self, name: str, value: Any) -> None:
        """Change one field. Raises `ConfigError`; then nothing is changed."""
        if not isinstance(name, str):
            raise ConfigError(f"a field's name is text; got {shown(name)}")
        self.update(**{name: value})

    def update(self, /, **values: Any) -> None:
        """Change several fields at once, or none: raises `ConfigError` that lists every problem.

        A `dataset_path` alone means that file, a `dataset_name` (or `dataset`) alone that dataset of the Hub; setting one
        clears the other, and `dataset_source="builtin"` alone clears both. A `mixture` clears all of these, and vice versa;
        so do a `new_model` and a `pretrained_model` with each other. Another dataset clears `config_name`, `dataset_split`,
        `text_column`, `label_column` and `conversation_layout`.
        """
        data, training, problems = self._sorted(values)
        for model, other in (("new_model", "pretrained_model"), ("pretrained_model", "new_model")):
            if data.get(model) is not None:
                data.setdefault(other, None)
        new_data, new_training = self._data, self._training
        try:
            new_data = self._data.replace(**_data_source(self._data, data))
        except ConfigError as error:
            problems += error.problems
        try:
            new_training = self._training.replace(**training)
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError.from_problems(type(self).__name__, problems)
        self._commit(new_data, new_training)

    def observe(self, callback: Observer) -> Callable[[], None]:
        """Call `callback(names)` after every change, with the names of the fields that changed.

        Returns:
            A function that ends it; calling it twice is harmless.
        """
        self._observers.append(callback)

        def unobserve() -> None:
            if callback in self._observers:
                self._observers.remove(callback)

        return unobserve

    def to_dict(self) -> dict[str, Any]:
        """The keyword arguments of `TrainingCoordinator.train` that say the same; the model is its own argument.

        Data, sizes and the customary training settings always; others where they differ from the default.
        """
        arguments: dict[str, Any] = {
            "dataset": BUILTIN if self._data.dataset_source == BUILTIN else self._data.dataset_name,
            "dataset_path": self._data.dataset_path,
            "config_name": self._data.config_name,
            "vocab_size": self._data.vocab_size,
            "max_length": self._data.max_length,
            "val_split": self._data.val_split,
        }
        for name in ("dataset_split", "text_column", "label_column", "conversation_layout"):
            if (value := getattr(self._data, name)) is not None:
                arguments[name] = value
        if self._data.task != "causal_lm":
            arguments["task"] = self._data.task
        if self._data.dataset_source != BUILTIN and not is_implied(self._data.dataset_source):
            arguments["dataset_source"] = self._data.dataset_source  # a place alone would mean another source
        if self._data.data_kind != "auto":
            arguments["data_kind"] = self._data.data_kind
        for name in ("packing", "shuffle_documents", "document_masks"):
            if (value := getattr(self._data, name)) != DataSettings.model_fields[name].default:
                arguments[name] = value
        if self._data.mixture:
            kept = self._data.to_dict()
            arguments |= {name: kept[name] for name in ("mixture", "mixture_by", "mixture_temperature")}
            del arguments["dataset"]
        if self._data.tokenizer_strategy != "auto":
            arguments["tokenizer_strategy"] = self._data.tokenizer_strategy
        needed = self._training.differences()
        for name, value in self._training.to_dict().items():
            if name in _ALWAYS or name in needed:
                arguments[_TRAIN_ARGUMENTS.get(name, name)] = value
        return arguments

    def differences(self) -> dict[str, Any]:
        """The fields that differ from their defaults, as plain values; `SetupConfig(**them)` is equal."""
        defaults = DataSettings().to_dict()
        data = {name: value for name, value in self._data.to_dict().items() if value != defaults[name]}
        return {**data, **self._training.differences()}

    def sections(self) -> dict[str, dict[str, Any]]:
        """Every field as plain values, as `save` writes them: {"setup": data settings, "training": TrainingConfig}."""
        return {"setup": self._data.to_dict(), "training": self._training.to_dict()}

    @classmethod
    def from_sections(cls, sections: Mapping[str, Any]) -> Self:
        """The inverse of `sections`. Raises `ConfigError` for unknown sections, unknown names and bad values."""
        if not isinstance(sections, Mapping):
            raise ConfigError(f"{cls.__name__} is made from sections, setup and training; got {shown(sections)}")
        return cls(**values_of_sections(sections))

    def save(self, path: str | Path) -> str:
        """Write every field to a `.yaml`, `.yml` or `.json` file, atomically. Returns the absolute path.

        `cli/run_training.py --config` takes the file as a job.
        """
        return save_config_file(path, self.sections())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` or a person wrote. Raises `ConfigError`, or `DataNotFoundError` if it is absent."""
        return cls.from_sections(read_config_file(path))

    def copy(self) -> Self:
        """An independent equal object without observers."""
        new = type(self)()
        new._commit(self._data, self._training)
        return new

    def __getattr__(self, name: str) -> Any:
        # Only reached for names that are no ordinary attributes. copy and pickle ask for private ones: never fields.
        if not name.startswith("_"):
            field = field_of(name)
            if field in DataSettings.model_fields:
                return getattr(self._data, field)
            if field in TrainingConfig.model_fields:
                return getattr(self._training, field)
        raise AttributeError(
            f"{type(self).__name__} has no field {name!r}{_meant(name, _known_names())}", name=name, obj=self
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("_data", "_training"):
            object.__setattr__(self, name, value)
        elif name == "training_config":
            raise ConfigError(
                "training_config is a snapshot: change the setup's own fields, for instance setup.update(epochs=2)"
            )
        else:
            self.set(name, value)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.field_names()]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SetupConfig):
            return NotImplemented
        return self._data == other._data and self._training == other._training

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        values = scrubbed(self.differences())
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"

    def _sorted(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[Problem]]:
        """`values` by owner: data settings, training settings, and a problem for each name that nobody knows."""
        data_names = {*DataSettings.model_fields, *DataSettings.aliases, *DataSettings.extra_inputs()}
        training_names = {*TrainingConfig.model_fields, *TrainingConfig.aliases, *TrainingConfig.extra_inputs()}
        data = {name: value for name, value in values.items() if name in data_names}
        training = {name: value for name, value in values.items() if name in training_names}
        problems = [
            Problem(name, f"unknown field{_meant(name, _known_names())}", nearest(name, _known_names()))
            for name in values
            if name not in data_names and name not in training_names
        ]
        return data, training, problems

    def _commit(self, data: DataSettings, training: TrainingConfig) -> None:
        before = {**dict(self._data), **dict(self._training)}
        after = {**dict(data), **dict(training)}
        self._data, self._training = data, training
        names = tuple(name for name in after if not _same(before[name], after[name]))
        if names:
            # A copy: an observer may end its own observation.
            for observer in list(self._observers):
                observer(names)


def values_of_sections(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in the sections "setup" and "training" of a file as one mapping; either may be absent or empty.

    Raises:
        ConfigError: an unknown section, a section that is no mapping, or a name in both with different values.
    """
    known = ("setup", "training")
    problems = []
    values: dict[str, Any] = {}
    for section, content in sections.items():
        if not isinstance(section, str) or section not in known:
            label = section if isinstance(section, str) else shown(section)
            problems.append(Problem(label, f"unknown section; there are setup and training{_meant(label, known)}"))
        elif content is not None and not isinstance(content, Mapping):
            problems.append(Problem(section, f"got {shown(content)}; must hold `name: value` lines"))
        else:
            for name, value in (content or {}).items():
                if not isinstance(name, str):
                    problems.append(Problem(shown(name), "is not text, as a field's name is"))
                elif not equal(values.setdefault(name, value), value) and values[name] is not value:
                    both = f"{shown(values[name])} and {shown(value)}"
                    problems.append(Problem(name, f"stands in both sections with different values, {both}; keep one"))
    if problems:
        raise ConfigError.from_problems("the file's sections", problems)
    return values


def field_of(name: str) -> str:
    """The field that `name` means: an alias's field, other names unchanged."""
    return DataSettings.aliases.get(name) or TrainingConfig.aliases.get(name, name)


def _known_names() -> tuple[str, ...]:
    return (*SetupConfig.field_names(), *DataSettings.aliases, *TrainingConfig.aliases)


def _meant(name: str, known: tuple[str, ...]) -> str:
    guess = nearest(name, known)
    return f"; did you mean {guess}?" if guess else ""


def _data_source(current: DataSettings, changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes`, with what naming a source, a path or a dataset says about the others made explicit."""
    if changes.get("mixture"):
        alone = {"dataset_source": BUILTIN, "dataset_path": None, "dataset_name": None, "data_kind": "auto"}
        return {**alone, **dict.fromkeys(PARTS), **changes}
    name = changes.get("dataset_name")
    places = {
        "dataset_path": path_text(changes.get("dataset_path")),
        "dataset_name": path_text(changes.get("dataset") if name is None else name),
    }
    source = changes["dataset_source"] if "dataset_source" in changes else _implied_source(current, changes, places)
    if source is None or not all(isinstance(place, (str, NoneType)) for place in (source, *places.values())):
        return dict(changes)
    implied: dict[str, Any] = {"dataset_source": source, "mixture": ()}
    implied |= {place: None for place, its_sources in PLACE_SOURCES.items() if source not in its_sources}
    if not _keeps_data(current, source, places):
        implied |= dict.fromkeys(PARTS)
    return {**implied, **changes}


def _keeps_data(current: DataSettings, source: Any, places: Mapping[str, Any]) -> bool:
    """Whether a change to `source` and `places` leaves the data what it is."""
    path, name = places["dataset_path"], places["dataset_name"]
    if source in PLACE_SOURCES["dataset_name"]:
        return name is None or _same_dataset(name, current.dataset_name)
    known = source in PLACE_SOURCES["dataset_path"] and current.dataset_path is not None
    return known and path in (None, current.dataset_path)


def _implied_source(current: DataSettings, changes: Mapping[str, Any], places: Mapping[str, Any]) -> str | None:
    """The source that the named place belongs to; the built-in corpus when its only place is cleared; else None."""
    if equal(places["dataset_name"], BUILTIN):
        return BUILTIN
    for place, sources in PLACE_SOURCES.items():
        if places[place] is not None:
            return current.dataset_source if current.dataset_source in sources else sources[0]
    cleared = {source for place, sources in PLACE_SOURCES.items() if place in changes for source in sources}
    cleared |= set(PLACE_SOURCES["dataset_name"]) if "dataset" in changes else set()
    return BUILTIN if current.dataset_source in cleared else None


def _same_dataset(name: Any, current: str | None) -> bool:
    """Whether both name one dataset; the Hub leads "wikitext" to "Salesforce/wikitext"."""
    if not isinstance(name, str) or current is None:
        return False
    return name == current or (
        ("/" in name) != ("/" in current) and name.rpartition("/")[2].lower() == current.rpartition("/")[2].lower()
    )


def _same(first: Any, second: Any) -> bool:
    return type(first) is type(second) and bool(first == second)
