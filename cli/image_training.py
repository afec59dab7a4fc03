"""Train an image model as a numbered experiment, from flags, a file, or both.

    trainbook image --dataset mnist --model lenet --epochs 20 --scheduler cosine --scheduler-t-max 20
    trainbook image --config experiment.yaml --learning-rate 1e-4     # what is typed goes over the file
    trainbook image --resume exp1                                     # continue exactly where it was
    trainbook image --fork exp1 --freeze features --learning-rate 1e-4

An experiment that is resumed keeps its learning rate and scheduler; a fork takes the ones that are set.
Settings come from the defaults, then from the experiment that is resumed or forked, then from --config, then from the flags
that are typed. Exit status as of run_training: 0 trained, 2 an error that the message explains, 130 interrupted and saved.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.common import refuse_unknown
from utils.compat.image_config import (
    ImageSettings,
    create_config_parser,
    flags,
    typed_values,
    values_of_file,
)
from utils.errors import CheckpointError, ConfigError, Problem, TrainbookError, TrainingInterrupted
from utils.training.config_files import read_config_file

if TYPE_CHECKING:
    import torch
    from torch import nn

    from utils.compat.experiment import Trainer
    from utils.training.experiments import ExperimentManager


def is_meant(arguments: Sequence[str]) -> bool:
    """Whether these arguments are of an image experiment: by a flag, a section of the file, or the experiment's name."""
    typed = {argument.partition("=")[0] for argument in arguments}
    if typed & set(flags()):
        return True
    chosen = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--config", "--resume"):
        chosen.add_argument(name)
    found, _ = chosen.parse_known_args([argument for argument in arguments if argument not in ("-h", "--help")])
    if found.config is not None and Path(found.config).is_file():
        # A text job has no section named after what only image experiments have.
        return bool({"dataset", "optimization", "checkpointing"} & _top_of(found.config))
    return found.resume is not None and "experiment" in _top_of(Path("runs") / found.resume / "config.yaml")


def _top_of(path: str | Path) -> set[str]:
    try:
        return set(read_config_file(path))
    except TrainbookError:  # whoever reads the file for its content says what is wrong with it
        return set()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one experiment. Returns the exit status."""
    parser = make_parser()
    options, unknown = parser.parse_known_args(arguments)
    refuse_unknown(parser, unknown)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return _run(options)
    except TrainbookError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = create_config_parser()
    parser.prog = "trainbook image"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (__doc__ or "").partition("\n")[2]
    return parser


def settings_of(options: argparse.Namespace) -> ImageSettings:
    """The settings that hold: see the module's docstring for the order. Raises `ConfigError` that lists every mistake."""
    from utils.training.experiments import existing_experiment, kept_settings

    values: dict[str, Any] = {}
    before = _experiment_before(options)
    if before is not None:
        folder = existing_experiment(Path(getattr(options, "runs_dir", "runs")), before)
        values |= {name: value for name, value in kept_settings(folder).items() if name in ImageSettings.model_fields}
    kept = dict(values)
    if before is not None and not kept and not (hasattr(options, "config") or hasattr(options, "dataset")):
        raise ConfigError(
            f"{before} keeps no settings of this command: it was ended before its training began, or a script trained it. "
            "Say them again: --dataset, --model and what else it was started with, or --config."
        )
    if hasattr(options, "config"):
        values |= values_of_file(options.config)
    settings = ImageSettings.from_dict({**values, **typed_values(options)})
    resumed = getattr(options, "resume", None)
    if kept and resumed is not None and any((folder / "checkpoints").glob("*.pt")):
        _check_same_schedule(resumed, ImageSettings.from_dict(kept), settings)
    return settings


def _check_same_schedule(name: str, kept: ImageSettings, now: ImageSettings) -> None:
    """Raise `ConfigError` for a rate or schedule that is not the experiment's: its checkpoint holds both, and would win."""
    fixed = [field for field in ImageSettings.model_fields if field == "learning_rate" or field.startswith("scheduler")]
    problems = [
        Problem(
            field,
            f"got {getattr(now, field)!r}; {name} continues with {getattr(kept, field)!r}. For another one start a new "
            f"experiment from its weights: --fork {name}",
        )
        for field in fixed
        if getattr(now, field) != getattr(kept, field)
    ]
    if problems:
        raise ConfigError.from_problems(f"--resume {name}", problems)


def _experiment_before(options: argparse.Namespace) -> str | None:
    resume, fork = getattr(options, "resume", None), getattr(options, "fork", None)
    if resume is not None and fork is not None:
        raise ConfigError(f"an experiment is resumed or forked; got --resume {resume} and --fork {fork}.")
    return resume or fork


def _run(options: argparse.Namespace) -> int:
    settings = settings_of(options)
    import torch

    from utils.compat.environment import get_device
    from utils.data.images.registry import DatasetRegistry

    torch.manual_seed(settings.random_seed)
    device = get_device(settings.device)
    dataset = DatasetRegistry.create(
        settings.dataset, root=settings.data_root, reapply_transforms=settings.reapply_transforms
    )
    loaders = dataset.get_dataloaders(batch_size=settings.batch_size, num_workers=settings.num_workers)
    model = make_model(settings, dataset).to(device)
    if settings.freeze:
        from utils.training.freezing import freeze_layers

        frozen = freeze_layers(model, settings.freeze)
        print(f"frozen      {frozen.tensors} tensors, {frozen.parameters:,} numbers: {', '.join(frozen.modules)}")
    optimizer = make_optimizer(settings, model)
    scheduler = make_scheduler(settings, optimizer)
    if getattr(options, "dry_run", False):
        print("dry run: everything is in order, nothing was trained")
        return 0
    experiment = _experiment(options, settings)
    trainer = _trainer(settings, model, loaders, optimizer, scheduler, device, dataset, experiment)
    return _train(trainer, settings)


