"""A running training in words and numbers: from `LiveRun` to what `utils.views.live` draws."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from utils.ui.live_run import LiveRun, Phase
from utils.ui.run_past import Curve
from utils.views.curves import SMOOTHED_LOSS, VALIDATION_LOSS
from utils.views.live import LivePicture, Notice, Small, Validation
from utils.views.values import SCORES, score_card

_DOING: dict[Phase, str] = {
    "starting": "Getting ready",
    "training": "Training",
    "validating": "Validating",
    "pausing": "Pausing: finishing the step and saving",
    "paused": "Paused and saved",
    "stopping": "Stopping: finishing the step and saving",
    "ended": "Ended",
    "failed": "Failed",
}

#: stop reason -> what it means.
ENDINGS = {
    "finished": "Finished",
    "max_steps": "Finished: the step limit is reached",
    "early_stopping": "Finished early: no more improvement",
    "finish_now": "Finished early: the decay began when it was requested",
    "keep_best": "Stopped and saved; the results have the best checkpoint's weights",
    "stop_button": "Stopped by the Stop button and saved",
    "stop_file": "Stopped by the STOP file and saved",
    "time_limit": "Stopped at the time limit and saved",
    "interrupt": "Interrupted and saved",
    "terminated": "Terminated and saved",
    "broken off": "Ended without saving: its process is gone, and its newest checkpoint is intact",
}


# Rows of a table and events that are shown; the best validation always is.
_ROWS, _EVENTS = 7, 6


def live_picture(run: LiveRun, notices: Sequence[str] = (), stop_reason: str | None = None) -> LivePicture:
    """Snapshot of `run` to draw; with `stop_reason` once it is over."""
    return LivePicture(
        heading=run.name or "Training",
        sentence=sentence(run, stop_reason),
        fraction=run.step / run.total_steps if run.total_steps else None,
        facts=_facts(run),
        loss=run.loss.points,
        smoothed=run.smoothed.points,
        validation=run.validation.points,
        rate=run.rate.points,
        smalls=_smalls(run),
        baselines={} if run.baseline is None else dict([run.baseline]),
        last_step=run.total_steps,
        nonfinite_steps=run.nonfinite_steps,
        where=" · ".join(_place(run)) if run.phase in ("training", "validating") else "",
        elapsed="" if run.elapsed_s is None else f"{duration(run.elapsed_s)} elapsed",
        left=_left(run),
        validating=_validating(run),
        validations=_validations(run),
        metric=SCORES.get(run.metric or "", run.metric or ""),
        events=list(run.log)[: -_EVENTS - 1 : -1],
        event_count=run.event_count,
        samples=run.samples,
        samples_title=_samples_title(run),
        before=run.before,
        before_title="" if run.before_step is None else f"before, step {run.before_step:,}",
        notices=[*map(_notice, notices), *([Notice("fail", "failed", run.error)] if run.error else [])],
        over=run.over,
        state=_state(run, stop_reason),
        advice=_advice(run, stop_reason),
    )


def _advice(run: LiveRun, stop_reason: str | None) -> str:
    """How to continue a run that was stopped before its end."""
    if _state(run, stop_reason) not in ("stopped", "broken off"):
        return ""
    return (
        f"To continue {'from its newest checkpoint' if stop_reason == 'broken off' else 'it'}, run the training again."
    )


def _state(run: LiveRun, stop_reason: str | None) -> str:
    """A run that was stopped before its end, or whose process is gone, has not "ended"."""
    if run.phase != "ended" or stop_reason in (None, "finished", "max_steps", "early_stopping", "finish_now"):
        return run.phase
    return "broken off" if stop_reason == "broken off" else "stopped"


def _smalls(run: LiveRun) -> list[Small]:
    """Learning rate, gradient norm, speed and memory."""
    shown: list[tuple[str, Curve, str, Callable[[float], str]]] = [
        ("learning rate", run.rate, "train", lambda value: f"{value:.3g}"),
        ("gradient norm", run.norm, "base", lambda value: f"{value:.3g}"),
        (run.speed_unit, run.speed, "good", lambda value: f"{value:,.0f}"),
        ("memory (GiB)", run.memory, "soft", lambda value: f"{value:.2f}"),
    ]
    smalls = []
    for name, curve, colour, words in shown:
        points = [(step, value / 2**30) for step, value in curve.points] if curve is run.memory else curve.points
        if points:
            smalls.append(Small(name, words(points[-1][1]), points, colour))
    return smalls


def _left(run: LiveRun) -> str:
    going_on = run.phase in ("training", "validating") and run.remaining_s is not None
    return f"about {duration(run.remaining_s or 0)} left" if going_on else ""


def _validating(run: LiveRun) -> str:
    found = run.validating_s(time.monotonic())
    if found is None:
        return ""
    spent, usual = found
    return f"validating for {duration(spent)}" + (f" of about {duration(usual)}" if usual else "")


def _validations(run: LiveRun) -> list[Validation]:
    best = None if run.best is None else run.best[1]
    rows = list(run.validations)[::-1]
    shown = rows[:_ROWS] + [row for row in rows[_ROWS:] if row.step == best]
    return [
        Validation(
            f"{row.step:,}", _number(row.train, ".3f"), _number(row.loss, ".3f"), _number(row.metric, ".4g"),
            "" if row.elapsed_s is None else clock(row.elapsed_s), row.step == best,
        )
        for row in shown
    ]  # fmt: skip


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _notice(sentence: str) -> Notice:
    """A notice of the trainer; the doctor's and those about memory are warnings with a title of their own."""
    who, _, rest = sentence.partition(": ")
    if who.startswith("Doctor, ") and rest:
        return Notice("note" if rest.startswith("no longer") else "warn", who.removeprefix("Doctor, "), rest)
    if sentence.startswith("Out of memory"):
        return Notice("warn", "memory", sentence)
    return Notice("note", "", sentence)


