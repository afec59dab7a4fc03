"""Real samples for checks: what was given or the built-in corpus, and a model's outputs for each target of it.

Shapes: B rows, T positions, N targets, C classes or tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from utils.adapters.facts import model_facts
from utils.adapters.forward import ModelCall
from utils.adapters.special_ids import model_pad_token_id
from utils.checks.probe import Probe, left_as_it_was
from utils.data.batch import IGNORED, Batch
from utils.data.module import UniversalDataModule
from utils.data.packing import TokenBlocks
from utils.data.sources import StreamSource
from utils.errors import ConfigError, DataError, HubError, ModelError
from utils.training.task_kinds import kind_of_task
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

#: Errors that concern the data, not the model: the check is "not run" and reports them.
DATA_ERRORS = (ConfigError, DataError, HubError)

_BLOCK_SIZE, _VOCAB_SIZE = 128, 4096
_SPLIT = 0.2
# Logits of one batch, in values: 200 MB in fp32.
_VALUES_AT_ONCE = 50_000_000
_LARGEST_BATCH = 32


class NoDataError(DataError):
    """There is nothing to evaluate or train on; the message says what to give."""


@dataclass(frozen=True)
class CheckData:
    """Data for a check.

    Attributes:
        train: None where only held-out data were given and none are needed.
        validation: held-out data.
        task_spec: the task, with its type.
        tokenizer: None where the data are ids or numbers.
        source: what the data are, for the summary.
        given: whether the caller chose them; the built-in corpus need not resemble what a model was trained on.
        given_spec: the task as the caller stated it; None: the engine infers it. It decides how samples become batches.
        packed: whether rows are blocks cut out of running text, so that every position has the same distribution of tokens.
    """

    train: Any
    validation: Any
    task_spec: TaskSpec
    tokenizer: Any
    source: str
    given: bool
    packed: bool
    given_spec: TaskSpec | None = None


@dataclass(frozen=True)
class Scored:
    """Predictions of a model and their targets.

    Attributes:
        outputs: (N, C) scores, or (N, K) numbers for regression; fp32.
        targets: (N,) int64 classes, or (N, K) numbers.
        positions: (N,) position of each target in its row; 0 where a row has a single target.
        rows: (N,) number of the row that each target belongs to.
    """

    outputs: Tensor
    targets: Tensor
    positions: Tensor
    rows: Tensor


def data_for(found: Probe, data: Any, *, train: bool = False) -> CheckData:
    """Resolve the data of a check.

    Args:
        data: PreparedData, a pair (training, validation), one dataset, or None for the built-in corpus (language models).
        train: whether a training part is needed. A single dataset is split then, 80 to 20; without it, all of it is held out.
    Raises:
        NoDataError: nothing was given and the built-in corpus does not fit the model.
        ConfigError, DataError, ModelError: the data do not fit the model.
    """
    source, tokenizer, spec, given = "the given data", found.tokenizer, found.task_spec, data is not None
    if data is None:
        data, source = _builtin(found, train), "the built-in corpus"
    if hasattr(data, "train") and hasattr(data, "validation"):
        spec, tokenizer = data.task_spec, data.tokenizer
        part, held_out = data.train, data.validation
    elif isinstance(data, tuple) and len(data) == 2 and not isinstance(data[0], Tensor):
        part, held_out = data
    else:
        part, held_out = (None, data)
    if held_out is None or (part is None and train):
        part, held_out = _halved(part if held_out is None else held_out)
        source += ", 20 % of it held out"
    packed = isinstance(held_out, TokenBlocks) and not held_out.num_padding
    return CheckData(part, held_out, _task(found, held_out, tokenizer, spec), tokenizer, source, given, packed, spec)


def _halved(data: Any) -> tuple[Any, Any]:
    if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise NoDataError(f"a {type(data).__name__} cannot be split; give data=(training, validation)")
    if len(data) < 5:
        raise NoDataError(f"{len(data)} samples are too few to hold some out; give data=(training, validation)")
    order = np.random.default_rng(0).permutation(len(data)).tolist()
    cut = round(_SPLIT * len(order))
    if isinstance(data, TokenBlocks) and not data.num_padding:
        return TokenBlocks(data.blocks[order[cut:]]), TokenBlocks(data.blocks[order[:cut]])
    return Subset(data, order[cut:]), Subset(data, order[:cut])


def _builtin(found: Probe, train: bool) -> Any:
    """The built-in corpus in the model's sizes."""
    from utils.data.labelled.prepare import prepare_examples
    from utils.data.text.corpus import BUILTIN_NAME, builtin_corpus
    from utils.data.text.prepare import prepare_text

    lm = found.over_tokens and found.output == "tokens" and found.scores_vocabulary and not found.encoder_decoder
    if not lm:
        raise NoDataError("no data were given; give data=(training, validation), as for Trainer.train")
    if found.tokenizer is None and not train:
        raise NoDataError("no data and no tokenizer were given; give data=…, or tokenizer=… to use the built-in corpus")
    assert found.vocab_size is not None
    block_size = min(found.max_length, _BLOCK_SIZE)
    vocab_size = min(found.vocab_size, _VOCAB_SIZE) if found.tokenizer is None else len(found.tokenizer)
    if found.causal:
        return prepare_text(
            builtin_corpus(), vocab_size=vocab_size, block_size=block_size, model_vocab_size=found.vocab_size,
            tokenizer=found.tokenizer, source=BUILTIN_NAME,
        )  # fmt: skip
    return prepare_examples(
        builtin_corpus(), TaskSpec("masked_lm", vocab_size=found.vocab_size), found.tokenizer, max_length=block_size,
        vocab_size=vocab_size, source=BUILTIN_NAME,
    )  # fmt: skip


