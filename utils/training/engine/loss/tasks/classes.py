"""Shared parts of the classification tasks: counts by class, and the metrics computed from them.

Shapes: N samples or positions that are scored, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.adapters.forward import ModelCall
from utils.data.batch import IGNORED, Batch
from utils.errors import ModelError
from utils.training.engine.loss.objective import Loss
from utils.training.engine.loss.tasks.base import Task, summed
from utils.training.engine.metrics import CountSizes, Sums
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

_BY_CLASS = ("true_positives", "predicted", "actual")


class ClassTask(Task):
    """Base class: one class for whatever is scored, a sample or a token. Cross-entropy over the labels that are not -100.

    Args:
        num_classes: C; checked against the model. None: whatever the model has, and nothing is counted by class.
        label_smoothing: share of each target spread over the classes, as in torch's cross_entropy.
    """

    label_kind = "class"

    def __init__(self, num_classes: int | None = None, label_smoothing: float = 0.0) -> None:
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.count_sizes = class_count_sizes(num_classes)

    @classmethod
    def from_spec(cls, spec: TaskSpec, config: TrainingConfig) -> Task:
        return cls(spec.num_classes, config.label_smoothing)

    def labels(self, batch: Batch) -> Tensor:
        """The labels; their shape and format are checked."""
        raise NotImplementedError

    def logits(self, model: ModelCall, batch: Batch) -> Tensor:
        """The scores, of the labels' shape and one dimension more; checked."""
        raise NotImplementedError

    def count_targets(self, batch: Batch) -> int:
        return int((self.labels(batch) != IGNORED).sum())

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("loss", "accuracy", *(("f1_macro",) if self.num_classes is not None else ()))

    def metrics(self, sums: Sums) -> dict[str, float]:
        """`loss` (nats per target), `accuracy` (0-1), and `f1_macro` (0-1; see there), all over samples or tokens.

        Not covered: scores of whole entities (spans of tokens) as CoNLL counts them.
        """
        found, f1 = super().metrics(sums), f1_macro(sums)
        return found if f1 is None else {**found, "f1_macro": f1}

    def __call__(
        self, model: ModelCall, batch: Batch, keep_outputs: bool = False, num_targets: int | None = None
    ) -> Loss:
        targets_N = self.labels(batch).flatten()
        count = int((targets_N != IGNORED).sum()) if num_targets is None else num_targets
        logits = self.logits(model, batch)
        by_class = self.num_classes is not None
        loss = class_loss(logits.flatten(0, -2), targets_N, count, self.label_smoothing, by_class)
        loss.outputs = logits if keep_outputs else None
        return loss


def class_count_sizes(num_classes: int | None) -> CountSizes:
    """Sizes of the counters: correct targets; and where the number of classes is known, three counts per class."""
    return {"correct": 1, **({} if num_classes is None else dict.fromkeys(_BY_CLASS, num_classes))}


def class_loss(logits_NC: Tensor, targets_N: Tensor, num_targets: int, smoothing: float, by_class: bool) -> Loss:
    """Cross-entropy over classes, summed over the targets that are not -100.

    Args:
        logits_NC: any float format; targets_N: int64, -100 or 0 to C - 1.
        by_class: whether to count for each class how often it is right, predicted and true.
    """
    logits_NC = summed(logits_NC)
    loss_sum = F.cross_entropy(logits_NC, targets_N, ignore_index=IGNORED, reduction="sum", label_smoothing=smoothing)
    with torch.no_grad():
        guesses_N = logits_NC.argmax(-1)
        counts = {"correct": (guesses_N == targets_N).sum()}
        if by_class:
            classes = torch.arange(logits_NC.shape[1], device=logits_NC.device)
            predicted_NC = (guesses_N[:, None] == classes) & (targets_N != IGNORED)[:, None]
            counts |= count_by_class(predicted_NC, targets_N[:, None] == classes)
    return Loss(loss_sum, num_targets, None, counts)


def count_by_class(predicted_NC: Tensor, actual_NC: Tensor) -> dict[str, Tensor]:
    """For each class, how often it was predicted rightly, predicted, and true: int64 (C,) each, from bool (N, C)."""
    right_NC = predicted_NC & actual_NC
    return dict(zip(_BY_CLASS, (right_NC.sum(0), predicted_NC.sum(0), actual_NC.sum(0)), strict=True))


def f1_macro(sums: Sums) -> float | None:
    """The mean over classes of F1 = 2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall (van Rijsbergen,
    Information Retrieval, 1979, chapter 7), of the classes that were true or predicted at least once: what scikit-learn's
    `f1_score(average="macro")` is. None where nothing was counted by class."""
    if "predicted" not in sums.counts:
        return None
    rows = zip(*(sums.counts[name] for name in _BY_CLASS), strict=True)
    found = [2 * right / (predicted + actual) for right, predicted, actual in rows if predicted + actual]
    return sum(found) / len(found) if found else 0.0


def f1_micro(sums: Sums) -> float | None:
    """F1 of all classes' TP, FP and FN added up: scikit-learn's `f1_score(average="micro")`. None as for `f1_macro`."""
    if "predicted" not in sums.counts:
        return None
    right, predicted, actual = (sum(sums.counts[name]) for name in _BY_CLASS)
    return 2 * right / (predicted + actual) if predicted + actual else 0.0


def check_classes(scored: int, num_classes: int | None, model: ModelCall) -> None:
    """Raises `ModelError` when a model scores another number of classes than the task has."""
    if num_classes is not None and scored != num_classes:
        raise ModelError(
            f"{type(model.model).__name__} scores {scored} classes, but the task has num_classes={num_classes}. Make the "
            f"model with {num_classes} outputs, or set TaskSpec(num_classes={scored}) and label accordingly."
        )
