"""Weights & Biases."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.scrubbing import scrub
from utils.training.tracking.tracker import RunEnding, RunFacts
from utils.training.training_config import DEFAULT_WANDB_PROJECT

# A script that ends waits for the upload of its last rows; wandb itself sets no limit.
_LONGEST_UPLOAD_S = 30.0


# Name of the metric that counts optimizer steps.
_STEP = "trainer/step"


class WandbTracker:
    """Rows to Weights & Biases, into the project that the config names.

    A W&B run that was opened with `wandb.init` before training is used as it is and left open. Without an API key, or with
    WANDB_MODE=offline, the run is kept offline, on disk: a login prompt would block a run that nobody watches. After a failure
    the service is not tried again, and the run is not switched to offline mode.
    """

    name = "W&B"
    patience_s = 5.0

    def __init__(self) -> None:
        self._run: Any = None
        self._own = True
        self._offline = False

    def start(self, run: RunFacts) -> str | None:
        """Open the run, or use the one that is open."""
        import wandb

        self._own = wandb.run is None
        self._run = self._open(wandb, run) if self._own else wandb.run
        if self._own and hasattr(self._run, "define_metric"):
            # Charts over optimizer steps: the service's own count is that of the calls.
            self._run.define_metric(_STEP)
            self._run.define_metric("*", step_metric=_STEP)
        if self._offline:
            return "W&B: no API key, so the run is tracked offline; `wandb sync` uploads it later."
        return None

    def log(self, row: Mapping[str, Any]) -> None:
        """Log a row; NaN is left out, because the service's charts have no place for it."""
        values = {name: value for name, value in row.items() if name != "step" and not math.isnan(value)}
        self._run.log({**values, _STEP: row["step"]})

    def artifact(self, path: Path) -> None:
        """Nothing: config and environment are sent with the run itself."""

    def finish(self, status: RunEnding) -> None:
        """Close the run, unless it is the user's."""
        if self._own:
            self._run.finish()

    def _open(self, wandb: Any, run: RunFacts) -> Any:
        mode = os.environ.get("WANDB_MODE")
        if mode is None and not _has_key(wandb):
            mode, self._offline = "offline", True
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
            project=run.config.get("wandb_project") or DEFAULT_WANDB_PROJECT, entity=run.config.get("wandb_entity"),
            name=run.name, id=run.run_id, resume="allow", config=dict(run.config), mode=mode, settings=settings,
            notes=scrub(run.config.get("notes") or "") or None,
        )  # fmt: skip


def _has_key(wandb: Any) -> bool:
    """Whether an API key is set, without asking for one and without the network."""
    if "prompt" in inspect.signature(wandb.login).parameters:
        return bool(wandb.login(prompt=False, verify=False))
    return wandb.api.api_key is not None  # clients before that argument
