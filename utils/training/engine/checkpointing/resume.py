"""Resume from a checkpoint: which differences are refused or reported, and the parts that take up its content."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from utils.data.module import UniversalDataModule
from utils.errors import CheckpointError
from utils.schema import shown
from utils.training.adapter_checkpoints import check_base
from utils.training.engine import rng
from utils.training.engine.checkpointing.saver import environment_facts
from utils.training.engine.checkpointing.store import SCHEMA, Payload
from utils.training.engine.checkpointing.weights import fitting_weights, load_model_weights, plain_name
from utils.training.engine.compute.assembly import Parts
from utils.training.engine.compute.averaging import WeightAverage
from utils.training.engine.compute.buffers import load_run_states
from utils.training.engine.compute.optim import SHAPES_OF_A_PLAN, Schedule
from utils.training.engine.distributed.sharding import parted_optimizer_state, parted_weights
from utils.training.engine.distributed.world import World
from utils.training.engine.facade import Notice, RunFacade
from utils.training.engine.hardware.memory import Pieces
from utils.training.engine.plan import RunPlan
from utils.training.engine.state import Best, TrainState
from utils.training.optimizer_kinds import OPTIMIZERS
from utils.training.restoring import averages_misfit
from utils.training.run_start import Start
from utils.training.training_config import TrainingConfig

# What stands for this version's value of a setting that only another version has.
UNKNOWN = "unknown to this version"

# What a fingerprint calls which parameters were not trained; absent where all were.
_FROZEN = "frozen parameters"

# From which factor on a higher learning rate is reported.
_RISE = 1.01

# Of the environment, what may change the last bits of a result.
_LAST_BITS = ("torch", "device", "device_name", "threads", "precision", "fast_paths")


def restore_run(
    start: Start,
    plan: RunPlan,
    parts: Parts,
    fingerprint: dict[str, str],
    *,
    own: bool,
    facade: RunFacade,
    notice: Notice,
) -> TrainState:
    """The state to resume from; model, optimizer, schedule and random state are set to it.

    Args:
        fingerprint: `fingerprint_of` this run; own: the optimizer is the caller's, not the config's.
    Raises:
        CheckpointError: the checkpoint does not belong to this run, or a part cannot take it up; nothing was changed then.
    """
    facade.before_restore(start, parts)
    said: list[str] = []

    def told(sentence: str) -> None:
        said.append(sentence)
        notice(sentence)

    state = _restored(start, plan, parts, fingerprint, own, facade, told)
    facade.restored(start, state, said)
    return state


def _restored(
    start: Start, plan: RunPlan, parts: Parts, fingerprint: dict[str, str], own: bool, facade: RunFacade, notice: Notice
) -> TrainState:
    checkpoint, config, source = start.checkpoint, plan.config, str(start.source)
    if checkpoint is None:
        start.folder.keep_history(0, ())
        return TrainState()
    check_base(checkpoint, parts.model, source)
    for sentence in check_same(start, config, environment_facts(parts), fingerprint):
        notice(sentence)
    state = state_to_continue(start, checkpoint, config, parts.world)
    facade.resumed(state, checkpoint)
    afresh = optimizer_starts_afresh(checkpoint, parts, config, fingerprint, own=own)
    check_restorable(checkpoint, parts, config, source, afresh=afresh is not None, own=own)
    load_model_weights(parts.model, parted_weights(parts.model, checkpoint["model"]), source)
    load_run_states(parts.model, checkpoint.get("run_state", {}))
    if afresh is None:
        restore_optimizer(checkpoint, parts)
    else:
        notice(afresh)
    if parts.average is not None:
        _restore_average(checkpoint.get("averaged"), parts.average, notice)
    parts.schedule.load_state_dict(checkpoint["schedule"])
    if not state.ended and settings_changed(checkpoint, config):
        for sentence in rate_rises(checkpoint, parts.schedule, state.step):
            notice(sentence)
    if parts.scaler is not None and checkpoint.get("scaler"):
        parts.scaler.load_state_dict(checkpoint["scaler"])
    start.release()
    if state.ended and start.in_place:
        return state
    if parts.world.is_main:
        rng.restore(checkpoint["rng"])
    else:
        process = checkpoint["other_processes"][parts.world.rank - 1]
        rng.restore(process["rng"])
        state.pieces, state.validation_pieces = Pieces(process["pieces"]), Pieces(process["validation_pieces"])
    count = state.rows_written if start.in_place else 0
    state.rows_written = start.folder.keep_history(count, state.history)
    if not plan.data.resumable and state.samples_done:
        notice("The data come in their own order: what was consumed is read again and skipped; not exact.")
    return state


def rate_rises(checkpoint: Payload, schedule: Any, step: int) -> list[str]:
    """Sentence for a run whose new plan begins with a higher learning rate than it had; none where the rate does not rise.

    Args:
        schedule: of the new plan; step: the next one, from 0.
    """
    groups = checkpoint["optimizer"].get("param_groups") or [{}]
    last = groups[0].get("lr")
    if last is None or not isinstance(schedule, Schedule) or schedule.shape not in SHAPES_OF_A_PLAN:
        return []
    following = schedule.at(step)
    if step < schedule.warmup_steps or following <= last * _RISE:
        return []
    return [
        f"The learning rate rises from {last:.3g} in the last step to {following:.3g} in the next one: lr_schedule="
        f"{schedule.shape!r} now spans {schedule.total_steps:,} steps. To continue at the rate that the run had, set "
        f"lr_schedule='constant' and learning_rate={last:.3g}."
    ]


def _restore_average(saved: Mapping[str, Any] | None, average: WeightAverage, notice: Notice) -> None:
    if (reason := average.misfit(saved)) is None:
        assert saved is not None
        average.load_state_dict(saved)
    else:
        average.restart()
        notice(f"The average of the weights starts afresh: {reason}.")


def state_to_continue(start: Start, checkpoint: Payload, config: TrainingConfig, world: World) -> TrainState:
    """The checkpoint's state, with `stop_reason` None when there is more to do.

    Raises:
        CheckpointError: it is to be continued by another number of processes than wrote it.
    """
    state = TrainState.from_dict(checkpoint["state"])
    more_to_do = state.epoch < config.epochs and (config.max_steps is None or state.step < config.max_steps)
    stopped_early = state.stop_reason == "early_stopping"
    chosen = stopped_early or state.stop_reason == "finish_now"  # to end although there was more to do
    stopped_for_good = chosen and start.in_place and not settings_changed(checkpoint, config)
    if not state.ended or (more_to_do and not stopped_for_good):
        if state.ended or not start.in_place:
            state.finish_at = None  # a longer plan, or another run with a plan of its own
        state.stop_reason = None
        if stopped_early:
            state.best.waits = 0  # or it would stop again at its first validation
    if not (state.ended and start.in_place):
        state.best = best_to_continue(state, checkpoint, config, start.in_place)
    saved_by = 1 + len(checkpoint.get("other_processes", ()))
    if saved_by != world.size and not (state.ended and start.in_place):
        start_with = f"torchrun --nproc_per_node={saved_by}" if saved_by > 1 else "no torchrun"
        raise CheckpointError(
            f"{start.source} was saved by {saved_by} process{'es' if saved_by > 1 else ''}, and this training has "
            f"{world.size}: a step would hold other samples, and dropout would be another. Continue it with {start_with}; "
            "to start from its weights in a new run, load them into the model first."
        )
    return state


def fingerprint_of(data: UniversalDataModule, tokenizer: Any, model: nn.Module) -> dict[str, str]:
    """Digests of everything besides the settings that must match between a run and its checkpoints: name -> digest."""
    return {"data": data.digest(), "tokenizer": _tokenizer_digest(tokenizer), **_frozen_digest(model)}


def settings_changed(checkpoint: Payload, config: TrainingConfig) -> dict[str, tuple[Any, Any]]:
    """Settings that change what is learned and differ from the checkpoint's: {name: (there, here)}."""
    here = config.to_dict()
    there, unknown = TrainingConfig.from_saved(checkpoint["config"])
    names = [name for name in here if name not in TrainingConfig.NOT_LEARNED]
    changed = {name: (there[name], here[name]) for name in names if there[name] != here[name]}
    return {**changed, **{name: (value, UNKNOWN) for name, value in unknown.items()}}


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
        f"{name}: {there!r} there, {here!r} here"
        for name, (there, here) in settings_changed(checkpoint, config).items()
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
    if (schema := checkpoint.get("schema", 1)) > SCHEMA:
        made_by = checkpoint["environment"].get("trainbook", "an unknown version")
        said.append(
            f"{start.source} was saved by a newer Trainbook ({made_by}, schema {schema}; this version knows schemas up to "
            f"{SCHEMA}): what only the newer one saves is not restored."
        )
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