def make_model(settings: ImageSettings, dataset: Any) -> nn.Module:
    """The model, for the dataset's images. Raises `ConfigError`: an unknown name, or fewer classes than the dataset has."""
    from utils.models import ModelRegistry, load_model

    classes = settings.num_classes or dataset.num_classes
    if classes < dataset.num_classes:
        raise ConfigError(f"--num-classes {classes}: {settings.dataset} has {dataset.num_classes} classes.")
    offered = {
        "num_classes": classes, "input_channels": dataset.input_channels, "input_size": dataset.input_size,
    }  # fmt: skip
    if settings.model.strip().lower() not in ModelRegistry.list_available():
        return load_model(settings.model, **offered)  # a model from elsewhere takes all three, as `BaseModel` documents
    parameters = inspect.signature(ModelRegistry.get(settings.model)).parameters
    if "num_classes" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise ConfigError(f"--model {settings.model}: it takes no num_classes, so it is no model for images.")
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return ModelRegistry.create(
        settings.model, **{name: value for name, value in offered.items() if takes_any or name in parameters}
    )


def make_optimizer(settings: ImageSettings, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer, over what is trained. Raises `ConfigError` when everything is frozen."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError(f"--freeze {' '.join(settings.freeze)}: every layer is frozen, and nothing is left to train.")
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(trained, lr=rate, momentum=settings.momentum, weight_decay=decay)
    adam = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return adam(trained, lr=rate, weight_decay=decay)


def make_scheduler(settings: ImageSettings, optimizer: torch.optim.Optimizer) -> Any:
    """The scheduler, None for "none". The one for plateaus waits for the validation accuracy."""
    from torch.optim import lr_scheduler

    kind = settings.scheduler
    if kind == "step":
        return lr_scheduler.StepLR(optimizer, settings.scheduler_step_size, settings.scheduler_gamma)
    if kind == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, settings.scheduler_t_max, settings.scheduler_eta_min)
    if kind == "plateau":
        return lr_scheduler.ReduceLROnPlateau(
            optimizer, mode="max", patience=settings.scheduler_patience, factor=settings.scheduler_factor
        )
    return lr_scheduler.ExponentialLR(optimizer, settings.scheduler_gamma) if kind == "exponential" else None


def _experiment(options: argparse.Namespace, settings: ImageSettings) -> ExperimentManager:
    from utils.training.experiments import ExperimentManager

    runs = getattr(options, "runs_dir", "runs")
    experiment = ExperimentManager(runs, getattr(options, "resume", None), getattr(options, "fork", None))
    experiment.settings = settings.to_dict()
    print(experiment.get_experiment_info(), flush=True)
    return experiment


def _trainer(
    settings: ImageSettings, model: nn.Module, loaders: tuple[Any, Any], optimizer: torch.optim.Optimizer, scheduler: Any,
    device: torch.device, dataset: Any, experiment: ExperimentManager,
) -> Trainer:  # fmt: skip
    from torch import nn

    from utils.compat.experiment import Trainer
    from utils.training.checkpoint_manager import CheckpointManager
    from utils.ui.progress import progress_callback

    manager = CheckpointManager(settings.checkpoint_dir or experiment.checkpoints_dir, settings.save_frequency)
    if experiment.fork_source_dir is not None:
        info = experiment.restore_fork(model, optimizer)
        if not info["loaded_layers"]:
            raise CheckpointError(
                f"--fork: none of the {info['total_layers']} entries of {info['source']} fits the model {settings.model!r}, so "
                "there is nothing to start from. Give --model as the source has it, or leave out --fork."
            )
        print(
            f"forked      {info['source']}: {info['loaded_layers']} of {info['total_layers']} entries loaded",
            flush=True,
        )
    return Trainer(
        model, loaders[0], loaders[1], nn.CrossEntropyLoss(), optimizer, device, experiment, manager, scheduler,
        dataset if settings.reapply_transforms else None, settings.patience, precision=settings.precision,
        seed=settings.random_seed, callbacks=[progress_callback(_epoch_line)],
    )  # fmt: skip


def _epoch_line(epoch: int, epochs: int, row: Mapping[str, Any]) -> str:
    parts = [f"epoch {epoch + 1}/{epochs}"]
    for kind in ("train", "val"):
        parts.append(f"{kind} loss {row[f'{kind}/loss']:.4f} accuracy {100 * row[f'{kind}/accuracy']:.2f} %")
    return "  ".join(parts)


def _train(trainer: Trainer, settings: ImageSettings) -> int:
    from utils.training.engine.checkpointing.store import write_file

    folder = Path(trainer.experiment_manager.checkpoints_dir)
    try:
        results = trainer.train(settings.epochs)
    except TrainingInterrupted as error:
        write_file(folder / "interrupted_model.pth", dict(trainer.model.state_dict()))
        print(
            f"\n{error.what_happened}\nweights  {folder / 'interrupted_model.pth'}\ncontinue with --resume "
            f"{trainer.experiment_manager.name}", file=sys.stderr,
        )  # fmt: skip
        return 130
    write_file(folder / "final_model.pth", dict(trainer.model.state_dict()))
    ended = " (stopped early)" if results["stopped_early"] else ""
    print(f"trained     {results['epochs_trained']} epochs in {results['training_time']:.1f} s{ended}")
    print(f"best        {results['best_accuracy']:.2f} % in epoch {results['best_epoch']}")
    print(f"run folder  {Path(results['experiment_dir']).resolve()}")
    print(f"curves      {Path(trainer.experiment_manager.plot_file).resolve()}")
    print(f"model       {(folder / 'final_model.pth').resolve()}")
    return 0
