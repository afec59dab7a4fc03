"""What a training step works with, assembled once: model, objective, optimizer, schedule, precision, device."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils.data.examples import Batch
from utils.environment import Device, detect_device
from utils.errors import ConfigError
from utils.training.engine.objective import Loss, Objective, TrainedModule
from utils.training.engine.optim import Schedule, make_optimizer
from utils.training.engine.precision import ResolvedPrecision, check_attention, resolve_precision
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass
class Parts:
    """Model, optimizer, schedule, objective and Fabric.

    Attributes:
        model: the user's module, on the device; `trained`: the same inside `TrainedModule`, wrapped by Fabric.
        parameters: the parameters that are trained.
        scaler: fp16's gradient scaler, else None.
        updating: True while an optimizer step is under way.
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

    def forward(self, batch: Batch, keep_outputs: bool = False) -> Loss:
        """The loss of a batch, in the configured precision."""
        loss = self.trained(self.fabric.to_device(batch), keep_outputs)
        assert isinstance(loss, Loss)
        return loss

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` (scaled where fp16 needs it)."""
        self.fabric.backward(loss)


def assemble(
    model: nn.Module,
    objective: Objective,
    config: TrainingConfig,
    total_steps: int | None,
    device: Device | None = None,
) -> Parts:
    """Put the parts together; moves `model` to the device in place.

    Raises:
        ConfigError: a setting that this model or device cannot do.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision

    device = device or detect_device()
    precision = resolve_precision(config.precision, device)
    check_attention(model, device, precision)
    if config.gradient_checkpointing:
        switch_activation_checkpointing(model, on=True)
    # Fabric announces its precision on stderr; ours is in the results, where it can be found again.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    scaler = torch.amp.GradScaler(device.kind) if precision.compute == "fp16" else None
    if scaler is not None:
        fabric = Fabric(accelerator=device.kind, devices=1, plugins=MixedPrecision("16-mixed", device.kind, scaler))
    else:
        fabric = Fabric(accelerator=device.kind, devices=1, precision=precision.fabric_name)
    model.to(fabric.device)
    optimizer = make_optimizer(model, config)
    trained, stepper = fabric.setup(TrainedModule(model, objective), optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    schedule = Schedule(config, total_steps)
    return Parts(model, trained, objective, optimizer, stepper, schedule, parameters, fabric, device, precision, scaler)


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
