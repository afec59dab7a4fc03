"""A running training in words and numbers: from `LiveRun` to what `utils.views.live` draws."""

from __future__ import annotations

from collections.abc import Sequence

from utils.ui.live_run import LiveRun, Phase
from utils.views.curves import SMOOTHED_LOSS, VALIDATION_LOSS
from utils.views.live import LivePicture

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
    "stop_button": "Stopped by the Stop button and saved",
    "stop_file": "Stopped by the STOP file and saved",
    "time_limit": "Stopped at the time limit and saved",
    "interrupt": "Interrupted and saved",
    "terminated": "Terminated and saved",
    "broken off": "Ended without saving: its process is gone, and its newest checkpoint is intact",
}


def live_picture(run: LiveRun, notices: Sequence[str] = (), stop_reason: str | None = None) -> LivePicture:
    """What there is to see of `run` now; with `stop_reason` once it is over."""
    return LivePicture(
        heading=run.name or "Training",
        sentence=sentence(run, stop_reason),
        fraction=run.step / run.total_steps if run.total_steps else None,
        facts=_facts(run),
        loss=run.loss.points,
        smoothed=run.smoothed.points,
        validation=run.validation.points,
        rate=run.rate.points,
        last_step=run.total_steps,
        nonfinite_steps=run.nonfinite_steps,
        samples=run.samples,
        samples_title=_samples_title(run),
        notices=[*notices, *([run.error] if run.error else [])],
        over=run.over,
    )


def _samples_title(run: LiveRun) -> str:
    if run.sampled_step is None:
        return ""
    return f"What the model {'predicts' if run.predicts else 'writes'} (after step {run.sampled_step:,})"


def phase_text(run: LiveRun, stop_reason: str | None = None) -> str:
    """What the run is doing, in a few words."""
    if run.phase == "ended" and stop_reason is not None:
        return ENDINGS.get(stop_reason, f"Stopped ({stop_reason}) and saved")
    return _DOING[run.phase]


def sentence(run: LiveRun, stop_reason: str | None = None) -> str:
    """One line: what it does, how far it is, how long it will take."""
    parts = [phase_text(run, stop_reason)]
    if run.step or run.total_steps:
        total = f" of {run.total_steps:,}" if run.total_steps else ""
        parts.append(f"step {run.step:,}{total}")
    if run.epochs:
        parts.append(f"epoch {min(run.epoch + 1, run.epochs)} of {run.epochs}")
    if run.phase in ("training", "validating") and run.remaining_s is not None:
        parts.append(f"about {duration(run.remaining_s)} left")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """Seconds in words, to two units: "8 s", "3 min 20 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _facts(run: LiveRun) -> dict[str, str]:
    facts = {}
    if run.smoothed.last is not None:
        facts[SMOOTHED_LOSS] = f"{run.smoothed.last:.4f}"
    if run.validation.last is not None:
        facts[VALIDATION_LOSS] = f"{run.validation.last:.4f}"
    if run.best is not None:
        value, step = run.best
        facts["best"] = f"{value:.4f}" if step is None else f"{value:.4f} (step {step:,})"
    if run.rate.last is not None:
        facts["learning rate"] = f"{run.rate.last:.2e}"
    if run.tokens_per_s is not None and run.phase == "training":
        facts["tokens/s"] = f"{run.tokens_per_s:,.0f}"
    if run.saved_file is not None:
        facts["saved"] = run.saved_file
    return facts
