"""train_model and TrainingCoordinator: from a model and the name of its data to a trained model.

Arguments become a TrainingConfig and data; the Trainer does the rest.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from utils.environment import device_chosen
from utils.errors import CheckpointNotFoundError, ConfigError, ModelError, Problem
from utils.schema import nearest, shown
from utils.storage import absolute_path
from utils.training.coordinator.arguments import DataArguments
from utils.training.coordinator.given_data import prepared
from utils.training.coordinator.record import KeepDataArguments, is_given_again, kept_arguments
from utils.training.coordinator.results import CoordinatorResults
from utils.training.engine.checkpointing.store import entries_of, newest, read_header
from utils.training.engine.trainer import Trainer
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from utils.training.engine.callbacks import Callback

log = logging.getLogger("trainbook.coordinator")

_DATA_NAMES = tuple(entry.name for entry in fields(DataArguments) if entry.name != "seed")
# What may be said anew of a run that is continued in its own folder.
_MAY_DIFFER = TrainingConfig.NOT_LEARNED - {"run_name", "output_dir", "checkpoint_dir"}
_TRAINING_NAMES = (*TrainingConfig.model_fields, *TrainingConfig.aliases, *TrainingConfig.extra_inputs())


class TrainingCoordinator:
    """Trains models from the names of their data.

    Args:
        output_dir: folder that holds the runs; each gets the next free expN, or its `run_name`.
        use_gpu: use a GPU where there is one; False: the CPU.
        precision: "auto" (half precision where the hardware has it), "16", "bf16" or "32"; see TrainingConfig.
        gradient_clip_val: largest L2 norm of all gradients; 0: not clipped.
        strategy, devices, num_nodes: how several devices share the work; see TrainingConfig.
    Raises:
        ConfigError: a value is out of range; lists every problem.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str] = "./training_output",
        use_gpu: bool = True,
        precision: str = "auto",
        gradient_clip_val: float = 1.0,
        *,
        strategy: str = "auto",
        devices: int | str | None = None,
        num_nodes: int = 1,
    ) -> None:
        self.use_gpu, self._home = use_gpu, Path.cwd()
        self._settings: dict[str, Any] = {
            "output_dir": output_dir, "precision": precision, "max_grad_norm": gradient_clip_val, "strategy": strategy,
            "devices": "auto" if devices is None else devices, "num_nodes": num_nodes,
        }  # fmt: skip
        problems = _config_or_problems(self._settings)[1]
        if use_gpu not in (True, False):
            problems.append(Problem("use_gpu", f"got {use_gpu!r}; must be True or False", True))
        if problems:
            raise ConfigError.from_problems(type(self).__name__, problems)

    def train(
        self,
        model: nn.Module,
        dataset: Any = None,
        dataset_path: str | os.PathLike[str] | None = None,
        config_name: str | None = None,
        vocab_size: int | None = None,
        batch_size: int = 16,
        max_length: int | None = None,
        learning_rate: float = 1e-4,
        max_epochs: int = 3,
        val_split: float = 0.1,
        accumulate_grad_batches: int = 1,
        early_stopping_patience: int | None = None,
        save_top_k: int = 3,
        tokenizer: Any = None,
        datamodule: Any = None,
        resume_from_checkpoint: Any = None,
        seed: int = 42,
        *,
        text_column: str | None = None,
        dataset_source: str | None = None,
        tokenizer_strategy: str = "auto",
        data_kind: str = "auto",
        task_spec: TaskSpec | None = None,
        task: str = "causal_lm",
        label_column: str | None = None,
        conversation_layout: str | None = None,
        shuffle_documents: bool = False,
        document_masks: bool = False,
        packing: str = "concatenate",
        mixture: Sequence[Mapping[str, Any]] | None = None,
        mixture_by: str = "examples",
        mixture_temperature: float = 1.0,
        dataset_split: str | None = None,
        callbacks: Sequence[Callback] = (),
        **settings: Any,
    ) -> CoordinatorResults:
        """Load, tokenize, train.

        Args:
            model: any `nn.Module` that maps token ids (B, T) to logits (B, T, V). Trained in place.
            dataset: "builtin"; the id of a dataset of the Hugging Face Hub, or the path of a folder or a text file; a Hugging
                Face Dataset, a pandas DataFrame or a list of texts; rows of token ids. None, and no other data: the built-in
                corpus, and the results' notices say so.
            dataset_path: a file of texts (txt, csv, tsv, json, jsonl, parquet, conll), a folder of them, or a pattern of paths;
                instead of dataset. dataset_source="drive": one of the user's Google Drive.
            config_name: the part or version of a named dataset; dataset_split: its split, such as "train[:1000]", None for
                "train"; text_column: its column of texts.
            data_kind: what the rows are: "conversations", of which the answers are learned; "pairs": a text and the text to
                write for it; "text" or "auto": texts.
            vocab_size: most token ids that are used; None: as many as the model has.
            batch_size: samples of a micro-batch; accumulate_grad_batches: micro-batches of a step.
            max_length: tokens of a block; None: what the model takes, at most 512.
            learning_rate: the peak; it falls as `lr_schedule` says.
            max_epochs: passes over the data, in all.
            val_split: share for validation, 0 to 0.5; 0: none. A dataset's own validation split is taken instead.
            early_stopping_patience: stop after so many validations without improvement; None: never.
            save_top_k: best checkpoints kept, beside the newest two.
            tokenizer: one that fits the model; None: one is trained on the training part, as tokenizer_strategy says.
            datamodule: an object with `train_dataloader()` and perhaps `val_dataloader()`, or what `prepare_data` returned;
                instead of a dataset.
            resume_from_checkpoint: a checkpoint, a run's folder or results to start from in a new run; "auto": see
                `Trainer.train`.
            seed: start of every random sequence.
            task_spec: the task; None: next-token prediction from texts, inferred from the first sample otherwise.
                For other tasks the data are a table with labels, or a datamodule.
            task: what is learned from files and named datasets: "causal_lm", which includes conversations,
                "text_classification", "regression", "token_classification" or "seq2seq".
            label_column: their column of classes, numbers, tags or target texts; conversation_layout: which columns of files
                hold the conversations.
            shuffle_documents: pack texts into blocks in another order in each epoch; document_masks: attention does not cross
                from one text of a block to the next; packing: "concatenate", or "best_fit", which cuts only texts longer than a
                block (`utils.data.prepare_text`).
            mixture: several datasets instead of one: mappings with `path` or `dataset`, `weight`, `name` and what else
                `utils.data.mixture_settings.MixtureSource` has. mixture_by: what the weights count, "examples" or "tokens";
                mixture_temperature: see `utils.data.mix`.
            callbacks: watch the run.
            settings: every other field of TrainingConfig, or its alias.
        Returns:
            CoordinatorResults: a mapping with best_model_path, final_metrics, model (a UniversalModelAdapter around the
            trained model), trainer, tokenizer, and every key of TrainingResults.
        Raises:
            ConfigError (a ValueError): arguments are unknown, out of range or contradict each other or the model; lists every
                problem, before anything is read.
            ModelError, DataError (ValueErrors): the model or the data cannot be used as they are.
            DataNotFoundError (a FileNotFoundError): no such file or folder.
            HubError, CheckpointError, NonFiniteError (RuntimeErrors): the Hub, a checkpoint, or training itself failed.
        """
        named = {
            "batch_size": batch_size, "learning_rate": learning_rate, "max_epochs": max_epochs,
            "accumulate_grad_batches": accumulate_grad_batches, "early_stopping_patience": early_stopping_patience,
            "save_top_k": save_top_k, "seed": seed,
        }  # fmt: skip
        given = DataArguments(
            dataset, dataset_path, config_name, text_column, vocab_size, max_length, val_split, tokenizer,
            tokenizer_strategy, datamodule, task_spec, settings.get("random_seed", seed),
            dataset_source, task, label_column, conversation_layout, data_kind, shuffle_documents, document_masks,
            mixture, mixture_by, mixture_temperature, dataset_split, packing,
        )  # fmt: skip
        config = self._checked(model, given, {**self._settings, **named}, settings)
        return self._trained(model, given, config, resume_from_checkpoint, callbacks)

    def quick_train(self, model: nn.Module, dataset: Any = None, **arguments: Any) -> CoordinatorResults:
        """One epoch with one best checkpoint, to see that model and data work together. Otherwise as `train`."""
        return self.train(model, dataset, **{"epochs": 1, "keep_best_k": 1, **_canonical(arguments)})

    def resume_training(self, checkpoint_path: Any, model: nn.Module, **arguments: Any) -> CoordinatorResults:
        """Go on from a checkpoint with its run's settings and data.

        The newest checkpoint of a run is continued in its folder, to the end that was planned. From an older or the best one,
        and wherever arguments change what is learned (`max_epochs=10`: to the tenth epoch), a new run starts.

        Args:
            checkpoint_path: a checkpoint file, a run's folder, or results.
            model: a model as it was made for the run; the checkpoint's weights are loaded into it.
            arguments: what is to differ, as for `train`; and the data, where they were objects and no names.
        Raises:
            CheckpointNotFoundError, CheckpointError: nothing there, damaged, or of another model.
            ConfigError: the run does not hold its data's names and none are given; as for `train` otherwise.
        """
        source, payload, is_newest = _found_checkpoint(checkpoint_path)
        arguments = _canonical(arguments)
        if unknown := _unknown(arguments):
            raise ConfigError.from_problems("TrainingCoordinator.resume_training", unknown)
        changes = {name: value for name, value in arguments.items() if name in TrainingConfig.model_fields}
        stored: dict[str, Any] = {**TrainingConfig.from_saved(payload["config"])[0], "checkpoint_dir": None}
        given = _resumed_data(source.parent.parent, arguments, changes.get("random_seed", stored["random_seed"]))
        if given.kind == "table" and given.task_spec is None:
            given = replace(given, task_spec=TaskSpec.from_dict(payload["task_spec"]))
        if is_newest and source.parent.name == "checkpoints" and set(changes) <= _MAY_DIFFER:
            stored |= {"output_dir": str(source.parent.parent.parent), "run_name": source.parent.parent.name}
        else:
            stored |= {"output_dir": self._settings["output_dir"], "run_name": None}
        retired = TrainingConfig.retired_by(changes)
        kept = {name: value for name, value in stored.items() if name not in retired}
        config = self._checked(model, given, kept, changes)
        return self._trained(model, given, config, source, arguments.get("callbacks", ()))

    def _checked(
        self, model: Any, given: DataArguments, settings: Mapping[str, Any], changes: Mapping[str, Any]
    ) -> TrainingConfig:
        """The config of `settings`, of which `changes` win. Raises `ConfigError` that lists everything that is wrong."""
        if not isinstance(model, nn.Module):
            hint = (
                f" Load it first: utils.models.load_model({model!r})." if isinstance(model, (str, os.PathLike)) else ""
            )
            raise ModelError(f"TrainingCoordinator takes an nn.Module as model; got a {type(model).__name__}.{hint}")
        unknown = _unknown(changes)
        names = {problem.field for problem in unknown}
        known = {name: value for name, value in changes.items() if name not in names}
        config, problems = _config_or_problems(_merged(settings, known))
        problems = [*unknown, *given.problems(model), *problems]
        if problems or config is None:
            raise ConfigError.from_problems("TrainingCoordinator.train", problems)
        return config

    def _trained(
        self,
        model: nn.Module,
        given: DataArguments,
        config: TrainingConfig,
        resume_from: Any,
        callbacks: Sequence[Callback],
    ) -> CoordinatorResults:
        with device_chosen(None if self.use_gpu else "cpu"):
            data = prepared(given, model)
            for sentence in data.notices:
                log.info(sentence)
            trainer = Trainer(
                model, None, config.at(self._home), data.task_spec, tokenizer=data.tokenizer,
                callbacks=[*callbacks, KeepDataArguments(given, model)],
            )  # fmt: skip
            results = trainer.train(data.train, data.validation, resume_from=resume_from)
        results.notices[:0] = data.notices
        return CoordinatorResults(results, trainer, data.report)