def _samples_title(run: LiveRun) -> str:
    if run.sampled_step is None:
        return ""
    return f"What the model {'predicts' if run.predicts else 'writes'} (after step {run.sampled_step:,})"


def phase_text(run: LiveRun, stop_reason: str | None = None) -> str:
    """The run's phase in a few words."""
    if run.phase == "ended" and stop_reason is not None:
        return ENDINGS.get(stop_reason, f"Stopped ({stop_reason}) and saved")
    return _DOING[run.phase]


def sentence(run: LiveRun, stop_reason: str | None = None) -> str:
    """One line: what it does, how far it is, how long it will take."""
    return " · ".join(filter(None, [phase_text(run, stop_reason), *_place(run), _left(run)]))


def _place(run: LiveRun) -> list[str]:
    """Progress of the run."""
    parts = []
    if run.step or run.total_steps:
        total = f" of {run.total_steps:,}" if run.total_steps else ""
        parts.append(f"step {run.step:,}{total}")
    if run.epochs:
        parts.append(f"epoch {min(run.epoch + 1, run.epochs)} of {run.epochs}")
    return parts


def duration(seconds: float) -> str:
    """Seconds in words, to two units: "8 s", "3 min 20 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def clock(seconds: float) -> str:
    """Seconds as on a clock: "0:08", "3:20", "2:05:00"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _awaits_baseline(run: LiveRun) -> bool:
    """Whether a baseline can still come: with its first validation a language model has one, or there is none."""
    return not run.over and run.over_tokens is not False and run.validation.last is None


def _facts(run: LiveRun) -> dict[str, str]:
    facts = {}
    # While a run is under way, numbers that are still to come have their places: the page must not jump.
    if run.smoothed.last is not None or not run.over:
        facts[SMOOTHED_LOSS] = _number(run.smoothed.last, ".4f") or "–"
    if run.validation.last is not None or not run.over:
        facts[VALIDATION_LOSS] = _number(run.validation.last, ".4f") or "– (none yet)"
    if run.best_score is not None and run.validations:
        facts |= score_card(run.metric or "", run.validations[-1].metric, run.best_score)
    if run.best is not None:
        value, step = run.best
        facts["best"] = f"{value:.4f}" if step is None else f"{value:.4f} (step {step:,})"
    elif not run.over:
        facts["best"] = "–"
    if run.baseline is not None and run.validation.last is not None:
        name, loss = run.baseline
        better = run.validation.last <= loss
        facts[f"{'below' if better else 'above'} baseline by"] = (
            f"{abs(loss - run.validation.last):.3f} ({name} {loss:.3f})"
        )
    elif _awaits_baseline(run):
        facts["below baseline by"] = "–"
    if run.saved_file is not None or not run.over:
        facts["saved"] = run.saved_file or "–"
    return facts
