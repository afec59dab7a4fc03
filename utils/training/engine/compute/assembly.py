"""Assemble the parts of a training step: model, objective, optimizer, schedule, precision, device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from utils.data.batch import Batch
from utils.environment import Device, detect_device
from utils.errors import ConfigError, OutOfMemoryError, Problem, first_line
from utils.training.engine import rng
from utils.training.engine.compute.averaging import WeightAverage
from utils.training.engine.compute.buffers import KeptBuffers
from utils.training.engine.compute.master_weights import HALF
from utils.training.engine.compute.muon import described
from utils.training.engine.compute.optim import Schedule, allocate_momentum, leaves_steps_out, make_optimizer
from utils.training.engine.compute.user_supplied import OwnParts, OwnSchedule, parameters_of
from utils.training.engine.distributed.fabric import make_fabric
from utils.training.engine.distributed.sharding import shardable_copy
from utils.training.engine.distributed.world import World
from utils.training.engine.hardware.memory import is_out_of_memory
from utils.training.engine.hardware.precision import ResolvedPrecision, check_attention, resolve_precision
from utils.training.engine.loss.objective import Loss, Objective, TrainedModule
from utils.training.engine.metrics import pack_counts, widest
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class SkipLimits(NamedTuple):
    """How many steps may be skipped because a number was not finite: in a row, and in the whole run so far."""

    in_a_row: int
    in_all: float


NO_SKIPS = SkipLimits(0, 0.0)


@dataclass
class Parts:
    """Model, optimizer, schedule, objective and Fabric.

    Attributes:
        model: the user's module, on the device; a copy of it, where it is sharded.
        loss_module: the same inside `TrainedModule`; `trained`: that, wrapped by Fabric.
        parameters: the parameters that are trained.
        scaler: fp16's gradient scaler, else None.
        guard: where the host does not look after each step (a GPU whose optimizer can leave a step out by itself): fp32,
            shape (3,): 1 once no step may change anything any more, faults in a row, faults in all. Else None.
        updating: True while an optimizer step is under way, and after one that failed: parameters may be torn between two
            steps and must not be saved.
        sharded: whether each process holds a part of every parameter.
        world: the processes that train together.
        buffers: the model's buffers as they were before the step that is under way.
        running_statistics: buffers of normalisations that training changes; all processes have the main one's.
        average: of the weights, where the config asks for one.
    """

    model: nn.Module
    loss_module: TrainedModule
    trained: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: Schedule | OwnSchedule
    parameters: list[Tensor]
    fabric: Fabric
    device: Device
    precision: ResolvedPrecision
    scaler: torch.amp.GradScaler | None
    guard: Tensor | None = None
    updating: bool = False
    sharded: bool = False
    world: World = field(default_factory=World)
    running_statistics: list[Tensor] = field(default_factory=list)
    average: WeightAverage | None = None
    buffers: KeptBuffers = field(init=False)

    def __post_init__(self) -> None:
        self.buffers = KeptBuffers(self.model)

    def forward(self, batch: Batch, keep_outputs: bool = False, num_targets: int | None = None) -> Loss:
        """The loss of a batch, in the configured precision."""
        given = batch
        if self.device.kind != "cpu":
            # Copies overlap with what the device still has to do; only pinned memory can.
            batch = {name: value.to(self.fabric.device, non_blocking=True) for name, value in batch.items()}
        # Inputs in half precision fit weights in half precision; these are fp32 here.
        batch = {name: value.float() if value.dtype in HALF else value for name, value in batch.items()}
        # Fabric's wrapper looks through all inputs and outputs for tensors to convert; nothing is to be converted here.
        with self._collective(), self.precision.autocast(self.device.kind):
            loss = self.loss_module(batch, keep_outputs, num_targets)
        assert isinstance(loss, Loss)
        self.loss_module.look_for_padding(given)
        return loss

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` (scaled where fp16 needs it)."""
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        with self._collective():
            loss.backward()  # type: ignore[no-untyped-call]

    def _collective(self) -> contextlib.AbstractContextManager[None]:
        """Sharded layers are gathered inside a pass, which then fails when another process does."""
        return self.world.collective() if self.sharded else contextlib.nullcontext()

    @property
    def num_counts(self) -> int:
        """Number of counters of the objective besides the loss."""
        return sum(self.objective.count_sizes.values())

    def pack_counts(self, loss: Loss) -> Tensor:
        """The counts of a micro-batch of training in one fp64 row: the objective's (see `metrics.pack_counts`), then the
        auxiliary loss times the targets, 0 where there is none."""
        counts = pack_counts(loss.counts, self.objective.count_sizes, loss.loss_sum)
        auxiliary = counts.new_zeros(1) if loss.auxiliary is None else widest(loss.auxiliary.detach()).reshape(1)
        return torch.cat([counts, auxiliary])

    def sum_over_processes(self, losses: list[Tensor], counts: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Make the gradients those of all processes together, and so the losses (scalars) and the counts (rows)."""
        if self.world.size == 1:
            return losses, counts
        if not self.sharded:  # those that are sharded were summed when each was made
            self.world.sum_gradients(self.parameters)
            self.world.share(self.running_statistics)
        sums = torch.zeros(2 + self.num_counts, dtype=torch.float64, device=self.fabric.device)
        if losses:  # a process may have no micro-batch of this step
            sums[0] = torch.stack(losses).double().sum()
            sums[1:] = torch.stack(counts).sum(0)
        self.world.sum_(sums)
        return [sums[0]], [sums[1:]]

    def rehearse(self, batch: Batch) -> None:
        """One forward and backward pass of which nothing is left: weights, buffers and random state are as before, gradients
        None."""
        self.buffers.keep()
        try:
            with rng.preserved():
                count = self.objective.count_targets(batch)
                self.backward(self.forward(batch, num_targets=count).minimised)
                if self.device.kind == "cuda":
                    torch.cuda.synchronize()
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            self.buffers.restore()

    def update(self, finite: bool) -> None:
        """Change the parameters by their gradients, if those are finite. Raises `OutOfMemoryError`."""
        with self._updating_now():
            if finite:
                self.optimizer.step()
                if self.average is not None:
                    self.average.update()

    def update_on_device(self, finite: Tensor, usable: Tensor, clip_divisor: Tensor | None, limits: SkipLimits) -> None:
        """The same without a host-device sync: the optimizer's kernels skip the step, or clip, by themselves.

        Args:
            finite: bool scalar: loss and gradients are finite; usable: bool scalar: they are, or fp16's loss scale explains
                why they are not.
            clip_divisor: scalar that gradients are divided by, or None.
            limits: how many non-finite steps are tolerated; see `guard`.
        """
        assert self.guard is not None
        stop, in_a_row, in_all = self.guard.unbind()
        fault = (~usable).float()
        too_many = fault * ((in_a_row >= limits.in_a_row) | (in_all >= limits.in_all)).float()
        optimizer: Any = self.optimizer
        optimizer.found_inf, optimizer.grad_scale = torch.maximum((~finite).float(), stop), clip_divisor
        try:
            with self._updating_now():
                optimizer.step()
        finally:
            optimizer.found_inf = optimizer.grad_scale = None
        self.guard = torch.stack([torch.maximum(stop, too_many), (in_a_row + 1) * fault, in_all + fault])

    @contextlib.contextmanager
    def _updating_now(self) -> Iterator[None]:
        """Raises `OutOfMemoryError` when the optimizer's state does not fit; `updating` stays True after any error."""
        self.updating = True
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"the optimizer's state does not fit in memory: {first_line(error)}. Take a smaller model, "
                "optimizer='sgd', or a device with more memory."
            ) from error
        if self.scaler is not None:
            self.scaler.update()
        self.updating = False


