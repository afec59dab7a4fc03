"""TrainingLoop: the only loop over batches in the project."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from utils.errors import DataError, NonFiniteError
from utils.training.engine import rng
from utils.training.engine.callbacks import CallbackList
from utils.training.engine.data import StepBatches, UniversalDataModule, nothing_to_learn
from utils.training.engine.interrupts import Control
from utils.training.engine.metrics import Sums
from utils.training.engine.parts import Parts
from utils.training.engine.state import Row, TrainState
from utils.training.engine.step import StepResult, evaluate, train_step
from utils.training.engine.watch import BatchEvents, StepWatch
from utils.training.training_config import TrainingConfig

log = logging.getLogger("trainbook.engine")

_MOST_STEP_ROWS = 1000  # a run's plot is not finer than this, and neither is its history
_SKIPS_IN_A_ROW = 3
_SKIPS_SHARE = 0.01


class Saver(Protocol):
    """Where the loop leaves its state. Decides nothing about training."""

    def after_step(self) -> None:
        """Save when a time-based save is due."""

    def after_evaluation(self, value: float | None) -> None:
        """Save when this validation, within an epoch, is one of the best."""

    def after_epoch(self, value: float | None) -> None:
        """Save when an epoch's end is due or one of the best."""

    def save(self) -> object:
        """Save now."""


class _Stopped(Exception):  # noqa: N818 - no error: the way out of a validation that need not be finished
    """A stop was asked for in the middle of a validation."""


