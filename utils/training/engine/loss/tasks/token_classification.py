"""A class for each token: tagging, named entities."""

from __future__ import annotations

import torch
from torch import Tensor

from utils.adapters.forward import ModelCall
from utils.data.batch import IGNORED, Batch
from utils.errors import ModelError
from utils.training.engine.loss.tasks.base import Prediction, Wording, register_task, whole_labels_of
from utils.training.engine.loss.tasks.classes import ClassTask, check_classes


@register_task
class TokenClassification(ClassTask):
    """One class for each token. Logits (B, T, C), `labels` (B, T) int64 from 0 to C - 1.

    Padding, special tokens and the later pieces of a word have the label -100 and are not scored. See `ClassTask`.
    """

    name = "token_classification"

    def labels(self, batch: Batch) -> Tensor:
        return whole_labels_of(
            batch, "classifying tokens", (2,), "(B, T), a class for each token, -100 where there is none"
        )

    def logits(self, model: ModelCall, batch: Batch) -> Tensor:
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
        scores_BT, guesses_BT = torch.softmax(self.logits(model, batch).float(), -1).max(-1)
        found = []
        for row, labels_T in enumerate(self.labels(batch)):
            scored = labels_T != IGNORED
            if bool(scored.any()):
                names = [" ".join(map(wording.name, ids[scored].tolist())) for ids in (labels_T, guesses_BT[row])]
                score = float(scores_BT[row][scored].mean())
                found.append(Prediction(wording.inputs(batch, row), names[0], names[1], score))
        return found
