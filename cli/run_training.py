"""Train without a notebook: the same job, from one config file.

    trainbook train                                  the starter job
    trainbook train --config job.yaml --resume auto
    trainbook train --set epochs=2 --set model.max_seq_len=64
    torchrun --nproc_per_node=2 cli/run_training.py --config job.yaml          on two devices

From a clone, `python cli/run_training.py` does the same as `trainbook train`.

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

    trainbook search sweep.yaml        the same command continues a search that was interrupted

    method: random                     # grid, random, or optuna (also called bayes)
    name: first-sweep
    n_trials: 10
    metric: {name: val/loss, goal: minimize}
    parameters: {learning_rate: {min: 1e-5, max: 1e-3, log: true}, batch_size: [4, 8], model.n_embd: [64, 128]}
    training: {epochs: 2}

Other commands follow as a word: search, queue, worker, runs, models, checks, doctor, export, notebook; each has --help.

    trainbook queue submit --queue sqlite:///training_jobs.db --config job.yaml
    trainbook worker --queue sqlite:///training_jobs.db

Images are trained by flags of their own, as numbered experiments: run_training image --help lists them.

Exit status: 0 trained, 2 an error that the message explains, 130 interrupted and saved, 143 terminated and saved. Of several
processes only the first one prints; torchrun's own status is 1 when theirs is not 0.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):  # started as a file: Python looks beside this file only
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from cli.common import Parser, add_job_arguments
from cli.job_files import JobConfig, SweepConfig, model_maker, model_of, setup_of
from utils.errors import ConfigError, TrainbookError, TrainingInterrupted
from utils.training.config_files import read_config_file
from utils.ui.setup_wizard import SetupWizard

if TYPE_CHECKING:
    from torch import nn

    from utils.data import PreparedData
    from utils.training.engine.results import TrainingResults
    from utils.training.search import Trial
    from utils.ui.setup_config import SetupConfig

__all__ = ["JobConfig", "SweepConfig", "main", "model_of", "search", "setup_of"]


#: `utils.training.tracking.TRACKERS`, without its imports.
TRACKER_NAMES = ("tensorboard", "mlflow", "trackio", "wandb")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job, or another command whose word comes first. Returns the exit status."""
    from cli import commands, image_training

    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in commands.COMMANDS:
        return commands.main(arguments)
    if image_training.is_meant(arguments):
        return image_training.main(arguments)
    return _run_command(make_parser(), arguments)


def search(arguments: Sequence[str] | None = None) -> int:
    """Search hyper-parameters, as `main` with --sweep-config. Returns the exit status."""
    return _run_command(make_search_parser(), arguments)


def _run_command(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    rank = os.environ.get("RANK", "0")
    with _only_the_first_prints(rank):
        options = parser.parse_args(arguments)
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
        job = JobConfig.from_file(options.config, options.set)
        return _run(job, options.resume, options.dry_run, options.tracker, finish_now=options.finish_now)
    except TrainbookError as error:
        if rank == "0":
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        elif not error.told_by_main and not isinstance(error, ConfigError):  # the job is the same for all
            print(f"process {rank}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except TrainingInterrupted as error:
        if rank != "0":
            return 130
        can_continue = getattr(error.results, "checkpoint_path", None) is not None
        way_on = "\ncontinue with the same command and --resume auto" if can_continue else ""
        print(f"\n{error.what_happened}{way_on}", file=sys.stderr)
        return 130
    except SystemExit as error:
        if error.code == 143 and rank == "0":
            print("\nterminated; continue with the same command and --resume auto", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("\nstopped at once; checkpoints saved before are intact: continue with --resume auto", file=sys.stderr)
        return 130


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = Parser(prog="trainbook train", docstring=__doc__)
    add_job_arguments(parser, "without it the starter job")
    parser.add_argument(
        "--sweep-config", metavar="FILE", help="search hyper-parameters: what to try, a .yaml or .json file"
    )
    parser.add_argument("--resume", metavar="auto|PATH", help="auto: continue this run; PATH: start from a checkpoint")
    parser.add_argument(
        "--finish-now", action="store_true",
        help="begin the decay of lr_schedule=wsd at once; with --resume auto: from the newest checkpoint",
    )  # fmt: skip
    parser.add_argument(
        "--tracker", choices=TRACKER_NAMES, action="append", help="send metrics there as well; repeatable",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="check the job and prepare the data, but do not train")
    return parser


def make_search_parser() -> argparse.ArgumentParser:
    """The arguments of a search."""
    parser = Parser(prog="trainbook search", description=_SEARCH, epilog=_SWEEP)
    parser.add_argument("sweep_config", metavar="SWEEP", help="what to try, a .yaml or .json file")
    add_job_arguments(parser, "where the sweep file holds none")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the search and prepare the data, but do not train"
    )
    parser.set_defaults(resume=None)
    return parser


_SEARCH = (
    "Train one model for each combination of settings, and say which was best. The same command continues a search."
)
_SWEEP = """
A sweep file (W&B's are read too); the job may stand beside it, in the sections model, setup and training:

    method: random                     # grid, random, or optuna (also called bayes)
    name: first-sweep
    n_trials: 10
    metric: {name: val/loss, goal: minimize}
    parameters: {learning_rate: {min: 1e-5, max: 1e-3, log: true}, batch_size: [4, 8]}
    training: {epochs: 2}
"""


def _run(
    job: JobConfig,
    resume: str | None,
    dry_run: bool,
    trackers: Sequence[str] | None = None,
    *,
    finish_now: bool = False,
) -> int:
    model, _, setup, data = _prepared(job, _check_finish if finish_now else None)
    if dry_run:
        print("dry run: everything is in order, nothing was trained")
        return 0

    from utils.training.engine.trainer import Trainer
    from utils.ui.progress import progress_callback

    trainer = Trainer(
        model,
        training_config=setup.training_config,
        task_spec=data.task_spec,
        tokenizer=data.tokenizer,
        callbacks=[progress_callback()],
        trackers=trackers,
    )
    if finish_now:
        trainer.request_finish()
    results = trainer.train(data.train, data.validation, resume_from=resume)
    if os.environ.get("RANK", "0") == "0":
        _report(results, data.report.unigram_loss)
    return 0


def _check_finish(setup: SetupConfig) -> None:
    config = setup.training_config
    if not config.can_finish_early:
        raise ConfigError(
            f"--finish-now needs lr_schedule=wsd, whose decay can begin at any step; got {config.lr_schedule}."
        )


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
        from utils.training.search.running import check_backend
        from utils.training.search.strategies import strategy_name

        check_backend(sweep.backend)
        space = SearchSpace(sweep.parameters, setup.training_config)
        if strategy_name(sweep.method) == "grid":
            space.grid()

    _, make_model, setup, data = _prepared(job, check)
    if options.dry_run:
        print("dry run: everything is in order, nothing was trained")
        return 0

    from utils.training.search import search_hyperparameters
    from utils.ui.progress import ProgressBar

    results = search_hyperparameters(
        make_model, sweep.parameters, data, training_config=setup, strategy=sweep.method, n_trials=sweep.n_trials,
        name=sweep.name, seed=sweep.seed, timeout_s=sweep.timeout_s, storage=sweep.storage, prune=sweep.prune,
        backend=sweep.backend,
        monitor=sweep.metric.get("name"), mode=sweep.mode, on_trial_end=_print_trial,
        callbacks=[ProgressBar()] if sys.stderr.isatty() and sweep.backend == "local" else [],
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
