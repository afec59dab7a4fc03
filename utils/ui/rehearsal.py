"""A little of a training, done by the engine on a copy of the model in a temporary folder, and what was seen of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from utils.environment import detect_device
from utils.training.engine.callbacks import Callback
from utils.ui.background import Cancelled, Progress
from utils.ui.setup_config import SetupConfig

if TYPE_CHECKING:
    from utils.data.prepared import PreparedData
    from utils.training.engine.trainer import Trainer
    from utils.training.peak_memory import PeakMemory

Clock = Callable[[], float]
Logs = Mapping[str, Any]

# Epochs of a rehearsal. The first one also fills caches and compiles kernels; the second is measured, and ends with a
# checkpoint that is written while the third trains, as it is within a run; that of the third is waited for.
_EPOCHS, _SAVED_EVERY = 3, 2
# Steps at the beginning that are not timed.
_WARM_UP = 2
# Steps that are tried before training, and the seconds after which no further one is.
_FIRST_STEPS, _LONG_S = 4, 3.0
# A learning rate that changes no model: what is tried without the warm-up of the training must not diverge.
_NO_RATE = 1e-12
# Steps of each epoch. A GPU works ahead of the program, so there an epoch is timed as a whole, which takes more steps.
_STEPS, _STEPS_ON_GPU = 5, 16
# Batches of each validation.
_VALIDATION_BATCHES = 8
# Seconds after which a rehearsal ends, once it has timed a step.
_LONGEST_S = 120.0
# A step is a forward and a backward pass, which costs twice the forward pass (Kaplan et al. 2020, section 2.1).
_FORWARD_SHARE = 1 / 3


@dataclass(frozen=True)
class FirstSteps:
    """Measurements of the first steps, each of one micro-batch.

    Attributes:
        loss: mean per target, before the first update; first_s: seconds of the first step with the reading of its batch, which
            are more than those of later ones.
        step_s: seconds of the fastest later one; None where the first took so long that there was no other, or the data are
            one batch.
        fingerprint: of data, tokenizer and frozen parameters, as the run's checkpoints would hold it.
        weights: names of the entries of such a checkpoint, with tensors on the device "meta".
    """

    loss: float
    first_s: float
    step_s: float | None
    fingerprint: dict[str, str]
    weights: dict[str, Any]


@dataclass(frozen=True)
class Rehearsed:
    """Measurements of some epochs of a few steps. Times in seconds.

    Attributes:
        start_s: from the call to the first step, and by how much the first steps are slower.
        step_s: of a step; epoch_start_s: what an epoch takes besides its steps, such as starting loader processes.
        validation_row_s: of a validation, for each row.
        saving_s: that a checkpoint within the run takes from training; last_saving_s: the one at its end.
        model_bytes: of the model's parameters and buffers; peak_bytes: with them, the most that training took; None where
            that cannot be measured.
    """

    start_s: float
    step_s: float
    epoch_start_s: float
    validation_row_s: float
    saving_s: float
    last_saving_s: float
    model_bytes: int
    peak_bytes: int | None


class Rehearsal:
    """Trains a copy of `model` on `data` with the settings of `setup`. Model, random state and runs are left alone.

    The copy needs the model's memory once more, a temporary folder one checkpoint.
    """

    def __init__(self, setup: SetupConfig, model: Any, data: PreparedData, clock: Clock = time.perf_counter) -> None:
        from utils.training.trial_training import TrialTraining

        self._setup, self._model, self._data, self._clock = setup, model, data, clock
        self._trial = TrialTraining.of(model, data, setup, None, None, None)

    def first_steps(self) -> FirstSteps:
        """Some micro-batches forward and backward, each with the optimizer's step; one where that takes long.

        Raises:
            TrainbookError: what the training itself would raise; or whatever the model does.
        """
        watch = _FirstSteps(self._clock)
        self._trial.train(
            watch, epochs=1, max_steps=_FIRST_STEPS, gradient_accumulation_steps=1, save_every_n_epochs=1,
            learning_rate=_NO_RATE,
        )  # fmt: skip
        first_s, *later_s = watch.steps_s
        return FirstSteps(watch.loss, first_s, min(later_s, default=None), watch.fingerprint, watch.weights)

    def some_epochs(self, progress: Progress) -> Rehearsed:
        """Three epochs of a few steps, each with a validation and a checkpoint, or what of them fits into two minutes.

        Raises:
            Cancelled: at a step's end; TrainbookError: what the training itself would raise.
        """
        config = self._setup.training_config
        validation = self._data.validation
        rows = 0 if validation is None else min(len(validation), _VALIDATION_BATCHES * config.batch_size)
        if config.max_val_samples is not None:
            rows = min(rows, config.max_val_samples)
        steps = _STEPS_ON_GPU if detect_device().kind == "cuda" else _STEPS
        samples = min(steps * config.samples_per_step, config.max_train_samples or len(self._data.train))
        steps = -(-min(samples, len(self._data.train)) // config.samples_per_step)
        watch = _Watch(self._clock, progress, steps)
        self._trial.train(
            watch, val_data=validation, epochs=_EPOCHS, max_steps=None, save_every_n_epochs=_SAVED_EVERY,
            max_train_samples=samples, max_val_samples=rows or None,
        )  # fmt: skip
        progress.raise_if_cancelled()
        return watch.rehearsed(rows, config.samples_per_step)


class _FirstSteps(Callback):
    """Notes the first loss and the time of each step."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self._began = clock, 0.0
        self.loss = float("nan")
        self.steps_s: list[float] = []
        self.fingerprint: dict[str, str] = {}
        self.weights: dict[str, Any] = {}

    def on_train_begin(self, trainer: Trainer, logs: Logs | None = None) -> None:
        from utils.training.adapter_checkpoints import checkpoint_state
        from utils.training.engine.checkpointing.resume import fingerprint_of

        assert trainer.data is not None
        assert trainer.parts is not None
        state = checkpoint_state(trainer.parts.model)
        self.weights = {name: value.to("meta") if hasattr(value, "to") else value for name, value in state.items()}
        # Of the model as it is trained, which may have adapters.
        self.fingerprint = fingerprint_of(trainer.data, trainer.tokenizer, trainer.parts.model)
        self._began = self._clock()

    def on_step_end(self, step: int, trainer: Trainer, logs: Logs | None = None) -> None:
        now = self._clock()
        if not self.steps_s:
            self.loss = float((logs or {})["train/loss"])
        self.steps_s.append(now - self._began)
        self._began = now
        if sum(self.steps_s) > _LONG_S:
            trainer.request_stop("tried")


