"""PendingSteps: results of optimizer steps, which may still be on the device, are read, added up and reported in order."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from utils.training.engine import rng
from utils.training.engine.callbacks import CallbackList
from utils.training.engine.compute.assembly import Parts
from utils.training.engine.metrics import AUXILIARY, Sums, unpack_counts
from utils.training.engine.nonfinite import SkipRule
from utils.training.engine.plan import RunPlan
from utils.training.engine.state import Row, TrainState
from utils.training.engine.step import FAULT, OVERFLOWED, StepNumbers, StepResult

_MOST_STEP_ROWS = 1000  # a run's plot is not finer than this, and neither is its history
# The fp16 loss scale is halved at each overflow: after this many in a row it is not the cause.
_OVERFLOWS_IN_A_ROW = 40
# Steps after which a GPU is asked for their results: it always has some ahead, and a fault is reported within seconds.
_READ_EVERY = 16


@dataclass
class PendingStep:
    """A step whose numbers may still be on the device.

    Attributes:
        before: the random state before it; before_step, before_samples: the counters.
    """

    result: StepResult
    sample_ids: list[int]
    rate: float
    before: rng.Snapshot
    before_step: int
    before_samples: int


class PendingSteps:
    """Steps that are done and not yet accounted for.

    Args:
        plan, parts: of the run; state: what the results are added to.
        events: the callbacks, told of each step; write: takes the history rows of steps.
        at_once: whether each step is read before the next one begins; it is too where a callback asks for it, and on a CPU.

    Attributes:
        skips: limits of skipped steps.
        random_state_before: that before the step that is under way, or that ended the run; None between two steps.
    """

    def __init__(
        self, plan: RunPlan, parts: Parts, state: TrainState, events: CallbackList, write: Callable[[Row], None],
        at_once: bool,
    ) -> None:  # fmt: skip
        self._parts, self._state, self._events, self._write = parts, state, events, write
        self.skips = SkipRule(plan.config.on_nonfinite == "skip", state)
        self.random_state_before: rng.Snapshot | None = None
        self._unread: list[PendingStep] = []
        # Agreed on, or one process would stop at a fault before the others have seen it.
        prompt = parts.world.any(at_once or events.heard_promptly("on_step_end"))
        self._read_every = 1 if parts.guard is None or prompt else _READ_EVERY
        self._rows_every = max(1, math.ceil((plan.total_steps or 0) / _MOST_STEP_ROWS))
        self._overflows = 0
        self._row_began = time.monotonic()
        self._row_targets = state.targets_done

    def add(self, step: PendingStep) -> None:
        """Take a step that is done; its results are read at once, or (on a GPU) with the next few.

        Raises:
            NonFiniteError: the step, or one before it, had a loss or gradient that is not finite, and is not to be skipped.
                The state is the one before that step.
        """
        self._unread.append(step)
        self._state.step += 1
        self._state.samples_done += len(step.sample_ids)
        self.random_state_before = None
        if len(self._unread) >= self._read_every:
            self.read()

    def read(self) -> None:
        """Read the results of the steps since the last call, in order: sums, rows, callbacks, and faults (as `add`)."""
        unread, self._unread = self._unread, []
        if not unread:
            return
        for step, numbers in zip(unread, _numbers(unread), strict=True):
            self._account(step, numbers)

    def leave_out(self, seconds: float) -> None:
        """The last `seconds` were a pause: they do not count for the speed."""
        self._row_began += seconds

    def _account(self, step: PendingStep, numbers: StepNumbers) -> None:
        state, num_targets = self._state, step.result.num_targets
        loss_sum, counts, norm, outcome = numbers
        self._overflows = self._overflows + 1 if outcome == OVERFLOWED else 0
        mean = loss_sum / num_targets if num_targets else math.nan
        if outcome == FAULT or self._overflows > _OVERFLOWS_IN_A_ROW:
            self._skip_or_end(step, mean, norm)
        else:
            state.skipped_in_a_row = 0
            state.empty_steps += num_targets == 0
            *counted_by_task, auxiliary = counts
            counted = unpack_counts(counted_by_task, self._parts.objective.count_sizes)
            if auxiliary:  # else there is none
                counted[AUXILIARY] = [auxiliary]
            state.epoch_sums.add(loss_sum, num_targets, counted, norm)
            state.window_sums.add(loss_sum, num_targets, {}, norm)
            state.targets_done += num_targets
        number = step.before_step + 1
        self._add_row(number, step.rate, (mean, norm) if outcome == FAULT else None)
        if self._events.heard("on_step_end"):
            logs = {
                "train/loss": mean, "train/learning_rate": step.rate, "train/grad_norm": norm, "epoch": state.epoch,
                "targets_done": state.targets_done,
            }  # fmt: skip
            self._events.fire("on_step_end", number, logs=logs)

    def _add_row(self, number: int, rate: float, fault: tuple[float, float] | None) -> None:
        """A history row for the steps since the last one; at once for a step that was skipped.

        Args:
            fault: loss and gradient norm of a skipped step, of which at least one is not finite.
        """
        state = self._state
        if fault is None and number % self._rows_every:
            return
        now = time.monotonic()
        row: Row = {"event": "step", "step": number, "epoch": state.epoch}
        if fault is not None:
            loss, norm = fault
            row |= {"train/loss": loss, "skipped": True, "fault": f"loss is {loss:.4g}, gradient norm is {norm:.4g}"}
        else:
            means = {"train/loss": state.window_sums.mean_loss, "train/grad_norm": state.window_sums.mean_grad_norm}
            row |= {name: value for name, value in means.items() if value is not None}
        row["train/learning_rate"] = rate
        row["time/tokens_per_s"] = (state.targets_done - self._row_targets) / max(now - self._row_began, 1e-9)
        self._row_targets, self._row_began = state.targets_done, now
        state.window_sums = Sums()
        self._write(row)

    def _skip_or_end(self, step: PendingStep, loss: float, norm: float) -> None:
        """Skip within the limits, or end the run with the state of the step before."""
        if self.skips.try_skip(step.before_step, step.sample_ids):
            return
        state = self._state
        state.step, state.samples_done, self.random_state_before = step.before_step, step.before_samples, step.before
        raise self.skips.error(self._parts.model, step.before_step, loss, norm, step.rate, step.sample_ids)


def _numbers(steps: list[PendingStep]) -> list[StepNumbers]:
    """What the steps measured, with one device-to-host copy for all of them."""
    results = [step.result.numbers for step in steps]
    packed = [numbers for numbers in results if isinstance(numbers, torch.Tensor)]
    rows = iter(torch.stack(packed).tolist() if packed else ())
    return [numbers if isinstance(numbers, StepNumbers) else StepNumbers.unpack(next(rows)) for numbers in results]
