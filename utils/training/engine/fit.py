"""Whether model, data and task fit each other: looked at before anything is written or changed."""

from __future__ import annotations

from torch import nn

from utils.adapters.facts import model_facts
from utils.data.examples import Batch, StreamSource
from utils.data.ids import Limits
from utils.data.module import UniversalDataModule
from utils.errors import DataError, ModelError
from utils.training.engine.tasks import Task
from utils.training.engine.tasks.inference import try_task
from utils.training.task_spec import TaskSpec

# Samples that are looked at to tell amounts from answers, where labels are fractions.
_LOOKED_AT = 64


def check_fit(model: nn.Module, data: UniversalDataModule, task: Task, spec: TaskSpec) -> None:
    """Check that ids, labels, vocabulary, classes and lengths are such as the model has, before anything is changed.

    Raises:
        ModelError, DataError: what does not fit, with both numbers.
    """
    facts, sample = model_facts(model), first_samples(data)
    known = facts.vocab_size
    if spec.vocab_size is not None and known is not None and spec.vocab_size > known:
        raise ModelError(
            f"the vocabulary has {spec.vocab_size} tokens, but {type(model).__name__} has {known} embeddings. "
            f"Make the model with vocab_size={spec.vocab_size} or more, or use a tokenizer with at most {known} tokens."
        )
    vocab_size = known or spec.vocab_size
    if task.label_kind == "class":
        data.check_ids(Limits(vocab_size, None if spec.multi_label else spec.num_classes, "class"))
    elif vocab_size is not None:
        data.check_ids(Limits(vocab_size, None, task.label_kind))
    length, longest = sample["input_ids"].shape[1] if "input_ids" in sample else 0, facts.max_length
    if longest is not None and length > longest:
        raise DataError(
            f"samples have {length} tokens, but {type(model).__name__} takes at most {longest}. Cut them shorter."
        )
    if sample and task.tried_first:
        scores = try_task(model, task, sample)
        if task.label_kind == "token":
            data.check_ids(Limits(vocab_size, scores, "token"))


def first_samples(data: UniversalDataModule) -> Batch:
    """The first sample; where labels are fractions a few more, to see what kind of number they are. Empty for a stream."""
    if isinstance(data.train, StreamSource):
        return {}
    sample = data.train.take([0])
    labels = sample.get("labels")
    if labels is None or not labels.is_floating_point():
        return sample
    return data.train.take(list(range(min(_LOOKED_AT, len(data.train)))))
