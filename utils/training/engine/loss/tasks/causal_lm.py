"""Predicting the next token: GPT-like models."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from utils.errors import ModelError
from utils.training.engine.loss.tasks.base import float_ids_hint, register_task
from utils.training.engine.loss.tasks.tokens import TokenTask


@register_task
class CausalLM(TokenTask):
    """Predict each next token: position t's logits are scored on token t + 1. See `TokenTask` for the arguments.

    Without labels the ids themselves are the labels. It shows no predictions: such a model is judged by what it writes.
    """

    name = "causal_lm"
    shift = 1
    writes_text = True
    left_to_right = True
    label_kind = "id"
    deed = "predicting the next token"
    # Ids, vocabulary and lengths are compared with what the model says of itself; it may be too large to try on the host.
    tried_first = False

    def labels(self, batch: Mapping[str, Tensor]) -> Tensor:
        labels = batch.get("labels")
        labels = batch.get("input_ids") if labels is None else labels
        if labels is None or labels.dim() != 2:
            shapes = {name: tuple(tensor.shape) for name, tensor in batch.items()}
            raise ModelError(
                f"predicting the next token needs input_ids (B, T), and labels of the same shape; the batch has {shapes}."
                f"{float_ids_hint(batch)}"
            )
        return labels