class TrainingLoop:
    """Epochs, steps, validations: from wherever `state` stands until the plan is done or somebody asks to stop.

    Args:
        watch_stop_file: looks whether a STOP file was made; called at most once a second.
        record: takes each history row.
    """

    def __init__(
        self, parts: Parts, data: UniversalDataModule, state: TrainState, config: TrainingConfig, events: CallbackList,
        control: Control, saver: Saver, record: Callable[[Row], None], total_steps: int | None, monitor: str, mode: str,
        watch_stop_file: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self.parts, self.data, self.state, self.config = parts, data, state, config
        self.events, self.control, self.saver, self._record = events, control, saver, record
        self.monitor, self.mode, self.total_steps = monitor, mode, total_steps
        self._watch_stop_file = watch_stop_file
        self._rows_every = max(1, math.ceil((total_steps or 0) / _MOST_STEP_ROWS))
        self._watch: StepWatch = BatchEvents(events) if any(map(events.heard, BatchEvents.EVENTS)) else StepWatch()
        self.before_step: rng.Snapshot | None = None  # set while a step is under way
        self._started = self._looked = self._resumed_at = time.monotonic()
        self._targets_at_row, self._time_at_row = state.targets_done, self._started

    def run(self) -> TrainState:
        """Train. Returns the state with `stop_reason` set; it has been saved."""
        state = self.state
        while state.epoch < self.config.epochs and state.stop_reason is None:
            epoch = state.epoch
            self.events.fire("on_epoch_begin", epoch)
            epoch_began, targets_before = time.monotonic(), state.targets_done
            try:
                self._finish_pending_evaluation()
                for batches in self._steps_left(epoch):
                    self._step(batches)
                    if self._stop_asked():
                        return self._stop()
                self._finish_epoch(epoch, time.monotonic() - epoch_began, state.targets_done - targets_before)
            except _Stopped:
                return self._stop()
            if state.stop_reason is None and self._stop_asked():
                return self._stop()
        return state

    def _steps_left(self, epoch: int) -> Iterator[StepBatches]:
        """The steps of this epoch that are still to be done, up to the step limit."""
        if self.state.step == self.config.max_steps:
            return
        for batches in self.data.steps(epoch, self.state.samples_done, self.config.gradient_accumulation_steps):
            yield batches
            if self.state.step == self.config.max_steps:
                return

    def _step(self, batches: StepBatches) -> None:
        state = self.state
        self.before_step = rng.snapshot()
        rate = self.parts.schedule.apply(self.parts.optimizer, state.step)
        if isinstance(self._watch, BatchEvents):
            self._watch.index = state.samples_done // self.data.batch_size
        result = train_step(self.parts, batches.micro_batches, self.config.max_grad_norm, self._watch)
        loss_sum, correct, norm = float(result.loss_sum), float(result.correct), float(result.grad_norm)
        if not result.finite:
            self._handle_nonfinite(result, batches.sample_ids, rate)
        else:
            state.skipped_in_a_row = 0
            state.empty_steps += result.num_targets == 0
            for sums in (state.epoch_sums, state.window_sums):
                sums.add(loss_sum, result.num_targets, correct, norm)
            state.targets_done += result.num_targets
        state.step += 1
        state.samples_done += len(batches.sample_ids)
        self.before_step = None
        self._step_row(rate, None if result.finite else loss_sum / max(1, result.num_targets))
        mean = loss_sum / result.num_targets if result.num_targets else math.nan
        if self.events.heard("on_step_end"):
            logs = {"train/loss": mean, "train/learning_rate": rate, "train/grad_norm": norm, "epoch": state.epoch}
            self.events.fire("on_step_end", state.step, logs=logs)
        self._finish_pending_evaluation()
        self.saver.after_step()

    def _step_row(self, rate: float, nonfinite_loss: float | None) -> None:
        """A history row for the steps since the last one; at once when a number was not finite."""
        state = self.state
        if nonfinite_loss is None and state.step % self._rows_every:
            return
        now = time.monotonic()
        row: Row = {"event": "step", "step": state.step, "epoch": state.epoch}
        if nonfinite_loss is not None:
            row |= {"train/loss": nonfinite_loss, "skipped": True}
        else:
            sums = state.window_sums.metrics("train")
            row |= {name: sums[name] for name in ("train/loss", "train/grad_norm") if name in sums}
        row["train/learning_rate"] = rate
        row["time/tokens_per_s"] = (state.targets_done - self._targets_at_row) / max(now - self._time_at_row, 1e-9)
        self._targets_at_row, self._time_at_row = state.targets_done, now
        state.window_sums = Sums()
        self._write(row)

    def _write(self, row: Row) -> None:
        self.state.rows_written += 1
        self._record(row)

    def _finish_epoch(self, epoch: int, seconds: float, targets: int) -> None:
        """Validation, the epoch's row, what is best, and the end of the plan."""
        state, config = self.state, self.config
        if not state.epoch_sums.targets and not state.skipped_steps:
            raise DataError(nothing_to_learn(state.samples_done))
        cut_short = state.step == config.max_steps
        ends = cut_short or epoch + 1 == config.epochs
        row: Row = {"event": "epoch", "epoch": epoch, "step": state.step, **state.epoch_sums.metrics("train")}
        row["train/learning_rate"] = self.parts.optimizer.param_groups[0]["lr"]
        if self.data.validation is None:
            if state.evaluated_step != state.step:
                self._judge(row)
        elif config.eval_every == "epoch" or ends:
            if state.evaluated_step != state.step:
                self._evaluate()
            row |= {name: value for name, value in state.history[-1].items() if name.startswith("val/")}
        row |= {"time/epoch_s": seconds, "time/tokens_per_s": targets / max(seconds, 1e-9)}
        complete = not cut_short or state.samples_done >= (self.data.num_train or 0)
        if not complete:
            row["complete"] = False
        state.history.append(row)
        self._write(row)
        if complete:
            state.epoch += 1
            state.samples_done, state.epoch_sums = 0, Sums()
        if ends:
            state.stop_reason = "max_steps" if cut_short else "finished"
        self.events.fire("on_epoch_end", epoch, logs=row)
        self._take_stop_request()
        self.saver.after_epoch(row.get(self.monitor) if state.evaluated_step == state.step else None)

    def _evaluate(self) -> None:
        """A validation: its row goes to the history. Raises `_Stopped`, and changes nothing, when a stop is asked for."""
        state = self.state
        self.events.fire("on_evaluate_begin")
        with rng.preserved():
            metrics = evaluate(self.parts, self.data.validation_batches(), self._poll).metrics("val")
        if not metrics:
            raise DataError("validation found no target to score: every label of val_data is -100. Check its labels.")
        row: Row = {"event": "evaluate", "step": state.step, "epoch": state.epoch, **metrics}
        state.history.append(row)
        self._write(row)
        self._judge(metrics)
        self.events.fire("on_evaluate_end", logs=metrics)

    def _judge(self, metrics: dict[str, float]) -> None:
        """Tell state and schedule how the monitored metric came out."""
        improved = self.state.record_evaluation(metrics, self.monitor, self.mode, self.config.min_delta)
        self.parts.schedule.after_evaluation(improved)

    def _finish_pending_evaluation(self) -> None:
        """The validation that is due after so many steps, unless it was done before the run was continued."""
        state, every = self.state, self.config.eval_every
        if every == "epoch" or self.data.validation is None or state.step == 0:
            return
        if state.step % every == 0 and state.evaluated_step != state.step:
            self._evaluate()
            self.saver.after_evaluation(state.history[-1].get(self.monitor))

    def _handle_nonfinite(self, result: StepResult, sample_ids: list[int], rate: float) -> None:
        """Skip within the limits, or stop with everything that helps to find the cause."""
        state = self.state
        allowed = max(_SKIPS_IN_A_ROW, _SKIPS_SHARE * state.step)
        if (
            self.config.on_nonfinite == "skip"
            and state.skipped_in_a_row < _SKIPS_IN_A_ROW
            and state.skipped_steps < allowed
        ):
            state.skipped_steps += 1
            state.skipped_in_a_row += 1
            log.warning(
                "Step %d skipped: loss or gradient is not finite (samples %s).", state.step + 1, _few(sample_ids)
            )
            return
        loss = float(result.loss_sum) / max(1, result.num_targets)
        skipped = f" (after {state.skipped_steps} skipped steps)" if state.skipped_steps else ""
        raise NonFiniteError(
            f"step {state.step + 1}{skipped}: loss is {loss:.4g}, gradient norm is {float(result.grad_norm):.4g} "
            f"(learning rate {rate:.3g}, samples {_few(sample_ids)}). {self._worst_gradient()} "
            "The parameters are those of the step before. Lower learning_rate, lengthen the warm-up, look at these samples, "
            "or set on_nonfinite='skip'."
        )

    def _worst_gradient(self) -> str:
        """The parameter with the first non-finite gradient, else the one with the largest."""
        worst, largest = "", -1.0
        for name, parameter in self.parts.model.named_parameters():
            if parameter.grad is None:
                continue
            size = float(parameter.grad.detach().abs().max())
            if not math.isfinite(size):
                return f"First non-finite gradient: {name}."
            if size > largest:
                worst, largest = name, size
        return f"Largest gradient: {worst} ({largest:.4g})." if worst else ""

    def _poll(self) -> None:
        if self._stop_asked():
            raise _Stopped

    def _stop_asked(self) -> bool:
        """Budgets, STOP file, pause and save requests; True when the run should end here."""
        now = time.monotonic()
        limit = self.config.max_time_hours
        if limit is not None and now - self._started >= limit * 3600:
            self.control.request_stop("time_limit")
        if now - self._looked >= 1.0:
            self._looked = now
            if self._watch_stop_file():
                self.control.request_stop("stop_file")
        if self.before_step is None and self.control.save_now.is_set():
            self.control.save_now.clear()
            self.saver.save()
        if self.control.pause.is_set() and not self.control.stop.is_set():
            self._pause()
        return self.control.stop.is_set()

    def _pause(self) -> None:
        """Save, then wait until the pause is lifted or a stop is asked for; the clock stands still."""
        self.saver.save()
        began = time.monotonic()
        while self.control.pause.is_set() and not self.control.stop.wait(0.05):
            if self._watch_stop_file():
                self.control.request_stop("stop_file")
        waited = time.monotonic() - began
        self._started += waited
        self._resumed_at += waited
        self._time_at_row += waited

    def tick(self) -> None:
        """Add the time since the last tick to the state's running time."""
        now = time.monotonic()
        self.state.elapsed_s += now - self._resumed_at
        self._resumed_at = now

    def _take_stop_request(self) -> None:
        """What somebody asked for while the epoch ended; a run that is over anyway keeps its own reason."""
        if self.control.stop.is_set() and self.state.stop_reason is None:
            self.state.stop_reason = self.control.reason or "requested"

    def _stop(self) -> TrainState:
        """End at a step boundary because it was asked for, with a checkpoint."""
        self._take_stop_request()
        self.saver.save()
        return self.state


def _few(sample_ids: list[int], limit: int = 8) -> str:
    more = f" and {len(sample_ids) - limit} more" if len(sample_ids) > limit else ""
    return ", ".join(map(str, sample_ids[:limit])) + more
