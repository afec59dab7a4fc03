"""Trackers: a run's rows, sent to a service. Never in the way: no service can stop, slow or change a training."""

from __future__ import annotations

import importlib.util
import inspect
import math
import os
import queue
import sys
import threading
from typing import Any

from utils.data.examples import one_line
from utils.scrubbing import scrub, scrubbed
from utils.training.engine.callbacks import Callback, Logs
from utils.training.training_config import DEFAULT_WANDB_PROJECT, TrainingConfig

# A script that ends waits for the upload of its last rows; wandb itself sets no limit.
_LONGEST_UPLOAD_S = 30.0


def make_tracker(config: TrainingConfig, run_name: str, notices: list[str]) -> Callback | None:
    """The tracker that the config asks for, or None; a missing package is a notice, not an error."""
    if not config.wandb_enabled:
        return None
    if not _is_there("wandb"):
        notices.append(
            'Not tracked: wandb is not installed (pip install -e ".[tracking]"). history.jsonl holds everything.'
        )
        return None
    return WandbTracker(config, run_name, notices)


class WandbTracker(Callback):
    """Rows to Weights & Biases, from a thread of its own: the loop only puts rows into a queue.

    An own `wandb.init` before training is used as it is and left open. Without an API key, or with WANDB_MODE=offline, the
    run is kept offline, on disk: a login prompt would wait for ever where nobody watches. A service that fails is not tried
    again, nor is the run taken offline then; whatever went wrong is one notice, when training ends.

    Attributes:
        patience_s: how long the end of a training waits for the service, at most; its start does not wait at all.
    """

    main_only = True
    may_be_late = True

    patience_s = 5.0

    def __init__(self, config: TrainingConfig, run_name: str, notices: list[str]) -> None:
        self._config, self._run_name, self._notices = config, run_name, notices
        self._rows: queue.Queue[Logs | None] = queue.Queue(maxsize=10_000)
        self._failure, self._without_key, self._dropped = "", False, 0
        self._thread: threading.Thread | None = None

    def on_train_begin(self, trainer: Any, logs: Logs | None = None) -> None:
        self._thread = threading.Thread(target=self._work, name="trainbook-wandb", daemon=True)
        self._thread.start()

    def on_step_end(self, step: int, trainer: Any, logs: Logs | None = None) -> None:
        self._put({"step": step, **(logs or {})})

    def on_evaluate_end(self, trainer: Any, logs: Logs | None = None) -> None:
        self._put({"step": trainer.state.step, **(logs or {})})

    def on_epoch_end(self, epoch: int, trainer: Any, logs: Logs | None = None) -> None:
        self._put({**(logs or {}), "epoch": epoch, "step": trainer.state.step})

    def on_train_end(self, trainer: Any, logs: Logs | None = None) -> None:
        self._close()

    def on_error(self, error: BaseException, trainer: Any, logs: Logs | None = None) -> None:
        self._close()

    def _put(self, row: Logs | None) -> None:
        if row is not None:
            numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
            row = {name: value for name, value in numbers.items() if not math.isnan(value)}
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self._dropped += 1

    def _work(self) -> None:
        try:
            import wandb

            own = wandb.run is None
            run: Any = self._open(wandb) if own else wandb.run
            while (row := self._rows.get()) is not None:
                step = row.pop("step")
                run.log({**row, "trainer/step": step})
            if own:
                run.finish()
        except BaseException as error:  # noqa: BLE001 - any failure of the service ends tracking, and nothing else; wandb exits too
            self._failure = scrub(f"{type(error).__name__}: {one_line(error)}")

    def _open(self, wandb: Any) -> Any:
        mode = os.environ.get("WANDB_MODE")
        if mode is None and not _has_key(wandb):
            mode, self._without_key = "offline", True
        limits = {
            "init_timeout": self.patience_s,
            "login_timeout": self.patience_s,
            "finish_timeout": _LONGEST_UPLOAD_S,
        }
        known = getattr(wandb.Settings, "model_fields", limits)  # older clients know fewer
        settings = wandb.Settings(
            console="off", silent=True, **{name: value for name, value in limits.items() if name in known}
        )
        return wandb.init(
            project=self._config.wandb_project or DEFAULT_WANDB_PROJECT, entity=self._config.wandb_entity, name=self._run_name,
            config=scrubbed(self._config.to_dict()), notes=scrub(self._config.notes) or None, mode=mode, settings=settings,
        )  # fmt: skip

    def _close(self) -> None:
        """Wait a little for what is still to be sent, and say what went wrong."""
        if self._thread is None:
            return
        self._put(None)
        self._thread.join(self.patience_s)
        if self._failure:
            self._notices.append(f"W&B stopped tracking ({self._failure}); history.jsonl holds everything.")
        elif self._thread.is_alive():
            self._notices.append("W&B did not answer in time; what it lacks is in history.jsonl.")
        elif self._dropped:
            self._notices.append(f"W&B was too slow for {self._dropped} rows; history.jsonl holds them.")
        elif self._without_key:
            self._notices.append("W&B: no API key, so the run is tracked offline; `wandb sync` uploads it later.")
        self._thread = None


def _is_there(package: str) -> bool:
    """Whether the package is installed or, as tests and notebooks do with a stub of their own, was put into `sys.modules`."""
    if package in sys.modules:
        return sys.modules[package] is not None
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # a finder of another package's failed
        return False


def _has_key(wandb: Any) -> bool:
    """Whether an API key is set, without asking for one and without the network."""
    if "prompt" in inspect.signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False, verify=False))
    return wandb.api.api_key is not None  # clients before that argument