def _task(found: Probe, data: Any, tokenizer: Any, spec: Any) -> TaskSpec:
    from utils.training.engine.loss.tasks.inference import infer_task_spec

    source = _module(found.model, data, tokenizer, spec, 2).train
    first = next(iter(source)) if isinstance(source, StreamSource) else source.take([0])
    first = {name: value.to(found.device) for name, value in first.items()}
    shape = tuple(next(iter(first.values())).shape[1:])
    if found.feature_shape is not None and len(shape) != len(found.feature_shape):
        raise NoDataError(
            f"samples arrive with shape {shape}, and the model takes {found.feature_shape}; give DataLoaders with a collate_fn"
        )
    with left_as_it_was(found.model):
        filled, _ = infer_task_spec(found.model, first, tokenizer, spec)
    return filled


def _module(model: nn.Module, data: Any, tokenizer: Any, spec: Any, batch_size: int) -> UniversalDataModule:
    from utils.training.engine.loss.tasks.inference import task_type_of

    if (spec is None or spec.task_type is None) and (named := task_type_of(model)) is not None:
        spec = (spec or TaskSpec("task")).replace(task_type=named)  # it decides how samples become a batch
    return UniversalDataModule(
        data, None, spec, tokenizer, batch_size=batch_size, pad_token_id=model_pad_token_id(model),
        block_size=model_facts(model).max_length,
    )  # fmt: skip


def batches(
    model: nn.Module, data: CheckData, part: Any, most_rows: int, batch_size: int = _LARGEST_BATCH
) -> Iterator[Batch]:
    """At most `most_rows` rows of `part`, evenly spaced over it, as batches."""
    source = _module(model, part, data.tokenizer, data.given_spec, batch_size).train
    if isinstance(source, StreamSource):
        rows = 0
        for batch in source:
            yield batch
            rows += len(next(iter(batch.values())))
            if rows >= most_rows:
                return
        return
    chosen = np.unique(np.linspace(0, len(source) - 1, min(most_rows, len(source))).round().astype(np.int64)).tolist()
    for start in range(0, len(chosen), batch_size):
        yield source.take(chosen[start : start + batch_size])


