"""Estimate time and memory of a training on this machine, from a few measured steps."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.environment import detect_device, free_memory_bytes
from utils.errors import OutOfMemoryError
from utils.ui.background import Progress
from utils.ui.live_picture import duration
from utils.ui.rehearsal import Clock, Rehearsal, Rehearsed
from utils.ui.setting_values import counted
from utils.ui.setup_config import SetupConfig

if TYPE_CHECKING:
    from utils.data.prepared import PreparedData
    from utils.training.training_config import TrainingConfig

_MIB = 2**20
# Share of the free memory that may be planned for: the rest is for fragments, kernels and other programs.
_USABLE = 0.9


@dataclass(frozen=True)
class Estimate:
    """Measurements, extrapolated to the whole training. Times in seconds.

    Attributes:
        step_s: of a step; steps: how many there will be.
        validation_s: of one validation; validations: how many.
        saving_s: that one checkpoint takes from training; savings: how many at most, as when every validation improves.
        memory: one sentence about the memory it needs; fits: whether that is free, None where it is not known.
        memory_bytes: weights, gradients, optimizer, activations and whatever the step takes besides.
        other_s: what starting and finishing the last checkpoint add to that.
        limit_s: the time limit at which it ends in any case; None: none.
    """

    step_s: float
    steps: int
    validation_s: float
    validations: int
    saving_s: float
    savings: int
    memory: str
    fits: bool | None
    memory_bytes: int | None = None
    other_s: float = 0.0
    limit_s: float | None = None

    @property
    def total_s(self) -> float:
        """Seconds of the whole training, up to its time limit."""
        planned = self.step_s * self.steps + self.validation_s * self.validations + self.saving_s * self.savings
        return min(planned + self.other_s, self.limit_s if self.limit_s is not None else float("inf"))

    def rows(self) -> dict[str, str]:
        """The estimate as a table."""
        limited = ": the time limit" if self.total_s == self.limit_s else ""
        return {
            "Time": f"about {duration(self.total_s)}{limited} on this machine, as busy as it was while this was measured",
            "Steps": f"{counted(self.steps, 'step')} × {self.step_s:.3g} s",
            "Validations": f"{counted(self.validations, 'validation')} × {self.validation_s:.2g} s",
            "Checkpoints": f"at most {counted(self.savings, 'checkpoint')} × {self.saving_s:.2g} s",
            "Memory": self.memory,
        }


def estimate_training(
    setup: SetupConfig, model: Any, progress: Progress | None = None, clock: Clock = time.perf_counter
) -> Estimate:
    """Prepare the data, train a copy of `model` for some steps with validations and checkpoints, and extend that to the plan.

    Everything is done by the engine in a temporary folder; model, random state and runs are as before. The copy needs the
    model's memory once more. Sample limits, the step limit and the time limit are part of the plan.

    Args:
        progress: reports what is being done, and can cancel it between two steps.
        clock: seconds; another one to measure with than the wall's.
    Raises:
        Cancelled: through `progress`.
        OutOfMemoryError: on a CPU, what training would need is far more than there is: nothing was tried.
        TrainbookError: what the training itself would raise.
    Not covered: early stopping ends sooner; a device that slows down when it is hot takes longer; sample texts; several
    devices.
    """
    from utils.data import prepare_data

    progress = progress or Progress()
    progress.report("Reading the data")
    data = prepare_data(setup, model)
    with progress.undisturbed():
        progress.report("Looking at the free memory")
        _refuse_what_cannot_fit(setup, model)
        progress.report("Copying the model")
        seen = Rehearsal(setup, model, data, clock).some_epochs(progress)
    return _planned(setup.training_config, data, seen)


def _planned(config: TrainingConfig, data: PreparedData, seen: Rehearsed) -> Estimate:
    """Extrapolate the measurements to the whole plan."""
    per_epoch, steps = planned_steps(config, len(data.train))
    epochs = -(-steps // per_epoch)
    validations, validation_rows = 0, 0
    if data.validation is not None:
        validation_rows = min(len(data.validation), config.max_val_samples or len(data.validation))
        # The last step is always validated.
        validations = epochs if config.eval_every == "epoch" else -(-steps // config.eval_every)
    memory, fits = _memory(seen)
    return Estimate(
        step_s=seen.step_s,
        steps=steps,
        validation_s=seen.validation_row_s * validation_rows,
        validations=validations,
        saving_s=seen.saving_s,
        # Each validation may be the best so far, which is saved; so is every n-th epoch's end, and the end.
        savings=max(validations, -(-epochs // config.save_every_n_epochs)),
        memory=memory,
        fits=fits,
        memory_bytes=seen.peak_bytes,
        other_s=seen.start_s + epochs * seen.epoch_start_s + max(0.0, seen.last_saving_s - seen.saving_s),
        limit_s=None if config.max_time_hours is None else config.max_time_hours * 3600,
    )


def planned_steps(config: TrainingConfig, num_samples: int) -> tuple[int, int]:
    """Optimizer steps of an epoch, and of the whole training, on one device; early stopping may end it sooner."""
    rows = min(num_samples, config.max_train_samples or num_samples)
    per_epoch = -(-rows // config.samples_per_step)
    return per_epoch, min(per_epoch * config.epochs, config.max_steps or per_epoch * config.epochs)


def _memory(seen: Rehearsed) -> tuple[str, bool | None]:
    """One sentence about the memory, and whether it fits."""
    if seen.peak_bytes is None:
        return "Cannot be measured on this device or system.", None
    kind = detect_device().kind
    # In the host's memory the model is there already; what is reserved on a GPU by now will be used by the training.
    more = seen.peak_bytes - (seen.model_bytes if kind == "cpu" else 0)
    free = free_memory_bytes(kind)
    sentence = f"{seen.peak_bytes / _MIB:,.0f} MiB, {seen.model_bytes / _MIB:,.0f} MiB of them the model"
    if free is None:
        return f"{sentence}; how much is free is not known here.", None
    return f"{sentence}; {free / _MIB:,.0f} MiB are free.", more <= _USABLE * free


def _refuse_what_cannot_fit(setup: SetupConfig, model: Any) -> None:
    """Raise `OutOfMemoryError` when training would need more than a CPU has: there the system would end the process.

    A device that refuses memory can be tried instead.
    """
    from utils.checks import test_memory_footprint

    if detect_device().kind != "cpu":
        return
    counted_bytes = test_memory_footprint(model, setup)
    needed, free = counted_bytes.measured.get("total_mib"), counted_bytes.measured.get("free_mib")
    if needed is not None and free is not None and needed > free:
        raise OutOfMemoryError(f"Not measured. {counted_bytes.summary} {counted_bytes.remedy}")
