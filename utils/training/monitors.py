"""Callbacks that watch a run and change nothing: log lines, times, the learning rate, the health of the gradients."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.errors import ConfigError
from utils.training.engine.callbacks import Callback, Logs

if TYPE_CHECKING:
    from utils.training.engine.trainer import Trainer

log = logging.getLogger("trainbook.monitors")

__all__ = ["GradientFinding", "GradientHealth", "LearningRateMonitor", "LoggingCallback", "ProfilingCallback"]

_MIB = 2**20


class LoggingCallback(Callback):
    """One line every `log_interval` optimizer steps, one a validation and one an epoch.

    Args:
        log_interval: optimizer steps between lines.
        verbose: False: count, and say nothing.
        write: takes each line, such as `print`; None: the logger "trainbook.monitors", at level INFO.

    Attributes:
        step_count: optimizer steps of the epoch so far, in this process.
    """

    main_only = True
    may_be_late = True

    def __init__(
        self, log_interval: int = 10, verbose: bool = True, write: Callable[[str], None] | None = None
    ) -> None:
        if log_interval < 1:
            raise ConfigError(f"log_interval must be at least 1 step; got {log_interval}.")
        self.log_interval, self.verbose = log_interval, verbose
        self.step_count = 0
        self._write = write or log.info
        self._total_steps: int | None = None

    def on_train_begin(self, trainer: Trainer, logs: Logs | None = None) -> None:
        self._total_steps = (logs or {}).get("total_steps")

    def on_epoch_begin(self, epoch: int, trainer: Trainer, logs: Logs | None = None) -> None:
        self.step_count = 0
        if self.verbose:
            self._write(f"Epoch {epoch + 1} of {trainer.training_config.epochs}")

    def on_step_end(self, step: int, trainer: Trainer, logs: Logs | None = None) -> None:
        self.step_count += 1
        if self.verbose and step % self.log_interval == 0:
            total = "" if self._total_steps is None else f" of {self._total_steps}"
            self._write(f"Step {step}{total}: {_listed(logs)}")

    def on_evaluate_end(self, trainer: Trainer, logs: Logs | None = None) -> None:
        if self.verbose:
            self._write(f"Validation after step {trainer.state.step}: {_listed(logs)}")

    def on_epoch_end(self, epoch: int, trainer: Trainer, logs: Logs | None = None) -> None:
        if self.verbose:
            self._write(f"Epoch {epoch + 1} done: {_listed(logs)}")


_UNITS = {"time/epoch_s": " s", "time/tokens_per_s": " targets/s"}


def _listed(logs: Logs | None) -> str:
    """The metrics and times among `logs`, named and in order."""
    found = [
        f"{name} {value:.4g}{_UNITS.get(name, '')}"
        for name, value in (logs or {}).items()
        if name.startswith(("train/", "val/", "time/")) and isinstance(value, (int, float))
    ]
    return ", ".join(found) or "no metrics"


class ProfilingCallback(Callback):
    """Profile the time of training in seconds, measured between the engine's events.

    What is in each part:

    - data_wait: from the end of a step (or validation, checkpoint, epoch's begin) to the first micro-batch of the next: the
      loader, copies of random state, the learning rate, and callbacks after this one.
    - forward: from a micro-batch's begin to the end of the model's own forward; with the copy to the device.
    - backward: from there to the end of the backward pass. The loss is computed here and cannot be told apart.
    - optimizer: from a step's last backward pass to the step's end. Gradient norm, clipping, update, reading the loss, the
      history row and callbacks before this one cannot be told apart.

    On CUDA every event waits for the device, so the parts are what the device really did, and training is slower while it is
    measured. The first steps also compile and allocate; `summary()` gives medians, which they do not move.

    Args:
        profile_memory: note the device's memory after each step, on CUDA; nothing is known on a CPU.
    """

    PARTS = ("data_wait", "forward", "backward", "optimizer")

    def __init__(self, profile_memory: bool = True) -> None:
        self.profile_memory = profile_memory
        self._times: dict[str, list[float]] = {part: [] for part in ("epoch", "batch", *self.PARTS)}
        self._memory: dict[str, list[float]] = {"memory_allocated": [], "memory_reserved": []}
        self._on_cuda = False
        self._hook: Any = None
        self._epoch_began = self._batch_began = 0.0
        self._mark: float | None = None
        self._in_forward = self._in_step = False

    def get_metrics(self) -> dict[str, list[float]]:
        """Copies of the lists: epoch_times, batch_times (forward and backward together), data_wait_times, forward_times,
        backward_times, optimizer_times in seconds; memory_allocated and memory_reserved in MiB, with `profile_memory`."""
        metrics = {f"{name}_times": list(times) for name, times in self._times.items()}
        if self.profile_memory:
            metrics |= {name: list(values) for name, values in self._memory.items()}
        return metrics

    def summary(self) -> dict[str, str]:
        """Median and share of the whole measured time of each part, as a table."""
        total = sum(sum(self._times[part]) for part in self.PARTS)
        return {
            part: f"{statistics.median(times) * 1000:.3g} ms, {sum(times) / total:.0%}"
            for part in self.PARTS
            if (times := self._times[part]) and total > 0
        }

    def on_train_begin(self, trainer: Trainer, logs: Logs | None = None) -> None:
        parts = trainer.parts
        self._on_cuda = parts is not None and parts.device.kind == "cuda"
        self._unhook()
        self._hook = trainer.model.register_forward_hook(self._forward_done)

    def on_epoch_begin(self, epoch: int, trainer: Trainer, logs: Logs | None = None) -> None:
        self._epoch_began = self._mark = self._now()

    def on_batch_begin(self, batch_idx: int, trainer: Trainer, logs: Logs | None = None) -> None:
        now = self._now()
        if not self._in_step and self._mark is not None:
            self._times["data_wait"].append(now - self._mark)
        self._in_step = self._in_forward = True
        self._batch_began = self._mark = now

    def _forward_done(self, *_: Any) -> None:
        # Validation calls the model too, and so may a callback.
        if self._in_forward:
            self._in_forward = False
            self._lap("forward")

    def on_backward_end(self, batch_idx: int, trainer: Trainer, logs: Logs | None = None) -> None:
        self._lap("backward")
        assert self._mark is not None
        self._times["batch"].append(self._mark - self._batch_began)

    def on_step_end(self, step: int, trainer: Trainer, logs: Logs | None = None) -> None:
        self._lap("optimizer")
        self._in_step = False
        self._note_memory()

    def on_evaluate_end(self, trainer: Trainer, logs: Logs | None = None) -> None:
        self._mark = self._now()

    def on_checkpoint_saved(self, path: Any, trainer: Trainer, logs: Logs | None = None) -> None:
        self._mark = self._now()

    def on_epoch_end(self, epoch: int, trainer: Trainer, logs: Logs | None = None) -> None:
        self._times["epoch"].append(self._now() - self._epoch_began)

    def on_train_end(self, trainer: Trainer, logs: Logs | None = None) -> None:
        self._unhook()

    def on_error(self, error: BaseException, trainer: Trainer, logs: Logs | None = None) -> None:
        self._unhook()
        self._in_step = self._in_forward = False

    def _lap(self, part: str) -> None:
        now = self._now()
        if self._mark is not None:
            self._times[part].append(now - self._mark)
        self._mark = now

    def _now(self) -> float:
        if self._on_cuda:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def _note_memory(self) -> None:
        if self._on_cuda and self.profile_memory:
            import torch

            self._memory["memory_allocated"].append(torch.cuda.memory_allocated() / _MIB)
            self._memory["memory_reserved"].append(torch.cuda.memory_reserved() / _MIB)

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


class LearningRateMonitor(Callback):
    """The learning rate of every step in this process; the run's `history.jsonl` has about 1,000 over the whole run.

    Attributes:
        steps: optimizer steps, from 1; rates: the learning rate that each was done with.
    """

    may_be_late = True

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.rates: list[float] = []

    def on_step_end(self, step: int, trainer: Trainer, logs: Logs | None = None) -> None:
        assert logs is not None
        self.steps.append(step)
        self.rates.append(float(logs["train/learning_rate"]))


@dataclass(frozen=True)
class GradientFinding:
    """Something that gradients should not be.

    Attributes:
        step: the optimizer step, from 1; kind: "vanishing", "exploding", "not finite" or "no gradient".
        message: what was got and what to do.
    """

    step: int
    kind: str
    message: str


class GradientHealth(Callback):
    """Watches the gradient norm before clipping (which the engine has anyway), and which parameters get no gradient.

    The first finding of each kind is a notice of the run (`results.notices`); all are in `findings`, the first 1,000.

    Args:
        vanishing_threshold, explosion_threshold: L2 norms of the mean gradient over all parameters, below and above which it
            is a finding. The defaults suit models whose loss is a mean over targets.
        parameters_every: steps between looks at the single parameters: those without any gradient, or only zeros. Looking
            waits for the device.

    Attributes:
        findings: in order; norms: the norm of each step, in this process.
    """

    _MOST_FINDINGS = 1000

    def __init__(
        self, vanishing_threshold: float = 1e-7, explosion_threshold: float = 10.0, parameters_every: int = 100
    ) -> None:
        if not 0 <= vanishing_threshold < explosion_threshold or parameters_every < 1:
            raise ConfigError(
                "GradientHealth needs 0 <= vanishing_threshold < explosion_threshold and parameters_every of at least 1; got "
                f"{vanishing_threshold}, {explosion_threshold}, {parameters_every}."
            )
        self.vanishing_threshold, self.explosion_threshold = vanishing_threshold, explosion_threshold
        self.parameters_every = parameters_every
        self.findings: list[GradientFinding] = []
        self.norms: list[float] = []

    @property
    def healthy(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def on_step_end(self, step: int, trainer: Trainer, logs: Logs | None = None) -> None:
        assert logs is not None
        norm, loss = float(logs["train/grad_norm"]), float(logs["train/loss"])
        self.norms.append(norm)
        scored = not math.isnan(loss) or not math.isfinite(
            norm
        )  # a step without targets has no gradient, and is no fault
        if scored and (found := self._judged(step, norm)) is not None:
            self._add(found, trainer)
        if scored and (step - 1) % self.parameters_every == 0:
            self._look_at_parameters(step, trainer)

    def _judged(self, step: int, norm: float) -> GradientFinding | None:
        if not math.isfinite(norm):
            return GradientFinding(
                step,
                "not finite",
                f"step {step}: the gradient norm is {norm}. Lower learning_rate or look at the samples.",
            )
        if norm > self.explosion_threshold:
            return GradientFinding(
                step, "exploding",
                f"step {step}: the gradient norm is {norm:.3g}, above {self.explosion_threshold:g}. Lower learning_rate, "
                "lengthen the warm-up, or keep max_grad_norm at 1.",
            )  # fmt: skip
        if norm < self.vanishing_threshold:
            return GradientFinding(
                step, "vanishing",
                f"step {step}: the gradient norm is {norm:.3g}, below {self.vanishing_threshold:g}: nothing is learned. Check "
                "initialization, labels and frozen layers.",
            )  # fmt: skip
        return None

    def _look_at_parameters(self, step: int, trainer: Trainer) -> None:
        without = [
            name
            for name, parameter in trainer.model.named_parameters()
            if parameter.requires_grad and (parameter.grad is None or not bool(parameter.grad.any()))
        ]
        if without:
            more = f" and {len(without) - 4} more" if len(without) > 4 else ""
            self._add(
                GradientFinding(
                    step, "no gradient",
                    f"step {step}: no gradient reaches {', '.join(without[:4])}{more}. Freeze what is not used "
                    "(requires_grad=False), or connect it to the loss.",
                ),
                trainer,
            )  # fmt: skip

    def _add(self, finding: GradientFinding, trainer: Trainer) -> None:
        if all(known.kind != finding.kind for known in self.findings):
            trainer.notice(f"Gradients, {finding.message}")
        if len(self.findings) < self._MOST_FINDINGS:
            self.findings.append(finding)
