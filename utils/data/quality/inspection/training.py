"""Check the training data before the first step: findings become notices, float token ids an error."""

from __future__ import annotations

from typing import Any

from torch import nn

from utils.adapters.facts import model_facts
from utils.data.module import UniversalDataModule
from utils.data.packing import TokenBlocks
from utils.data.quality.inspection.class_labels import MAJORITY_IN_TRAINING
from utils.data.quality.inspection.features import ids_as_floats
from utils.data.quality.inspection.inspect import Expectations, inspect_samples
from utils.data.quality.inspection.model_probe import takes_only_integers
from utils.data.quality.inspection.sampling import own_generators_kept, read_sample, sample_of
from utils.data.sources import StreamSource
from utils.errors import DataTypeError, TrainbookError
from utils.training.task_kinds import kind_of_task

# Criteria that compare outputs with targets as they are.
_DIFFERENCES = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


def data_notices(
    data: UniversalDataModule, model: nn.Module, spec: Any, *, tokenizer: Any = None, criterion: Any = None
) -> list[str]:
    """Findings about a sample of the data as sentences, each with its remedy.

    Not covered: streams, which can be read only once, and packed blocks of text (`TokenBlocks`), which have a report of their
    own.
    """
    train, validation = data.train, data.validation
    if isinstance(train, StreamSource | TokenBlocks):
        return []
    try:
        first = read_sample(train, data.num_train, num_workers=data.num_workers)
        second = None
        if validation is not None and not isinstance(validation, StreamSource):
            second = read_sample(validation, data.num_validation, num_workers=data.num_workers)
    except TrainbookError:  # a sample that cannot be read or put beside others; where training reads it, it is reported
        return []
    if first is None:
        return []
    expected = expectations(
        model, spec, tokenizer, data.pad_token_id, majority=MAJORITY_IN_TRAINING,
        judges_squares=criterion is None or isinstance(criterion, _DIFFERENCES),
    )  # fmt: skip
    return [
        f"Data: {finding.summary} {finding.remedy}"
        for finding in inspect_samples(first, second, expected)
        if finding.in_training
    ]


def refuse_float_ids(data: UniversalDataModule, model: nn.Module, task_type: str | None) -> None:
    """Raises `DataTypeError` for float token ids, in a task over tokens or for a model that begins with an embedding."""
    if isinstance(data.train, StreamSource | TokenBlocks):
        return
    with own_generators_kept(data.train):
        batch = data.train.take([0])
    name = next(iter(batch), "")
    if not name or not batch[name].is_floating_point() or batch[name].dim() != 2:
        return
    finding = ids_as_floats(sample_of([batch], name, 1))
    if finding is not None and (kind_of_task(task_type).per_token or takes_only_integers(model, batch)):
        raise DataTypeError(f"train_data: {finding.summary} {finding.remedy}")


def expectations(
    model: nn.Module | None, spec: Any, tokenizer: Any = None, pad_id: int | None = None, **options: Any
) -> Expectations:
    """Derive what model, task and tokenizer require of the data."""
    task_type = getattr(spec, "task_type", None)
    own_eos = getattr(tokenizer, "eos_token_id", None)
    eos_id = getattr(getattr(model, "config", None), "eos_token_id", None) if own_eos is None else own_eos
    stated = None if model is None else model_facts(model).vocab_size
    single = kind_of_task(task_type).targets == "classes" and not getattr(spec, "multi_label", None)
    return Expectations(
        task_type=task_type, num_classes=getattr(spec, "num_classes", None) if single else None,
        vocab_size=stated or getattr(spec, "vocab_size", None), pad_id=pad_id,
        eos_id=eos_id if isinstance(eos_id, int) else None, end_expected=own_eos is not None, model=model, **options,
    )  # fmt: skip
