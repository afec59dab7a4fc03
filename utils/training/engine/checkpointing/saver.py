"""Decide when a run saves, and collect its whole state in one checkpoint payload."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from utils import __version__
from utils.errors import CheckpointWriteError
from utils.scrubbing import scrubbed
from utils.training.adapter_checkpoints import base_record, checkpoint_state
from utils.training.engine import rng
from utils.training.engine.callbacks import CallbackList
from utils.training.engine.checkpointing.background import BackgroundCommit
from utils.training.engine.checkpointing.snapshot import NoRoomError, SnapshotMemory, storage_bytes
from utils.training.engine.checkpointing.store import FORMAT, SCHEMA, CheckpointStore, Payload
from utils.training.engine.compute.assembly import Parts
from utils.training.engine.compute.buffers import run_states
from utils.training.engine.distributed.sharding import whole
from utils.training.engine.hardware import fast_paths
from utils.training.engine.plan import RunPlan
from utils.training.engine.state import TrainState

log = logging.getLogger("trainbook.engine")

SMALLEST_IN_BACKGROUND_BYTES = 4 << 20


def environment_facts(parts: Parts) -> dict[str, Any]:
    """Environment that exact resume depends on besides the checkpoint; differences are reported when a run is resumed."""
    return {
        "trainbook": __version__, "python": platform.python_version(), "torch": str(torch.__version__),
        "device": parts.device.kind,
        "device_name": parts.device.name, "threads": torch.get_num_threads(), "precision": parts.precision.compute,
        "processes": parts.world.size, "fast_paths": fast_paths.taken(),
    }  # fmt: skip


class RunSaver:
    """Commits the run's state at step boundaries; the loop tells it when something happened.

    Training waits for the copy of the state to memory; the rest is done by another thread, one commit at a time. Training
    waits for all of it when it has nothing else to do (the run ends or pauses), when the state is too small to be worth a
    thread, and when there is no memory for the copy. What is learned, and what is in the files, is the same either way.

    A save while the one before is still under way waits for it; only a save that is due by the clock comes later instead.
    Errors and `on_checkpoint_saved` reach the training's thread at its next step boundary, save or end.

    Args:
        plan: what the run does; parts, state: what is saved; store: where to.
        before_save: brings the state up to date (its clock).
        after_commit: told of each commit, its file and content, by the thread that made it.
        extras: further entries for a payload, under names of their own.
        fingerprint: digests of data and tokenizer.
    """

    def __init__(
        self, plan: RunPlan, parts: Parts, state: TrainState, store: CheckpointStore, events: CallbackList, *,
        run_name: str, fingerprint: dict[str, str], after_commit: Callable[[Path, Payload], None],
        extras: Callable[[Payload], Payload] = lambda payload: {},
    ) -> None:  # fmt: skip
        self.plan, self.config, self.store, self.parts, self.state = plan, plan.config, store, parts, state
        self._events, self._run_name, self._fingerprint = events, run_name, fingerprint
        self._after_commit, self._world, self._extras = after_commit, parts.world, extras
        self.before_save: Callable[[], None] = lambda: None
        self._saved_at = time.monotonic()
        self._memory: SnapshotMemory | None = SnapshotMemory()
        self._under_way: BackgroundCommit | None = None
        self._has_failed = False  # whether a save failed since the start, which a notice has reported

    def after_step(self) -> None:
        """Say what was committed meanwhile; save when `save_every_minutes` have passed and no save is under way."""
        if self._under_way is not None and not self._under_way.running:
            self.wait()
        minutes = self.config.save_every_minutes
        if minutes is None:
            return
        idle = self._under_way is None
        due = self._world.is_main and idle and time.monotonic() - self._saved_at >= minutes * 60
        if self._world.any(due):
            self.save()

    def after_evaluation(self, value: float | None) -> None:
        """Save a validation within an epoch that is among the best."""
        if self._world.any(self._is_among_best(value)):
            self.save(value, regular=False)

    def after_epoch(self, value: float | None) -> None:
        """Save at an epoch's end: when it is due, among the best, or the last."""
        last = self.state.stop_reason is not None
        due = self.state.epoch % self.config.save_every_n_epochs == 0 or last
        if self._world.any(due or self._is_among_best(value)):
            self.save(value, regular=due, wait=last)

    def _is_among_best(self, value: float | None) -> bool:
        """Whether the state as it is, with this value, is the best or one of the next best."""
        return value is not None and (self.state.is_best or self.store.would_be_best(value))

    def save(self, value: float | None = None, regular: bool = True, wait: bool = False) -> Path | None:
        """Save the state as it is. None when it failed and `on_save_error="warn"`, and on all processes but the main one.

        Args:
            value: the monitored metric of exactly this state, where it was measured.
            regular: False for a save that is only due because the value is among the best.
            wait: return when it is committed. Otherwise it may be under way, with the name that is returned.
        Raises:
            CheckpointWriteError: this one or the one before could not be written, with `on_save_error="stop"`.
        """
        self.wait()
        self.before_save()
        state = self.state
        if value is None:
            value = self.store.value_at(state.step)  # saved again, because of a stop: it is still worth what it was
        at_epoch_end = state.samples_done == 0 and state.epoch > 0
        name = f"epoch_{state.epoch}.pt" if at_epoch_end else f"step_{state.step}.pt"
        payload = self.payload(value, regular)
        self._saved_at = time.monotonic()
        if not self._world.is_main:
            return None
        copy = None if wait else self._copied(payload)
        if copy is None:
            return self._committed(lambda: self._commit(payload, name))
        self._under_way = BackgroundCommit(self.store, copy, name, self._after_commit)
        self._under_way.start()
        return self.store.folder / name

    def wait(self) -> None:
        """Wait for the save that is under way, if there is one. Raises `CheckpointWriteError` as `save` does."""
        under_way = self._under_way
        if under_way is not None:
            self._committed(lambda: self._outcome(under_way))

    def abandon(self) -> None:
        """Let go of the save that is under way, if there is one: the run is stopped at once."""
        if self._under_way is not None:
            self._under_way.abandon()
            self._under_way = None

    def _copied(self, payload: Payload) -> Payload | None:
        """A copy that another thread can write while training continues; None when this one had better write it."""
        if self._memory is None or storage_bytes(payload) < SMALLEST_IN_BACKGROUND_BYTES:
            return None
        try:
            return self._memory.take(payload)
        except NoRoomError as error:
            self._memory = None
            log.warning("Training waits while checkpoints are written: %s.", error)
            return None

    def _commit(self, payload: Payload, name: str) -> Path:
        path = self.store.commit(payload, name)
        self._after_commit(path, payload)
        return path

    def _outcome(self, under_way: BackgroundCommit) -> Path:
        under_way.wait()  # left by a second interrupt, it is still there to be abandoned
        self._under_way = None
        return under_way.outcome()

    def _committed(self, commit: Callable[[], Path]) -> Path | None:
        """Say that a checkpoint is committed, or what was in its way."""
        try:
            path = commit()
        except CheckpointWriteError as error:
            if self.config.on_save_error == "stop":
                raise
            log.warning("Training continues without this checkpoint: %s", error)
            if not self._has_failed:
                self._events.notice(
                    f"A checkpoint could not be saved, and training continued without it: {error} The results name those "
                    "that could be saved."
                )
            self._has_failed = True
            return None
        # When a commit is done depends on the disk: what a callback draws then must not change what comes.
        with rng.preserved():
            self._events.fire("on_checkpoint_saved", path)
        return path

    def payload(self, value: float | None, regular: bool) -> Payload:
        """Everything that a run needs to resume exactly: tensors and plain values only."""
        parts = self.parts
        payload = {
            "format": FORMAT,
            "schema": SCHEMA,
            "run": {"id": self.store.run_id, "name": self._run_name},
            "state": self.state.to_dict(),
            "value": value,
            "regular": regular,
            "model": self._whole(checkpoint_state(parts.model)),
            "optimizer": self._whole(parts.optimizer.state_dict()),
            "optimizer_kind": type(parts.optimizer).__name__,
            "schedule": parts.schedule.state_dict(),
            "scaler": None if parts.scaler is None else parts.scaler.state_dict(),
            **self._of_each_process(),
            "callbacks": self._events.state_dict(),
            "batch_plan": {
                "batch_size": self.plan.data.batch_size,
                "accumulation": self.config.gradient_accumulation_steps,
            },
            "config": scrubbed(self.config.to_dict()),
            "task_spec": scrubbed(self.plan.task_spec.to_dict()),
            "fingerprint": self._fingerprint,
            "environment": environment_facts(parts),
        }
        if carried := run_states(parts.model):
            payload["run_state"] = carried
        if parts.average is not None:
            payload["averaged"] = parts.average.state_dict()
        if base := base_record(parts.model):
            payload["base_model"] = base
        return {**self._extras(payload), **payload}

    def _whole(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state_dict as it is without sharding; on the main process only, where there is sharding."""
        return whole(state, self._world.is_main) if self.parts.sharded else state

    def _of_each_process(self) -> dict[str, Any]:
        """The random state of the main process; of the others, by rank, all in which they differ from it."""
        state = self.state
        own = {
            "rng": rng.capture(), "pieces": state.pieces.most, "validation_pieces": state.validation_pieces.most
        }  # fmt: skip
        main, *others = self._world.gather(own)
        return {"rng": main["rng"], "other_processes": others}
