"""Trainer's arguments and data -> `RunPlan`: one function per stage, each usable alone. Nothing is written yet.

In the order in which `plan_run` calls them: `plan_data` (batches), `plan_task` (what is learned), `plan_objective` (the loss),
`planned_steps` (how long), `plan_monitor` (what decides which state is best).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from utils.adapters.facts import model_facts
from utils.adapters.input_shapes import stated_image_shape
from utils.adapters.special_ids import model_pad_token_id, set_special_ids
from utils.data.batch import Batch
from utils.data.conversations.packing import keeps_segments_apart
from utils.data.documents import DocumentBlocks
from utils.data.module import UniversalDataModule
from utils.data.quality.inspection.training import data_notices, refuse_float_ids
from utils.data.sources import StreamSource
from utils.environment import detect_device
from utils.errors import ConfigError, DataError
from utils.training.engine.callbacks import Callback, EarlyStopping
from utils.training.engine.compute.compiling import check_compiler
from utils.training.engine.distributed.world import World, check_launch, join
from utils.training.engine.facade import Notice, RunFacade
from utils.training.engine.loss.criterion import CriterionObjective
from utils.training.engine.loss.objective import Objective, check_monitor
from utils.training.engine.loss.tasks import infer_task_spec, make_task
from utils.training.engine.loss.tasks.inference import task_type_of
from utils.training.engine.plan import RunPlan, TrainerArguments, whole_number
from utils.training.engine.sanity.compatibility import (
    check_fit,
    check_gradients_are_dense,
    first_samples,
    initialise_lazy_layers,
)
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

# A validation of so many times the samples that are trained on between two of them is reported, from so many batches on.
_LONG_VALIDATION, _MANY_BATCHES = 10, 50


def plan_run(
    given: TrainerArguments,
    train_data: Any,
    val_data: Any,
    *,
    callbacks: Sequence[Callback],
    facade: RunFacade,
    notice: Notice,
) -> RunPlan:
    """The plan of a run over these data. The model's special ids are set to the tokenizer's, and lazy layers get their sizes.

    Raises:
        ConfigError, DataError, ModelError: model, data, task and settings do not fit each other; says what would.
    """
    model, config = given.model, given.config
    for sentence in check_launch(config):
        notice(sentence)
    world = join(config, detect_device().kind)
    if (changed := set_special_ids(model, given.tokenizer, given.pad_token_id)) is not None:
        notice(changed)
    data = plan_data(given, train_data, val_data, world, notice)
    facade.data_ready(data, train_data)
    if (unmasked := data.padding_notice(explicit=given.pad_token_id is not None)) is not None:
        notice(unmasked)
    _check_document_masks(data, model)
    check_gradients_are_dense(model)
    if (initialised := initialise_lazy_layers(model, data)) is not None:
        notice(initialised)
    refuse_float_ids(data, model, getattr(given.task_spec, "task_type", None) or task_type_of(model))
    task_spec = plan_task(given, data, notice)
    objective = facade.objective() or plan_objective(given, task_spec, data, world)
    check_compiler(config.compile_mode, detect_device())
    accumulation = _accumulation(config, data)
    total_steps = planned_steps(config, data, accumulation)
    monitor = plan_monitor(config, data, objective, notice)
    if (lengthy := long_validation(config, data, accumulation, total_steps)) is not None:
        notice(lengthy)
    if world.is_main:
        for sentence in data_notices(data, model, task_spec, tokenizer=given.tokenizer, criterion=given.criterion):
            notice(sentence)
    return RunPlan(
        config, data, task_spec, objective, world, accumulation, total_steps, monitor, config.mode,
        _patience(config, callbacks), given.tokenizer,
    )  # fmt: skip


def plan_data(
    given: TrainerArguments, train_data: Any, val_data: Any, world: World | None, notice: Notice
) -> UniversalDataModule:
    """The data as batches, in an order that seed and epoch decide; each process of `world` gets its share of a step."""
    config, spec = given.config, given.task_spec
    if (spec is None or spec.task_type is None) and (named := task_type_of(given.model)) is not None:
        # Which task it is decides how samples become a batch.
        spec = (spec or TaskSpec("training")).replace(task_type=named)
    data = UniversalDataModule(
        train_data, val_data, spec, given.tokenizer, given.data_collator, config.batch_size, config.num_workers,
        config.random_seed, max_train_samples=config.max_train_samples, max_val_samples=config.max_val_samples,
        pad_token_id=whole_number(given.model_config, "pad_token_id")
        if given.pad_token_id is not None else model_pad_token_id(given.model),
        block_size=model_facts(given.model).max_length or whole_number(given.model_config, "max_seq_len"),
    )  # fmt: skip
    for sentence in data.notices:
        notice(sentence)
    if world is not None and world.size > 1:
        _refuse_streams(data)
        data.share, data.lockstep = (world.rank, world.size), config.strategy == "fsdp"
    if config.auto_batch_size and data.resumable:
        # A step's samples come in one batch, which is taken apart as memory demands.
        data.batch_size *= config.gradient_accumulation_steps
    elif config.auto_batch_size:
        notice("auto_batch_size does nothing here: the data come in batches of their own.")
    return data


def plan_task(given: TrainerArguments, data: UniversalDataModule, notice: Notice) -> TaskSpec:
    """The task, complete: what was left open is inferred from model and data, and a notice says so."""
    if given.criterion is not None:
        return given.task_spec or TaskSpec("training")  # which task it is, only the criterion knows
    sample = first_samples(data)
    spec, sentence = infer_task_spec(given.model, sample, given.tokenizer, given.task_spec)
    if given.task_spec is None or given.task_spec.task_type is None:
        notice(sentence)
    return _with_image_shape(spec, given.model, sample)


def _with_image_shape(spec: TaskSpec, model: nn.Module, sample: Batch) -> TaskSpec:
    """The task with the shape of its images where the model does not state their size, for exports and checks."""
    pixels = sample.get("pixel_values")
    if pixels is None or pixels.dim() != 4:
        return spec
    stated = stated_image_shape(model, spec, spec.preprocessing_config)
    if stated is None or stated[1] is not None:
        return spec
    _, channels, *sides = pixels.shape
    return spec.replace(
        preprocessing_config={**spec.preprocessing_config, "input_channels": channels, "input_size": sides}
    )


def plan_objective(
    given: TrainerArguments, task_spec: TaskSpec, data: UniversalDataModule, world: World | None
) -> Objective:
    """Objective of the run: the caller's criterion, or the task's loss, which is checked against model and data."""
    if given.criterion is not None:
        return CriterionObjective(given.criterion)
    config = given.config
    if world is not None and world.size > 1 and config.strategy == "fsdp":
        config = config.replace(fused_loss="off")  # sharded, the output layer is whole only inside the model's own pass
    task = make_task(task_spec, config)
    check_fit(given.model, data, task, task_spec)
    return task


def planned_steps(config: TrainingConfig, data: UniversalDataModule, accumulation: int) -> int | None:
    """Optimizer steps of the whole run, where the data's length is known or max_steps is set."""
    per_epoch = data.num_steps(accumulation)
    known = (None if per_epoch is None else per_epoch * config.epochs, config.max_steps)
    return min((limit for limit in known if limit is not None), default=None)


