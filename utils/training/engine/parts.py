"""What a training step works with, assembled once: model, objective, optimizer, schedule, precision, device."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils.data.examples import Batch
from utils.environment import Device, detect_device
from utils.errors import ConfigError
from utils.training.engine.objective import Loss, Objective, TrainedModule
from utils.training.engine.optim import Schedule, make_optimizer
from utils.training.engine.precision import ResolvedPrecision, resolve_precision
from utils.training.engine.sharding import is_sharded, shard, shardable_copy
from utils.training.engine.world import Launch, World
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy


@dataclass
class Parts:
    """Model, optimizer, schedule, objective and Fabric.

    Attributes:
        model: the user's module, on the device; a copy of it, where it is sharded.
        trained: the same inside `TrainedModule`, wrapped by Fabric.
        parameters: the parameters that are trained.
        scaler: fp16's gradient scaler, else None.
        updating: True while an optimizer step is under way.
        world: the processes that train together.
        running_statistics: buffers of normalisations that training changes; all processes have the main one's.
    """

    model: nn.Module
    trained: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    stepper: Any
    schedule: Schedule
    parameters: list[Tensor]
    fabric: Fabric
    device: Device
    precision: ResolvedPrecision
    scaler: torch.amp.GradScaler | None
    updating: bool = False
    world: World = field(default_factory=World)
    running_statistics: list[Tensor] = field(default_factory=list)

    def forward(self, batch: Batch, keep_outputs: bool = False) -> Loss:
        """The loss of a batch, in the configured precision."""
        loss = self.trained(self.fabric.to_device(batch), keep_outputs)
        assert isinstance(loss, Loss)
        return loss

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` (scaled where fp16 needs it)."""
        self.fabric.backward(loss)

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of every parameter."""
        return is_sharded(self.parameters[0])

    def sum_over_processes(self, *sums: Tensor) -> None:
        """Make the gradients and `sums` (scalars, in place) those of all processes together."""
        if self.world.size == 1:
            return
        if not self.sharded:  # those that are sharded were summed when each was made
            self.world.sum_gradients(self.parameters)
            self.world.share(self.running_statistics)
        together = self.world.sum_(torch.stack([value.double() for value in sums]))
        for value, total in zip(sums, together, strict=True):
            value.copy_(total)


def assemble(
    model: nn.Module,
    objective: Objective,
    config: TrainingConfig,
    total_steps: int | None,
    device: Device | None = None,
    world: World | None = None,
) -> Parts:
    """Put the parts together; moves `model` to the device in place. Several processes all begin with the main one's weights.

    Raises:
        ConfigError: a setting that this model or device cannot do.
    """
    world = world or World()
    device = device or detect_device()
    precision = resolve_precision(config.precision, device)
    if config.gradient_checkpointing:
        switch_activation_checkpointing(model, on=True)
    scaler = torch.amp.GradScaler(device.kind) if precision.compute == "fp16" else None
    sharded = config.strategy == "fsdp" and world.size > 1
    if sharded and scaler is not None:
        raise ConfigError("strategy='fsdp' computes in bf16 or fp32, not in fp16: set precision='bf16' or '32'.")
    fabric = _fabric(device, precision, scaler, world, sharded)
    if sharded:
        world.share(_tensors(model))
        model = shardable_copy(model)
        trained = fabric.setup_module(TrainedModule(model, objective))
        optimizer = make_optimizer(model, config)
        stepper = fabric.setup_optimizers(optimizer)
    else:
        model.to(fabric.device)
        world.share(_tensors(model))
        optimizer = make_optimizer(model, config)
        trained, stepper = fabric.setup(TrainedModule(model, objective), optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    schedule = Schedule(config, total_steps)
    return Parts(
        model, trained, objective, optimizer, stepper, schedule, parameters, fabric, device, precision, scaler, world=world,
        running_statistics=_running_statistics(model),
    )  # fmt: skip


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _running_statistics(model: nn.Module) -> list[Tensor]:
    norms = [module for module in model.modules() if getattr(module, "track_running_stats", False)]
    return [buffer for module in norms for buffer in module.buffers(recurse=False)]


def _fabric(
    device: Device, precision: ResolvedPrecision, scaler: torch.amp.GradScaler | None, world: World, sharded: bool
) -> Fabric:
    """Fabric for this process's device; with several processes, as one of them."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    # Fabric announces its precision on stderr; ours is in the results, where it can be found again.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    settings: dict[str, Any] = {"accelerator": device.kind, "devices": 1}
    plugins: list[Any] = []
    if scaler is None:
        settings["precision"] = precision.fabric_name
    else:
        plugins.append(MixedPrecision("16-mixed", device.kind, scaler))
    launch = Launch.from_environment() if world.size > 1 else None
    if launch is not None:
        strategy = _shards(world) if sharded else _replicas()
        settings |= {"devices": launch.local_size, "num_nodes": launch.num_nodes, "strategy": strategy}
        plugins.append(TorchElasticEnvironment())
    fabric = Fabric(**settings, plugins=plugins or None)
    if launch is not None:
        fabric.launch()
    return fabric


def _replicas() -> DDPStrategy:
    """Fabric's data-parallel strategy without torch's DistributedDataParallel around the module.

    That one sends gradients from within the last backward pass, which every process must then have: one whose share of a
    ragged last step is empty would keep the others waiting for ever, and so would one that repeats a pass in which it ran
    out of memory. `World.sum_gradients` sends them after it.
    """
    from lightning_fabric.strategies.ddp import DDPStrategy

    class Replicas(DDPStrategy):
        def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
            return module

    return Replicas()


def _shards(world: World) -> ModelParallelStrategy:
    """Fabric's strategy for `fully_shard`, over all processes."""
    from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

    return ModelParallelStrategy(shard, data_parallel_size=world.size, tensor_parallel_size=1)


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
