"""How long a training will take on this machine, and how much memory: measured by doing a little of it."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.training.engine.callbacks import Callback
from utils.ui.live_picture import duration
from utils.ui.setup_config import SetupConfig

if TYPE_CHECKING:
    from pathlib import Path

    from utils.training.engine.trainer import Trainer

# Steps that are done, and those of them that count: the first ones also fill caches and compile kernels.
_STEPS, _WARM_UP = 6, 2


@dataclass(frozen=True)
class Estimate:
    """What was measured, and what it means for the whole training. Times in seconds.

    Attributes:
        step_s: median of a step; steps: how many there will be.
        validation_s: of one validation; validations: how many.
        saving_s: of one checkpoint; savings: how many.
        memory: one sentence about the memory it needs; fits: whether that is free, None where it is not known.
    """

    step_s: float
    steps: int
    validation_s: float
    validations: int
    saving_s: float
    savings: int
    memory: str
    fits: bool | None

    @property
    def total_s(self) -> float:
        """Seconds of the whole training."""
        return self.step_s * self.steps + self.validation_s * self.validations + self.saving_s * self.savings

    def rows(self) -> dict[str, str]:
        """The estimate as a table."""
        return {
            "Time": f"about {duration(self.total_s)} on this machine, as busy as it was while this was measured",
            "Steps": f"{self.steps:,} of {self.step_s:.3g} s",
            "Validations": f"{self.validations:,} of {self.validation_s:.2g} s",
            "Checkpoints": f"{self.savings:,} of {self.saving_s:.2g} s",
            "Memory": self.memory,
        }


def estimate_training(setup: SetupConfig, model: Any) -> Estimate:
    """Prepare the data, train a copy of `model` for six steps, validate and save once, and extend that to the plan.

    Everything is done by the engine in a temporary folder; model, random state and runs are as before. The copy needs the
    model's memory once more.

    Raises:
        TrainbookError: what the training itself would raise.
    Not covered: early stopping ends sooner; a device that slows down when it is hot takes longer; sample texts.
    """
    import copy
    import tempfile

    from utils.checks import test_memory_footprint
    from utils.data import prepare_data
    from utils.training.engine.trainer import Trainer

    data = prepare_data(setup, model)
    config = setup.training_config
    validation_rows = min(len(data.validation), 4 * config.batch_size) if data.validation is not None else None
    watch = _Watch()
    with tempfile.TemporaryDirectory(prefix="trainbook-estimate-") as folder:
        probe = config.replace(
            max_steps=_STEPS, max_val_samples=validation_rows, output_dir=folder, run_name=None, checkpoint_dir=None,
            max_time_hours=None, save_every_minutes=None, use_wandb=False, wandb_project=None, eval_every="epoch",
            early_stopping_patience=None, warmup_steps=0,
        )  # fmt: skip
        trainer = Trainer(
            copy.deepcopy(model),
            training_config=probe,
            task_spec=data.task_spec,
            tokenizer=data.tokenizer,
            callbacks=[watch],
        )
        trainer.train(data.train, data.validation)
    memory = test_memory_footprint(model, setup)
    per_epoch = -(-len(data.train) // config.samples_per_step)
    steps = min(per_epoch * config.epochs, config.max_steps or per_epoch * config.epochs)
    epochs = -(-steps // per_epoch)
    share = len(data.validation) / validation_rows if data.validation is not None and validation_rows else 0.0
    return Estimate(
        step_s=watch.step_s,
        steps=steps,
        validation_s=watch.validation_s * share,
        validations=0
        if data.validation is None
        else epochs
        if config.eval_every == "epoch"
        else steps // config.eval_every,
        saving_s=watch.saving_s,
        savings=max(1, epochs // config.save_every_n_epochs),
        memory=memory.summary,
        fits={"pass": True, "fail": False}.get(memory.verdict),
    )


class _Watch(Callback):
    """Notes when things happen."""

    def __init__(self) -> None:
        self.validation_s = self.saving_s = 0.0
        self._at: list[float] = []
        self._began = 0.0

    @property
    def step_s(self) -> float:
        """Median seconds of a step after warm-up."""
        gaps = [after - before for before, after in zip(self._at, self._at[1:], strict=False)]
        return statistics.median(gaps[_WARM_UP - 1 :] or gaps or [0.0])

    def on_step_end(self, step: int, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        self._at.append(time.perf_counter())

    def on_evaluate_begin(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        self._began = time.perf_counter()

    def on_evaluate_end(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        self.validation_s = time.perf_counter() - self._began

    def on_epoch_end(self, epoch: int, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        self._began = time.perf_counter()  # what comes next is the checkpoint

    def on_checkpoint_saved(self, path: Path, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        self.saving_s = time.perf_counter() - self._began