def optimizer_starts_afresh(
    checkpoint: Payload, parts: Parts, config: TrainingConfig, fingerprint: dict[str, str], *, own: bool
) -> str | None:
    """Explain why the optimizer state is not taken from the checkpoint, in a sentence; None when it is.

    Args:
        own: the optimizer is the caller's, not the config's.
    """
    if checkpoint["fingerprint"].get(_FROZEN) != fingerprint.get(_FROZEN):
        return "The optimizer starts afresh: other parameters were trained, and its averages are theirs."
    there = checkpoint.get("optimizer_kind") if own else TrainingConfig.from_saved(checkpoint["config"])[0]["optimizer"]
    here = type(parts.optimizer).__name__ if own else config.optimizer
    return None if there == here else f"The optimizer starts afresh: {there}'s averages do not fit another one."


def check_restorable(
    checkpoint: Payload, parts: Parts, config: TrainingConfig, source: str, *, afresh: bool, own: bool
) -> None:
    """Raise `CheckpointError` when a part cannot take up what the checkpoint holds for it; nothing is changed before.

    Args:
        afresh: the optimizer's averages are not taken up; own: the optimizer is the caller's, not the config's.
    """
    fitting_weights(parts.model, checkpoint["model"], source)
    reasons = []
    if not afresh:
        needed = () if own else OPTIMIZERS[config.optimizer].entries
        optimizer = checkpoint["optimizer"]
        reason = averages_misfit(parts.optimizer, optimizer, needed) if optimizer else "it is empty"
        reasons += [f"optimizer: {reason}"] if reason else []
    memories: list[tuple[str, Any, dict[str, Any]]] = [("schedule", parts.schedule, checkpoint["schedule"])]
    if parts.scaler is not None and checkpoint.get("scaler"):
        memories.append(("scaler", parts.scaler, checkpoint["scaler"]))
    for name, part, saved in memories:
        reasons += [f"{name}.{entry}" for entry in _wrong_numbers(part.state_dict(), saved)]
    states = [checkpoint["rng"], *(other["rng"] for other in checkpoint.get("other_processes", ()))]
    if any(missing := [name for name in ("python", "numpy", "torch") if name not in state] for state in states):
        reasons.append(f"rng: it lacks {', '.join(missing)}")
    if reasons:
        raise CheckpointError(f"{source} cannot be resumed from: {'; '.join(reasons)}. Use an older checkpoint.")


