"""Sequence-to-sequence: encoder-decoder models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from utils.adapters.forward import ModelCall
from utils.data.batch import IGNORED, Batch
from utils.errors import ModelError
from utils.training.engine.loss.tasks.base import Prediction, Task, Wording, register_task, whole_labels_of
from utils.training.engine.loss.tasks.tokens import TokenTask
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

# Tokens written for a sample: each costs a forward pass.
_MOST_WRITTEN = 40


@register_task
class Seq2Seq(TokenTask):
    """Predict each token of a text from another text and from the tokens before it (T5, arXiv 1910.10683). See `TokenTask`.

    A batch has `input_ids` (B, T) and `labels` (B, T_out), -100 on padding. The decoder reads the labels shifted right by one,
    with padding for what is not scored; a batch that has `decoder_input_ids` keeps them.

    Args:
        pad_token_id: begins the decoder's input, and fills it, where the model's config has no id for that.
    """

    name = "seq2seq"
    writes_text = True
    deed = "writing one text for another"

    def __init__(
        self, vocab_size: int | None = None, label_smoothing: float = 0.0, fused: Literal["auto", "on", "off"] = "auto",
        pad_token_id: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(vocab_size, label_smoothing, fused)
        self.pad_token_id = pad_token_id

    @classmethod
    def from_spec(cls, spec: TaskSpec, config: TrainingConfig) -> Task:
        return cls(spec.vocab_size, config.label_smoothing, config.fused_loss, spec.pad_token_id)

    def labels(self, batch: Mapping[str, Tensor]) -> Tensor:
        return whole_labels_of(batch, self.deed, (2,), "(B, T_out), the ids of the text to write, -100 on padding")

    def inputs(self, model: nn.Module, batch: Batch) -> Batch:
        if "decoder_input_ids" in batch:
            return batch
        return {**batch, "decoder_input_ids": self.decoder_inputs(model, self.labels(batch))}

    def decoder_inputs(self, model: nn.Module, labels_BT: Tensor) -> Tensor:
        """The labels shifted right by one: the model's own way where it has one.

        Raises:
            ModelError: neither the model's config nor the task says which id begins and which one fills it.
        """
        own: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
        start, pad = self._special_ids(model)
        if own is not None:
            decoder_ids = own(labels=labels_BT)
            assert isinstance(decoder_ids, Tensor)
            return decoder_ids
        return shifted_right(labels_BT, start, pad)

    def _special_ids(self, model: nn.Module) -> tuple[int, int]:
        """The ids that begin and that fill the decoder's input."""
        config = getattr(model, "config", None)
        pad = _id_of(config, "pad_token_id")
        pad = self.pad_token_id if pad is None else pad
        start = _id_of(config, "decoder_start_token_id")
        if config is None or not hasattr(config, "decoder_start_token_id"):
            start = pad  # as T5 does
        if start is None or pad is None:
            missing = "pad_token_id" if pad is None else "decoder_start_token_id"
            where = f"{type(model).__name__}.config" if config is not None else "the task: TaskSpec.seq2seq(...)"
            raise ModelError(
                f"{type(model).__name__}: the decoder's input cannot be made from the labels without {missing}, which is None. "
                f"Set it in {where}."
            )
        return start, pad

    def predictions(self, model: ModelCall, batch: Batch, wording: Wording) -> list[Prediction]:
        """Each row's text, and what the model writes for it, the likeliest token first; its mean probability is the score."""
        labels_BT = self.labels(batch)
        written_BT, scores_BT = self._written(model, batch, min(labels_BT.shape[1], _MOST_WRITTEN))
        end = _id_of(getattr(model.model, "config", None), "eos_token_id")
        if end is None:
            end = getattr(wording.tokenizer, "eos_token_id", None)
        found = []
        for row, ids in enumerate(written_BT.tolist()):
            length = ids.index(end) + 1 if end in ids else len(ids)
            score = float(scores_BT[row, :length].mean())
            texts = wording.text(labels_BT[row]), wording.text(ids[:length])
            found.append(Prediction(wording.inputs(batch, row), *texts, score))
        return found

    def _written(self, model: ModelCall, batch: Batch, count: int) -> tuple[Tensor, Tensor]:
        """`count` tokens for each row, each the likeliest after those before it, and their probabilities."""
        decoder_ids = self.inputs(model.model, batch)["decoder_input_ids"][:, :1]
        scores = []
        given = {name: value for name, value in batch.items() if name not in ("labels", "decoder_input_ids")}
        for _ in range(count):
            logits_BTV = model({**given, "decoder_input_ids": decoder_ids})
            score_B, next_B = torch.softmax(logits_BTV[:, -1, : self.vocab_size].float(), -1).max(-1)
            decoder_ids = torch.cat([decoder_ids, next_B[:, None]], 1)
            scores.append(score_B)
        return decoder_ids[:, 1:], torch.stack(scores, 1)


def shifted_right(labels_BT: Tensor, start: int, pad: int) -> Tensor:
    """Decoder input for `labels_BT`: `start`, then all labels but the last; `pad` for -100."""
    begin_B1 = labels_BT.new_full((labels_BT.shape[0], 1), start)
    return torch.cat([begin_B1, labels_BT[:, :-1].masked_fill(labels_BT[:, :-1] == IGNORED, pad)], 1)


def _id_of(config: Any, name: str) -> int | None:
    """An id of a model's config; the first one where there are several."""
    value = getattr(config, name, None)
    value = value[0] if isinstance(value, (list, tuple)) and value else value
    return value if isinstance(value, int) else None
