"""Predicting tokens that were masked: BERT-like models."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from utils.adapters.forward import ModelCall
from utils.data.batch import IGNORED, Batch
from utils.training.engine.loss.tasks.base import Prediction, Wording, register_task, whole_labels_of
from utils.training.engine.loss.tasks.tokens import TokenTask


@register_task
class MaskedLM(TokenTask):
    """Predict the tokens at masked positions from those on both sides (BERT, arXiv 1810.04805). See `TokenTask`.

    A batch has `input_ids` (B, T) with some tokens masked, and `labels` (B, T): the tokens that stood there, -100 elsewhere.
    """

    name = "masked_lm"
    deed = "predicting masked tokens"

    def labels(self, batch: Mapping[str, Tensor]) -> Tensor:
        return whole_labels_of(batch, self.deed, (2,), "(B, T), -100 where no token is to be predicted")

    def predictions(self, model: ModelCall, batch: Batch, wording: Wording) -> list[Prediction]:
        """The masked tokens of each row, and what the model takes them for; the score is their mean probability."""
        chances_BTV = torch.softmax(model(batch).float(), -1)
        scores_BT, guesses_BT = chances_BTV.max(-1)
        found = []
        for row, labels_T in enumerate(self.labels(batch)):
            masked = labels_T != IGNORED
            if bool(masked.any()):
                guesses, score = guesses_BT[row][masked], float(scores_BT[row][masked].mean())
                found.append(
                    Prediction(wording.inputs(batch, row), wording.tokens(labels_T), wording.tokens(guesses), score)
                )
        return found
