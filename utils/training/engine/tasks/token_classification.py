"""A class for each token: tagging, named entities."""

from __future__ import annotations

import torch
from torch import Tensor

from utils.adapters.forward import ModelCall
from utils.data.examples import IGNORED, Batch
from utils.errors import ModelError
from utils.training.engine.metrics import Sums
from utils.training.engine.objective import Loss
from utils.training.engine.tasks.base import Prediction, Task, Wording, register_task, whole_labels_of
from utils.training.engine.tasks.classes import check_classes, class_count_sizes, class_loss, f1_macro
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig


@register_task
class TokenClassification(Task):
    """One class for each token. Logits (B, T, C), `labels` (B, T) int64 from 0 to C - 1.

    Padding, special tokens and the later pieces of a word have the label -100 and are not scored.

    Args:
        num_classes: C; checked against the model. None: whatever the model has, and nothing is counted by class.
        label_smoothing: share of each target spread over the classes, as in torch's cross_entropy.
    """

    name = "token_classification"
    label_kind = "class"

    def __init__(self, num_classes: int | None = None, label_smoothing: float = 0.0) -> None:
        self.num_classes, self.label_smoothing = num_classes, label_smoothing
        self.count_sizes = class_count_sizes(num_classes)

    @classmethod
    def from_spec(cls, spec: TaskSpec, config: TrainingConfig) -> Task:
        return cls(spec.num_classes, config.label_smoothing)

    def labels(self, batch: Batch) -> Tensor:
        """The labels (B, T); their shape and format are checked."""
        return whole_labels_of(
            batch, "classifying tokens", (2,), "(B, T), a class for each token, -100 where there is none"
        )

    def count_targets(self, batch: Batch) -> int:
        return int((self.labels(batch) != IGNORED).sum())

    def metrics(self, sums: Sums) -> dict[str, float]:
        """`loss` (nats per token), `accuracy` (0-1) of tokens, and `f1_macro` (0-1) over tokens; see `classes.f1_macro`.

        Not covered: scores of whole entities (spans) as CoNLL counts them.
        """
        found, f1 = super().metrics(sums), f1_macro(sums)
        return found if f1 is None else {**found, "f1_macro": f1}

    def __call__(
        self, model: ModelCall, batch: Batch, keep_outputs: bool = False, num_targets: int | None = None
    ) -> Loss:
        labels_BT = self.labels(batch)
        count = int((labels_BT != IGNORED).sum()) if num_targets is None else num_targets
        logits_BTC = self._logits(model, batch)
        loss = class_loss(
            logits_BTC.flatten(0, 1), labels_BT.flatten(), count, self.label_smoothing, self.num_classes is not None
        )
        loss.outputs = logits_BTC if keep_outputs else None
        return loss

    def _logits(self, model: ModelCall, batch: Batch) -> Tensor:
        logits_BTC, shape = model(batch), batch["labels"].shape
        if logits_BTC.dim() != 3 or logits_BTC.shape[:2] != shape:
            raise ModelError(
                f"{type(model.model).__name__} returned logits of shape {tuple(logits_BTC.shape)}; classifying tokens needs "
                f"(B={shape[0]}, T={shape[1]}, C): one score per class at every position."
            )
        check_classes(logits_BTC.shape[2], self.num_classes, model)
        return logits_BTC

    def predictions(self, model: ModelCall, batch: Batch, wording: Wording) -> list[Prediction]:
        """The classes of each row's scored tokens, in order; the score is their mean probability."""
        scores_BT, guesses_BT = torch.softmax(self._logits(model, batch).float(), -1).max(-1)
        found = []
        for row, labels_T in enumerate(self.labels(batch)):
            scored = labels_T != IGNORED
            if bool(scored.any()):
                names = [" ".join(map(wording.name, ids[scored].tolist())) for ids in (labels_T, guesses_BT[row])]
                score = float(scores_BT[row][scored].mean())
                found.append(Prediction(wording.inputs(batch, row), names[0], names[1], score))
        return found
