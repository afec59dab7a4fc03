"""Predict how training with a config treats the runs on disk: begin, resume, show a finished run, or refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import CheckpointError, CheckpointNotFoundError
from utils.storage import FolderLock

if TYPE_CHECKING:
    from utils.training.training_config import TrainingConfig

# Differences that a sentence lists; the others are counted.
_LISTED = 3


@dataclass(frozen=True)
class RunPlan:
    """Predicted outcome of `Trainer.train(..., resume_from="auto")`.

    Attributes:
        allowed: whether it would start, continue or return stored results, instead of raising.
        sentence: what it would do, or why not.
        free_name: a run name that is free, where choosing another one is a way out; None where it is not.
        settings_differ: whether `on_config_change="continue"` is a way out.
        done_steps: optimizer steps of the run that would be continued.
    """

    allowed: bool
    sentence: str
    free_name: str | None = None
    settings_differ: bool = False
    done_steps: int = 0


def run_plan(
    config: TrainingConfig, fingerprint: Mapping[str, str] | None = None, weights: Mapping[str, Any] | None = None
) -> RunPlan:
    """Predict what training does with the run that `config` names. Nothing is written.

    Args:
        fingerprint: of data, tokenizer and frozen parameters (`fingerprint_of`), compared with the checkpoint's;
            None: only the settings are compared.
        weights: entries of a checkpoint of this model, by name, as `weight_differences` takes them. Without them the model is
            not compared.
    """
    from utils.training.engine.checkpointing.store import newest_header

    name, output_dir = config.run_name, Path(config.output_dir)
    if name is None and config.checkpoint_dir is None:
        return RunPlan(True, f"A new run will be created in {config.output_dir} (exp1, exp2, …).")
    folder = output_dir / name if name is not None else None
    if config.checkpoint_dir is not None:
        checkpoints = Path(config.checkpoint_dir)
    else:
        assert folder is not None
        checkpoints = folder / "checkpoints"
    free_name = next_free_name(output_dir, name or "run")
    locks = [checkpoints / ".lock"] if folder is None else [folder / "lock", checkpoints / ".lock"]
    if any(FolderLock(lock).is_taken() for lock in locks):
        return RunPlan(False, f"Run {name or checkpoints} is being trained by another process.", free_name)
    try:
        path, payload = newest_header(checkpoints)
        misfits = [] if weights is None else _misfits(path, weights)
    except CheckpointNotFoundError:
        if folder is None or not folder.exists():
            return RunPlan(True, f"Run name {name} is free." if name else f"{checkpoints} holds no run yet.")
        return RunPlan(True, f"Run {name} has no checkpoint yet: it starts from the beginning.")
    except CheckpointError as error:
        return RunPlan(False, str(error), free_name)
    owner = str(payload["run"]["name"])
    if name is not None and not _is_named(owner, name):
        return RunPlan(False, f"{checkpoints} holds checkpoints of run {owner}, not of {name}.", free_name)
    if misfits:
        return RunPlan(False, f"Run {owner} is of another model: {_listed(misfits)}.", free_name)
    changes = _changes(payload, config, fingerprint)
    listed = _listed(changes)
    if changes and config.on_config_change == "error":
        # With another tokenizer the ids mean something else to weights that were trained before.
        can_continue = "another tokenizer" not in changes
        return RunPlan(False, f"Run {owner} exists with other settings: {listed}.", free_name, can_continue)
    return _continued(payload, config, owner, listed, free_name)


def _continued(payload: Mapping[str, Any], config: TrainingConfig, owner: str, changes: str, free_name: str) -> RunPlan:
    from utils.training.engine.state import TrainState

    state = TrainState.from_dict(payload["state"])
    steps = f"step {state.step:,}"
    more_to_do = state.epoch < config.epochs and (config.max_steps is None or state.step < config.max_steps)
    stopped_early = state.stop_reason in ("early_stopping", "finish_now") and not changes
    if state.ended and (not more_to_do or stopped_early):
        return RunPlan(
            True, f"Run {owner} is finished ({steps}): its stored results are shown, nothing is trained.", free_name,
            done_steps=state.step,
        )  # fmt: skip
    new = f" with the new settings ({changes})" if changes else ""
    return RunPlan(True, f"Run {owner} continues at {steps}{new}.", free_name, done_steps=state.step)


def _misfits(checkpoint: Path, weights: Mapping[str, Any]) -> list[str]:
    from utils.training.engine.checkpointing.store import read_checkpoint
    from utils.training.engine.checkpointing.weights import weight_differences

    return weight_differences(weights, read_checkpoint(checkpoint, mapped=True)["model"])


def _listed(phrases: Sequence[str]) -> str:
    more = f"; and {len(phrases) - _LISTED} more" if len(phrases) > _LISTED else ""
    return "; ".join(phrases[:_LISTED]) + more


def next_free_name(output_dir: Path, name: str) -> str:
    """`name`, or else `name-2`, `name-3` …: the first for which `output_dir` has no folder yet."""
    number, free = 1, name
    while (output_dir / free).exists():
        number += 1
        free = f"{name}-{number}"
    return free


def _is_named(owner: str, name: str) -> bool:
    """Whether `owner` is `name`, or what a run is called when that was taken."""
    suffix = owner.removeprefix(name)
    return owner.startswith(name) and (not suffix or (suffix[0] == "-" and suffix[1:].isdecimal()))


def _changes(payload: Mapping[str, Any], config: TrainingConfig, fingerprint: Mapping[str, str] | None) -> list[str]:
    """Differences from the run's newest checkpoint, a phrase each."""
    from utils.training.engine.checkpointing.resume import settings_changed
    from utils.ui.setting_values import shown_value, titled

    known = type(config).model_fields
    changed = settings_changed(dict(payload), config)
    phrases = [
        f"{titled(name)} {shown_value(name, there)} there, {shown_value(name, here)} here"
        for name, (there, here) in changed.items()
        if name in known
    ]
    saved = payload["fingerprint"]
    here = saved if fingerprint is None else fingerprint
    return phrases + [f"another {name}" for name in {**saved, **here} if saved.get(name) != here.get(name)]
