"""Run a job's training in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from utils.training.engine import rng
from utils.training.engine.callbacks import Callback, Logs
from utils.training.engine.trainer import Trainer

if TYPE_CHECKING:
    from pathlib import Path

    from utils.training.engine.results import TrainingResults
    from utils.training.jobs.config import JobConfig

#: What the queue keeps of a run's results: plain values.
KEPT = (
    "loss_history", "val_loss_history", "best_epoch", "best_value", "final_loss", "final_perplexity", "final_metrics",
    "training_time", "grad_norm_history", "amp_enabled", "checkpoint_path", "checkpoint_paths", "best_model_path",
    "stopped_early", "stop_reason", "epochs_trained", "steps", "run_name", "run_dir", "notices",
)  # fmt: skip


class JobProgress(Callback):
    """Reports where a run stands, and looks at its lease between two steps.

    Args:
        report: called with a row of progress after every step; say: with a sentence after every epoch.
        started: called with the run's folder; check: called between two steps.
    """

    main_only = True
    may_be_late = True

    def __init__(
        self, report: Callable[[dict[str, Any]], None], say: Callable[[str], None], started: Callable[[str], None],
        check: Callable[[], None],
    ) -> None:  # fmt: skip
        self._report, self._say, self._started, self._check = report, say, started, check

    def on_train_begin(self, trainer: Trainer, logs: Logs | None = None) -> None:
        run_dir = (logs or {}).get("run_dir", "")
        self._started(run_dir)
        step = trainer.state.step
        self._say(f"continues from step {step} in {run_dir}" if step else f"trains in {run_dir}")

    def on_step_end(self, step: int, trainer: Trainer, logs: Logs | None = None) -> None:
        self._check()
        loss = (logs or {}).get("train/loss")
        self._report({"step": step, "epoch": trainer.state.epoch, "train/loss": loss})

    def on_epoch_end(self, epoch: int, trainer: Trainer, logs: Logs | None = None) -> None:
        numbers = {name: value for name, value in (logs or {}).items() if name in ("train/loss", "val/loss")}
        self._say(f"epoch {epoch + 1}: " + ", ".join(f"{name} {value:.4f}" for name, value in numbers.items()))

    def on_checkpoint_saved(self, path: Path, trainer: Trainer, logs: Logs | None = None) -> None:
        self._check()


def prepare(job: JobConfig, run_name: str, callbacks: Sequence[Callback]) -> tuple[Trainer, Any, Any]:
    """The trainer of a job, its training data and its validation data.

    What the factories draw depends on the job's seed only, so that every attempt starts from the same weights.
    """
    config = job.training_config.with_absolute_paths().replace(run_name=run_name, devices="auto")
    with rng.preserved():
        rng.seed_all(config.random_seed)
        model = job.make_model()
        train_data, val_data = job.make("train_data", model), job.make("val_data", model)
        tokenizer = job.make("tokenizer", model)
    task_spec = job.task_spec
    if hasattr(train_data, "train") and hasattr(train_data, "task_spec"):  # a PreparedData
        task_spec, tokenizer = task_spec or train_data.task_spec, tokenizer or train_data.tokenizer
        val_data = train_data.validation if val_data is None else val_data
        train_data = train_data.train
    trainer = Trainer(model, job.config, config, task_spec, tokenizer=tokenizer, callbacks=callbacks)
    return trainer, train_data, val_data


def kept(results: TrainingResults) -> dict[str, Any]:
    """The part of the results that the queue stores."""
    return {name: results[name] for name in KEPT}
