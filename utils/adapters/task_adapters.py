"""A model as its task sees it: one face for loss, logits, predictions and attention maps, whatever the architecture.

Shapes: B samples, T positions, T_out positions of the text to write, V vocabulary, C classes, H heads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from utils.adapters.forward import ModelCall
from utils.adapters.left_as_found import modes_kept
from utils.data.batch import Batch, as_batch
from utils.data.padding import labels_of
from utils.errors import ConfigError, ModelError
from utils.training.engine.loss.objective import with_auxiliary_loss
from utils.training.engine.loss.tasks import Seq2Seq, make_task
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

# Where transformers' outputs hold attention, in their words.
_MAPS = ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions")

# Tokens that a seq2seq model writes where no number is given.
_DEFAULT_LENGTH = 64


class TaskAdapter:
    """Base class. The model's weights and mode are as before after every method.

    Args:
        model: any `nn.Module` that gives the task's logits.
        task_spec: the task it was trained for; None: the adapter's own task, with sizes left open.
        tokenizer: its padding and end-of-text ids are used.

    Attributes:
        model, task_spec, tokenizer: these.
    Raises:
        ModelError: no module.
        ConfigError: a task that is not this adapter's; lists those that are.
    """

    #: The task types that the adapter is for; the first one is taken where none is given.
    TASK_TYPES: ClassVar[tuple[str, ...]]

    def __init__(self, model: nn.Module, task_spec: TaskSpec | None = None, tokenizer: Any = None) -> None:
        name = type(self).__name__
        if not isinstance(model, nn.Module):
            raise ModelError(f"{name} takes an nn.Module as model; got a {type(model).__name__}.")
        spec = task_spec or TaskSpec()
        spec = spec if spec.task_type is not None else spec.replace(task_type=self.TASK_TYPES[0])
        if spec.task_type not in self.TASK_TYPES:
            raise ConfigError(f"{name} is for {' and '.join(self.TASK_TYPES)}; got task_type={spec.task_type!r}.")
        self.model, self.task_spec, self.tokenizer = model, spec, tokenizer
        self._call = ModelCall(model)
        # All logits are wanted here, so nothing is fused with the layer that makes them.
        self._task = make_task(spec, TrainingConfig(fused_loss="off"))

    def prepare_inputs(self, batch: Any) -> Batch:
        """A batch (a dict, a tensor, or a pair of inputs and labels) as the task takes it, on the model's device."""
        device = next((parameter.device for parameter in self.model.parameters()), torch.device("cpu"))
        return {name: tensor.to(device) for name, tensor in as_batch(batch).items()}

    def forward_for_loss(self, batch: Any) -> Tensor:
        """The mean loss over the batch's targets: a scalar with graph, 0 without targets. The batch has labels. In training
        mode with what the model returns as auxiliary loss."""
        found = with_auxiliary_loss(self._task, self._call, self.prepare_inputs(batch))
        return found.minimised / max(found.num_targets, 1)

    def get_logits(self, batch: Any) -> Tensor:
        """The model's logits, in the mode that it is in, with graph where gradients are on."""
        return self._call(self.prepare_inputs(batch))

    def predict(self, batch: Any) -> Tensor:
        """The likeliest answers, from the model in evaluation mode."""
        with modes_kept(self.model), torch.no_grad():
            self.model.eval()
            return self._answers(self.prepare_inputs(batch))

    def _answers(self, batch: Batch) -> Tensor:
        return self._call(batch).argmax(-1)

    def get_attention_maps(self, batch: Any) -> dict[str, tuple[Tensor, ...]]:
        """Attention weights by layer, from the model in evaluation mode.

        Returns:
            {"attentions": one tensor (B, H, T, T) a layer}; of encoder-decoder models "encoder_attentions",
            "decoder_attentions" (B, H, T_out, T_out) and "cross_attentions" (B, H, T_out, T). Rows add up to 1.
        Raises:
            ModelError: the model does not give them. Those of transformers do.
        """
        arguments, named = self._call.inputs(self.prepare_inputs(batch))
        with modes_kept(self.model), torch.no_grad(), _attention_written_out(self.model):
            self.model.eval()
            try:
                outputs = self.model(*arguments, **named, output_attentions=True)
            except TypeError as error:
                if "output_attentions" not in str(error):
                    raise
                raise self._no_maps("its forward has no output_attentions") from error
        found = {name: tuple(getattr(outputs, name, None) or ()) for name in _MAPS}
        maps = {
            name: layers
            for name, layers in found.items()
            if layers and all(isinstance(layer, Tensor) for layer in layers)
        }
        if not maps:
            raise self._no_maps("it returned none")
        return maps

    def _no_maps(self, reason: str) -> ModelError:
        return ModelError(
            f"{type(self.model).__name__} gives no attention maps: {reason}. transformers models with "
            "attn_implementation='eager' do; in a module of your own, take output_attentions=True and return .attentions."
        )


