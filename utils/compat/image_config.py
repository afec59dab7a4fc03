"""Settings of an image experiment: one field, one flag, one place in a config file.

    dataset:       {name: mnist, data_root: ./data}
    model:         {name: lenet}
    training:      {epochs: 20, batch_size: 64, patience: 5}
    optimization:  {optimizer: adamw, learning_rate: 1e-3, scheduler: cosine}
    checkpointing: {save_frequency: 1}

Sections may be left out: a field may also stand by itself at the top of the file.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from utils.errors import ConfigError, Problem
from utils.schema import Schema, choices_of, path_text
from utils.training.config_files import parse_value, read_config_file
from utils.training.config_rules import Precision

SECTIONS = ("dataset", "model", "training", "optimization", "checkpointing")


def _in(section: str, default: Any, description: str, **rules: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"section": section}, **rules)


class ImageSettings(Schema):
    """Settings of an image experiment. Every field is a flag of the command line, by the same name."""

    aliases: ClassVar[Mapping[str, str]] = {"lr": "learning_rate", "seed": "random_seed"}

    dataset: str = _in("dataset", "mnist", "name in DatasetRegistry", min_length=1)
    data_root: str = _in("dataset", "./data", "folder that holds the datasets", min_length=1)
    reapply_transforms: bool = _in("dataset", False, "draw the random transforms anew after each epoch")
    num_workers: int = _in("dataset", 0, "processes that prepare batches; 0: in this process", ge=0, le=256)

    model: str = _in("model", "mynet", "name in ModelRegistry, or a source such as my_model.py:Net", min_length=1)
    num_classes: int | None = _in("model", None, "classes that the model scores; without it: the dataset's", ge=1)
    freeze: tuple[str, ...] = _in(
        "model", (), "layers that are not trained: ids (1-2), ranges (1-2:1-5) or names (features.0)", strict=False
    )

    epochs: int = _in("training", 20, "epochs in all", ge=1, le=100_000)
    batch_size: int = _in("training", 64, "samples of a step", ge=1, le=65_536)
    patience: int = _in("training", 0, "stop after so many epochs without a better accuracy; 0: never", ge=0)
    device: Literal["auto", "cuda", "mps", "cpu"] = _in("training", "auto", "where to train")
    precision: Precision = _in("training", "32", "of matrix products: 32, or auto for the device's fastest")
    random_seed: int = _in("training", 42, "start of every random sequence", ge=0, lt=2**32)

    optimizer: Literal["adamw", "adam", "sgd"] = _in("optimization", "adamw", "how gradients become updates")
    learning_rate: float = _in("optimization", 1e-3, "size of the optimizer's steps", gt=0)
    weight_decay: float = _in("optimization", 0.01, "pull of the weights towards zero", ge=0)
    momentum: float = _in("optimization", 0.9, "of sgd", ge=0, lt=1)
    scheduler: Literal["none", "step", "cosine", "plateau", "exponential"] = _in(
        "optimization", "none", "how the learning rate falls, an epoch at a time"
    )
    scheduler_step_size: int = _in("optimization", 10, "step: epochs between two drops", ge=1)
    scheduler_gamma: float = _in("optimization", 0.1, "step, exponential: factor of a drop", gt=0)
    scheduler_t_max: int = _in("optimization", 100, "cosine: epochs until the lowest rate", ge=1)
    scheduler_eta_min: float = _in("optimization", 1e-6, "cosine: the lowest rate", ge=0)
    scheduler_patience: int = _in("optimization", 5, "plateau: epochs without a better accuracy before a drop", ge=0)
    scheduler_factor: float = _in("optimization", 0.1, "plateau: factor of a drop", gt=0, lt=1)

    checkpoint_dir: str | None = _in(
        "checkpointing", None, "folder of latest_checkpoint.pt, best_model.pt and epoch_N.pt; without it: the experiment's",
        min_length=1,
    )  # fmt: skip
    save_frequency: int = _in("checkpointing", 1, "keep the checkpoint of every n-th epoch", ge=1)

    @classmethod
    def translate(cls, values: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        values = {name: path_text(value) for name, value in values.items()}
        if isinstance(values.get("freeze"), str):
            values["freeze"] = (values["freeze"],)
        for name in ("dataset", "model"):
            if isinstance(values.get(name), str):
                values[name] = values[name].strip().lower()
        for name, field in cls.model_fields.items():
            if field.annotation is float and type(values.get(name)) is int:
                values[name] = float(values[name])
        return values, []

    @classmethod
    def section_of(cls, field: str) -> str:
        """The section of a config file in which a field stands."""
        extra = cls.model_fields[field].json_schema_extra
        assert isinstance(extra, dict)
        return str(extra["section"])


class Config:
    """An image experiment's settings in sections, for scripts that read them.

    Attributes:
        settings: all of them, validated; dataset, model, training, optimization, checkpointing: dicts of name -> value, also
            as `config["dataset"]`.
    """

    def __init__(self, settings: ImageSettings | Mapping[str, Any] | None = None) -> None:
        """settings: those of an experiment, or a mapping as a config file holds it, in sections or without."""
        if isinstance(settings, Mapping):
            settings = ImageSettings.from_dict(_values_of(settings, "Config"))
        self.settings = settings or ImageSettings()
        sections: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
        for field, value in self.settings.to_dict().items():
            sections[ImageSettings.section_of(field)]["name" if field in ("dataset", "model") else field] = value
        self._sections = sections
        self.dataset, self.model, self.training = sections["dataset"], sections["model"], sections["training"]
        self.optimization, self.checkpointing = sections["optimization"], sections["checkpointing"]

    def __getitem__(self, section: str) -> dict[str, Any]:
        """A section. Raises `KeyError` for an unknown name."""
        return dict(self._sections[section])

    def get(self, key: str, default: Any = None) -> Any:
        """A section (a dict), or a field's value; `default` for a name that there is not."""
        if key in self._sections:
            return dict(self._sections[key])
        return self.settings.to_dict().get(key, default)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The sections, as a copy: what a config file holds."""
        return {name: dict(values) for name, values in self._sections.items()}

    @classmethod
    def from_yaml(cls, path: str | Path) -> Config:
        """The settings of a .yaml or .json file. Raises `ConfigError` that lists every mistake, `DataNotFoundError`."""
        return cls(ImageSettings.from_dict(values_of_file(path)))

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Config:
        """The settings of flags that `create_config_parser` has read, over those of its --config."""
        return load_config(getattr(args, "config", None), args)


def values_of_file(path: str | Path) -> dict[str, Any]:
    """Field -> value of a config file, in sections or without.

    Raises:
        DataNotFoundError, ConfigError: no such file; a section or field that there is not, or one that is given twice.
    """
    return _values_of(read_config_file(path), str(path))


def _values_of(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Field -> value of settings in sections or without; `source` is named in errors."""
    found: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, value in content.items():
        if name in SECTIONS and isinstance(value, Mapping):
            entries = {str(field): entry for field, entry in value.items()}
        elif name in SECTIONS and value is None:
            entries = {}
        else:
            entries = {str(name): value}
        for field, entry in entries.items():
            target = str(name) if field == "name" and name in ("dataset", "model") else field
            target = ImageSettings.aliases.get(target, target)
            if target in found:
                problems.append(Problem(target, "stands twice; keep one"))
            found[target] = entry
    if problems:
        raise ConfigError.from_problems(source, problems)
    return found


