"""Trackers: a run's rows, sent to a service. Never in the way: no service can stop, slow or change a training."""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import queue
import threading
from typing import Any

from utils.training.engine.callbacks import Callback, Logs
from utils.training.training_config import DEFAULT_WANDB_PROJECT, TrainingConfig

log = logging.getLogger("trainbook.tracking")

_PATIENCE_S = 5.0


def make_tracker(config: TrainingConfig, run_name: str, notices: list[str]) -> Callback | None:
    """The tracker that the config asks for, or None; a missing package is a notice, not an error."""
    if not config.wandb_enabled:
        return None
    if importlib.util.find_spec("wandb") is None:
        notices.append(
            'Not tracked: wandb is not installed (pip install -e ".[tracking]"). history.jsonl holds everything.'
        )
        return None
    return WandbTracker(config, run_name, notices)


class WandbTracker(Callback):
    """Rows to Weights & Biases, from a thread of its own: the loop only puts rows into a queue.

    An own `wandb.init` before training is used as it is and left open. Without an API key, or with WANDB_MODE=offline, the
    run is kept offline, on disk: a login prompt would wait for ever where nobody watches. Failures are said once, at the end.
    """

    main_only = True
    may_be_late = True

    def __init__(
        self, config: TrainingConfig, run_name: str, notices: list[str], patience_s: float = _PATIENCE_S
    ) -> None:
        self._config, self._run_name, self._notices, self._patience_s = config, run_name, notices, patience_s
        self._rows: queue.Queue[Logs | None] = queue.Queue(maxsize=10_000)
        self._ready, self._failure = threading.Event(), ""
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def on_train_begin(self, trainer: Any, logs: Logs | None = None) -> None:
        self._thread = threading.Thread(target=self._work, name="trainbook-wandb", daemon=True)
        self._thread.start()
        self._ready.wait(self._patience_s)

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

    def _put(self, row: Logs) -> None:
        numbers = {
            k: v for k, v in row.items() if isinstance(v, (int, float)) and not (isinstance(v, float) and math.isnan(v))
        }
        try:
            self._rows.put_nowait(numbers)
        except queue.Full:
            self._dropped += 1

    def _work(self) -> None:
        try:
            import wandb

            own = wandb.run is None
            run: Any = self._open(wandb) if own else wandb.run
            self._ready.set()
            while (row := self._rows.get()) is not None:
                step = row.pop("step")
                run.log({**row, "trainer/step": step})
            if own:
                run.finish()
        except Exception as error:  # noqa: BLE001 - any failure of the service ends tracking, and nothing else
            self._failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self._ready.set()

    def _open(self, wandb: Any) -> Any:
        mode = os.environ.get("WANDB_MODE")
        if mode is None and wandb.api.api_key is None:
            mode = "offline"
            self._notices.append("W&B: no API key, so the run is tracked offline; `wandb sync` uploads it later.")
        settings = wandb.Settings(
            console="off", silent=True, init_timeout=self._patience_s, login_timeout=self._patience_s
        )
        return wandb.init(
            project=self._config.wandb_project or DEFAULT_WANDB_PROJECT, entity=self._config.wandb_entity, name=self._run_name,
            config=self._config.to_dict(), notes=self._config.notes or None, mode=mode, settings=settings,
        )  # fmt: skip

    def _close(self) -> None:
        if self._thread is None:
            return
        self._put_end()
        self._thread.join(self._patience_s)
        if self._failure:
            self._notices.append(f"W&B stopped tracking ({self._failure}); history.jsonl holds everything.")
        elif self._thread.is_alive():
            self._notices.append("W&B did not answer in time; what it lacks is in history.jsonl.")
        elif self._dropped:
            self._notices.append(f"W&B was too slow for {self._dropped} rows; history.jsonl holds them.")
        self._thread = None

    def _put_end(self) -> None:
        try:
            self._rows.put_nowait(None)
        except queue.Full:
            log.info("The tracker's queue is full; its thread ends with the process.")