class DecoderOnlyLMAdapter(TaskAdapter):
    """Models that predict the next token, as GPT. Logits (B, T, V); `predict` gives the likeliest next token after each
    position, (B, T) int64."""

    TASK_TYPES = ("causal_lm",)

    def prepare_inputs(self, batch: Any) -> Batch:
        """Prepare inputs as in the base class; labels default to the ids, with -100 on padding."""
        ready = super().prepare_inputs(batch)
        labels = ready.get("labels", ready.get("input_ids"))
        if labels is None:
            return ready
        pad_id, eos_id = (getattr(self.tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
        return {**ready, "labels": labels_of(labels, ready.get("attention_mask"), pad_id, eos_id)}


class EncoderOnlyClassificationAdapter(TaskAdapter):
    """Models that classify texts or their tokens, as BERT. Logits (B, C) or (B, T, C); `predict` gives classes, (B,) or (B, T)
    int64; of several classes a text (`multi_label`) a yes or no for each, (B, C) bool."""

    TASK_TYPES = ("text_classification", "token_classification")

    def _answers(self, batch: Batch) -> Tensor:
        return self._call(batch) > 0 if self.task_spec.multi_label else super()._answers(batch)


class VisionClassificationAdapter(TaskAdapter):
    """Models that classify images. `pixel_values` (B, channels, height, width); logits (B, C); `predict` gives (B,) int64."""

    TASK_TYPES = ("image_classification",)


class EncoderDecoderSeq2SeqAdapter(TaskAdapter):
    """Models that write one text for another, as T5. Logits (B, T_out, V) of the labels; `predict` gives what the model writes,
    the likeliest token each time."""

    TASK_TYPES = ("seq2seq",)

    def prepare_inputs(self, batch: Any) -> Batch:
        """Prepare inputs as in the base class; decoder inputs are made from the labels, where there are any."""
        ready = super().prepare_inputs(batch)
        return self._seq2seq.inputs(self.model, ready) if "labels" in ready else ready

    def predict(self, batch: Any, max_length: int = _DEFAULT_LENGTH) -> Tensor:
        """Generate a sequence for each row, in evaluation mode: (B, n) int64, n <= max_length.

        A text ends with the end-of-text id of the model's config or the tokenizer; its remaining positions repeat it.
        Not covered: no key/value cache is kept, so each token costs a whole pass.
        """
        with modes_kept(self.model), torch.no_grad():
            self.model.eval()
            return self._written(super().prepare_inputs(batch), max_length)

    def _written(self, batch: Batch, max_length: int) -> Tensor:
        given = {name: tensor for name, tensor in batch.items() if name not in ("labels", "decoder_input_ids")}
        rows = len(next(iter(given.values())))
        any_label_B1 = torch.zeros(rows, 1, dtype=torch.int64, device=next(iter(given.values())).device)
        decoder_BT = self._seq2seq.decoder_inputs(self.model, any_label_B1)  # the id that every text begins with
        end = self._end_id()
        ended_B = torch.zeros(rows, dtype=torch.bool, device=decoder_BT.device)
        for _ in range(max_length):
            next_B = self._call({**given, "decoder_input_ids": decoder_BT})[:, -1].argmax(-1)
            if end is not None:
                next_B = next_B.masked_fill(ended_B, end)
                ended_B |= next_B == end
            decoder_BT = torch.cat([decoder_BT, next_B[:, None]], dim=1)
            if bool(ended_B.all()):
                break
        return decoder_BT[:, 1:]

    def _end_id(self) -> int | None:
        end = getattr(getattr(self.model, "config", None), "eos_token_id", None)
        end = getattr(self.tokenizer, "eos_token_id", None) if end is None else end
        return end if isinstance(end, int) else None

    @property
    def _seq2seq(self) -> Seq2Seq:
        assert isinstance(self._task, Seq2Seq)
        return self._task


@contextlib.contextmanager
def _attention_written_out(model: Any) -> Iterator[None]:
    """transformers' attention in its plain form for the block: the fast kernels never hold the weights."""
    before = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if before in (None, "eager") or not hasattr(model, "set_attn_implementation"):
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
