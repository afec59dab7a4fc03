"""A run while it is running, as data: made from the engine's events, read by whatever shows it. No widgets, no torch."""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from utils.environment import used_memory_bytes
from utils.scrubbing import describe_error
from utils.training.engine.callbacks import Callback
from utils.training.samples import as_prompt_and_text
from utils.ui.run_past import MAX_LIVE_POINTS, Curve, baseline_of, past_of
from utils.views.values import SCORES

if TYPE_CHECKING:
    from utils.training.engine.trainer import Trainer

Phase = Literal["starting", "training", "validating", "pausing", "paused", "stopping", "ended", "failed"]
Row = Mapping[str, Any]

# Weight of the past in the smoothed training loss: a mean over about 20 steps, as TensorBoard's slider at 0.95; until there are
# enough steps, over the last quarter of them, or it would stand far above a loss that falls fast at first.
_SMOOTHING, _QUARTER = 0.95, 4

# Seconds of steps that the shown speed is a mean of.
_SPEED_WINDOW_S = 10.0

# Seconds between two readings of the memory, which the training's thread takes.
_MEMORY_S = 1.0

# Validations and events that are kept: more than a view shows, and the same for a run of any length.
MAX_VALIDATIONS, MAX_EVENTS = 60, 60

# Steps with a loss that is not finite that are marked; the others are counted.
_MAX_MARKS = 1000

# A learning rate that was constant for this many steps and then changes by more than this share was changed by a schedule.
_CONSTANT_STEPS, _RATE_CHANGE = 10, 0.05


@dataclass(frozen=True)
class RunEvent:
    """One event of a run.

    Attributes:
        name: the callback's name for it, such as "on_step_end".
        at_s: when it happened, on `time.monotonic`'s clock.
        step: optimizer steps done by then.
        values: the event's logs, and what `LiveFeed` adds.
    """

    name: str
    at_s: float
    step: int
    values: Row


@dataclass
class Validated:
    """One validation: its step, training loss (smoothed) and validation loss by then, a second metric, and seconds of training.

    What is None is not known.
    """

    step: int
    train: float | None
    loss: float | None
    metric: float | None
    elapsed_s: float | None