def assemble(
    model: nn.Module,
    objective: Objective,
    config: TrainingConfig,
    total_steps: int | None,
    device: Device | None = None,
    world: World | None = None,
    own_parts: OwnParts | None = None,
    notice: Callable[[str], None] = lambda sentence: None,
    resumed_precision: object = None,
) -> Parts:
    """Put the parts together; moves `model` to the device in place. Several processes all begin with the main one's weights.

    Args:
        own_parts: the caller's optimizer and scheduler, instead of the config's.
        notice: called with a sentence that the user should know, when it is known.
        resumed_precision: the format of the run that is resumed; see `resolve_precision`.
    Raises:
        ConfigError: a setting that this model or device cannot do.
    """
    world = world or World()
    device = device or detect_device(None if own_parts is None else own_parts.device)
    precision = resolve_precision(config.precision, device, resumed_precision)
    check_attention(model, device, precision)
    if config.gradient_checkpointing:
        switch_activation_checkpointing(model, on=True)
    # Formats and scaling are ours: Fabric would convert the inputs too, and look at the gradients once more.
    scaler = torch.amp.GradScaler(device.kind) if precision.compute == "fp16" else None
    sharded = config.strategy == "fsdp" and world.size > 1
    if sharded:
        _refuse_what_cannot_be_sharded(config, precision, own_parts)
    to_train = shardable_copy(model) if sharded else model
    fabric = make_fabric(device, world, sharded)
    to_train.to(fabric.device)
    world.share(_tensors(to_train))
    loss_module = TrainedModule(to_train, objective, config.compile_mode, notice)
    trained = fabric.setup_module(loss_module)  # which may change the parameters, so the optimizer comes after it
    optimizer, schedule = _updates(to_train, config, total_steps, own_parts, notice)
    parts = Parts(
        to_train, loss_module, trained, objective, optimizer, schedule, parameters_of(optimizer), fabric, device, precision,
        scaler, world=world, sharded=sharded, running_statistics=_running_statistics(to_train),
        average=WeightAverage.of(to_train, config, total_steps),
    )  # fmt: skip
    # An average takes in no step that is left out, which the host must know then.
    if device.kind == "cuda" and leaves_steps_out(optimizer) and not sharded and parts.average is None:
        parts.guard = torch.zeros(3, device=fabric.device)
    return parts


