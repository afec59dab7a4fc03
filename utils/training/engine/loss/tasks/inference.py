"""Infer the task from model class, config and a sample batch, with a sentence that says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.facts import model_facts
from utils.adapters.forward import ModelCall
from utils.adapters.left_as_found import state_kept
from utils.data.batch import IGNORED, Batch
from utils.errors import ConfigError, ModelError
from utils.training.engine.loss.tasks.base import Task, float_ids_hint
from utils.training.engine.metrics import Sums, metrics_of, widest
from utils.training.task_kinds import kind_of_task
from utils.training.task_spec import TaskSpec

# How transformers' classes end, and what they are for.
_ENDINGS = {
    "ForCausalLM": "causal_lm", "LMHeadModel": "causal_lm", "ForMaskedLM": "masked_lm",
    "ForSequenceClassification": "text_classification", "ForTokenClassification": "token_classification",
    "ForImageClassification": "image_classification", "ForConditionalGeneration": "seq2seq", "ForSeq2SeqLM": "seq2seq",
}  # fmt: skip

_PROBLEMS = {"regression", "single_label_classification", "multi_label_classification"}  # transformers' problem_type


@dataclass(frozen=True)
class _Found:
    """A task and why it is taken to be that."""

    task_type: str
    reason: str


def task_type_of(model: nn.Module) -> str | None:
    """The task that a model's class is made for, by transformers' names; None where it does not say."""
    found = _from_class(model)
    return None if found is None else found.task_type


def infer_task_spec(
    model: nn.Module, batch: Batch | None, tokenizer: Any = None, spec: TaskSpec | None = None
) -> tuple[TaskSpec, str]:
    """The task of a model, from its class, its config, what a batch holds, and its output for one sample.

    Args:
        batch: a few samples as the model would be trained on them; None where there are none to look at.
        tokenizer: gives the padding id.
        spec: what is known already; its task type, where it has one, is kept.
    Returns:
        the spec with task type, number of classes, `multi_label` and padding id filled in as far as they matter for the task,
        and a sentence that says what was found and why.
    Raises:
        ConfigError: neither model nor batch tell; says what was seen.
        ModelError: the model cannot be called with one sample, where that has to be tried.
    """
    batch, spec = batch or {}, spec or TaskSpec("training")
    found = _Found(spec.task_type, "as given") if spec.task_type is not None else _found(model, batch)
    filled = _filled(spec, found, model, batch, tokenizer)
    several = ", several classes at once" if filled.multi_label else ""
    count = f", {filled.num_classes} of them" if filled.num_classes is not None and spec.num_classes is None else ""
    what = kind_of_task(found.task_type).learns or found.task_type
    return filled, f"Task: {what}{several}{count} ({'inferred: ' if found.reason != 'as given' else ''}{found.reason})."


def _found(model: nn.Module, batch: Batch) -> _Found:
    found = _from_class(model)
    if found is not None and kind_of_task(found.task_type).targets == "classes":
        return _kind_of_head(model, batch, found)
    if found is not None:
        return found
    if not batch:
        return _Found("causal_lm", "there is no sample to look at; if it is another one, give task_spec")
    return _from_batch(model, batch)


def _from_class(model: nn.Module) -> _Found | None:
    config = getattr(model, "config", None)
    names = [kind.__name__ for kind in type(model).__mro__]
    names += [str(name) for name in getattr(config, "architectures", None) or ()]
    for name in names:
        for ending, task_type in _ENDINGS.items():
            if name.endswith(ending):
                # Decoders that are also shown images have this name too.
                if task_type == "seq2seq" and not getattr(config, "is_encoder_decoder", False):
                    task_type = "causal_lm"
                return _Found(task_type, f"the model is a {name}")
    if getattr(config, "is_encoder_decoder", False):
        return _Found("seq2seq", "its config says that it is an encoder-decoder")
    return None


def _kind_of_head(model: nn.Module, batch: Batch, found: _Found) -> _Found:
    """One head serves classification and regression: transformers decides by problem_type, else by the labels."""
    problem, labels = _problem_type(model), batch.get("labels")
    if problem == "regression":
        return _Found("regression", f"{found.reason} with problem_type='regression'")
    if problem is None and labels is not None and labels.is_floating_point() and not _are_shares(labels):
        return _Found("regression", f"{found.reason}, and the labels are regression targets")
    return found


def _problem_type(model: nn.Module) -> str | None:
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    return problem if problem in _PROBLEMS else None


def _are_shares(labels: Tensor) -> bool:
    """Whether labels are rows of several numbers from 0 to 1: a yes or no for each class."""
    if labels.dim() != 2 or labels.shape[1] < 2:
        return False
    known = labels[~(labels.isnan() | (labels == IGNORED))]
    return bool(((known >= 0) & (known <= 1)).all())


def _from_batch(model: nn.Module, batch: Batch) -> _Found:
    labels, ids = batch.get("labels"), batch.get("input_ids")
    over_images = ids is None
    if labels is not None and labels.is_floating_point():
        if _are_shares(labels):
            return _Found("text_classification", "labels are rows of numbers from 0 to 1")
        return _Found("regression", "labels are fractions")
    if labels is not None and labels.dim() == 1:
        task_type = "image_classification" if over_images else "text_classification"
        return _Found(task_type, "there is one whole number a sample as label")
    if ids is not None and ModelCall(model).has_parameter("decoder_input_ids", batch):
        return _Found("seq2seq", "the model takes decoder_input_ids")
    if ids is not None and (labels is None or labels.shape == ids.shape):
        return _over_positions(model, batch, ids, ids if labels is None else labels)
    shapes = {name: tuple(tensor.shape) for name, tensor in batch.items()}
    raise ConfigError(
        f"the task cannot be inferred from samples with {shapes}; give task_spec=TaskSpec....{float_ids_hint(batch)}"
    )


def _over_positions(model: nn.Module, batch: Batch, ids_BT: Tensor, labels_BT: Tensor) -> _Found:
    if bool(((labels_BT == ids_BT) | (labels_BT == IGNORED)).all()):
        return _Found("causal_lm", "inputs are token ids, labels are the same ids")
    known, scored = model_facts(model).vocab_size, _scores_for_one(model, batch)[-1]
    if known is not None and scored != known:
        reason = f"there is a label for each token, and the model scores {scored} classes for {known} token ids"
        return _Found("token_classification", reason)
    return _Found(
        "causal_lm",
        "the model scores every token of its vocabulary at every position, which models of masked tokens do too; if it is one "
        "of them, give task_spec=TaskSpec.masked_lm()",
    )


def _scores_for_one(model: nn.Module, batch: Batch) -> tuple[int, ...]:
    """The shape of the model's output for the first sample."""
    first = first_sample(model, batch)
    with state_kept(model):
        return tuple(ModelCall(model).uncounted(first).shape)