def create_config_parser() -> argparse.ArgumentParser:
    """A parser of every setting's flag; of those that are not typed it returns nothing."""
    parser = argparse.ArgumentParser(
        prog="run_training", allow_abbrev=False, argument_default=argparse.SUPPRESS,
        description="Train an image model as an experiment in runs/expN.",
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE", help="settings, a .yaml or .json file; flags go over them")
    parser.add_argument("--resume", metavar="EXP", help="continue this experiment, with its settings")
    parser.add_argument("--fork", metavar="EXP", help="start a new experiment from this one's newest weights")
    parser.add_argument("--runs-dir", metavar="FOLDER", help="folder of all experiments (default: runs)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, but do not train")
    for name, field in ImageSettings.model_fields.items():
        flag = "--" + name.replace("_", "-")
        shown = "" if field.default in (None, ()) else f" (default: {field.default})"
        text = f"{field.description}{shown}".replace("%", "%%")
        also = ["--seed"] if name == "random_seed" else ["--lr"] if name == "learning_rate" else []
        choices = choices_of(ImageSettings, name) if field.annotation not in (int | None, str | None) else ()
        if field.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        elif name == "freeze":
            parser.add_argument(flag, metavar="SPEC", nargs="+", help=text)
        elif field.annotation in (int, float, int | None):
            parser.add_argument(flag, *also, dest=name, metavar="N", type=parse_value, help=text)
        elif choices and name not in ("dataset", "model"):
            parser.add_argument(flag, choices=[str(choice) for choice in choices], help=text)
        else:
            parser.add_argument(flag, metavar="NAME" if name in ("dataset", "model") else "PATH", help=text)
    return parser


def typed_values(args: argparse.Namespace) -> dict[str, Any]:
    """Field -> value of the flags that were typed."""
    return {name: value for name, value in vars(args).items() if name in ImageSettings.model_fields}


def load_config(path: str | Path | None = None, args: argparse.Namespace | None = None) -> Config:
    """Defaults, then the file's settings over them, then the flags that were typed."""
    values = {} if path is None else values_of_file(path)
    return Config(ImageSettings.from_dict({**values, **({} if args is None else typed_values(args))}))


def get_default_config() -> Config:
    """Every setting as it is when nothing is said."""
    return Config()


def flags() -> Sequence[str]:
    """Every flag by which an image experiment is distinguished from other jobs."""
    names = [*ImageSettings.model_fields, "fork", "runs_dir"]
    return ["--" + name.replace("_", "-") for name in names]
