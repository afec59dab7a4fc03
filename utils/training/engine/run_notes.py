"""Write a run's config.yaml and state.json, and the run that it was forked from."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from utils.models.origins import origin_of
from utils.training.engine.checkpointing.store import Payload
from utils.training.engine.facade import Notice
from utils.training.engine.plan import RunPlan
from utils.training.engine.state import TrainState
from utils.training.run_folder import RunFolder
from utils.training.run_start import Start

# Model -> the run that trained it last in this process.
_TRAINED: weakref.WeakKeyDictionary[nn.Module, Path] = weakref.WeakKeyDictionary()


def write_description(
    start: Start, plan: RunPlan, model: nn.Module, base: nn.Module, setup: Mapping[str, Any] | None,
    sections: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write config.yaml, with where the data and the initial weights come from as far as it is known, and the lineage.

    Args:
        base: the model below an adapter; `model` itself where there is none.
        setup: how the data were prepared; None: unknown.
        sections: further sections, by name.
    """
    samples = {"train_samples": plan.data.num_train, "validation_samples": plan.data.num_validation}
    as_made = (start.checkpoint is None or start.in_place) and _TRAINED.get(model) in (None, start.folder.path)
    found: dict[str, Any] = {
        "data": samples,
        "setup": None if setup is None else dict(setup),
        "model": origin_of(base) if as_made else None,
    }
    known = {name: section for name, section in found.items() if section is not None}
    start.folder.write_description(plan.config.to_dict(), plan.task_spec.to_dict(), **{**known, **sections})
    if start.checkpoint is not None and not start.in_place:
        run, step = start.checkpoint["run"], start.checkpoint["state"]["step"]
        start.folder.write_lineage(
            "checkpoint", run["name"], parent_id=run["id"], checkpoint=str(start.source), step=step
        )


def note_state(folder: RunFolder, state: TrainState, status: str, **facts: Any) -> None:
    """Write state.json: where the run stands."""
    best = {"value": state.best.value, "step": state.best.step}
    folder.write_state(
        status,
        step=state.step,
        epoch=state.epoch,
        best=best,
        stop_reason=state.stop_reason,
        finish_at=state.finish_at,
        **facts,
    )


def note_commit(folder: RunFolder, payload: Payload) -> None:
    """Say in state.json what the newest checkpoint holds; called by the thread that wrote it."""
    state = payload["state"]
    best = {name: state["best"][name] for name in ("value", "step")}
    names = ("step", "epoch", "stop_reason", "finish_at")
    folder.write_state("running", best=best, **{name: state[name] for name in names})


def note_weights(model: nn.Module, start: Start, notice: Notice) -> None:
    """A notice when a new run starts from weights that another run of this process left in the model."""
    before = _TRAINED.get(model)
    if start.checkpoint is None and before is not None and before != start.folder.path:
        notice(
            f"The model was trained by run {before.name} before: run {start.folder.name} starts from those weights. "
            "Make the model anew to start from fresh ones."
        )
    _TRAINED[model] = start.folder.path


def nothing_left(start: Start, state: TrainState) -> str:
    """The notice of a run that is at its end before it has begun."""
    return (
        f"Nothing was trained: {start.source} is at the end of this plan already ({state.stop_reason}; {state.epoch} epochs, "
        f"{state.step} steps). To train further, set a larger {'max_steps' if state.stop_reason == 'max_steps' else 'epochs'}."
    )
