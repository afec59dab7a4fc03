"""Going on from a checkpoint: what must be the same, what is said when it is not, and the optimizer's averages."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import nn

from utils.data.module import UniversalDataModule
from utils.errors import CheckpointError
from utils.training.engine.checkpoint import Payload
from utils.training.engine.parts import Parts
from utils.training.engine.sharding import parted_optimizer_state
from utils.training.engine.state import Best, TrainState
from utils.training.run_folder import Start
from utils.training.training_config import TrainingConfig

# What a fingerprint calls which parameters were not trained; absent where all were.
_FROZEN = "frozen parameters"

# Of the environment, what may change the last bits of a result.
_LAST_BITS = ("torch", "device", "device_name", "threads", "precision", "fast_paths")


def fingerprint_of(data: UniversalDataModule, tokenizer: Any, model: nn.Module) -> dict[str, str]:
    """What a run must have in common with its checkpoints besides the settings: name -> digest."""
    return {"data": data.digest(), "tokenizer": _tokenizer_digest(tokenizer), **_frozen_digest(model)}


def settings_changed(checkpoint: Payload, config: TrainingConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that change what is learnt and differ from the checkpoint's: {name: (there, here)}."""
    here, there = config.to_dict(), checkpoint["config"]
    names = [name for name in here if name not in TrainingConfig.NOT_LEARNT]
    return {name: (there.get(name), here[name]) for name in names if there.get(name) != here[name]}


def check_same(
    start: Start, config: TrainingConfig, environment: dict[str, Any], fingerprint: dict[str, str]
) -> list[str]:
    """Refuse or name every difference that would make the continued run another one.

    Args:
        environment: `environment_facts` of this process.
    Returns:
        a sentence for each kind of difference that there is.
    Raises:
        CheckpointError: settings or data differ, and the config says that this is an error; lists them all.
    """
    checkpoint = start.checkpoint
    assert checkpoint is not None
    changes = [
        f"{name}: {there!r} there, {here!r} here" for name, (there, here) in settings_changed(checkpoint, config).items()
    ]
    changes += [
        f"{name}: not the same as when it was saved"
        for name in {**fingerprint, **checkpoint["fingerprint"]}
        if checkpoint["fingerprint"].get(name) != fingerprint.get(name)
    ]
    if changes and start.in_place and config.on_config_change == "error":
        listed = "\n  ".join(changes)
        raise CheckpointError(
            f"{start.source} was trained with other settings:\n  {listed}\nTo train anew, choose another run_name; to go "
            'on with the new settings, set on_config_change="continue".'
        )
    said = []
    if changes:
        said.append(f"Continued with other settings, so not exactly the run that was saved: {'; '.join(changes)}.")
    moved = [
        f"{name} {checkpoint['environment'].get(name)} there, {environment[name]} here"
        for name in _LAST_BITS
        if checkpoint["environment"].get(name) != environment[name]
    ]
    if moved:
        said.append(f"Continued elsewhere, so the last bits may differ: {'; '.join(moved)}.")
    return said


def best_to_continue(state: TrainState, checkpoint: Payload, config: TrainingConfig, in_place: bool) -> Best:
    """The best so far, of a run that is continued in its place or of a new run that starts from the checkpoint.

    A new run's best is one of its own checkpoints, and the first of these is the one that it starts from.
    """
    there = checkpoint["config"]
    if (there.get("monitor", config.monitor), there.get("mode", config.mode)) != (config.monitor, config.mode):
        return Best()  # the value is of another metric
    if in_place or state.is_best:
        return state.best
    value = checkpoint["value"]
    return Best() if value is None else Best(value, max(1, state.epoch + bool(state.samples_done)), state.step)


def restore_optimizer(
    checkpoint: Payload, parts: Parts, config: TrainingConfig, fingerprint: dict[str, str], *, brought: bool
) -> str | None:
    """The optimizer's averages from the checkpoint, its settings as they are now: on a change, these hold.

    Args:
        brought: the optimizer is the caller's own, not the config's.
    Returns:
        why the optimizer starts afresh, a sentence; None when it does not.
    """
    if checkpoint["fingerprint"].get(_FROZEN) != fingerprint.get(_FROZEN):
        return "The optimizer starts afresh: other parameters were trained, and its averages are theirs."
    there = checkpoint.get("optimizer_kind") if brought else checkpoint["config"]["optimizer"]
    here = type(parts.optimizer).__name__ if brought else config.optimizer
    if there != here:
        return f"The optimizer starts afresh: {there}'s averages do not fit another one."
    groups = parts.optimizer.param_groups
    # The learning rate stays the checkpoint's: the schedule sets it before each step, and a row may come before one.
    settings = [{name: value for name, value in group.items() if name not in ("params", "lr")} for group in groups]
    parts.optimizer.load_state_dict(parted_optimizer_state(parts.optimizer, checkpoint["optimizer"]))
    for group, own in zip(parts.optimizer.param_groups, settings, strict=True):
        group.update(own)
    return None


def _frozen_digest(model: nn.Module) -> dict[str, str]:
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    return {_FROZEN: hashlib.sha256("\n".join(frozen).encode()).hexdigest()} if frozen else {}


def _tokenizer_digest(tokenizer: Any) -> str:
    """Changes when the tokenizer's vocabulary does; empty without a tokenizer."""
    if tokenizer is None or not hasattr(tokenizer, "get_vocab"):
        return ""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.blake2b(repr(vocabulary).encode(), digest_size=16).hexdigest()
