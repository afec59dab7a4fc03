"""A trial of the first samples before training: what model, loss, optimizer and settings show of themselves in one pass.

`first_samples_notices` runs the model on a few of the first samples, in evaluation and in training mode, and hands what came
out to the rules of `trial_outputs`, `trial_criterion` and `trial_gradients`. Each finding is a sentence for the user; nothing
stops a run. Weights, modes, buffers, gradients, attributes and random state are as before afterwards.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils.adapters.forward import ModelCall
from utils.adapters.left_as_found import attributes_kept, buffers_kept, gradients_kept, modes_kept, state_kept
from utils.data.batch import Batch
from utils.data.module import UniversalDataModule
from utils.data.sources import StreamSource
from utils.training.engine import rng
from utils.training.engine.compute.assembly import Parts
from utils.training.engine.hardware.memory import rows_of
from utils.training.engine.loss.criterion import CriterionObjective
from utils.training.engine.loss.objective import Objective, with_auxiliary_loss
from utils.training.engine.loss.tasks.tokens import TokenTask

log = logging.getLogger("trainbook.engine")

# Rows that are tried: enough that a unit which is never active, or a target out of reach, does not look so by chance.
_ROWS = 32
# Numbers in the inputs and in the logits of what is tried, beyond which there are fewer rows: large inputs are tried on few.
_MOST_NUMBERS = 2**18
_MOST_LOGITS = 2**25


@dataclass
class Trial:
    """The first samples, and how the model answers them.

    Attributes:
        model, objective: what is trained, and what it is trained on.
        batch: a few samples, on the model's device.
        outputs: of the batch in evaluation mode, fp32; without a graph.
        active_relus: for each ReLU module that ran, by name, whether each of its units was active for any row: bool (units,).
        learning_rate, max_grad_norm, total_steps: of the run; total_steps None where it is not known.
    """

    model: nn.Module
    objective: Objective
    batch: Batch
    outputs: Tensor
    active_relus: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    learning_rate: float
    max_grad_norm: float
    total_steps: int | None

    @property
    def labels(self) -> Tensor | None:
        """The labels of the samples; None where they are made from the inputs."""
        return self.batch.get("labels")

    @property
    def rows(self) -> int:
        """Number of samples."""
        return rows_of(self.batch)

    def call(self, batch: Batch | None = None) -> Tensor:
        """The model's outputs in evaluation mode, as fp32."""
        with state_kept(self.model), attributes_kept(self.model):
            return _outputs(self.model, self.objective, self.batch if batch is None else batch)

    def first(self, rows: int) -> Batch:
        """The first rows of the batch."""
        return part(self.batch, slice(rows))

    def backward(self, rows: int) -> float:
        """A forward and a backward pass in training mode over the first rows; the mean loss. Leaves gradients in `.grad`."""
        with self._in_training():
            loss = self._mean_loss(rows)
            loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def loss(self, rows: int) -> float:
        """The mean loss of the first rows in training mode, from the same random state as `backward`."""
        with self._in_training(), torch.no_grad():
            return float(self._mean_loss(rows))

    @contextlib.contextmanager
    def _in_training(self) -> Iterator[None]:
        with rng.preserved(), attributes_kept(self.model), buffers_kept(self.model):
            yield

    def _mean_loss(self, rows: int) -> Tensor:
        found = with_auxiliary_loss(self.objective, ModelCall(self.model), self.first(rows))
        return found.minimised / max(1, found.num_targets)


Rule = Callable[[Trial], Iterator[str]]


def first_samples_notices(
    parts: Parts, data: UniversalDataModule, rules: tuple[Rule, ...], max_grad_norm: float, total_steps: int | None
) -> list[str]:
    """Check the first samples; one sentence for each finding. Empty for streams, which cannot be read twice, and for
    sharded models.

    A rule that cannot be applied, because the model or the criterion does not take fewer samples for example, is left out and
    logged: training itself reports what does not work.
    """
    if isinstance(data.train, StreamSource) or parts.sharded:
        return []
    found: list[str] = []
    model = parts.model
    with rng.preserved(), modes_kept(model), gradients_kept(model), buffers_kept(model), attributes_kept(model):
        try:
            trial = _trial(parts, data, max_grad_norm, total_steps)
        except Exception as error:  # noqa: BLE001 - code of the caller's; the first step raises the same with all it knows
            log.debug("The first samples could not be tried: %s", error)
            return []
        for rule in rules:
            for parameter in parts.model.parameters():
                parameter.grad = None
            try:
                found += rule(trial)
            except Exception as error:  # noqa: BLE001 - the same
                log.debug("%s could not be applied: %s", rule.__name__, error)
    return found


def _trial(parts: Parts, data: UniversalDataModule, max_grad_norm: float, total_steps: int | None) -> Trial:
    assert not isinstance(data.train, StreamSource)
    batch = data.train.take(list(range(min(_ROWS, data.batch_size, len(data.train)))))
    main = next(value for name, value in batch.items() if name != "labels")
    batch = part(batch, slice(max(2, _MOST_NUMBERS // max(1, main[0].numel()))))
    if isinstance(parts.objective, TokenTask):
        positions = main[0].numel() * (parts.objective.vocab_size or 1)
        batch = part(batch, slice(max(2, min(4, _MOST_LOGITS // positions))))
    batch = {name: value.to(parts.fabric.device) for name, value in batch.items()}
    objective = copy.copy(parts.objective)
    if isinstance(objective, TokenTask):
        objective.fused = "off"  # looking for the output layer is left to training, which reports on it
    active: dict[str, Tensor] = {}
    # In fp32, whatever the run computes in: differences are to be seen, and the samples are few.
    with _relus_watched(parts.model, active), state_kept(parts.model):
        outputs = _outputs(parts.model, objective, batch)
    return Trial(
        parts.model, objective, batch, outputs, active, parts.optimizer, _peak(parts), max_grad_norm, total_steps
    )  # fmt: skip


def _outputs(model: nn.Module, objective: Objective, batch: Batch) -> Tensor:
    inputs = objective.inputs(model, batch) if isinstance(objective, TokenTask) else batch
    return ModelCall(model).uncounted(inputs).float()


def _peak(parts: Parts) -> float:
    """The learning rate after warm-up."""
    return float(getattr(parts.schedule, "peak", parts.optimizer.param_groups[0]["lr"]))


def part(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch; tensors without rows as they are."""
    count = rows_of(batch)
    return {name: value[rows] if value.dim() and len(value) == count else value for name, value in batch.items()}


@contextlib.contextmanager
def _relus_watched(model: nn.Module, active: dict[str, Tensor]) -> Iterator[None]:
    """Note for each ReLU module which of its units are active for any row (and position)."""

    def note(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            dim = 1 if output.dim() == 4 else output.dim() - 1  # channels of images, else the last
            seen = (output.detach() > 0).movedim(dim, 0).flatten(1).any(1)
            before = active.get(name)
            active[name] = seen if before is None or before.shape != seen.shape else before | seen

        return hook

    hooks = [m.register_forward_hook(note(name)) for name, m in model.named_modules() if isinstance(m, nn.ReLU)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def own_criterion(objective: Objective) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The caller's criterion, where there is one."""
    return objective.criterion if isinstance(objective, CriterionObjective) else None
