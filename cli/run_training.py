"""Train without a notebook: the same job, from one config file.

    python cli/run_training.py                                  the starter job
    python cli/run_training.py --config job.yaml --resume auto
    python cli/run_training.py --set epochs=2 --set model.max_seq_len=64
    torchrun --nproc_per_node=2 cli/run_training.py --config job.yaml          on two devices

A job file has up to four sections; what is left out comes from the preset. Paths are relative to the current folder.

    preset: starter
    model: {name: gpt-small, vocab_size: 4096, max_seq_len: 128}
    setup: {dataset_path: my.txt, val_split: 0.1}
    training: {epochs: 8, learning_rate: 1e-3, run_name: first}

The model's name is any source that utils.models.load_model takes: a registered name, a file (my_model.py or my_model.py:Net),
package.module:function, a folder with weights, a Hub id, or a gist, whose code runs only with its sha256 as trust.

    model: {name: my_model.py:Net, width: 64}
    model: {name: "gist:0123456789abcdef0123456789abcdef", trust: 5e88…}

A sweep file names what to try; W&B's sweep files are read too. The job is in it, or in --config.

    python cli/run_training.py --sweep-config sweep.yaml        the same command continues a search that was interrupted

    method: random                     # grid, random, or optuna (also called bayes)
    name: first-sweep
    n_trials: 10
    metric: {name: val/loss, goal: minimize}
    parameters: {learning_rate: {min: 1e-5, max: 1e-3, log: true}, batch_size: [4, 8], model.n_embd: [64, 128]}
    training: {epochs: 2}

Jobs can wait in a queue for workers: run_training worker --help, run_training queue --help.

    python cli/run_training.py queue submit --queue sqlite:///training_jobs.db --config job.yaml
    python cli/run_training.py worker --queue sqlite:///training_jobs.db

Images are trained by flags of their own, as numbered experiments: run_training --dataset mnist --help lists them.

Exit status: 0 trained, 2 an error that the message explains, 130 interrupted and saved, 143 terminated and saved. Of several
processes only the first one prints; torchrun's own status is 1 when theirs is not 0.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if __package__ in (None, ""):  # started as a file: Python looks for packages beside this file only
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pydantic import Field

from cli import image_training, queue_commands
from utils.errors import ConfigError, Problem, TrainbookError, TrainingInterrupted
from utils.schema import Schema
from utils.training.config_files import parse_value, read_config_file
from utils.ui.presets import ConfigPresets
from utils.ui.setup_config import SetupConfig, field_of, values_of_sections
from utils.ui.setup_wizard import SetupWizard

if TYPE_CHECKING:
    from torch import nn

    from utils.data import PreparedData
    from utils.training.engine.results import TrainingResults
    from utils.training.search import Trial


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

        `model.name=value` is an argument of the model.

        Raises:
            ConfigError, DataNotFoundError: the file cannot be read, or a setting is not `name=value`.
        """
        return cls.from_values({} if path is None else read_config_file(path), str(path), settings)

    @classmethod
    def from_values(cls, values: Mapping[str, Any], source: str, settings: Sequence[str] = ()) -> JobConfig:
        """The job in a file's mapping; `source` names the file in messages."""
        stray = [Problem(str(n), "stands outside the sections; put it under training:") for n in values if n in _FIELDS]
        if stray:
            raise ConfigError.from_problems(source, stray)
        job = cls.from_dict(values)
        model, setup, training = dict(job.model), dict(job.setup), dict(job.training)
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals or not name:
                raise ConfigError(f"--set takes name=value; got {setting!r}")
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

_FIELDS = frozenset(SetupConfig.field_names())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job. Returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if queue_commands.is_meant(arguments):
        return queue_commands.main(arguments)
    if image_training.is_meant(arguments):
        return image_training.main(arguments)
    rank = os.environ.get("RANK", "0")
    with _only_the_first_prints(rank):
        options = _parser().parse_args(arguments)
        logging.basicConfig(
            level=logging.WARNING if rank == "0" else logging.ERROR, format="%(levelname)s: %(message)s"
        )
        return _status(options, rank)


