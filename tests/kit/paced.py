"""A stand-in for the engine where there is no torch: the same control, callbacks and events, at a pace a click can meet."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from utils.training.engine.callbacks import CallbackList
from utils.training.engine.interrupts import Control


class PacedTrainer:
    """Counts steps instead of learning. What `train_live` needs of a Trainer, and no more."""

    def __init__(self, run_dir: Path, steps: int = 3000, step_s: float = 0.02) -> None:
        self.control, self.callbacks, self.tokenizer, self.notices = Control(), [], None, []
        self.training_config = SimpleNamespace(epochs=1, can_finish_early=False)
        best = SimpleNamespace(value=None, epoch=None, step=None)
        self.state = SimpleNamespace(step=0, epoch=0, targets_done=0, elapsed_s=0.0, finish_at=None, best=best)
        self.parts = None
        self.run_dir = run_dir
        self._steps, self._step_s = steps, step_s

    def request_stop(self, reason: str = "requested") -> None:
        self.control.request_stop(reason)

    def train(self, train_data: Any, val_data: Any = None, *, resume_from: Any = None) -> SimpleNamespace:
        events = CallbackList(self.callbacks, self, isolate=False)
        events.fire("on_train_begin", logs={"total_steps": self._steps, "run_dir": str(self.run_dir)})
        while self.state.step < self._steps and not self.control.stop.wait(self._step_s):
            self.state.step += 1
            self.state.targets_done += 100
            logs = {"train/loss": 5 / self.state.step, "train/learning_rate": 1e-3, "epoch": 0}
            events.fire("on_step_end", self.state.step, logs=logs)
            if self.control.pause.is_set():
                events.fire("on_checkpoint_saved", self.run_dir / "checkpoints" / f"step_{self.state.step}.pt")
                while self.control.pause.is_set() and not self.control.stop.wait(0.02):
                    pass
        events.fire("on_train_end")
        reason = self.control.reason or "finished"
        self.control.clear()
        return SimpleNamespace(steps=self.state.step, stop_reason=reason, checkpoint_path=f"step_{self.state.step}.pt")
