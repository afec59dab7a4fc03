"""Finish now: a run on the plateau of the wsd schedule begins its decay at once and ends after it.

The end is chosen so that the run becomes the one that was planned with `max_steps` of that many steps; it is part of the saved
state, so a run that is stopped during the decay is resumed in it.
"""

from __future__ import annotations

from utils.training.engine.compute.assembly import Parts
from utils.training.engine.compute.optim import Schedule
from utils.training.engine.facade import Notice
from utils.training.engine.plan import RunPlan
from utils.training.engine.state import TrainState

#: Stop reason of a run that ended after such a decay.
FINISH_NOW = "finish_now"


def finish_now(plan: RunPlan, parts: Parts, state: TrainState, notice: Notice) -> None:
    """Let the decay begin with the next step, where the schedule allows it; the notice says what was decided."""
    schedule, planned = parts.schedule, plan.total_steps
    if not isinstance(schedule, Schedule) or schedule.shape != "wsd" or planned is None or schedule.total_steps is None:
        notice(
            "Finish now was ignored: only lr_schedule='wsd' has a decay that can begin at any step. Stop the run instead; its "
            "checkpoints stay."
        )
        return
    ends = schedule.earliest_end(state.step)
    if ends >= schedule.total_steps:
        notice(
            f"Finish now changed nothing: the decay has begun, and the run ends after step {schedule.total_steps:,}."
        )
        return
    state.finish_at = ends
    apply_early_end(plan, parts, state)
    notice(
        f"Finish now was requested after step {state.step:,}: the learning rate decays from there, and the run ends after step "
        f"{ends:,} instead of {planned:,}."
    )


def apply_early_end(plan: RunPlan, parts: Parts, state: TrainState) -> None:
    """Set schedule and weight average to the end in `state.finish_at`, where there is one."""
    if state.finish_at is None:
        return
    if isinstance(parts.schedule, Schedule):
        parts.schedule.total_steps = state.finish_at
    if parts.average is not None:
        parts.average.plan(plan.config, state.finish_at)


def last_step(plan: RunPlan, state: TrainState) -> int | None:
    """The optimizer step after which the run ends, whatever is left of its epochs; None: no such limit."""
    limits = [limit for limit in (plan.config.max_steps, state.finish_at) if limit is not None]
    return min(limits, default=None)


def limit_reason(state: TrainState) -> str:
    """Stop reason of a run that reached its step limit."""
    return FINISH_NOW if state.finish_at is not None and state.step >= state.finish_at else "max_steps"