def train_model(
    model: nn.Module,
    dataset: Any = None,
    vocab_size: int | None = None,
    max_epochs: int = 3,
    batch_size: int = 16,
    learning_rate: float = 1e-4,
    **kwargs: Any,
) -> CoordinatorResults:
    """Train a model in one call: `TrainingCoordinator().train(model, dataset, …)`.

    Args:
        model, dataset, vocab_size, max_epochs, batch_size, learning_rate: as for `TrainingCoordinator.train`. No dataset, and
            no `dataset_path` or `datamodule`: the built-in corpus, and the results' notices say so.
        kwargs: TrainingCoordinator's own arguments, and every other one of its `train`.
    Returns, raises:
        As `TrainingCoordinator.train`.
    """
    own = {name: kwargs.pop(name) for name in _COORDINATOR_NAMES if name in kwargs}
    return TrainingCoordinator(**own).train(
        model, dataset, vocab_size=vocab_size, max_epochs=max_epochs, batch_size=batch_size, learning_rate=learning_rate,
        **kwargs,
    )  # fmt: skip


_COORDINATOR_NAMES = tuple(name for name in inspect.signature(TrainingCoordinator).parameters)
_TRAIN_NAMES = tuple(
    name
    for name, parameter in inspect.signature(TrainingCoordinator.train).parameters.items()
    if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
)
_TRAIN_DEFAULTS = {name: inspect.signature(TrainingCoordinator.train).parameters[name].default for name in _TRAIN_NAMES}


