"""Whether model, data and task fit each other: looked at before anything is written or changed."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.utils.data import TensorDataset

from utils.adapters.facts import model_facts
from utils.adapters.forward import ModelCall
from utils.adapters.left_as_found import state_kept
from utils.data.batch import Batch
from utils.data.id_limits import Limits
from utils.data.module import UniversalDataModule
from utils.data.sources import DatasetSource, StreamSource
from utils.errors import DataError, ModelError
from utils.training.engine.compute.assembly import Parts
from utils.training.engine.loss.tasks import Task
from utils.training.engine.loss.tasks.inference import first_sample, try_task
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
    longest = facts.max_length
    if longest is not None and "input_ids" in sample and (length := _longest_of(data)) > longest:
        raise DataError(
            f"samples have {length} tokens, but {type(model).__name__} takes at most {longest}. Cut them shorter."
        )
    if sample and task.tried_first:
        scores = try_task(model, task, sample)
        if task.label_kind == "token":
            data.check_ids(Limits(vocab_size, scores, "token"))


def _longest_of(data: UniversalDataModule) -> int:
    """Tokens of the longest of some samples, evenly spaced over a training part that lies in memory; else of the first."""
    assert not isinstance(data.train, StreamSource)
    number = len(data.train)
    in_memory = not isinstance(data.train, DatasetSource) or type(data.train.dataset) in (TensorDataset, list, tuple)
    rows = range(0, number, max(1, number // _LOOKED_AT)) if in_memory else range(1)
    return max(int(data.train.take([row])["input_ids"].shape[1]) for row in rows)


def initialise_lazy_layers(model: nn.Module, data: UniversalDataModule) -> str | None:
    """Give layers such as `nn.LazyLinear` their sizes by putting the first sample through the model.

    Returns:
        a sentence that says so; None for a model without such layers.
    Raises:
        ModelError: there is no sample to take (a stream), or the model does not use one of these layers.
    """
    names = _lazy_layers(model)
    if not names:
        return None
    where = f"{type(model).__name__} has layers without a size yet ({', '.join(names[:4])})"
    if isinstance(data.train, StreamSource):
        raise ModelError(
            f"{where}, and a stream has no sample to spare. Call the model once with a sample before training."
        )
    sample = first_sample(model, data.train.take([0]))
    try:
        with state_kept(model):
            ModelCall(model).uncounted(sample)
    except Exception as error:
        error.add_note(f"{where}, so the first sample was put through it.")
        raise
    if left := _lazy_layers(model):
        raise ModelError(
            f"{type(model).__name__}.forward does not use {', '.join(left[:4])}, which therefore has no size. Remove it."
        )
    return f"{where}: the first sample was put through it to set them."


def _lazy_layers(model: nn.Module) -> list[str]:
    """Layers with a parameter or buffer that has no shape yet, with their class."""
    return [
        f"{name or 'the model itself'}: {type(module).__name__}"
        for name, module in model.named_modules()
        if any(map(is_lazy, [*module.parameters(recurse=False), *module.buffers(recurse=False)]))
    ]


def check_gradients_are_dense(model: nn.Module) -> None:
    """Raises `ModelError` for embeddings with `sparse=True`: neither the fused optimizers nor the norm of all gradients, which
    clipping and the check for NaN need, take sparse gradients."""
    sparse = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse and module.weight.requires_grad
    ]
    if sparse:
        raise ModelError(
            f"{type(model).__name__} has embeddings with sparse=True ({', '.join(sparse[:4])}). adamw, adam and sgd cannot use "
            "their sparse gradients, and the gradient norm cannot be measured. Make them with sparse=False, or set "
            f"model.{sparse[0]}.sparse = False."
        )


def normalises_over_batch(model: nn.Module) -> bool:
    """Whether the model has a BatchNorm that takes its statistics from the batch."""
    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())


def check_last_batch(parts: Parts, data: UniversalDataModule) -> None:
    """Try a batch of one sample where an epoch ends with one and the model has a BatchNorm, which may not take it.

    Raises:
        ModelError: it does not; with both numbers. Nothing has changed.
    """
    total, size, num_batches = data.num_train, data.batch_size, data.num_steps(1)
    if total is None or num_batches is None or isinstance(data.train, StreamSource) or parts.world.size > 1:
        return
    if not normalises_over_batch(parts.model) or total - (num_batches - 1) * size != 1:
        return
    try:
        with state_kept(parts.model, evaluation=False):
            parts.forward(data.train.take([0]))
    except ModelError as error:
        raise ModelError(f"{total} samples in batches of {size} end with a batch of one sample. {error}") from error


def first_samples(data: UniversalDataModule) -> Batch:
    """The first sample; where labels are fractions a few more, to see what kind of number they are. Empty for a stream."""
    if isinstance(data.train, StreamSource):
        return {}
    sample = data.train.take([0])
    labels = sample.get("labels")
    if labels is None or not labels.is_floating_point():
        return sample
    return data.train.take(list(range(min(_LOOKED_AT, len(data.train)))))
