"""When and what a run saves: the state of everything, as one checkpoint payload."""

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
from utils.training.engine import rng
from utils.training.engine.callbacks import CallbackList
from utils.training.engine.checkpoint import FORMAT, CheckpointStore, Payload
from utils.training.engine.parts import Parts
from utils.training.engine.sharding import whole
from utils.training.engine.state import TrainState
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

log = logging.getLogger("trainbook.engine")


def environment_facts(parts: Parts) -> dict[str, Any]:
    """What exact resume depends on besides the checkpoint; a difference is named when a run is continued."""
    return {
        "trainbook": __version__, "python": platform.python_version(), "torch": str(torch.__version__),
        "device": parts.device.kind,
        "device_name": parts.device.name, "threads": torch.get_num_threads(), "precision": parts.precision.compute,
        "processes": parts.world.size,
    }  # fmt: skip


class RunSaver:
    """Commits the run's state at step boundaries; the loop tells it when something happened.

    Args:
        before_save: brings the state up to date (its clock).
        after_commit: told of each commit.
        fingerprint: digests of data and tokenizer.
    """

    def __init__(
        self, store: CheckpointStore, parts: Parts, state: TrainState, config: TrainingConfig, task_spec: TaskSpec,
        events: CallbackList, run_name: str, fingerprint: dict[str, str], batch_size: int, after_commit: Callable[[Path], None],
    ) -> None:  # fmt: skip
        self.store, self.parts, self.state, self.config = store, parts, state, config
        self._task_spec, self._events, self._run_name = task_spec, events, run_name
        self._fingerprint, self._batch_size, self._after_commit = fingerprint, batch_size, after_commit
        self._world = parts.world
        self.before_save: Callable[[], None] = lambda: None
        self._saved_at = time.monotonic()

    def after_step(self) -> None:
        """Save when `save_every_minutes` have passed."""
        minutes = self.config.save_every_minutes
        if minutes is None:
            return
        due = self._world.is_main and time.monotonic() - self._saved_at >= minutes * 60
        if self._world.any(due):
            self.save()

    def after_evaluation(self, value: float | None) -> None:
        """Save a validation within an epoch that is among the best."""
        if self._world.any(self.store.would_be_best(value)):
            self.save(value, regular=False)

    def after_epoch(self, value: float | None) -> None:
        """Save at an epoch's end: when it is due, among the best, or the last."""
        due = self.state.epoch % self.config.save_every_n_epochs == 0 or self.state.stop_reason is not None
        if self._world.any(due or self.store.would_be_best(value)):
            self.save(value, regular=due)

    def save(self, value: float | None = None, regular: bool = True) -> Path | None:
        """Commit the state as it is. None when it failed and `on_save_error="warn"`, and on all processes but the main one.

        Args:
            value: the monitored metric of exactly this state, where it was measured.
            regular: False for a save that is only due because the value is among the best.
        Raises:
            CheckpointWriteError: with `on_save_error="stop"`.
        """
        self.before_save()
        state = self.state
        if value is None:
            value = self.store.value_at(state.step)  # saved again, because of a stop: it is still worth what it was
        at_epoch_end = state.samples_done == 0 and state.epoch > 0
        name = f"epoch_{state.epoch}.pt" if at_epoch_end else f"step_{state.step}.pt"
        payload = self.payload(value, regular)
        if not self._world.is_main:
            self._saved_at = time.monotonic()
            return None
        try:
            path = self.store.commit(payload, name)
        except CheckpointWriteError as error:
            if self.config.on_save_error == "stop":
                raise
            log.warning("Training goes on without this checkpoint: %s", error)
            return None
        self._saved_at = time.monotonic()
        self._after_commit(path)
        self._events.fire("on_checkpoint_saved", path)
        return path

    def payload(self, value: float | None, regular: bool) -> Payload:
        """Everything that a run needs to go on exactly: tensors and plain values only."""
        parts = self.parts
        return {
            "format": FORMAT,
            "run": {"id": self.store.run_id, "name": self._run_name},
            "state": self.state.to_dict(),
            "value": value,
            "regular": regular,
            "model": self._whole(parts.model.state_dict()),
            "optimizer": self._whole(parts.optimizer.state_dict()),
            "schedule": parts.schedule.state_dict(),
            "scaler": None if parts.scaler is None else parts.scaler.state_dict(),
            **self._of_each_process(),
            "callbacks": self._events.state_dict(),
            "batch_plan": {"batch_size": self._batch_size, "accumulation": self.config.gradient_accumulation_steps},
            "config": self.config.to_dict(),
            "task_spec": self._task_spec.to_dict(),
            "fingerprint": self._fingerprint,
            "environment": environment_facts(parts),
        }

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