def scored(
    model: nn.Module, data: CheckData, part: Any = None, *, most_targets: int = 20_000, most_rows: int = 2_000
) -> Iterator[Scored]:
    """A model's outputs for the targets of `part` (None: the held-out data), in evaluation mode and without gradients.

    The model's mode, buffers and the random state are as before once the iteration ends.
    Raises:
        ModelError: the outputs are not scores for these targets.
        NoDataError: a task whose targets are neither classes, tokens nor numbers.
    """
    from utils.training.engine.loss.tasks.base import make_task
    from utils.training.engine.loss.tasks.tokens import TokenTask

    part = data.validation if part is None else part
    task = make_task(data.task_spec, TrainingConfig(fused_loss="off"))
    call, device = ModelCall(model), next((p.device for p in model.parameters()), torch.device("cpu"))
    size, targets, rows = _LARGEST_BATCH, 0, 0
    if task.over_tokens and (vocabulary := model_facts(model).vocab_size or data.task_spec.vocab_size):
        length = data.task_spec.max_seq_len or _BLOCK_SIZE
        size = max(1, min(size, _VALUES_AT_ONCE // (vocabulary * length)))
    with left_as_it_was(model), torch.no_grad():
        model.eval()
        for batch in batches(model, data, part, most_rows, size):
            batch = {name: value.to(device) for name, value in batch.items()}
            if data.task_spec.task_type == "causal_lm" and "labels" not in batch:
                batch["labels"] = batch["input_ids"]
            if "labels" not in batch:
                raise NoDataError(f"samples have no labels, which {data.task_spec.task_type} needs")
            inputs = task.inputs(model, batch) if isinstance(task, TokenTask) else batch
            outputs = call(inputs).float()
            one = _aligned(model, outputs, batch["labels"], data.task_spec, rows)
            rows += len(batch["labels"])
            targets += len(one.targets)
            yield one
            if targets >= most_targets:
                return


def _aligned(model: nn.Module, outputs: Tensor, labels: Tensor, spec: TaskSpec, first_row: int) -> Scored:
    """Outputs beside the labels that they are scored on."""
    rows = torch.arange(first_row, first_row + len(labels), device=labels.device)
    if spec.task_type == "regression":
        labels = labels.float().reshape(len(labels), -1)
        outputs = outputs.reshape(len(outputs), -1)
        if outputs.shape != labels.shape:
            raise ModelError(
                f"{type(model).__name__} returned {tuple(outputs.shape)} numbers for labels of {tuple(labels.shape)}"
            )
        known = ~labels.isnan().any(1)
        return Scored(outputs[known], labels[known], torch.zeros_like(rows[known]), rows[known])
    if not kind_of_task(spec.task_type).is_categorical or spec.multi_label or labels.is_floating_point():
        raise NoDataError(f"targets of {spec.task_type or 'this task'} are not single classes")
    if outputs.shape[:-1] != labels.shape:
        raise ModelError(
            f"{type(model).__name__} returned logits of shape {tuple(outputs.shape)} for labels of {tuple(labels.shape)}"
        )
    positions = torch.arange(labels.shape[1] if labels.dim() == 2 else 1, device=labels.device).expand(len(labels), -1)
    if spec.task_type == "causal_lm":
        outputs, labels, positions = outputs[:, :-1], labels[:, 1:], positions[:, 1:]
    labels = labels.reshape(len(rows), -1)
    counted = labels != IGNORED
    return Scored(
        outputs.reshape(*labels.shape, -1)[counted], labels[counted].long(), positions[counted],
        rows[:, None].expand_as(labels)[counted],
    )  # fmt: skip


def class_counts(model: nn.Module, data: CheckData, part: Any, classes: int, most_rows: int = 20_000) -> Tensor:
    """Count each class or token among the targets in `part`: (C,) fp64 on the CPU."""
    counts = torch.zeros(classes, dtype=torch.float64)
    for batch in batches(model, data, part, most_rows, 256):
        labels = batch.get("labels", batch.get("input_ids"))
        assert labels is not None
        if data.task_spec.task_type == "causal_lm":
            labels = labels[:, 1:]
        known = labels[labels != IGNORED].long().flatten().cpu()
        counts += torch.bincount(known[known < classes], minlength=classes)[:classes]
    return counts