def _unknown(arguments: Mapping[str, Any]) -> list[Problem]:
    """A problem for each name that is neither an argument of `train` nor a setting."""
    known = (*_TRAIN_NAMES, *_TRAINING_NAMES)
    guesses = {name: nearest(name, known) for name in arguments if name not in known}
    return [
        Problem(name, f"unknown argument{f'; did you mean {guess}?' if guess else ''}", guess)
        for name, guess in guesses.items()
    ]


def _canonical(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Training settings under their fields' names."""
    return {TrainingConfig.aliases.get(name, name): value for name, value in arguments.items()}


def _merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` without what `changes` say by the same or another name, and `changes`.

    A setting that is no default of `train` was given too: both stay, and the config refuses two values for one field.
    """
    fields_changed = set(_canonical(changes)) | ({"precision"} if "use_amp" in changes else set())
    kept = {
        name: value
        for name, value in settings.items()
        if TrainingConfig.aliases.get(name, name) not in fields_changed
        or (name in _TRAIN_DEFAULTS and value != _TRAIN_DEFAULTS[name])
    }
    return {**kept, **changes}


def _config_or_problems(values: Mapping[str, Any]) -> tuple[TrainingConfig | None, list[Problem]]:
    try:
        return TrainingConfig(**values), []
    except ConfigError as error:
        return None, list(error.problems)


def _resumed_data(run_dir: Path, arguments: Mapping[str, Any], seed: int) -> DataArguments:
    """The data that are named now, else those that the run remembers. An object that is given again is what the run's was:
    what else was said of it (sizes, share for validation, column) is remembered too."""
    again = {name: value for name, value in arguments.items() if name in _DATA_NAMES}
    named = DataArguments(**{"seed": seed, **again})
    if named.names_data and not is_given_again(run_dir, named):
        return named
    return DataArguments(**{"seed": seed, **kept_arguments(run_dir, again), **again})


def _found_checkpoint(given: Any) -> tuple[Path, dict[str, Any], bool]:
    """The checkpoint file that is meant, its content, and whether its folder holds no newer one."""
    named = getattr(given, "checkpoint_path", None) or given
    if not isinstance(named, (str, os.PathLike)):
        raise ConfigError(
            f"checkpoint_path: got {shown(given)}; must be a checkpoint file, a run's folder, or results that have one."
        )
    path = absolute_path(named)
    path = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if path.is_dir():
        return *newest(path, mapped=True), True
    if not path.exists():
        raise CheckpointNotFoundError(f"there is no checkpoint {named}; give a checkpoint file or a run's folder.")
    payload = read_header(path)
    entries, _ = entries_of(path.parent)
    last = entries[0].path if entries else path
    # best.pt may be another name of the newest file.
    return (last, payload, True) if last.samefile(path) else (path, payload, False)
