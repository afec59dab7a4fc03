"""The frameworks that people train with, as they use them.

What only informs is switched off in their favour (progress bars, summaries, loggers, checkpoints); gradient clipping is on
in all, as in this engine.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.jobs import Counted, Job, padded
from benchmarks.turns import Turn

#: More steps than any measurement lasts.
_ENDLESS = 1_000_000


def hf_trainer(job: Job, model: Any, turn: Turn) -> None:
    """transformers' Trainer with its collator for language modelling: tokenized lines, each batch padded to its longest."""
    from datasets import Dataset
    from transformers import DataCollatorForLanguageModeling

    collate = Counted(DataCollatorForLanguageModeling(_padding_tokenizer(job), mlm=False))
    lines = [line.tolist() for line in job.workload.lines]
    data = Dataset.from_dict({"input_ids": lines, "attention_mask": [[1] * len(line) for line in lines]})
    _train_hf(job, model, turn, data, collate, collate.next_count)


def hf_trainer_packed(job: Job, model: Any, turn: Turn) -> None:
    """transformers' Trainer on blocks that its user packed."""
    from datasets import Dataset
    from transformers import default_data_collator

    blocks = job.workload.blocks
    data = Dataset.from_dict({"input_ids": blocks, "labels": blocks})
    _train_hf(job, model, turn, data, default_data_collator, lambda: job.targets_a_batch)


def _train_hf(job: Job, model: Any, turn: Turn, data: Any, collate: Any, useful: Callable[[], int]) -> None:
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Steps(TrainerCallback):  # type: ignore[misc, unused-ignore]
        """Ends a span after each step, after its log where the loss is asked for."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not turn.wants_loss:
                control.should_training_stop = not turn.done(useful())

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if turn.wants_loss and "loss" in logs:
                control.should_training_stop = not turn.done(useful(), logs["loss"])

    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(dir=job.folder), per_device_train_batch_size=job.sizes.batch, max_steps=_ENDLESS,
        learning_rate=job.learning_rate, lr_scheduler_type="constant", max_grad_norm=job.max_grad_norm,
        bf16=job.precision == "bf16", use_cpu=job.device == "cpu", seed=job.seed, report_to="none", save_strategy="no",
        disable_tqdm=True, logging_steps=1 if turn.wants_loss else 500,  # 500 is its default
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=collate, callbacks=[Steps()])
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def _padding_tokenizer(job: Job) -> Any:
    """A tokenizer for the collator, which asks it for nothing but padding."""
    from utils.tokenization import train_bpe

    tokenizer = train_bpe([""], 260)
    assert tokenizer.pad_token_id == job.workload.pad_id
    return tokenizer


def lightning_trainer(job: Job, model: Any, turn: Turn) -> None:
    """Lightning's Trainer on tokenized lines, each batch padded to its longest."""
    collate = Counted(lambda lines: padded(lines, job.workload.pad_id))
    _train_lightning(job, model, turn, job.workload.lines, collate, collate.next_count)


def lightning_trainer_packed(job: Job, model: Any, turn: Turn) -> None:
    """Lightning's Trainer on blocks that its user packed."""
    _train_lightning(job, model, turn, job.block_rows(), None, lambda: job.targets_a_batch)


def _train_lightning(job: Job, model: Any, turn: Turn, rows: Any, collate: Any, useful: Callable[[], int]) -> None:
    import pytorch_lightning as pl
    import torch
    from torch.utils.data import DataLoader

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.train()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.model(**batch).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=job.learning_rate, weight_decay=0.0)

    class Steps(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            trainer.should_stop = not turn.done(useful(), outputs["loss"])

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    loader: DataLoader[Any] = DataLoader(rows, batch_size=job.sizes.batch, shuffle=True, collate_fn=collate)
    trainer = pl.Trainer(
        accelerator="gpu" if job.device == "cuda" else "cpu", devices=1, max_epochs=-1, max_steps=-1,
        precision="bf16-mixed" if job.precision == "bf16" else "32-true", gradient_clip_val=job.max_grad_norm,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=job.folder, callbacks=[Steps()],
    )  # fmt: skip
    trainer.fit(Module(), loader)


def accelerate_loop(job: Job, model: Any, turn: Turn) -> None:
    """A hand-written loop with Accelerate: tokenized lines, each batch padded to its longest."""
    collate = Counted(lambda lines: padded(lines, job.workload.pad_id))
    _train_accelerate(job, model, turn, job.workload.lines, collate, collate.next_count)


def accelerate_loop_packed(job: Job, model: Any, turn: Turn) -> None:
    """A hand-written loop with Accelerate on blocks that its user packed."""
    _train_accelerate(job, model, turn, job.block_rows(), None, lambda: job.targets_a_batch)


def _train_accelerate(job: Job, model: Any, turn: Turn, rows: Any, collate: Any, useful: Callable[[], int]) -> None:
    import torch
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    accelerator = Accelerator(cpu=job.device == "cpu", mixed_precision="bf16" if job.precision == "bf16" else "no")
    plain_optimizer = torch.optim.AdamW(model.parameters(), lr=job.learning_rate, weight_decay=0.0)
    plain_loader: DataLoader[Any] = DataLoader(rows, batch_size=job.sizes.batch, shuffle=True, collate_fn=collate)
    prepared, optimizer, loader = accelerator.prepare(model.train(), plain_optimizer, plain_loader)

    def step(batch: Any) -> Any:
        loss = prepared(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(prepared.parameters(), job.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    while True:
        for batch in loader:
            loss = step(batch)
            if not turn.done(useful(), loss):
                return
