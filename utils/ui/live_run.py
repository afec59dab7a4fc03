"""A run while it goes on, as data: made from the engine's events, read by whatever shows it. No widgets, no torch."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from utils.scrubbing import describe_error
from utils.storage import read_json_lines
from utils.training.engine.callbacks import Callback
from utils.training.samples import as_prompt_and_text, read_samples
from utils.views.curves import Points, decimated

if TYPE_CHECKING:
    from utils.training.engine.trainer import Trainer

Phase = Literal["starting", "training", "validating", "pausing", "paused", "stopping", "ended", "failed"]
Row = Mapping[str, Any]

# Most points of a live curve: it is drawn anew twice a second, and a panel is not wider than this.
MAX_LIVE_POINTS = 400

# Weight of the past in the smoothed training loss: a mean over about 20 steps, as TensorBoard's slider at 0.95.
_SMOOTHING = 0.95

# Seconds of steps that the shown speed is a mean of.
_SPEED_WINDOW_S = 10.0


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


def past_of(run_dir: Path) -> dict[str, Any]:
    """What a run's folder says about its past: "rows" of its history, and "past_samples", the newest, where there are any."""
    samples = read_samples(run_dir)
    return {
        "rows": read_json_lines(run_dir / "history.jsonl"), **({"past_samples": samples[-1]} if samples else {}),
    }  # fmt: skip