@contextlib.contextmanager
def _only_the_first_prints(rank: str) -> Iterator[None]:
    """Of several processes that train together, what the others would print is what the first one prints."""
    if rank == "0":
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _status(options: argparse.Namespace, rank: str) -> int:
    """Run the job; what goes wrong becomes a message and an exit status."""
    try:
        if options.sweep_config is not None:
            return _sweep(options)
        return _run(JobConfig.from_file(options.config, options.set), options.resume, options.dry_run)
    except TrainbookError as error:
        if rank == "0":
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        elif not error.told_by_main and not isinstance(error, ConfigError):  # the job is the same for all
            print(f"process {rank}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except TrainingInterrupted as error:
        if rank != "0":
            return 130
        print(f"\n{error}", file=sys.stderr)
        if getattr(error.results, "checkpoint_path", None) is not None:
            print(
                f"saved  {error.results.checkpoint_path}\ncontinue with the same command and --resume auto",
                file=sys.stderr,
            )
        return 130
    except KeyboardInterrupt:
        print("\nstopped at once; checkpoints saved before are intact: continue with --resume auto", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="run_training", description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--config", metavar="FILE", help="the job, a .yaml or .json file; without it the starter job")
    parser.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="change one value of the job; repeatable"
    )
    parser.add_argument(
        "--sweep-config", metavar="FILE", help="search hyper-parameters: what to try, a .yaml or .json file"
    )
    parser.add_argument("--resume", metavar="auto|PATH", help="auto: continue this run; PATH: start from a checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="check the job and prepare the data, but do not train")
    return parser


def _run(job: JobConfig, resume: str | None, dry_run: bool) -> int:
    model, _, setup, data = _prepared(job)
    if dry_run:
        print("dry run: everything is in order, nothing was trained")
        return 0

    from utils.training.engine.trainer import Trainer
    from utils.ui.progress import PrintProgress

    trainer = Trainer(
        model,
        training_config=setup.training_config,
        task_spec=data.task_spec,
        tokenizer=data.tokenizer,
        callbacks=[PrintProgress()],
    )
    results = trainer.train(data.train, data.validation, resume_from=resume)
    if os.environ.get("RANK", "0") == "0":
        _report(results, data.report.unigram_loss)
    return 0


def _sweep(options: argparse.Namespace) -> int:
    if options.resume is not None:
        raise ConfigError("--resume is not needed with --sweep-config: a search with a name continues by itself.")
    sweep, job_values = SweepConfig.from_file(options.sweep_config)
    if job_values and options.config is not None:
        raise ConfigError(
            f"{options.sweep_config} holds a job ({', '.join(job_values)}) and --config names another; keep one"
        )
    source = options.config or options.sweep_config
    job = JobConfig.from_values(read_config_file(options.config) if options.config else job_values, source, options.set)

    def check(setup: SetupConfig) -> None:
        from utils.training.search import SearchSpace
        from utils.training.search.strategies import strategy_name

        space = SearchSpace(sweep.parameters, setup.training_config)
        if strategy_name(sweep.method) == "grid":
            space.grid()

    _, make_model, setup, data = _prepared(job, check)
    if options.dry_run:
        print("dry run: everything is in order, nothing was trained")
        return 0

    from utils.training.search import search_hyperparameters

    results = search_hyperparameters(
        make_model, sweep.parameters, data, training_config=setup, strategy=sweep.method, n_trials=sweep.n_trials,
        name=sweep.name, seed=sweep.seed, timeout_s=sweep.timeout_s, storage=sweep.storage, prune=sweep.prune,
        monitor=sweep.metric.get("name"), mode=sweep.mode, on_trial_end=_print_trial,
    )  # fmt: skip
    results.show()
    print(f"search folder  {results.folder}")
    if results.best_config is None:
        print("no trial finished; the table says why", file=sys.stderr)
        return 2
    best = results.best_config.replace(run_name=None).save(results.folder / "best.yaml")
    print(f"best settings  {best}\ncheckpoint     {results.best_model_path}")
    return 0


def _print_trial(trial: Trial) -> None:
    values = "  ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                       for name, value in trial.params.items())  # fmt: skip
    value = "" if trial.value is None else f"  {trial.value:.4f}"
    print(f"trial {trial.number}  {trial.status}{value}  {values}  {trial.reason}".rstrip(), flush=True)


def _prepared(
    job: JobConfig, check: Callable[[SetupConfig], None] | None = None
) -> tuple[nn.Module, Callable[..., nn.Module], SetupConfig, PreparedData]:
    """The model, what makes more of them, the setup, and the data; setup and data are shown.

    Args:
        check: called with the setup before any text is read.
    """
    setup_of(job)  # every mistake is reported before torch is even imported

    from utils.data import prepare_data

    make_model = model_maker(job)
    model = make_model()
    setup = setup_of(job, model)
    if check is not None:
        check(setup)
    SetupWizard().print_config(setup)
    data = prepare_data(setup, model)
    data.report.show()
    return model, make_model, setup, data


def setup_of(job: JobConfig, model: nn.Module | None = None) -> SetupConfig:
    """The setup of a job; with a model, fitted to it. Raises `ConfigError` that lists every mistake."""
    values = values_of_sections({"setup": job.setup, "training": job.training})
    preset = ConfigPresets().get(job.preset)
    if model is not None:
        return SetupWizard().run(model=model, interactive=False, preset=preset, **values)
    SetupConfig().update(**values)
    return SetupWizard().run(interactive=False, preset=preset, **values)


def model_maker(job: JobConfig) -> Callable[..., nn.Module]:
    """A function that makes the job's model; keyword arguments replace the job's."""
    from utils.models import load_model

    preset = ConfigPresets().get(job.preset)
    name, model_arguments = model_of(job.model, preset.model_name, preset.model_arguments)

    def make_model(**changes: Any) -> nn.Module:
        return load_model(name, **{**model_arguments, **changes})

    return make_model


def model_of(section: Mapping[str, Any], name: str, arguments: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The model's name and arguments: the preset's with the job's over them, or only the job's for another model."""
    given = dict(section)
    wanted = given.pop("name", name)
    return wanted, {**(arguments if wanted == name else {}), **given}


def _report(results: TrainingResults, unigram_loss: float | None) -> None:
    """Print the results, export the model, and say where everything is."""
    from utils.training.export import export_model

    results.show(baseline=unigram_loss)
    print(f"run folder  {results.run_dir}")
    print(f"curves      {results.curves_path}")
    print(f"checkpoint  {results.best_model_path or results.checkpoint_path}")
    print(f"model       {export_model(results)['hf'].path}")


if __name__ == "__main__":
    sys.exit(main())