def _updates(
    model: nn.Module,
    config: TrainingConfig,
    total_steps: int | None,
    own_parts: OwnParts | None,
    notice: Callable[[str], None],
) -> tuple[torch.optim.Optimizer, Schedule | OwnSchedule]:
    """The optimizer and the schedule of its learning rate: the config's, or the caller's own."""
    if own_parts is None:
        optimizer = make_optimizer(model, config)
        if shares := described(optimizer):
            notice(shares)
        return optimizer, Schedule(config, total_steps)
    own_parts.check(model)
    allocate_momentum(own_parts.optimizer)
    every_step = own_parts.scheduler_interval == "step"
    return own_parts.optimizer, OwnSchedule(own_parts.optimizer, own_parts.scheduler, every_step)


def _refuse_what_cannot_be_sharded(
    config: TrainingConfig, precision: ResolvedPrecision, own_parts: OwnParts | None
) -> None:
    if own_parts is not None:
        raise ConfigError(
            "strategy: got 'fsdp' with an optimizer of yours, which holds the whole parameters; set 'ddp'."
        )
    problems = []
    if precision.compute == "fp16":
        problems.append(Problem("precision", "fp16 cannot be scaled over shards; set 'bf16' or '32'", "bf16"))
    if config.compile_mode is not None:
        problems.append(Problem("compile_mode", f"got {config.compile_mode!r}; set None", None))
    if config.auto_batch_size:
        problems.append(Problem("auto_batch_size", "got True; set batch_size", False))
    if config.fused_loss == "on":
        problems.append(Problem("fused_loss", "got 'on'; the output layer is in parts: set 'auto' or 'off'", "auto"))
    if problems:
        raise ConfigError.from_problems("TrainingConfig, with strategy='fsdp'", problems)


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _running_statistics(model: nn.Module) -> list[Tensor]:
    norms = [module for module in model.modules() if getattr(module, "track_running_stats", False)]
    return [buffer for module in norms for buffer in module.buffers(recurse=False)]


def switch_activation_checkpointing(model: nn.Module, on: bool) -> None:
    """Recompute activations in the backward pass, or stop doing so. Raises `ConfigError` when the model cannot."""
    # transformers renamed the pair; both names are in use.
    names = [f"{kind}_checkpointing_{'enable' if on else 'disable'}" for kind in ("activation", "gradient")]
    switch: Any = next((getattr(model, name) for name in names if hasattr(model, name)), None)
    if switch is not None and getattr(model, "supports_gradient_checkpointing", True):
        switch()
    elif on:
        raise ConfigError(
            f"gradient_checkpointing=True: {type(model).__name__} cannot recompute activations; only transformers models "
            "that support it can. Set it to False."
        )