def long_validation(
    config: TrainingConfig, data: UniversalDataModule, accumulation: int, total_steps: int | None
) -> str | None:
    """Notice about validations that are far longer than the training between two of them, or None.

    Counted in samples. One in validation takes about a third of the time of one in training, which has a backward pass.

    Args:
        total_steps: as `planned_steps`.
    """
    every = data.num_steps(accumulation) if config.eval_every == "epoch" else config.eval_every
    between = min((steps for steps in (every, total_steps) if steps is not None), default=None)
    if between is None or not data.num_validation:
        return None
    trained = between * data.batch_size * accumulation * data.share[1]
    trained = trained if data.samples_per_epoch is None else min(trained, data.samples_per_epoch)
    batches = math.ceil(data.num_validation / data.validation_batch_size)
    if data.num_validation < _LONG_VALIDATION * trained or batches < _MANY_BATCHES:
        return None
    ways = f"Set max_val_samples, such as max_val_samples={max(trained, 10 * data.validation_batch_size)}"
    ways += "" if config.eval_every == "epoch" or config.eval_every == total_steps else ", or a larger eval_every"
    return (
        f"A validation reads {data.num_validation:,} samples in {batches:,} batches, and the training between two of them only "
        f"{trained:,}: most of the time goes into validation. {ways}."
    )


def plan_monitor(config: TrainingConfig, data: UniversalDataModule, objective: Objective, notice: Notice) -> str:
    """The metric that decides which state is best. Raises `ConfigError` when the run cannot produce it."""
    monitor = config.monitor
    check_monitor(monitor, objective, data.validation_names)
    if data.validation is None and monitor.startswith("val/"):
        there = monitor.replace("val/", "train/")
        notice(f"No validation data: {there} is monitored instead of {monitor}.")
        return there
    return monitor


def _check_document_masks(data: UniversalDataModule, model: Any) -> None:
    masked = any(isinstance(part, DocumentBlocks) and part.masks for part in (data.train, data.validation))
    if masked and not keeps_segments_apart(model):
        raise ConfigError(
            f"document_masks: {type(model).__name__} lets the documents of a block see each other, because its attention does "
            "not follow position_ids. Set document_masks=False, or take a transformers model that derives its mask from them."
        )


def _accumulation(config: TrainingConfig, data: UniversalDataModule) -> int:
    """Batches of `data` in one optimizer step."""
    return 1 if config.auto_batch_size and data.resumable else config.gradient_accumulation_steps


def _patience(config: TrainingConfig, callbacks: Sequence[Callback]) -> int | None:
    """The smallest patience of config and `EarlyStopping` callbacks; None: no early stopping."""
    given = [callback.patience for callback in callbacks if isinstance(callback, EarlyStopping)]
    configured = config.early_stopping_patience
    return min([*given, *([] if configured is None else [configured])], default=None)


def _refuse_streams(data: UniversalDataModule) -> None:
    """Refuse streams in distributed training: two processes might see the same samples."""
    for name, source in (("train_data", data.train), ("val_data", data.validation)):
        if isinstance(source, StreamSource):
            raise DataError(
                f"{name} is a DataLoader with an order of its own, which several processes cannot share out exactly. Give its "
                "dataset instead, with samples by number."
            )