def _wrong_numbers(own: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """Entries that are numbers in a part's own state_dict and something else, or NaN, in the saved one."""
    return [
        f"{name}: got {shown(saved[name])}; must be a number"
        for name, value in own.items()
        if type(value) in (int, float) and name in saved and not _like(saved[name], value)
    ]


def _like(saved: Any, value: float) -> bool:
    return type(saved) is int if type(value) is int else type(saved) in (int, float) and not math.isnan(saved)


def restore_optimizer(checkpoint: Payload, parts: Parts) -> None:
    """Take the optimizer's averages from the checkpoint, its settings as they are now: on a change, these hold."""
    groups = parts.optimizer.param_groups
    # The learning rate stays the checkpoint's: the schedule sets it before each step, and a row may come before one.
    settings = [{name: value for name, value in group.items() if name not in ("params", "lr")} for group in groups]
    saved = checkpoint["optimizer"]
    if parts.device.kind == "cpu":
        # On the same device the optimizer keeps the tensors that it is given, and these are views of the file.
        saved = {**saved, "state": copy.deepcopy(saved["state"])}
    parts.optimizer.load_state_dict(parted_optimizer_state(parts.optimizer, saved))
    for group, own in zip(parts.optimizer.param_groups, settings, strict=True):
        group.update(own)


def _frozen_digest(model: nn.Module) -> dict[str, str]:
    frozen = [plain_name(name) for name, parameter in model.named_parameters() if not parameter.requires_grad]
    return {_FROZEN: hashlib.sha256("\n".join(frozen).encode()).hexdigest()} if frozen else {}


def _tokenizer_digest(tokenizer: Any) -> str:
    """Changes when the tokenizer's vocabulary does; empty without a tokenizer."""
    if tokenizer is None or not hasattr(tokenizer, "get_vocab"):
        return ""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.blake2b(repr(vocabulary).encode(), digest_size=16).hexdigest()
