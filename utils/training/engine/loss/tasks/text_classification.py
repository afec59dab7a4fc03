"""A class, or classes, for each sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.adapters.forward import ModelCall
from utils.data.batch import IGNORED, Batch
from utils.errors import DataError, ModelError
from utils.training.engine.loss.objective import Loss
from utils.training.engine.loss.tasks.base import (
    Prediction,
    Task,
    Wording,
    flattening_hint,
    labels_of,
    register_task,
    shapes_of,
    summed,
    whole_labels_of,
)
from utils.training.engine.loss.tasks.classes import (
    ClassTask,
    check_classes,
    count_by_class,
    f1_macro,
    f1_micro,
)
from utils.training.engine.metrics import Sums
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig


class Classification(ClassTask):
    """Base class: one class for each sample. Logits (B, C), `labels` (B,) int64 from 0 to C - 1, -100 where none is scored."""

    @classmethod
    def from_spec(cls, spec: TaskSpec, config: TrainingConfig) -> Task:
        kind = MultiLabelClassification if spec.multi_label else cls
        return kind(spec.num_classes, config.label_smoothing)

    def labels(self, batch: Batch) -> Tensor:
        return whole_labels_of(batch, f"{self.name} (one class a sample)", (1,), "(B,), classes from 0 on")

    def logits(self, model: ModelCall, batch: Batch) -> Tensor:
        logits_BC = model(batch)
        rows = len(batch["labels"])
        if logits_BC.dim() != 2 or len(logits_BC) != rows:
            raise ModelError(
                f"{type(model.model).__name__} returned logits of shape {tuple(logits_BC.shape)}; {self.name} needs "
                f"(B={rows}, C): one score per class for every sample.{flattening_hint(logits_BC, batch)}"
            )
        check_classes(logits_BC.shape[1], self.num_classes, model)
        return logits_BC

    def predictions(self, model: ModelCall, batch: Batch, wording: Wording) -> list[Prediction]:
        """The likeliest class of each row, and its probability."""
        scores_B, guesses_B = torch.softmax(self.logits(model, batch).float(), -1).max(-1)
        return [
            Prediction(
                wording.inputs(batch, row), "" if int(label) == IGNORED else wording.name(int(label)),
                wording.name(int(guesses_B[row])), float(scores_B[row]),
            )
            for row, label in enumerate(self.labels(batch))
        ]  # fmt: skip


@register_task
class TextClassification(Classification):
    """One class for each text, or pair of texts; several at once with `TaskSpec(multi_label=True)`. See `Classification`."""

    name = "text_classification"


class MultiLabelClassification(Classification):
    """Any number of classes for each sample: a yes or no for each class, by the sign of its logit.

    Logits (B, C), `labels` (B, C) float from 0 to 1; NaN or -100 is not scored. The loss is the binary cross-entropy of each
    of the B x C answers; a target is one answer. With label smoothing s a label y counts as y (1 - s) + s / 2, as in Keras'
    BinaryCrossentropy.
    """

    name = "text_classification"

    def __init__(self, num_classes: int | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__(num_classes, label_smoothing)
        self.count_sizes = {**self.count_sizes, "rows": 1}

    def labels(self, batch: Batch) -> Tensor:
        """The labels (B, C); their shape is checked."""
        wanted = "(B, C), a number from 0 to 1 for each class"
        return labels_of(batch, f"{self.name} (several classes a sample)", (2,), wanted)

    def count_targets(self, batch: Batch) -> int:
        labels_BC, scored_BC = self._scored(batch)
        strange = scored_BC & ((labels_BC < 0) | (labels_BC > 1))
        if bool(strange.any()):
            raise DataError(
                f"labels of several classes a sample must be from 0 to 1; got {float(labels_BC[strange][0]):.4g}. For amounts "
                "set task_type='regression'."
            )
        return int(scored_BC.sum())

    def _scored(self, batch: Batch) -> tuple[Tensor, Tensor]:
        labels_BC = summed(self.labels(batch))
        return labels_BC, ~(labels_BC.isnan() | (labels_BC == IGNORED))

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("loss", "accuracy", *(("f1_micro", "f1_macro") if self.num_classes is not None else ()))

    def metrics(self, sums: Sums) -> dict[str, float]:
        """`loss` (nats per answer), `accuracy` (0-1): samples of which every class is right; `f1_micro` and `f1_macro`."""
        found = {"loss": sums.loss / sums.targets, "accuracy": sums.count("correct") / max(1.0, sums.count("rows"))}
        scores = {"f1_micro": f1_micro(sums), "f1_macro": f1_macro(sums)}
        return found | {name: value for name, value in scores.items() if value is not None}

    def __call__(
        self, model: ModelCall, batch: Batch, keep_outputs: bool = False, num_targets: int | None = None
    ) -> Loss:
        labels_BC, scored_BC = self._scored(batch)
        count = int(scored_BC.sum()) if num_targets is None else num_targets
        logits_BC = self.logits(model, batch)
        if logits_BC.shape != labels_BC.shape:
            raise DataError(
                f"{type(model.model).__name__} scores {logits_BC.shape[1]} classes, but each sample has {labels_BC.shape[1]} "
                f"labels ({shapes_of(batch)}). Give a label for each class."
            )
        soft_BC = labels_BC * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses_BC = F.binary_cross_entropy_with_logits(
            summed(logits_BC), soft_BC.masked_fill(~scored_BC, 0.0), reduction="none"
        )
        loss_sum = losses_BC.masked_fill(~scored_BC, 0.0).sum()
        counts = self._counts(logits_BC.detach(), labels_BC, scored_BC)
        return Loss(loss_sum, count, logits_BC if keep_outputs else None, counts)

    def _counts(self, logits_BC: Tensor, labels_BC: Tensor, scored_BC: Tensor) -> dict[str, Tensor]:
        predicted_BC, actual_BC = (logits_BC > 0) & scored_BC, (labels_BC > 0.5) & scored_BC
        any_scored_B = scored_BC.any(1)
        right_B = (predicted_BC == actual_BC).all(1) & any_scored_B
        counts = {"correct": right_B.sum(), "rows": any_scored_B.sum()}
        return counts if self.num_classes is None else counts | count_by_class(predicted_BC, actual_BC)

    def predictions(self, model: ModelCall, batch: Batch, wording: Wording) -> list[Prediction]:
        """The classes of each row whose probability is above one half; the score is that of the least sure answer."""
        chances_BC = torch.sigmoid(self.logits(model, batch).float())
        labels_BC, scored_BC = self._scored(batch)
        found = []
        for row, chances_C in enumerate(chances_BC):
            true, guesses = (labels_BC[row] > 0.5) & scored_BC[row], chances_C > 0.5
            names = [", ".join(wording.name(int(at)) for at in flags.nonzero()) or "none" for flags in (true, guesses)]
            least_sure = float(torch.maximum(chances_C, 1 - chances_C).min())
            found.append(Prediction(wording.inputs(batch, row), names[0], names[1], least_sure))
        return found
