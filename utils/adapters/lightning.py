"""UniversalModelAdapter: any model as a LightningModule. Losses, decay groups and schedule are the engine's own.

Shapes: B sequences, T positions, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from utils.adapters import generation
from utils.adapters.facts import model_facts
from utils.adapters.forward import ModelCall
from utils.adapters.graph import runnable
from utils.data.batch import Batch, as_batch
from utils.data.padding import labels_of
from utils.errors import ConfigError, ModelError, Problem
from utils.schema import shown
from utils.training.engine import rng
from utils.training.engine.compute.optim import Schedule, parameter_groups
from utils.training.engine.loss.objective import Loss, with_auxiliary_loss
from utils.training.engine.loss.tasks import make_task
from utils.training.engine.metrics import perplexity
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

with rng.preserved():  # importing Lightning draws random numbers
    import pytorch_lightning as pl

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LambdaLR


class UniversalModelAdapter(pl.LightningModule):
    """Any `nn.Module` that gives logits, for `pytorch_lightning.Trainer`. By default it predicts the next token.

    Logs `train_loss` each step and `val_loss` each validation; of tasks over a vocabulary `train_perplexity` and
    `val_perplexity` too. Losses are in nats per target (regression: as the task says); a validation's is the mean over all
    of its targets, whatever the sizes of the batches.

    Args:
        model: a transformers model or a plain module; for the next token it maps ids (B, T) to logits (B, T, V). Trained
            in place.
        learning_rate: the peak, after warm-up.
        vocab_size: token ids that are used; None: as many as the model has. Ids from this one on are never generated.
        warmup_steps: optimizer steps in which the learning rate rises linearly.
        weight_decay: AdamW's, on matrices; biases, norms and other vectors have none.
        tokenizer: gives the end-of-text id for `generate`, and the padding id for batches without labels and mask.
        lr_schedule: after the warm-up, "constant"; or "cosine" or "linear", down to a tenth at the trainer's last step.
        fused_loss: as in TrainingConfig. "off" for strategies that shard parameters.
        task_spec: the task; None: next-token prediction.

    Attributes:
        model: the module that was given.
    Raises:
        ConfigError: an argument is out of range; lists every problem.
        ModelError: no module, or one with fewer token ids than `vocab_size`.

    Lightning's checkpoints hold weights and settings, neither the model's class nor tokenizer nor task:
    `UniversalModelAdapter.load_from_checkpoint(path, model=model)` loads them into `model`.
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float = 1e-4,
        vocab_size: int | None = None,
        warmup_steps: int = 0,
        weight_decay: float = 0.01,
        tokenizer: Any = None,
        *,
        lr_schedule: Literal["constant", "cosine", "linear"] = "constant",
        fused_loss: Literal["auto", "on", "off"] = "auto",
        task_spec: TaskSpec | None = None,
    ) -> None:
        super().__init__()
        _check_model(model, vocab_size)
        self._settings = TrainingConfig(
            learning_rate=learning_rate, warmup_steps=warmup_steps, weight_decay=weight_decay, lr_schedule=lr_schedule,
            fused_loss=fused_loss,
        )  # fmt: skip
        self.save_hyperparameters(ignore=["model", "tokenizer", "task_spec"])
        self.model, self.tokenizer = model, tokenizer
        self.vocab_size = model_facts(model).vocab_size if vocab_size is None else vocab_size
        self._call = ModelCall(runnable(model))
        self.task_spec = task_spec or TaskSpec.language_modeling(vocab_size=self.vocab_size)
        self._task = make_task(self.task_spec, self._settings)
        self._validation = torch.zeros(2, dtype=torch.float64)  # sum of losses, number of targets

    @property
    def config(self) -> Any:
        """The model's own configuration; None when it has none."""
        return getattr(self.model, "config", None)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """The model's logits and, where labels are given, the loss.

        Args:
            input_ids: (B, T) integers; attention_mask: (B, T), 0 at padding; inputs: what else the model takes.
            labels: for the next token (B, T), usually `input_ids` themselves: position t's logits are scored on label t + 1.
                Labels of -100, and those of padding, are not scored.
        Returns:
            {"logits": (B, T, V), or as the task has them}, and with labels {"loss": scalar}, the mean over targets, 0 when
            there is none; in training with what the model returns as auxiliary loss.
        """
        given = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        batch = {name: value for name, value in given.items() if value is not None}
        if labels is None:
            return {"logits": self._call(batch)}
        found = self._scored({**batch, "labels": labels}, keep_outputs=True)
        assert found.outputs is not None
        return {"logits": found.outputs, "loss": _mean(found)}

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """The batch's mean loss and auxiliary loss, with graph. Logs `train_loss`, and where there are such `train_aux_loss`
        and `train_perplexity`."""
        found = self._scored(as_batch(batch))
        loss = found.loss_sum.detach() / max(found.num_targets, 1)
        self.log("train_loss", loss, prog_bar=True, batch_size=found.num_targets)
        if found.auxiliary is not None:
            auxiliary = found.auxiliary.detach() / max(found.num_targets, 1)
            self.log("train_aux_loss", auxiliary, batch_size=found.num_targets)
        if self._task.over_tokens:
            self.log("train_perplexity", loss.exp(), batch_size=found.num_targets)
        return _mean(found)

    def on_validation_epoch_start(self) -> None:
        """Begin the sums of a validation."""
        self._validation = torch.zeros(2, dtype=torch.float64)

    def validation_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """The batch's mean loss; its sums are kept for `val_loss`, which is logged when the validation ends."""
        found = self._scored(as_batch(batch))
        self._validation += torch.tensor([float(found.loss_sum), found.num_targets], dtype=torch.float64)
        return _mean(found)

    def on_validation_epoch_end(self) -> None:
        """Log `val_loss`, and `val_perplexity` where there is one, over the targets of all batches and processes."""
        # fp32: not every device has fp64.
        sums = self.trainer.strategy.reduce(self._validation.float().to(self.device), reduce_op="sum")
        loss_sum, targets = sums.tolist()
        if targets:
            self.log("val_loss", loss_sum / targets, prog_bar=True)
        if targets and self._task.over_tokens:
            self.log("val_perplexity", perplexity(loss_sum / targets))

    def configure_optimizers(self) -> Any:
        """([AdamW], [its schedule by steps]), as Lightning takes them."""
        # Not the fused kernels: Lightning refuses to clip gradients beside them under mixed precision.
        groups = parameter_groups(self.model, self._settings.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self._settings.learning_rate)
        return [optimizer], [{"scheduler": self._schedule(optimizer), "interval": "step"}]

    def _schedule(self, optimizer: torch.optim.Optimizer) -> LambdaLR:
        steps = None
        if self._settings.lr_schedule != "constant":
            planned = self.trainer.estimated_stepping_batches
            steps = int(planned) if planned != float("inf") else None
        schedule = Schedule(self._settings, steps)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.at(step) / schedule.peak)

    def generate(
        self,
        input_ids: Tensor,
        max_length: int = 100,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        do_sample: bool = True,
        eos_token_id: int | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Continue sequences of token ids.

        Args:
            input_ids: the prompts, integers, shape (B, T), all of one length.
            max_length: tokens of a sequence in all, the prompt's included.
            temperature, top_k, top_p, seed: as for `utils.adapters.generate`.
            do_sample: draw tokens; False: take the most likely one each time.
            eos_token_id: ends a sequence; None: the tokenizer's, if there is one.
        Returns:
            int64, shape (B, n), T < n <= max_length: the prompts and what follows them.
        Raises:
            ConfigError: an argument is out of range, or the prompts are as long as `max_length` already.
        """
        length = input_ids.shape[-1] if isinstance(input_ids, Tensor) and input_ids.dim() else 0
        if not isinstance(max_length, int) or isinstance(max_length, bool) or max_length <= length:
            message = (
                f"got {shown(max_length)}, and the prompts have {length} tokens already; must be more, it counts both"
            )
            raise ConfigError.from_problems("generate's arguments", [Problem("max_length", message, length + 100)])
        if eos_token_id is None:
            eos_token_id = getattr(self.tokenizer, "eos_token_id", None)
        return generation.generate(
            self._call.model, input_ids, max_length - length, temperature if do_sample else 0.0, top_k, top_p, eos_token_id,
            seed, vocab_size=self.vocab_size,
        )  # fmt: skip

    def _scored(self, batch: Batch, keep_outputs: bool = False) -> Loss:
        """The engine's loss of a batch; for the next token labels are made where none are given, and padding's taken out."""
        if self.task_spec.task_type == "causal_lm":
            mask, labels = batch.get("attention_mask"), batch.get("labels")
            labels = batch["input_ids"] if labels is None else labels
            pad_id, eos_id = (getattr(self.tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
            batch = {**batch, "labels": labels_of(labels, mask, pad_id, eos_id)}
        return with_auxiliary_loss(self._task, self._call, batch, keep_outputs)


def _mean(found: Loss) -> Tensor:
    return found.minimised / max(found.num_targets, 1)


def _check_model(model: Any, vocab_size: int | None) -> None:
    if not isinstance(model, nn.Module):
        raise ModelError(f"UniversalModelAdapter takes an nn.Module as model; got a {type(model).__name__}.")
    if vocab_size is None:
        return
    if not isinstance(vocab_size, int) or isinstance(vocab_size, bool) or vocab_size < 1:
        message = f"got {shown(vocab_size)}; must be a whole number, at least 1, or None"
        raise ConfigError.from_problems("UniversalModelAdapter", [Problem("vocab_size", message)])
    known = model_facts(model).vocab_size
    if known is not None and vocab_size > known:
        raise ModelError(
            f"vocab_size={vocab_size}, but {type(model).__name__} has {known} embeddings. Make the model with "
            f"vocab_size={vocab_size} or more, or give vocab_size={known} at most."
        )
