"""TrainingLoop: the only loop over batches in the project."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator

import torch

from utils.data.batch import Batch
from utils.data.module import StepBatches, nothing_to_learn
from utils.data.sources import StreamSource
from utils.errors import DataError
from utils.training.engine import early_decay, rng
from utils.training.engine.bits_per_byte import ValidationBytes
from utils.training.engine.callbacks import CallbackList
from utils.training.engine.clock import RunClock
from utils.training.engine.compute.assembly import Parts
from utils.training.engine.compute.averaging import AVERAGED
from utils.training.engine.hardware.energy import EnergyMeter, counters_of
from utils.training.engine.interrupts import Control
from utils.training.engine.metrics import Sums, metrics_of
from utils.training.engine.outlets import Records, Saver
from utils.training.engine.pending_steps import PendingStep, PendingSteps
from utils.training.engine.plan import RunPlan
from utils.training.engine.requests import Requested, Requests
from utils.training.engine.state import Row, TrainState
from utils.training.engine.step import FAULT, StepResult, train_step
from utils.training.engine.validation import validate
from utils.training.engine.watch import BatchEvents, StepWatch

log = logging.getLogger("trainbook.engine")


class _Stopped(Exception):  # noqa: N818 - no error: the way out of a validation that need not be finished
    """A stop was asked for in the middle of a validation."""


class TrainingLoop:
    """Epochs, steps, validations: from wherever `state` stands until the plan is done or somebody asks to stop.

    Args:
        plan: what the run will do.
        parts: model, optimizer, schedule and precision.
        state: where the run stands; changed as it proceeds.
        events: the callbacks; control: requests to stop, pause or save.
        saver: commits checkpoints; records: takes the history rows.
    """

    def __init__(
        self, plan: RunPlan, parts: Parts, state: TrainState, events: CallbackList, control: Control, saver: Saver,
        records: Records,
    ) -> None:  # fmt: skip
        self.plan, self.config, self.data = plan, plan.config, plan.data
        self.parts, self.state, self.events, self.control = parts, state, events, control
        self.saver, self._records = saver, records
        streamed = isinstance(plan.data.validation, StreamSource)
        self._bytes = ValidationBytes(parts.objective, plan.tokenizer, changes=streamed, notice=events.notice)
        self._watch: StepWatch = BatchEvents(events) if any(map(events.heard, BatchEvents.EVENTS)) else StepWatch()
        if parts.guard is not None:
            parts.guard = parts.guard.new_tensor([0.0, state.skipped_in_a_row, state.skipped_steps])
        early_decay.apply_early_end(plan, parts, state)
        self._loading_s = 0.0  # of the epoch under way, waiting for its batches
        world = parts.world
        self._requests = Requests(control, records, world)
        self._clock = RunClock(
            state, EnergyMeter(counters_of(parts.fabric.device, world.size)) if world.is_main else None
        )
        self.pending = PendingSteps(
            plan, parts, state, events, self._write, at_once=isinstance(self._watch, BatchEvents)
        )

    def run(self) -> TrainState:
        """Train. Returns the state with `stop_reason` set; it has been saved."""
        state = self.state
        self._begin_decay(self._requests.collect())  # requested before training: it applies from the first step
        while state.epoch < self.config.epochs and state.stop_reason is None:
            if self._at_step_limit() and state.samples_done == 0:
                break
            epoch = state.epoch
            self.events.fire("on_epoch_begin", epoch)
            self._loading_s = 0.0
            epoch_began, targets_before = time.monotonic(), state.targets_done
            try:
                if self._validate_if_due() and self._obey():
                    return self._stop()
                for batches in self._steps_left(epoch):
                    self._step(batches)
                    if self._obey():
                        return self._stop()
                self._end_epoch(epoch, epoch_began, targets_before)
            except _Stopped:
                return self._stop()
            if state.stop_reason is None and self._obey():
                return self._stop()
        if state.stop_reason is None:  # continued with fewer epochs or a lower step limit than what it had done
            state.stop_reason = "finished" if state.epoch >= self.config.epochs else early_decay.limit_reason(state)
            self.saver.save(wait=True)
        return state

    def _at_step_limit(self) -> bool:
        """Also beyond it, when a run is continued with a lower limit than the steps that it had done."""
        limit = early_decay.last_step(self.plan, self.state)
        return limit is not None and self.state.step >= limit

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the whole run; None: not known."""
        return self.plan.total_steps if self.state.finish_at is None else self.state.finish_at

    def _steps_left(self, epoch: int) -> Iterator[StepBatches]:
        """The steps of this epoch that are still to be done, up to the step limit."""
        if self._at_step_limit():
            return
        steps = self.data.steps(epoch, self.state.samples_done, self.plan.accumulation)
        while True:
            began = time.monotonic()
            batches = next(steps, None)
            self._loading_s += time.monotonic() - began
            if batches is None:
                return
            yield batches
            if self._at_step_limit():
                return

    def _step(self, batches: StepBatches) -> None:
        """One optimizer step; its results are read at once, or (on a GPU) with the next few."""
        state = self.state
        before = self.pending.random_state_before = rng.snapshot()
        self.parts.buffers.keep()
        rate = self.parts.schedule.apply(self.parts.optimizer, state.step)
        if self.parts.average is not None:
            self.parts.average.step = state.step
        limits = self.pending.skips.limits(state.step)
        num_targets = self._targets_of_all(batches.micro_batches)

        def work(micro_batches: list[Batch]) -> StepResult:
            if isinstance(self._watch, BatchEvents):
                self._watch.index = state.samples_done // (self.data.batch_size * self.parts.world.size)
            return train_step(self.parts, micro_batches, self.config.max_grad_norm, self._watch, limits, num_targets)

        def undo() -> None:
            rng.rewind(before)
            self.parts.buffers.restore()

        size = state.pieces.most
        result = state.pieces.run(batches.micro_batches, work, f"step {state.step + 1}", undo, not self.parts.sharded)
        self._undo_buffers_of_nonfinite(result)
        if state.pieces.most != size:
            self._report_smaller(state.step + 1)
        self.pending.add(PendingStep(result, batches.sample_ids, rate, before, state.step, state.samples_done))
        self._validate_if_due()
        self.saver.after_step()

    def _undo_buffers_of_nonfinite(self, result: StepResult) -> None:
        """A step that left the parameters as they were leaves the buffers too, or NaN would stay in running statistics."""
        numbers, guard = result.numbers, self.parts.guard
        if isinstance(numbers, torch.Tensor):
            assert guard is not None
            self.parts.buffers.restore(where=(numbers[-1] == FAULT) | (guard[0] > 0))
        elif numbers.outcome == FAULT:
            self.parts.buffers.restore()

    def _targets_of_all(self, micro_batches: list[Batch]) -> int | None:
        """Targets of the step over all processes; None for one process, which has them all. Summed once a step, not again when
        the step is repeated in smaller pieces."""
        world = self.parts.world
        return (
            None
            if world.size == 1
            else int(world.totals(sum(map(self.parts.objective.count_targets, micro_batches)))[0])
        )

    def _report_smaller(self, step: int) -> None:
        most = self.state.pieces.most
        self.events.notice(
            f"Out of memory in step {step}: from there on at most {most} samples go through the model at once. A step has as "
            "many samples as before."
        )

    def _write(self, row: Row) -> None:
        self.state.rows_written += 1
        self._records.record(row)
        self._clock.tick()

    def _end_epoch(self, epoch: int, began: float, targets_before: int) -> None:
        """Validation, the epoch's row, what is best, and the end of the plan.

        The order matters. A stop may end the validation: nothing of the epoch is counted by then, and the resumed run does all
        of it. Callbacks see the row of an epoch that is counted, and the checkpoint has everything.
        """
        self.pending.read()
        state, config = self.state, self.config
        loading, seconds, targets = self._loading_s, time.monotonic() - began, state.targets_done - targets_before
        if not state.epoch_sums.targets and not state.skipped_steps:
            raise DataError(nothing_to_learn(state.samples_done, epoch))
        cut_short = self._at_step_limit()
        ends = cut_short or epoch + 1 == config.epochs
        row: Row = {"event": "epoch", "epoch": epoch, "step": state.step}
        row |= metrics_of(state.epoch_sums, self.parts.objective, "train")
        row["train/learning_rate"] = self.parts.optimizer.param_groups[0]["lr"]
        if self.data.validation is not None and (config.eval_every == "epoch" or ends):
            if state.evaluated_step != state.step:
                self._validate()
            row |= {name: value for name, value in state.history[-1].items() if name.startswith("val/")}
        if self.plan.monitors_training:
            self._update_best(row)
        row |= {"time/loading_s": loading, "time/epoch_s": seconds, "time/tokens_per_s": targets / max(seconds, 1e-9)}
        complete = self._is_complete(cut_short)
        if not complete:
            row["complete"] = False
        state.history.append(row)
        if complete:
            self._next_epoch(row)
        if ends:
            state.stop_reason = early_decay.limit_reason(state) if cut_short else "finished"
            self._note_unfinished_schedule()
        self._write(row)
        self.events.fire("on_epoch_end", epoch, logs=row)
        self._note_stop()
        measured = self.plan.monitors_training or state.evaluated_step == state.step
        self.saver.after_epoch(self._monitored_value(row) if measured else None)

    def _note_unfinished_schedule(self) -> None:
        """A stream's length is known only when it ends: before the steps that `max_steps` planned, perhaps."""
        done, planned = self.state.step, self.total_steps
        if not self.data.resumable and planned is not None and done < planned:
            self.events.notice(
                f"The run ended after step {done:,}, because train_data has no more in {self.config.epochs} epochs, and the "
                f"learning rate was planned for the {planned:,} of max_steps. Set more epochs, or max_steps={done}."
            )

    def _is_complete(self, cut_short: bool) -> bool:
        """Whether the epoch has had all its samples. Of a stream that the step limit ended nobody knows: only reading on would
        tell."""
        length = self.data.samples_per_epoch
        return not cut_short or (length is not None and self.state.samples_done >= length)

    def _next_epoch(self, row: Row) -> None:
        """Count the epoch of `row` as done."""
        state = self.state
        state.epoch += 1
        state.finished_sums = state.epoch_sums
        state.samples_done, state.epoch_sums = 0, Sums()
        self.parts.schedule.after_epoch(row)

    def _validate(self) -> None:
        """A validation: its row goes to the history. Raises `_Stopped`, and changes nothing, when a stop is asked for."""
        self.pending.read()
        state = self.state
        self.events.fire("on_evaluate_begin")
        with rng.preserved():
            sums, metrics = validate(
                self.parts, self.data, self._obey_in_validation, state.validation_pieces, self._bytes
            )
        if not metrics:
            raise DataError("validation found no target to score: every label of val_data is -100. Check its labels.")
        metrics |= self._bytes.metrics(sums, self.parts.world)
        metrics |= self._averaged_metrics(metrics)
        row: Row = {"event": "evaluate", "step": state.step, "epoch": state.epoch, **metrics}
        state.history.append(row)
        state.evaluated_step, state.validation_sums = state.step, sums
        if not self.plan.monitors_training:
            self._update_best(metrics)
        self._write(row)
        self.events.fire("on_evaluate_end", logs=metrics)

    def _averaged_metrics(self, metrics: dict[str, float]) -> dict[str, float]:
        """The same validation with the averaged weights, where there are any; notes whether they are better."""
        average = self.parts.average
        if average is None or not average.count:
            return {}
        # A save or a pause waits until the model has its own weights again: a checkpoint would hold the averaged ones.
        with rng.preserved(), average.applied():
            _, found = validate(self.parts, self.data, self._end_if_stopped, self.state.validation_pieces)
        own, averaged = metrics.get(self.plan.monitor, math.nan), found.get(self.plan.monitor, math.nan)
        average.better = averaged < own if self.plan.mode == "min" else averaged > own
        return {f"{name}{AVERAGED}": value for name, value in found.items()}

    def _monitored_value(self, metrics: Row) -> float | None:
        """The monitored metric: of the averaged weights where these are better."""
        name = self.plan.monitor
        if self.parts.average is not None and self.parts.average.better and f"{name}{AVERAGED}" in metrics:
            name = f"{name}{AVERAGED}"
        value: float | None = metrics.get(name)
        return value

    def _update_best(self, metrics: dict[str, float]) -> None:
        """Record the monitored metric's new value: best so far, early stopping, and a schedule that follows it."""
        value = self._monitored_value(metrics)
        if value is None:
            self.events.notice(
                f"The monitored metric {self.plan.monitor} could not be computed at least once; best checkpoint and early "
                f"stopping skipped it there. Computed were: {', '.join(_monitorable(metrics))}."
            )
            return
        improved = self.state.update_best(value, self.plan.mode, self.config.min_delta, self.plan.patience)
        self.parts.schedule.after_evaluation(improved)

    def _validate_if_due(self) -> bool:
        """Do the validation that is due after so many steps; returns False when none is, or when it was done before the run
        was continued."""
        state, every = self.state, self.config.eval_every
        if every == "epoch" or self.data.validation is None or state.step == 0:
            return False
        if state.step % every or state.evaluated_step == state.step:
            return False
        self._validate()
        self.saver.after_evaluation(self._monitored_value(state.history[-1]))
        return True

    def _obey_in_validation(self) -> None:
        if self._obey():
            raise _Stopped

    def _end_if_stopped(self) -> None:
        self._check_time()
        if self._requests.collect().stop:
            raise _Stopped

    def _obey(self) -> bool:
        """Do what was requested: by the time limit, by STOP and FINISH files, or through the control. All do the same.

        Returns:
            Whether the run ends here. A pause is waited for.
        """
        if self.state.stop_reason is not None:
            return True
        self._check_time()
        requested = self._requests.collect()
        self._begin_decay(requested)
        if self.pending.random_state_before is None and requested.save:
            self.control.save_now.clear()
            self.saver.save()
        return self._pause() if requested.pause and not requested.stop else requested.stop

    def _check_time(self) -> None:
        limit = self.config.max_time_hours
        if limit is not None and self._clock.running_s() >= limit * 3600:
            self.control.request_stop("time_limit")

    def _begin_decay(self, requested: Requested) -> None:
        if requested.decay and self.state.stop_reason is None:
            self.control.finish.clear()
            early_decay.finish_now(self.plan, self.parts, self.state, self.events.notice)

    def _pause(self) -> bool:
        """Save, then wait until the pause is lifted or a stop is asked for; the clock stands still. Returns whether to stop."""
        self.saver.save(wait=True)
        began = time.monotonic()
        stop, pause = False, True
        while pause and not stop:
            self.control.stop.wait(0.05)
            requested = self._requests.collect()
            self._begin_decay(requested)
            stop, pause = requested.stop, requested.pause
        waited = time.monotonic() - began
        self._clock.leave_out(waited)
        self.pending.leave_out(waited)
        return stop

    def settle(self) -> None:
        """Bring the state up to date, so that it can be saved: numbers that are on their way, and the running time."""
        self.pending.read()
        self._clock.settle()

    def _note_stop(self) -> None:
        """Note why the run stops, where a stop was requested; a run that is over anyway keeps its own reason."""
        if self._requests.collect().stop and self.state.stop_reason is None:
            self.state.stop_reason = self.control.reason or "requested"

    def _stop(self) -> TrainState:
        """End at a step boundary because it was asked for, with a checkpoint."""
        self.pending.read()
        self._note_stop()
        self.saver.save(wait=True)
        return self.state


def _monitorable(metrics: dict[str, float]) -> list[str]:
    """Names of the metrics among a row's entries."""
    return [name for name in metrics if name.startswith(("train/", "val/"))]