@dataclass
class _Epoch:
    """Timestamps of one epoch."""

    began: float
    steps: list[float] = field(default_factory=list)
    validation: tuple[float, float] | None = None
    ended: float | None = None


class _Watch(Callback):
    """Notes when things happen, reports progress, and ends the rehearsal when it was cancelled or takes too long."""

    # On a GPU steps are read in groups, as in a training that nobody watches: to wait for each would slow it down.
    may_be_late = True

    def __init__(self, clock: Clock, progress: Progress, steps: int) -> None:
        self._clock, self._progress, self._steps = clock, progress, steps
        self._epochs: list[_Epoch] = []
        self._called, self._began, self._done = clock(), 0.0, 0.0
        self._in_groups = False
        self._model_bytes = 0
        self._memory: PeakMemory | None = None

    def on_train_begin(self, trainer: Trainer, logs: Logs | None = None) -> None:
        from utils.training.peak_memory import PeakMemory

        parts = trainer.parts
        assert parts is not None
        self._in_groups = parts.guard is not None
        self._model_bytes = sum(t.nbytes for t in (*parts.model.parameters(), *parts.model.buffers()))
        self._memory = PeakMemory(parts.device.kind)
        self._began = time.monotonic()

    def on_epoch_begin(self, epoch: int, trainer: Trainer, logs: Logs | None = None) -> None:
        self._epochs.append(_Epoch(self._clock()))

    def on_step_end(self, step: int, trainer: Trainer, logs: Logs | None = None) -> None:
        self._epochs[-1].steps.append(self._clock())
        self._report(trainer, f"Training step {step} of {_EPOCHS * self._steps}")
        timed = len(self._epochs[0].steps) > _WARM_UP
        if timed and time.monotonic() - self._began > _LONGEST_S:
            trainer.request_stop("rehearsed")

    def on_evaluate_begin(self, trainer: Trainer, logs: Logs | None = None) -> None:
        self._epochs[-1].validation = (self._clock(), 0.0)
        self._report(trainer, "Validating")

    def on_evaluate_end(self, trainer: Trainer, logs: Logs | None = None) -> None:
        validation = self._epochs[-1].validation
        assert validation is not None
        self._epochs[-1].validation = (validation[0], self._clock())

    def on_epoch_end(self, epoch: int, trainer: Trainer, logs: Logs | None = None) -> None:
        self._epochs[-1].ended = self._clock()
        self._report(trainer, "Saving a checkpoint")

    def on_train_end(self, trainer: Trainer, logs: Logs | None = None) -> None:
        self._done = self._clock()

    def _report(self, trainer: Trainer, sentence: str) -> None:
        try:
            self._progress.report(sentence)
        except Cancelled:
            trainer.request_stop("cancelled")

    def rehearsed(self, validation_rows: int, rows_per_step: int) -> Rehearsed:
        """Combine the measurements, from the first epoch only where there is no other."""
        # Not those of the third: a checkpoint is written beside them.
        timed = self._epochs[:_SAVED_EVERY]
        second = timed[1:] or timed
        step_s = self._step_s(timed)
        starts = [e.steps[0] - e.began - step_s for e in second if e.steps and not self._in_groups]
        validations = [end - begin for begin, end in (e.validation for e in second if e.validation is not None) if end]
        # Without one: the forward passes of as many rows.
        forward_s = _FORWARD_SHARE * step_s / rows_per_step
        row_s = min(validations) / validation_rows if validations and validation_rows else forward_s
        pairs = zip(self._epochs[_SAVED_EVERY - 1 :], self._epochs[_SAVED_EVERY:], strict=False)
        savings = [after.began - before.ended for before, after in pairs if before.ended is not None]
        last = self._epochs[-1].ended
        last_saving_s = max(0.0, self._done - last) if last is not None else max(savings, default=0.0)
        grown = None if self._memory is None else self._memory.grown_bytes()
        # A GPU computes while another thread writes; a CPU that does both does each the slower for it.
        saving_s = min(savings, default=last_saving_s) if self._in_groups else last_saving_s
        first = self._epochs[0]
        warm_up = first.steps[:_WARM_UP]
        slower = warm_up[-1] - first.began - len(warm_up) * step_s if warm_up else 0.0
        return Rehearsed(
            start_s=max(0.0, first.began - self._called) + max(0.0, slower),
            step_s=step_s,
            epoch_start_s=max(0.0, min(starts, default=0.0)),
            validation_row_s=row_s,
            saving_s=saving_s,
            last_saving_s=last_saving_s,
            model_bytes=self._model_bytes,
            peak_bytes=None if grown is None else self._model_bytes + grown,
        )

    def _step_s(self, epochs: list[_Epoch]) -> float:
        if self._in_groups:
            whole = [(e.validation[0] if e.validation else e.ended or e.steps[-1]) - e.began for e in epochs]
            return min(seconds / len(e.steps) for seconds, e in zip(whole, epochs, strict=True) if e.steps)
        gaps = [after - before for e in epochs for before, after in zip(e.steps, e.steps[1:], strict=False)]
        return statistics.median(gaps[_WARM_UP - 1 :] or gaps or [e.steps[0] - e.began for e in epochs if e.steps])
