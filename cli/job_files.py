"""The files that the commands read: a job, and a sweep; and the setup and model that a job describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from utils.errors import ConfigError, Problem
from utils.schema import Schema, shown
from utils.training.config_files import parse_value, read_config_file
from utils.training.training_config import TrainingConfig
from utils.ui.presets import ConfigPresets
from utils.ui.setup_config import SetupConfig, field_of, values_of_sections
from utils.ui.setup_wizard import SetupWizard

if TYPE_CHECKING:
    from torch import nn


_FIELDS = frozenset(SetupConfig.field_names())


class JobConfig(Schema):
    """A job file. `setup` and `training` together hold SetupConfig's values, in whichever of the two."""

    preset: str = Field("starter", title="Preset", description="Where the values start from.")
    model: dict[str, Any] = Field(
        default_factory=dict,
        title="Model",
        description="Source as name (a registered name, model.py:Class, a folder, a Hub id, a gist), arguments, trust.",
    )
    setup: dict[str, Any] = Field(default_factory=dict, title="Setup", description="Data and tokenizer.")
    training: dict[str, Any] = Field(default_factory=dict, title="Training", description="TrainingConfig's values.")

    #: Sections that may be empty in a file.
    SECTIONS: ClassVar[tuple[str, ...]] = ("model", "setup", "training")

    @classmethod
    def translate(cls, values: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        return {name: {} if value is None and name in cls.SECTIONS else value for name, value in values.items()}, []

    @classmethod
    def from_file(cls, path: str | None, settings: Sequence[str] = ()) -> JobConfig:
        """The job in a file (None: the starter job), with `name=value` settings over it.

        `model.name=value` is an argument of the model, and `preset=name` names the preset.

        Raises:
            ConfigError, DataNotFoundError: the file cannot be read, or a setting is not `name=value`.
        """
        return cls.from_values({} if path is None else read_config_file(path), str(path), settings)

    @classmethod
    def from_values(cls, values: Mapping[str, Any], source: str, settings: Sequence[str] = ()) -> JobConfig:
        """The job in a file's mapping; `source` names the file in messages."""
        sections = {n: "training" if n in TrainingConfig.model_fields else "setup" for n in values if n in _FIELDS}
        stray = [Problem(n, f"stands outside the sections; put it under {where}:") for n, where in sections.items()]
        if stray:
            raise ConfigError.from_problems(source, stray)
        job = cls.from_dict(values)
        model, setup, training = dict(job.model), dict(job.setup), dict(job.training)
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals or not name:
                raise ConfigError(f"--set takes name=value; got {setting!r}")
            if name == "preset":
                job = job.replace(preset=text)
                continue
            if name.startswith("model."):
                model[name.removeprefix("model.")] = parse_value(text)
                continue
            for section in (setup, training):
                for given in [given for given in section if field_of(given) == field_of(name)]:
                    del section[given]
            training[name] = parse_value(text)
        return cls(preset=job.preset, model=model, setup=setup, training=training)


class SweepConfig(Schema):
    """A sweep file: what to search and how. W&B's names are accepted; the job's sections may stand beside it."""

    aliases: ClassVar[Mapping[str, str]] = {
        "space": "parameters", "search_space": "parameters", "strategy": "method", "run_cap": "n_trials",
        "timeout": "timeout_s",
    }  # fmt: skip

    parameters: dict[str, Any] = Field(title="Parameters", description="Name -> choices or range.")
    method: str = Field("random", title="Method", description="grid, random or optuna.")
    name: str | None = Field(None, title="Name", description="The search's name; None: the next free searchN.")
    n_trials: int | None = Field(None, ge=1, title="Trials", description="How many in all.")
    metric: dict[str, Any] = Field(default_factory=dict, title="Metric", description="name and goal.")
    seed: int | None = Field(None, ge=0, title="Seed", description="Of the draws.")
    timeout_s: float | None = Field(None, gt=0, title="Time limit", description="For all trials together, in seconds.")
    storage: str | None = Field(None, title="Storage", description="Optuna's study, such as sqlite:///runs/study.db.")
    prune: bool = Field(False, title="Prune", description="End trials early that are worse than others (Optuna).")
    backend: str = Field("local", title="Backend", description="local, ray, or a Ray cluster such as ray://host:10001.")

    @classmethod
    def contradictions(cls, values: Mapping[str, Any], given: Mapping[str, Any]) -> list[Problem]:
        metric = values.get("metric") or {}
        unknown = [name for name in metric if name not in ("name", "goal")]
        problems = [Problem("metric", f"has no {name!r}; it has name and goal") for name in unknown]
        if metric.get("goal") not in (None, *_GOALS):
            problems.append(Problem("metric", f"got goal {metric['goal']!r}; must be minimize or maximize"))
        return problems

    @property
    def mode(self) -> str | None:
        """TrainingConfig's word for the goal."""
        return _GOALS.get(str(self.metric.get("goal")))

    @classmethod
    def from_file(cls, path: str) -> tuple[SweepConfig, dict[str, Any]]:
        """The sweep in a file, and the job's sections that stand beside it.

        Raises:
            ConfigError, DataNotFoundError: the file cannot be read, or says what no sweep knows.
        """
        values = read_config_file(path)
        job = {name: values.pop(name) for name in JobConfig.model_fields if name in values}
        for name in _WANDB_ONLY:
            values.pop(name, None)
        return cls.from_dict(values), job


_GOALS = {"minimize": "min", "min": "min", "maximize": "max", "max": "max"}
# Of a W&B sweep file: how its own agents start the program.
_WANDB_ONLY = ("program", "command", "project", "entity", "description")


def setup_of(job: JobConfig, model: nn.Module | None = None) -> SetupConfig:
    """The setup of a job; with a model, fitted to it. Raises `ConfigError` that lists every mistake.

    A job whose setup names a pretrained or new model is fitted to that one.
    """
    values = values_of_sections({"setup": job.setup, "training": job.training})
    preset = ConfigPresets().get(job.preset)
    if model is not None and not _names_model(values):
        return SetupWizard().run(model=model, interactive=False, preset=preset, **values)
    SetupConfig().update(**values)
    return SetupWizard().run(interactive=False, preset=preset, **values)


def model_maker(job: JobConfig) -> Callable[..., nn.Module]:
    """A function that makes the job's model; keyword arguments replace the job's. A setup with a `pretrained_model` or
    `new_model` needs no `model` section. Raises `ConfigError` where it has one all the same."""
    from utils.models.sources import load_described

    if _names_model(values_of_sections({"setup": job.setup, "training": job.training})):
        return _named_maker(job)
    preset = ConfigPresets().get(job.preset)
    name, model_arguments = model_of(job.model, preset.model_name, preset.model_arguments)

    def make_model(**changes: Any) -> nn.Module:
        return load_described(name, {**model_arguments, **changes})

    return make_model


def _names_model(values: Mapping[str, Any]) -> bool:
    return any(values.get(name) is not None for name in ("pretrained_model", "new_model"))


def _named_maker(job: JobConfig) -> Callable[..., nn.Module]:
    """A function that loads or creates the model that the job's setup names."""
    if job.model:
        raise ConfigError(
            f"model: got {shown(job.model)} together with the setup's pretrained_model or new_model; keep one."
        )

    def load(**changes: Any) -> nn.Module:
        from utils.ui.model_source import load_source
        from utils.ui.new_model import create_new_model

        setup = setup_of(job)
        if setup.new_model is not None:
            return create_new_model(setup, **changes)
        if changes:
            raise ConfigError(f"a pretrained model takes no arguments; got {', '.join(changes)}")
        return load_source(setup).model

    return load


def model_of(section: Mapping[str, Any], name: str, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The model's name and arguments: the preset's with the job's over them, or only the job's for another model."""
    given = dict(section)
    wanted = given.pop("name", name)
    return wanted, {**(arguments if wanted == name else {}), **given}