def first_sample(model: nn.Module, batch: Batch) -> Batch:
    """The first sample of a batch, where the model is."""
    rows = len(next(iter(batch.values())))
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return {
        name: (value[:1] if value.dim() and len(value) == rows else value).to(device) for name, value in batch.items()
    }


def _filled(spec: TaskSpec, found: _Found, model: nn.Module, batch: Batch, tokenizer: Any) -> TaskSpec:
    """The spec with what the task needs and nobody gave."""
    task_type, labels = found.task_type, batch.get("labels")
    changes: dict[str, Any] = {}
    if spec.task_type is None:
        changes["task_type"] = task_type
        if task_type == "image_classification" and spec.modality == "text":
            changes["modality"] = "vision"
    targets = kind_of_task(task_type).targets
    if targets == "classes" and spec.multi_label is None:
        by_labels = labels is not None and labels.is_floating_point() and labels.dim() == 2
        changes["multi_label"] = by_labels or _problem_type(model) == "multi_label_classification"
    if targets == "numbers" and spec.num_classes is None and labels is not None:
        changes["num_classes"] = 1 if labels.dim() < 2 else labels.shape[1]
    if task_type.endswith("classification") and spec.num_classes is None:
        changes["num_classes"] = _num_classes(model, batch)
    if task_type == "seq2seq" and spec.pad_token_id is None:
        changes["pad_token_id"] = getattr(tokenizer, "pad_token_id", None)
    changes = {name: value for name, value in changes.items() if value is not None}
    return spec.replace(**changes) if changes else spec


def _num_classes(model: nn.Module, batch: Batch) -> int | None:
    """The classes that a model scores: as its config says, else as its output has; None without a sample to try."""
    stated = getattr(getattr(model, "config", None), "num_labels", None)
    if isinstance(stated, int) and stated > 0 and _from_class(model) is not None:
        return stated
    shape = _scores_for_one(model, batch) if batch else ()
    return shape[-1] if len(shape) > 1 else None


def try_task(model: nn.Module, task: Task, batch: Batch) -> int | None:
    """Put one sample through model and loss, so that what does not fit is reported before anything is written or changed.

    Returns:
        how many scores the model gives, the last dimension of its output; None where the task does not hand it on.
    Raises:
        ModelError, DataError: outputs or labels are not as the task needs them; says both.
    """
    first = first_sample(model, batch)
    task.count_targets(first)
    with state_kept(model):
        loss = task(ModelCall(model), first, keep_outputs=True)
    task.notice = None  # what it says of outputs that are kept is not so in training
    sums = Sums()
    counts = {name: widest(count.detach()).flatten().tolist() for name, count in loss.counts.items()}
    sums.add(float(loss.loss_sum.detach()), int(loss.num_targets), counts)
    try:  # else a mistake in a task of the user's would show only after the first epoch
        metrics_of(sums, task, "train")
    except ModelError as error:
        if not isinstance(error.__cause__, (ArithmeticError, ValueError)):  # a count may be 0 in one sample
            raise
    return None if loss.outputs is None else loss.outputs.shape[-1]