class LiveFeed(Callback):
    """Hands the events of a run to `put`, in the thread that trains. It draws nothing and waits for nobody."""

    main_only = True
    may_be_late = True

    def __init__(self, put: Callable[[RunEvent], None]) -> None:
        self._put = put
        self._memory_read_s = -math.inf
        self._knows_baseline = False

    def _event(self, name: str, trainer: Trainer, values: Row | None) -> None:
        self._put(RunEvent(name, time.monotonic(), trainer.state.step, values or {}))

    def on_train_begin(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """With what the run did before it was continued, so that the curves are whole."""
        values = dict(logs or {})
        if "run_dir" in values:
            values |= past_of(Path(values["run_dir"]))
        values |= {"best_value": trainer.state.best.value, "best_step": trainer.state.best.step}
        values["over_tokens"] = getattr(getattr(trainer, "task", None), "over_tokens", True)
        values["epochs"], values["elapsed_s"] = trainer.training_config.epochs, trainer.state.elapsed_s
        self._event("on_train_begin", trainer, values)

    def on_step_end(self, step: int, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """Every step: a tuple in a queue, so a step costs microseconds more. Once a second with the memory in use."""
        now, values = time.monotonic(), logs or {}
        if trainer.state.finish_at is not None:
            values = {**values, "total_steps": trainer.state.finish_at}
        if now - self._memory_read_s >= _MEMORY_S and trainer.parts is not None:
            self._memory_read_s = now
            values = {**values, "memory_bytes": used_memory_bytes(trainer.parts.device.kind)}
        self._put(RunEvent("on_step_end", now, step, values))

    def on_evaluate_begin(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """A validation begins."""
        self._event("on_evaluate_begin", trainer, logs)

    def on_evaluate_end(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """A validation's metrics, and the best value so far."""
        best = trainer.state.best
        values = {**(logs or {}), "best_value": best.value, "best_step": best.step}
        # The doctor may write it after this callback's beginning.
        if not self._knows_baseline and trainer.run_dir is not None:
            values["baseline"] = baseline_of(trainer.run_dir)
            self._knows_baseline = True
        self._event("on_evaluate_end", trainer, values)

    def on_epoch_end(self, epoch: int, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """An epoch's row."""
        self._event("on_epoch_end", trainer, {**(logs or {}), "epoch": epoch})

    def on_checkpoint_saved(self, path: Path, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """A checkpoint is on disk."""
        self._event("on_checkpoint_saved", trainer, {"path": str(path)})

    def on_train_end(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """The run ended as it should."""
        self._event("on_train_end", trainer, {**(logs or {}), "elapsed_s": trainer.state.elapsed_s})


class LiveRun:
    """State of a run as its live view shows it.

    Attributes:
        name: the run's folder's name; step, total_steps: optimizer steps (total None: not known); epoch: the one under
            way, from 0; epochs: planned.
        loss, smoothed, validation, rate, norm, speed, memory: `Curve`s over steps; the smoothed one is an exponential mean
            over about 20 steps, `speed` is in targets per second, which
            `speed_unit` calls by their name, `memory` in bytes.
        baseline: name and loss of a model that ignores its inputs, or None; over_tokens: whether the loss is over tokens of a
            vocabulary, which is None until it is known.
        validations: `Validated`, the newest last; metric: what their second metric is, or None;
            best_score: its highest value where it is one of `SCORES`.
        log: (step, what happened), the newest last; event_count: how many there were, those that the log dropped included.
        nonfinite_steps: the first steps whose loss was NaN or infinite.
        saved_file: name of the newest checkpoint file, or None. The run may be some steps further than the file.
        best: best value of the monitored metric and the step of its validation (None: not recorded), or None.
        samples: newest sample texts as (prompt, text); predicts: whether they are predictions for samples, (input, text).
        sampled_step: when they were made; before, before_step: those of the validation before.
    """

    def __init__(self) -> None:
        self.name = ""
        self.run_dir: str | None = None
        self.step = 0
        self.total_steps: int | None = None
        self.epoch, self.epochs = 0, 0
        self.loss, self.validation = Curve(), Curve()
        self.smoothed, self.rate = Curve(MAX_LIVE_POINTS // 2), Curve(MAX_LIVE_POINTS // 4)  # they have few corners
        self.norm, self.speed, self.memory = (Curve(MAX_LIVE_POINTS // 4) for _ in range(3))
        self.speed_unit = "tokens/s"
        self.baseline: tuple[str, float] | None = None
        self.over_tokens: bool | None = None
        self.validations: deque[Validated] = deque(maxlen=MAX_VALIDATIONS)
        self.metric: str | None = None
        self.best_score: float | None = None
        self.log: deque[tuple[int, str]] = deque(maxlen=MAX_EVENTS)
        self.event_count = 0
        self._epoch_steps: dict[int, int] = {}
        self.nonfinite_steps: list[int] = []
        self.saved_file: str | None = None
        self.best: tuple[float, int | None] | None = None
        self.samples: list[tuple[str, str]] = []
        self.before: list[tuple[str, str]] = []
        self.sampled_step: int | None = None
        self.before_step: int | None = None
        self.predicts = False
        self.error: str | None = None
        self._phase: Phase = "starting"
        self._pause_asked = self._stop_asked = self._saved_since_pause = False
        self._mean, self._losses = 0.0, 0
        self._timed_s, self._timed_steps = 0.0, 0
        self._whole_s: float | None = None
        self._last_step_s: float | None = None
        self._past_s = self._past_epochs_s = 0.0
        self._constant_steps, self._constant_rate = 0, math.nan
        self._validation_began_s: float | None = None
        self._validation_s: float | None = None
        self._window: deque[tuple[float, int]] = deque()

    def apply(self, event: RunEvent) -> None:
        """Take in one event; they come in order."""
        self.step = event.step
        getattr(self, f"_{event.name}", self._ignore)(event)

    def requested(self, *, pause: bool, stop: bool) -> None:
        """Take over the requests made to the run's control so far."""
        if pause and not self._pause_asked:
            self._saved_since_pause = False
        if pause or self._pause_asked:
            self._forget_clock()
        self._pause_asked, self._stop_asked = pause, stop

    def failed(self, error: BaseException | str) -> None:
        """The run ended with an error, given as an exception or as its text."""
        self._phase = "failed"
        self.error = error if isinstance(error, str) else describe_error(error)

    def ended(self) -> None:
        """The run is over."""
        self._phase = "ended"

    @property
    def over(self) -> bool:
        """Whether the run has ended, with or without an error."""
        return self._phase in ("ended", "failed")

    @property
    def phase(self) -> Phase:
        """Phase of the run."""
        if self.over:
            return self._phase
        if self._stop_asked:
            return "stopping"
        if self._pause_asked:
            return "paused" if self._saved_since_pause else "pausing"
        return self._phase

    @property
    def tokens_per_s(self) -> float | None:
        """Targets per second over the last steps, without validations and pauses; None before there are two steps."""
        if len(self._window) < 2:
            return None
        (began, first), (ended, last) = self._window[0], self._window[-1]
        return (last - first) / (ended - began) if ended > began else None

    @property
    def remaining_s(self) -> float | None:
        """Seconds to the end at the pace since the run was started or continued, validations included and pauses not.

        None: not known yet.
        """
        if self.total_steps is None or not self._timed_steps:
            return None
        return max(0, self.total_steps - self.step) * self._timed_s / self._timed_steps

    @property
    def elapsed_s(self) -> float | None:
        """Seconds of training without pauses, including those before the run was continued; None while unknown.

        After the end of the run it is the training time of its results, which includes the time before the first step and
        after the last one.
        """
        if self._whole_s is not None:
            return self._whole_s
        return (self._past_s + self._timed_s) or None

    def validating_s(self, now_s: float) -> tuple[float, float | None] | None:
        """Seconds since the validation under way began, and how long the last one took (None: not known).

        None: no validation is under way.
        """
        if self.phase != "validating" or self._validation_began_s is None:
            return None
        return max(0.0, now_s - self._validation_began_s), self._validation_s

    # ---- events ----

    def _ignore(self, event: RunEvent) -> None:
        """An event that changes nothing that is shown."""

    def _on_train_begin(self, event: RunEvent) -> None:
        values = event.values
        self.total_steps, self.epochs = values.get("total_steps"), int(values.get("epochs") or 0)
        self._take_kind(values.get("over_tokens"))
        self.run_dir = values.get("run_dir")
        self.name = Path(self.run_dir).name if self.run_dir else ""
        for row in values.get("rows", ()):
            self._past_row(row)
        for row in values.get("past_samples", ()):
            self._take_samples(int(row["step"]), row["samples"])
        self._past_s = float(values.get("elapsed_s") or self._past_epochs_s)
        self._take_baseline(values)
        self._take_best(values)
        self._phase = "training"

    def _past_row(self, row: Row) -> None:
        step = int(row["step"])
        if row.get("event") == "step":
            self._add_step(step, row, row.get("time/tokens_per_s"))
        elif row.get("event") == "evaluate":
            self._add_validation(step, row, None)
        elif row.get("event") == "epoch":
            if "epoch" in row:
                self._epoch_steps[int(row["epoch"]) + 1] = step
            self._past_epochs_s += float(row.get("time/epoch_s") or 0.0)
            if self.validations and self.validations[-1].step == step:
                self.validations[-1].elapsed_s = self._past_epochs_s

    def _on_step_end(self, event: RunEvent) -> None:
        values = event.values
        self._phase = "training"
        if values.get("total_steps", self.total_steps) != self.total_steps:
            self.total_steps = values["total_steps"]
            self._note(event.step, f"finishing: decay until step {self.total_steps:,}")
        self.epoch = int(values.get("epoch", self.epoch))
        if self._last_step_s is not None:
            self._timed_s += event.at_s - self._last_step_s
            self._timed_steps += 1
        self._last_step_s = event.at_s
        self._window.append((event.at_s, int(values.get("targets_done", 0))))
        while event.at_s - self._window[0][0] > _SPEED_WINDOW_S and len(self._window) > 2:
            self._window.popleft()
        self._add_step(event.step, values, self.tokens_per_s)

    def _add_step(self, step: int, values: Row, speed: float | None) -> None:
        """A step's numbers, from its event or from its row in the history."""
        rate, norm, loss = (values.get(f"train/{name}") for name in ("learning_rate", "grad_norm", "loss"))
        self.rate.add(step, rate)
        self.norm.add(step, norm)
        self.speed.add(step, speed)
        self.memory.add(step, values.get("memory_bytes"))
        self._note_rate(step, rate)
        if loss is not None:
            self._add_loss(step, loss)
        bad = [
            f"{name} {value:.4g}" for name, value in (("loss", loss), ("gradient norm", norm))
            if value is not None and not math.isfinite(value)
        ]  # fmt: skip
        if bad or values.get("skipped"):
            self._note(step, f"Step skipped: {', '.join(bad) or values.get('fault', 'not finite')}")

    def _note_rate(self, step: int, rate: float | None) -> None:
        """An event where the learning rate was constant and is another now; warm-up and smooth decay make none."""
        if rate is None:
            return
        if rate == self._constant_rate:
            self._constant_steps += 1
            return
        before, held = self._constant_rate, self._constant_steps
        if held >= _CONSTANT_STEPS and abs(rate - before) > _RATE_CHANGE * abs(before):
            self._note(step, f"Learning rate {before:.3g} → {rate:.3g}")
        self._constant_rate, self._constant_steps = rate, 0

    def _add_loss(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            if len(self.nonfinite_steps) < _MAX_MARKS:
                self.nonfinite_steps.append(step)
            return
        self.loss.add(step, loss)
        past = min(_SMOOTHING, self._losses / (self._losses + _QUARTER))
        self._mean, self._losses = past * self._mean + (1 - past) * loss, self._losses + 1
        self.smoothed.add(step, self._mean)

    def _on_evaluate_begin(self, event: RunEvent) -> None:
        self._phase = "validating"
        self._validation_began_s = event.at_s
        self._window.clear()

    def _on_evaluate_end(self, event: RunEvent) -> None:
        self._phase = "training"
        if self._validation_began_s is not None:
            self._validation_s, self._validation_began_s = event.at_s - self._validation_began_s, None
        self._add_validation(event.step, event.values, self.elapsed_s)
        self._take_baseline(event.values)
        self._take_best(event.values)

    def _add_validation(self, step: int, values: Row, elapsed_s: float | None) -> None:
        loss = values.get("val/loss")
        self.validation.add(step, loss)
        if self.metric is None:
            self.metric = next((name for name in ("perplexity", *SCORES) if f"val/{name}" in values), None)
            if self.metric in SCORES:
                self._take_kind(False)
        found = None if self.metric is None else values.get(f"val/{self.metric}")
        if found is not None and self.metric in SCORES:
            self.best_score = found if self.best_score is None else max(self.best_score, found)
        if self.validations and self.validations[-1].step == step:
            self.validations.pop()
        self.validations.append(Validated(step, self.smoothed.last, loss, found, elapsed_s))

    def _take_kind(self, over_tokens: bool | None) -> None:
        """Whether the loss is over tokens decides the unit of the speed, and which baseline is to be expected."""
        self.over_tokens = over_tokens
        if over_tokens is False:
            self.speed_unit = "targets/s"

    def _take_baseline(self, values: Row) -> None:
        if values.get("baseline") is not None:
            self.baseline = values["baseline"]

    def _take_best(self, values: Row) -> None:
        if values.get("best_value") is not None:
            self.best = float(values["best_value"]), values.get("best_step")

    def _on_checkpoint_saved(self, event: RunEvent) -> None:
        self.saved_file = Path(event.values["path"]).name
        self._saved_since_pause = True
        # Written while training continues, it is reported at a later step than the one that its name gives.
        named = re.fullmatch(r"(step|epoch)_(\d+)\.pt", self.saved_file)
        step = event.step
        if named is not None:
            step = int(named[2]) if named[1] == "step" else self._epoch_steps.get(int(named[2]), step)
        entry = (step, f"Checkpoint {self.saved_file}")
        if entry not in self.log:  # the last step's checkpoint may be written again at the end
            self._note(*entry)

    def _on_epoch_end(self, event: RunEvent) -> None:
        self._epoch_steps[int(event.values["epoch"]) + 1] = event.step

    def _note(self, step: int, what: str) -> None:
        """List an event, in the order of steps."""
        self.event_count += 1
        later = [self.log.pop() for _ in range(sum(other > step for other, _ in self.log))]
        self.log.extend([(step, what), *reversed(later)])

    def _on_samples(self, event: RunEvent) -> None:
        self._take_samples(event.step, event.values["samples"])

    def _take_samples(self, step: int, rows: Iterable[Row]) -> None:
        kept = list(rows)
        if step != self.sampled_step:
            self.before, self.before_step = self.samples, self.sampled_step
        self.samples = [as_prompt_and_text(row) for row in kept]
        self.predicts = any("predicted" in row for row in kept)
        self.sampled_step = step

    def _on_train_end(self, event: RunEvent) -> None:
        self._phase = "ended"
        self._whole_s = event.values.get("elapsed_s")

    def _forget_clock(self) -> None:
        """Time that passes now is a pause: the next step's duration does not count."""
        self._last_step_s = None
        self._window.clear()
