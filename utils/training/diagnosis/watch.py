"""DoctorCallback: measures during the run what the rules need, and reports findings as notices of the run while they hold."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from utils.errors import TrainbookError
from utils.storage import append_line, atomic_write, json_line, read_json_lines
from utils.training.diagnosis.facts import counted, start_facts
from utils.training.diagnosis.looks import ParameterLooks
from utils.training.diagnosis.record import MEASUREMENTS, RunRecord
from utils.training.diagnosis.rules import live_outcomes
from utils.training.engine.callbacks import Callback, Logs

if TYPE_CHECKING:
    from utils.training.engine.trainer import Trainer

log = logging.getLogger("trainbook.doctor")

# Steps after which parameters are looked at, besides every tenth of the run.
_FIRST_LOOKS = (1, 3, 10)
# The rules run again when the run is longer by this factor, so that their cost does not grow with the number of epochs.
_LONGER = 1.1
# The same for what epochs and validations were like; a run of 100,000 epochs has some hundreds of these rows.
_DENSER = 1.03
_MIB = 2**20


class DoctorCallback(Callback):
    """Measurements for `diagnose`, and its findings while the run is under way. Every Trainer has one.

    Pass one of your own to change it. It reads metrics that the engine computed anyway, and about a dozen times in a run
    samples of parameters and gradients. It changes nothing about the training, and a failure of it does not end a run.

    Args:
        live: report findings as notices during the run, and withdraw those that no longer hold; False: measure only.
    """

    main_only = True
    may_be_late = True

    def __init__(self, live: bool = True) -> None:
        self.live = live
        self._folder: Path | None = None
        self._looks: ParameterLooks | None = None
        self._reset()

    def _reset(self) -> None:
        self._steps = self._clipped = self._judged_at = 0
        self._since = time.monotonic()
        self._total: int | None = None
        self._noted_at = {"train": 0, "val": 0}
        self._reported: dict[str, str] = {}  # rule -> its notice
        self._record: RunRecord | None = None  # its settings are read once

    def on_train_begin(self, trainer: Trainer, logs: Logs | None = None) -> None:
        self._reset()
        logs = logs or {}
        self._folder = Path(logs["run_dir"]) if "run_dir" in logs else None
        self._total = logs.get("total_steps")
        self._guarded(lambda: self._begin(trainer))

    def _begin(self, trainer: Trainer) -> None:
        assert trainer.parts is not None
        if not trainer.parts.sharded:
            self._looks = ParameterLooks(trainer.parts.model, trainer.parts.parameters)
        self._forget_after(trainer.state.step)
        facts = start_facts(trainer, self._total)
        self._write({"event": "start", "step": trainer.state.step, **facts})
        if self.live and self._folder is not None:
            assert trainer.planned_task is not None
            self._record = RunRecord.begun(self._folder, trainer.training_config, trainer.planned_task)
            self._report(trainer, self._record, starting=True)

    def on_step_end(self, step: int, trainer: Trainer, logs: Logs | None = None) -> None:
        norm, limit = (logs or {}).get("train/grad_norm", 0.0), trainer.training_config.max_grad_norm
        self._steps += 1
        self._clipped += 0 < limit < norm
        # On a GPU events of several steps come together, when the parameters are those after the last of them.
        if self._looks is not None and (self._looks.waiting or self._look_is_due(step)):
            self._guarded(lambda: self._look(trainer.state.step))

    def _look_is_due(self, step: int) -> bool:
        every = max(1, (self._total or 1000) // 10)
        return step in _FIRST_LOOKS or step % every == 0

    def _look(self, step: int) -> None:
        assert self._looks is not None
        if not self._looks.waiting:
            self._looks.begin(step)
        elif tensors := self._looks.finish(step):
            self._write({"event": "look", "step": step, "tensors": tensors, "left_out": self._looks.left_out()})
        else:
            self._looks.begin(step)

    def on_evaluate_end(self, trainer: Trainer, logs: Logs | None = None) -> None:
        self._guarded(lambda: self._note(trainer, "val"))
        if trainer.training_config.eval_every != "epoch":
            self._guarded(lambda: self._judge(trainer, running=True))

    def on_epoch_end(self, epoch: int, trainer: Trainer, logs: Logs | None = None) -> None:
        self._guarded(lambda: self._note(trainer, "train"))
        self._guarded(lambda: self._judge(trainer, running=True))

    def _note(self, trainer: Trainer, part: str, *, last: bool = False) -> None:
        state = trainer.state
        if not last and state.step < self._noted_at[part] * _DENSER:
            return
        self._noted_at[part] = state.step
        sums = state.validation_sums if part == "val" else state.finished_sums
        if sums is not None:
            multi_label = bool(getattr(trainer.task, "multi_label", False))
            self._write({"event": "counts", "part": part, "step": state.step, **counted(sums, multi_label)})
        row: dict[str, Any] = {
            "event": "interval", "step": state.step, "steps": self._steps, "clipped": int(self._clipped),
            "seconds": time.monotonic() - self._since,
        }  # fmt: skip
        if torch.cuda.is_available() and trainer.parts is not None and trainer.parts.device.kind == "cuda":
            row["peak_mib"] = torch.cuda.max_memory_allocated() / _MIB
            row["memory_mib"] = torch.cuda.get_device_properties(0).total_memory / _MIB
        self._steps, self._clipped, self._since = 0, 0, time.monotonic()
        self._write(row)

    def on_train_end(self, trainer: Trainer, logs: Logs | None = None) -> None:
        for part in self._noted_at:
            if self._noted_at[part] < trainer.state.step:
                self._guarded(functools.partial(self._note, trainer, part, last=True))
        self._guarded(lambda: self._judge(trainer, running=False))
        self._looks = None

    def on_error(self, error: BaseException, trainer: Trainer, logs: Logs | None = None) -> None:
        self._looks = None

    def _judge(self, trainer: Trainer, *, running: bool) -> None:
        """Report what the rules find now."""
        step = trainer.state.step
        if not self.live or self._folder is None or (running and step < self._judged_at * _LONGER):
            return
        self._judged_at = step
        assert self._record is not None
        self._record = record = self._record.updated(self._folder, running=running)
        record.state = {**record.state, "stop_reason": trainer.state.stop_reason}
        self._report(trainer, record)

    def _report(self, trainer: Trainer, record: RunRecord, *, starting: bool = False) -> None:
        """Add a notice for each new finding, and withdraw that of a rule that passes now, but not of one that is not run."""
        for outcome in live_outcomes(record, starting=starting):
            if outcome.found and outcome.rule not in self._reported:
                sentence = f"Doctor, {outcome.rule}: {outcome.summary} {outcome.remedy}"
                self._reported[outcome.rule] = sentence
                trainer.notice(sentence)
            elif outcome.verdict == "pass" and outcome.rule in self._reported:
                trainer.withdraw(
                    self._reported.pop(outcome.rule), f"Doctor, {outcome.rule}: no longer. {outcome.summary}"
                )

    # The file

    def _write(self, row: dict[str, Any]) -> None:
        if self._folder is not None:
            append_line(self._folder / MEASUREMENTS, json_line(_finite(row)))

    def _forget_after(self, step: int) -> None:
        """Drop what was measured after the step at which the run starts or continues."""
        if self._folder is None:
            return
        path = self._folder / MEASUREMENTS
        if path.is_file():
            kept = [row for row in read_json_lines(path) if row.get("step", 0) <= step and step]
            text = "".join(json_line(row) + "\n" for row in kept)
            atomic_write(path, lambda file: file.write(text.encode()))

    def _guarded(self, work: Callable[[], None]) -> None:
        """Measurements are not worth a run: on any failure they end, and the run continues."""
        try:
            work()
        except (OSError, TrainbookError) as error:
            log.info("The doctor stops measuring this run: %s", error)
            self._folder = self._looks = None
        except Exception:  # models and data are the caller's, and a diagnosis must not end their training
            log.warning("The doctor stops measuring this run.", exc_info=True)
            self._folder = self._looks = None


def _finite(value: Any) -> Any:
    """`value` without numbers that JSON does not have: they become None."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