class LiveFeed(Callback):
    """Hands the events of a run to `put`, in the thread that trains. It draws nothing and waits for nobody."""

    main_only = True
    may_be_late = True

    def __init__(self, put: Callable[[RunEvent], None]) -> None:
        self._put = put

    def _event(self, name: str, trainer: Trainer, values: Row | None) -> None:
        self._put(RunEvent(name, time.monotonic(), trainer.state.step, values or {}))

    def on_train_begin(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """With what the run did before it was continued, so that the curves are whole."""
        values = dict(logs or {})
        if "run_dir" in values:
            values |= past_of(Path(values["run_dir"]))
        values |= {"best_value": trainer.state.best.value, "best_step": trainer.state.best.step}
        values["epochs"] = trainer.training_config.epochs
        self._event("on_train_begin", trainer, values)

    def on_step_end(self, step: int, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """Every step: a tuple in a queue, so a step costs microseconds more."""
        self._put(RunEvent("on_step_end", time.monotonic(), step, logs or {}))

    def on_evaluate_begin(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """A validation begins."""
        self._event("on_evaluate_begin", trainer, logs)

    def on_evaluate_end(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """A validation's metrics, and the best value so far."""
        best = trainer.state.best
        self._event("on_evaluate_end", trainer, {**(logs or {}), "best_value": best.value, "best_step": best.step})

    def on_epoch_end(self, epoch: int, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """An epoch's row."""
        self._event("on_epoch_end", trainer, {**(logs or {}), "epoch": epoch})

    def on_checkpoint_saved(self, path: Path, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """A checkpoint is on disk."""
        self._event("on_checkpoint_saved", trainer, {"path": str(path)})

    def on_train_end(self, trainer: Trainer, logs: dict[str, Any] | None = None) -> None:
        """The run ended as it should."""
        self._event("on_train_end", trainer, logs)


class Curve:
    """Points of one curve, at most `2 * limit` of them: of a longer one the extremes of each stretch are kept."""

    def __init__(self, limit: int = MAX_LIVE_POINTS) -> None:
        self._limit = limit
        self._points: Points = []

    def add(self, step: float, value: float | None) -> None:
        """Add a point; None and values that are not finite are left out."""
        if value is None or not math.isfinite(value):
            return
        self._points.append((float(step), float(value)))
        if len(self._points) > 2 * self._limit:
            self._points = decimated(self._points, self._limit)

    @property
    def points(self) -> Points:
        """(step, value), at most `limit`."""
        return decimated(self._points, self._limit)

    @property
    def last(self) -> float | None:
        """The newest value."""
        return self._points[-1][1] if self._points else None


class LiveRun:
    """State of a run as its live view shows it.

    Attributes:
        name: the run's folder's name; step, total_steps: optimizer steps (total None: not known); epoch: the one under
            way, from 0; epochs: planned.
        loss, smoothed, validation, rate: `Curve`s over steps; the smoothed one is an exponential mean over about 20 steps.
        nonfinite_steps: steps whose loss was NaN or infinite.
        saved_file: name of the newest checkpoint file, or None. The run may be some steps further than the file.
        best: best value of the monitored metric and the step of its validation (None: not recorded), or None.
        samples: newest sample texts as (prompt, text); predicts: whether they are predictions for samples, (input, text).
    """

    def __init__(self) -> None:
        self.name = ""
        self.run_dir: str | None = None
        self.step = 0
        self.total_steps: int | None = None
        self.epoch, self.epochs = 0, 0
        self.loss, self.validation = Curve(), Curve()
        self.smoothed, self.rate = Curve(MAX_LIVE_POINTS // 2), Curve(MAX_LIVE_POINTS // 4)  # they have few corners
        self.nonfinite_steps: list[int] = []
        self.saved_file: str | None = None
        self.best: tuple[float, int | None] | None = None
        self.samples: list[tuple[str, str]] = []
        self.sampled_step: int | None = None
        self.predicts = False
        self.error: str | None = None
        self._phase: Phase = "starting"
        self._pause_asked = self._stop_asked = self._saved_since_pause = False
        self._mean = self._weight = 0.0
        self._timed_s, self._timed_steps = 0.0, 0
        self._last_step_s: float | None = None
        self._window: deque[tuple[float, int]] = deque()

    def apply(self, event: RunEvent) -> None:
        """Take in one event; they come in order."""
        self.step = event.step
        getattr(self, f"_{event.name}", self._ignore)(event)

    def requested(self, *, pause: bool, stop: bool) -> None:
        """What the run's control has been asked for by now."""
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
        """What the run is doing."""
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

    # ---- events ----

    def _ignore(self, event: RunEvent) -> None:
        """An event that changes nothing that is shown."""

    def _on_train_begin(self, event: RunEvent) -> None:
        values = event.values
        self.total_steps, self.epochs = values.get("total_steps"), int(values.get("epochs") or 0)
        self.run_dir = values.get("run_dir")
        self.name = Path(self.run_dir).name if self.run_dir else ""
        for row in values.get("rows", ()):
            self._past_row(row)
        if values.get("past_samples"):
            self._take_samples(int(values["past_samples"]["step"]), values["past_samples"]["samples"])
        self._take_best(values)
        self._phase = "training"

    def _past_row(self, row: Row) -> None:
        if row.get("event") == "step":
            self._add_loss(int(row["step"]), row.get("train/loss"), row.get("train/learning_rate"))
        elif row.get("event") == "evaluate":
            self.validation.add(int(row["step"]), row.get("val/loss"))

    def _on_step_end(self, event: RunEvent) -> None:
        values = event.values
        self._phase = "training"
        self.epoch = int(values.get("epoch", self.epoch))
        self._add_loss(event.step, values.get("train/loss"), values.get("train/learning_rate"))
        if self._last_step_s is not None:
            self._timed_s += event.at_s - self._last_step_s
            self._timed_steps += 1
        self._last_step_s = event.at_s
        self._window.append((event.at_s, int(values.get("targets_done", 0))))
        while event.at_s - self._window[0][0] > _SPEED_WINDOW_S and len(self._window) > 2:
            self._window.popleft()

    def _add_loss(self, step: int, loss: float | None, rate: float | None) -> None:
        self.rate.add(step, rate)
        if loss is None:
            return
        if not math.isfinite(loss):
            self.nonfinite_steps.append(step)
            return
        self.loss.add(step, loss)
        # Divided by the weights so far, so that the start is not pulled to zero (Kingma & Ba 2014, section 3).
        self._mean = _SMOOTHING * self._mean + (1 - _SMOOTHING) * loss
        self._weight = _SMOOTHING * self._weight + (1 - _SMOOTHING)
        self.smoothed.add(step, self._mean / self._weight)

    def _on_evaluate_begin(self, event: RunEvent) -> None:
        self._phase = "validating"
        self._window.clear()

    def _on_evaluate_end(self, event: RunEvent) -> None:
        self._phase = "training"
        self.validation.add(event.step, event.values.get("val/loss"))
        self._take_best(event.values)

    def _take_best(self, values: Row) -> None:
        if values.get("best_value") is not None:
            self.best = float(values["best_value"]), values.get("best_step")

    def _on_checkpoint_saved(self, event: RunEvent) -> None:
        self.saved_file = Path(event.values["path"]).name
        self._saved_since_pause = True

    def _on_samples(self, event: RunEvent) -> None:
        self._take_samples(event.step, event.values["samples"])

    def _take_samples(self, step: int, rows: Iterable[Row]) -> None:
        kept = list(rows)
        self.samples = [as_prompt_and_text(row) for row in kept]
        self.predicts = any("predicted" in row for row in kept)
        self.sampled_step = step

    def _on_train_end(self, event: RunEvent) -> None:
        self._phase = "ended"

    def _forget_clock(self) -> None:
        """Time that passes now is a pause: the next step's duration does not count."""
        self._last_step_s = None
        self._window.clear()
