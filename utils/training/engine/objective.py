"""What is minimised: batch -> sum of losses over targets, and how many targets there were. `tasks/` has one class per task."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType

from torch import Tensor, nn

from utils.adapters.forward import ModelCall
from utils.data.examples import Batch
from utils.errors import ConfigError, Problem
from utils.schema import nearest
from utils.training.engine.metrics import CountSizes, Sums


@dataclass
class Loss:
    """The loss of a micro-batch.

    Attributes:
        loss_sum: scalar fp32, with graph: the sum over targets, not their mean.
        num_targets: targets that count.
        outputs: the logits, where somebody asked for them; else None.
        counts: what adds up over batches, such as "correct": scalars, or rows with a number for each class. On the model's
            device, without graph; the objective's `count_sizes` names them.
    """

    loss_sum: Tensor
    num_targets: int
    outputs: Tensor | None = None
    counts: dict[str, Tensor] = field(default_factory=dict)


class Objective:
    """Base class: how one task turns a batch into a loss. Holds no parameters.

    Attributes:
        notice: a sentence that the user should know about how the loss is computed, once it is known; else None.
        count_sizes: what `Loss.counts` holds: name -> how many numbers (1 for a scalar). Fixed, so that processes that have no
            batch of a step know it too. Here: nothing.
    """

    notice: str | None = None
    count_sizes: CountSizes = MappingProxyType({})

    def count_targets(self, batch: Batch) -> int:
        """Targets of the batch that count in the loss. Called before the batch goes to the device, so nothing waits."""
        raise NotImplementedError

    def __call__(
        self, model: ModelCall, batch: Batch, keep_outputs: bool = False, num_targets: int | None = None
    ) -> Loss:
        """The loss of `batch`, whose tensors are on the model's device.

        Args:
            keep_outputs: the logits are wanted too.
            num_targets: what `count_targets` said of it, where it is known: then nothing here waits for the device.
        """
        raise NotImplementedError

    def metrics(self, sums: Sums) -> dict[str, float]:
        """What the sums of an epoch or a validation mean, by name; `sums.targets` is not 0.

        Here: `loss` (per target), and `accuracy` (0-1), the share of targets that are right, where "correct" is counted.
        """
        found = {"loss": sums.loss / sums.targets}
        return {**found, "accuracy": sums.count("correct") / sums.targets} if "correct" in sums.counts else found


    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names that `metrics` can return, for checks before training. Override it together with `metrics`."""
        return ("loss", "accuracy") if "correct" in self.count_sizes else ("loss",)


# What a training row holds besides the objective's metrics.
_OF_EVERY_TASK = ("grad_norm", "learning_rate")


def check_monitor(monitor: str, objective: Objective) -> None:
    """Raise `ConfigError` with the nearest name when `monitor` is no metric of the objective.

    An objective that overrides `metrics` without `metric_names` is not checked: its metrics are known only once it ran.
    """
    for base in type(objective).__mro__:
        if "metric_names" in vars(base):
            break
        if "metrics" in vars(base):
            return
    prefix, _, name = monitor.partition("/")
    known = [*objective.metric_names, *(_OF_EVERY_TASK if prefix == "train" else ())]
    if name in known:
        return
    guess = nearest(name, known)
    hint = f"; did you mean {prefix}/{guess}?" if guess else ""
    listed = ", ".join(f"{prefix}/{name}" for name in known)
    raise ConfigError.from_problems(
        "TrainingConfig",
        [Problem("monitor", f"got {monitor!r}; this run has {listed}{hint}", f"{prefix}/{guess}" if guess else None)],
    )


class TrainedModule(nn.Module):
    """Model and objective as one module, so that whatever wraps a module (mixed precision, several devices) wraps both."""

    def __init__(self, model: nn.Module, objective: Objective, compile_mode: str | None = None) -> None:
        super().__init__()
        self.model = model
        self._objective, self._call = objective, ModelCall(model, compile_mode)

    def forward(self, batch: Batch, keep_outputs: bool = False, num_targets: int | None = None) -> Loss:
        return self._objective(self._call, batch, keep_outputs, num_targets)
