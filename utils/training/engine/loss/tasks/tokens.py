"""Shared parts of the tasks over a vocabulary: logits for every token at every position, fused with the output layer.

Shapes: B batch, T positions, D width of the hidden states, V vocabulary, N positions that are scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.adapters.forward import ModelCall
from utils.adapters.output_layer import (
    WATCHED,
    find_output_layer,
    hidden_states_of,
    is_watched,
    modules_around,
    passing_on,
)
from utils.data.batch import IGNORED, Batch
from utils.errors import ModelError
from utils.training.engine.loss import fused as fused_loss
from utils.training.engine.loss.objective import Loss
from utils.training.engine.loss.tasks.base import LabelKind, Task, summed
from utils.training.engine.metrics import Sums, perplexity
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig


class TokenTask(Task):
    """Base class: cross-entropy over a vocabulary at the positions whose label is not -100.

    Where the model's output layer can be found (`utils.adapters.output_layer`) and the vocabulary is not small, loss and layer
    are fused: the logits never exist as a whole, and only positions that count get any.

    Args:
        vocab_size: checked against the logits' last dimension when given: logits may have more columns (padded vocabulary).
        label_smoothing: share of each target spread over the vocabulary, as in torch's cross_entropy.
        fused: "auto": where it is faster; "on": always, or an error that says why not; "off": never.

    Attributes:
        shift: the logits of position t are scored on the label of position t + shift.
        writes_text: whether the targets are a text as a whole, so that its loss per byte means something.
        deed: what the task does, for messages.
    """

    over_tokens = True
    label_kind: ClassVar[LabelKind] = "token"
    shift: ClassVar[int] = 0
    writes_text: ClassVar[bool] = False
    deed: ClassVar[str]

    def __init__(
        self, vocab_size: int | None = None, label_smoothing: float = 0.0, fused: Literal["auto", "on", "off"] = "auto"
    ) -> None:
        self.vocab_size, self.label_smoothing, self.fused = vocab_size, label_smoothing, fused
        self.count_sizes = {"correct": 1, "plain_loss": 1} if label_smoothing else {"correct": 1}
        # Model's mode (training or not) -> its output layer; a model may do different things in the two.
        self._layers: dict[bool, nn.Linear | None] = {}
        self._around: dict[bool, tuple[nn.Module, ...]] = {}  # the modules that contain it
        self._widest: int | None = None  # outputs of the model's widest linear layer

    @classmethod
    def from_spec(cls, spec: TaskSpec, config: TrainingConfig) -> Task:
        return cls(spec.vocab_size, config.label_smoothing, config.fused_loss)

    def labels(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The labels (B, T), -100 where nothing is scored. Raises when the batch has none."""
        raise NotImplementedError

    def inputs(self, model: nn.Module, batch: Batch) -> Batch:
        """The batch as the model is called with it."""
        return batch

    def count_targets(self, batch: Batch) -> int:
        return int((self.labels(batch)[:, self.shift :] != IGNORED).sum())

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("loss", "perplexity", "accuracy")

    def metrics(self, sums: Sums) -> dict[str, float]:
        """`loss` (nats per token), what is minimised, label smoothing included; `perplexity`, the exponential of the mean
        cross-entropy without label smoothing; `accuracy` (0-1), the share of tokens predicted right."""
        loss = sums.loss / sums.targets
        plain = sums.count("plain_loss") / sums.targets if "plain_loss" in sums.counts else loss
        return {"loss": loss, "perplexity": perplexity(plain), "accuracy": sums.count("correct") / sums.targets}

    def __call__(
        self, model: ModelCall, batch: Batch, keep_outputs: bool = False, num_targets: int | None = None
    ) -> Loss:
        labels_BT = self.labels(batch)
        targets_N = labels_BT[:, self.shift :].flatten()
        count = int((targets_N != IGNORED).sum()) if num_targets is None else num_targets
        batch = self.inputs(model.model, batch)
        layer = None
        if not keep_outputs and self._may_be_worth_it(model, count):
            layer = self._output_layer(model, batch, labels_BT)
        if layer is None or not (self.fused == "on" or count * layer.out_features >= fused_loss.WORTH_IT):
            return self._plain(model, batch, labels_BT, targets_N, count, keep_outputs)
        self._check_vocabulary(layer.out_features, model)
        model.check_labels(layer.out_features, labels_BT.shape, batch)
        hidden_BTD = _hidden_states(model, layer, batch)
        rows_ND, targets_N = _scored(self._predicting(hidden_BTD), targets_N, count)
        found = fused_loss.linear_cross_entropy(rows_ND, layer.weight, layer.bias, targets_N, self.label_smoothing)
        return Loss(found.loss_sum, count, None, self._counts(found.correct, found.plain_sum))

    def _counts(self, correct: Tensor, plain_sum: Tensor) -> dict[str, Tensor]:
        """Sums besides the loss; cross-entropy without label smoothing only where that is not the loss itself."""
        return {"correct": correct, "plain_loss": plain_sum} if self.label_smoothing else {"correct": correct}

    def _predicting(self, outputs_BTX: Tensor) -> Tensor:
        """The rows of positions that predict one."""
        return outputs_BTX[:, : outputs_BTX.shape[1] - self.shift].flatten(0, 1)

    def _may_be_worth_it(self, model: ModelCall, count: int) -> bool:
        """Whether a layer is large enough to look for it: looking calls the model."""
        if self.fused != "auto":
            return self.fused == "on"
        if self._widest is None:
            self._widest = max((m.out_features for m in model.model.modules() if type(m) is nn.Linear), default=0)
        return count * self._widest >= fused_loss.WORTH_IT

    def _output_layer(self, model: ModelCall, batch: Batch, labels_BT: Tensor) -> nn.Linear | None:
        """The layer to fuse with, looked for on the first batch of each mode; None while a hook watches what it returns."""
        training = model.model.training
        if training not in self._layers:
            rows = labels_BT.shape[0]
            first = {name: value[:1] if value.dim() and len(value) == rows else value for name, value in batch.items()}

            def call() -> Tensor:
                outputs_BTX = model.eager(first)
                self._check_shape(outputs_BTX, labels_BT[:1], model)
                return outputs_BTX

            layer, reason = find_output_layer(model.model, call)
            self._layers[training] = layer
            self._around[training] = () if layer is None else modules_around(model.model, layer)
            large = labels_BT.numel() * (self.vocab_size or 0) >= fused_loss.WORTH_IT
            if layer is None and (large or self.fused == "on"):
                self._explain_not_fused(reason, model)
        layer = self._layers[training]
        if layer is not None and is_watched(layer, self._around[training]):
            self._explain_not_fused(WATCHED, model)
            return None
        return layer

    def _explain_not_fused(self, reason: str, model: ModelCall) -> None:
        """Raise `ModelError` where fusing was demanded; else keep a notice."""
        if self.fused == "on":
            raise ModelError(f"fused_loss='on', but {reason} ({type(model.model).__name__}). Set fused_loss='auto'.")
        self.notice = f"The loss is not fused with the output layer: {reason}. It takes more memory and time."

    def _check_vocabulary(self, scored: int, model: ModelCall) -> None:
        if self.vocab_size is not None and scored < self.vocab_size:
            raise ModelError(
                f"{type(model.model).__name__} scores {scored} tokens of vocab_size={self.vocab_size}: "
                "its output layer must be at least as large."
            )

    def _check_shape(self, outputs_BTX: Tensor, labels_BT: Tensor, model: ModelCall) -> None:
        """Raises `ModelError` when these are not scores for the positions of `labels_BT`."""
        if outputs_BTX.dim() != 3 or outputs_BTX.shape[:2] != labels_BT.shape:
            wanted = f"(B={labels_BT.shape[0]}, T={labels_BT.shape[1]}, V)"
            raise ModelError(
                f"{type(model.model).__name__} returned logits of shape {tuple(outputs_BTX.shape)}; "
                f"{self.deed} needs {wanted}: one score per token of the vocabulary at every position."
            )

    def _plain(
        self, model: ModelCall, batch: Batch, labels_BT: Tensor, targets_N: Tensor, count: int, keep_outputs: bool
    ) -> Loss:
        """The loss of logits that exist as a whole."""
        logits_BTV = model(batch)
        self._check_shape(logits_BTV, labels_BT, model)
        self._check_vocabulary(logits_BTV.shape[-1], model)
        if keep_outputs and self.fused != "off" and count * logits_BTV.shape[-1] >= fused_loss.WORTH_IT:
            self.notice = (
                "A hook reads the logits, so the loss is not fused with the output layer: slower, and more memory."
            )
        # A slice of V-wide rows in fp32: the loss and its sum are never rounded to half precision.
        logits_NV = summed(self._predicting(logits_BTV))
        loss_sum = F.cross_entropy(
            logits_NV, targets_N, ignore_index=IGNORED, reduction="sum", label_smoothing=self.label_smoothing
        )
        with torch.no_grad():
            plain_sum = loss_sum
            if self.label_smoothing:
                plain_sum = F.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED, reduction="sum")
            counts = self._counts((logits_NV.argmax(-1) == targets_N).sum(), plain_sum)
        return Loss(loss_sum, count, logits_BTV if keep_outputs else None, counts)


def _hidden_states(model: ModelCall, layer: nn.Linear, batch: Batch) -> Tensor:
    """Input of `layer` when the model is called."""
    if model.compiles(batch):
        with passing_on(layer):
            return model.uncounted(
                batch
            )  # what comes after the layer was found to be nothing before the model was compiled
    with hidden_states_of(layer) as taken:
        return taken.checked(model.uncounted(batch), model.model)


def _scored(hidden_ND: Tensor, targets_N: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The rows that count, and their targets. Their number is known, so nothing waits for the device."""
    if count == len(targets_N):
        return hidden_ND, targets_N
    rows = torch.nonzero_static(targets_N != IGNORED, size=count)[:, 0]
    return hidden_ND[rows], targets_N[rows]
