"""This engine as a contender, and a bare loop that does the same work with the same parts."""

from __future__ import annotations

import itertools
import tempfile
from typing import Any

import numpy as np

from benchmarks.jobs import Job
from benchmarks.turns import ContenderError, Turn
from utils.data import TokenBlocks
from utils.errors import ConfigError
from utils.training import Callback, Trainer, TrainingConfig

#: More epochs than any measurement lasts.
_ENDLESS = 100_000


def trainbook(job: Job, model: Any, turn: Turn) -> None:
    """`Trainer.train` on full blocks, with its default callbacks, history and run folder."""
    trainer = _trainer(job, model, [_Reports(turn, job) if turn.wants_loss else _Steps(turn, job)])
    trainer.train(_blocks(job))
    if trainer.state.targets_done != trainer.state.step * job.targets_a_batch:
        counted = trainer.state.targets_done / trainer.state.step
        raise ContenderError(
            f"the engine counted {counted} targets a step, the benchmark {job.targets_a_batch}: its figures would be wrong."
        )


def same_work(job: Job, model: Any, turn: Turn) -> None:
    """A bare loop that uses what the engine uses (its objective, precision, optimizer, fast paths), and nothing around it.

    It runs inside the engine's `on_train_begin`, where everything that the engine switches on for a training is switched
    on. What it lacks is the engine's loop: history, finite check, callbacks, stop requests, saving, exact resume.
    """
    _trainer(job, model, [_Bare(turn, job)]).train(_blocks(job))


def refusal(compile_mode: str) -> str | None:
    """Why this version of the engine does not compile a model, or None when it does."""
    from torch import nn

    try:
        Trainer(nn.Linear(1, 1), training_config=TrainingConfig(compile_mode=compile_mode))
    except ConfigError as error:
        return str(error).splitlines()[-1].strip()
    return None


def _blocks(job: Job) -> TokenBlocks:
    blocks = job.workload.blocks
    return TokenBlocks(blocks if isinstance(blocks, np.memmap) else np.ascontiguousarray(blocks))


def _trainer(job: Job, model: Any, callbacks: list[Callback]) -> Trainer:
    config = TrainingConfig(
        epochs=_ENDLESS, batch_size=job.sizes.batch, learning_rate=job.learning_rate, weight_decay=0.0,
        max_grad_norm=job.max_grad_norm, use_lr_schedule=False, precision=job.precision, compile_mode=job.compile_mode,
        output_dir=tempfile.mkdtemp(dir=job.folder), random_seed=job.seed,
    )  # fmt: skip
    return Trainer(model, training_config=config, callbacks=callbacks)


class _Steps(Callback):
    """Ends a span after each update.

    It hangs on the optimizer, not on the engine's `on_step_end`: an event that nobody listens to by default must not cost
    the engine the numbers that a listener is given.
    """

    def __init__(self, turn: Turn, job: Job) -> None:
        self._turn, self._job = turn, job

    def on_train_begin(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        assert trainer.optimizer is not None

        def updated(*_: Any) -> None:
            if not self._turn.done(self._job.targets_a_batch):
                trainer.request_stop("measured")

        trainer.optimizer.register_step_post_hook(updated)


class _Reports(Callback):
    """Ends a span with the step's loss, for the check that all compute the same."""

    def __init__(self, turn: Turn, job: Job) -> None:
        self._turn, self._job = turn, job

    def on_step_end(self, step: int, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        assert logs is not None
        if not self._turn.done(self._job.targets_a_batch, logs["train/loss"]):
            trainer.request_stop("measured")


class _Bare(Callback):
    """Trains by itself, with the parts of the trainer that calls it, and then lets the trainer stop."""

    def __init__(self, turn: Turn, job: Job) -> None:
        self._turn, self._job = turn, job

    def on_train_begin(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        parts, job = trainer.parts, self._job
        assert parts is not None
        blocks = _blocks(job)
        generator = np.random.default_rng(job.seed)
        num_batches = len(blocks) // job.sizes.batch
        for number in itertools.count():
            if number % num_batches == 0:
                order = generator.permutation(len(blocks))
            start = number % num_batches * job.sizes.batch
            batch = blocks.take(order[start : start + job.sizes.batch])
            parts.optimizer.zero_grad(set_to_none=True)
            loss = parts.forward(batch, num_targets=job.targets_a_batch).loss_sum / job.targets_a_batch
            parts.backward(loss)
            _clip(parts.parameters, job)
            parts.optimizer.step()
            if not self._turn.done(job.targets_a_batch, loss.detach()):
                break
        trainer.request_stop("measured")


def _clip(parameters: list[Any], job: Job) -> None:
    """Shorten gradients that are too long; a CPU need not touch the others, a GPU would have to wait to know."""
    import torch

    if job.device == "cuda":
        torch.nn.utils.clip_grad_norm_(parameters, job.max_grad_norm)
        return
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm > job.max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, job.max_grad_norm, norm)
