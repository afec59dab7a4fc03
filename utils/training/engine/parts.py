"""What a training step works with, assembled once: model, objective, optimizer, schedule, precision, device."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils.data.examples import Batch
from utils.environment import Device, detect_device
from utils.errors import ConfigError, OutOfMemoryError
from utils.training.engine import rng
from utils.training.engine.memory import is_out_of_memory
from utils.training.engine.objective import Loss, Objective, TrainedModule
from utils.training.engine.optim import Schedule, leaves_steps_out, make_optimizer
from utils.training.engine.precision import ResolvedPrecision, resolve_precision
from utils.training.training_config import TrainingConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass
class Parts:
    """Model, optimizer, schedule, objective and Fabric.

    Attributes:
        model: the user's module, on the device; `own`: the same inside `TrainedModule`; `trained`: that, wrapped by Fabric.
        alone: one process trains.
        parameters: the parameters that are trained.
        scaler: fp16's gradient scaler, else None.
        guard: where the host does not look after each step (a GPU whose optimizer can leave a step out by itself): fp32,
            shape (3,): 1 once no step may change anything any more, faults in a row, faults in all. Else None.
        updating: True while an optimizer step is under way, and after one that failed: parameters may be torn between two
            steps and must not be saved.
    """

    model: nn.Module
    own: TrainedModule
    trained: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    parameters: list[Tensor]
    fabric: Fabric
    device: Device
    precision: ResolvedPrecision
    scaler: torch.amp.GradScaler | None
    alone: bool = True
    guard: Tensor | None = None
    updating: bool = False

    def forward(self, batch: Batch, keep_outputs: bool = False, num_targets: int | None = None) -> Loss:
        """The loss of a batch, in the configured precision."""
        if self.device.kind != "cpu":
            # Copies overlap with what the device still has to do; only pinned memory can.
            batch = {name: value.to(self.fabric.device, non_blocking=True) for name, value in batch.items()}
        # Fabric's wrapper looks through all inputs and outputs for tensors to convert; one process does without it.
        run = self.own if self.alone else self.trained
        with self.precision.autocast(self.device.kind):
            loss = run(batch, keep_outputs, num_targets)
        assert isinstance(loss, Loss)
        return loss

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` (scaled where fp16 needs it)."""
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        if self.alone:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            self.fabric.backward(loss)

    def rehearse(self, batch: Batch) -> None:
        """One forward and backward pass of which nothing is left: weights, buffers and random state are as before, gradients
        None."""
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        try:
            with rng.preserved():
                count = self.objective.count_targets(batch)
                self.backward(self.forward(batch, num_targets=count).loss_sum)
                if self.device.kind == "cuda":
                    torch.cuda.synchronize()
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)

    def update(self, finite: bool) -> None:
        """Change the parameters by their gradients, if those are finite. Raises `OutOfMemoryError`."""
        with self._updating_now():
            if finite:
                self.optimizer.step()

    def update_unseen(self, finite: Tensor, fine: Tensor, too_long: Tensor | None, skips: tuple[int, float]) -> None:
        """The same without asking the device what came out: the optimizer's kernels leave it out, or clip, by themselves.

        Args:
            finite: bool scalar: loss and gradients are finite; fine: bool scalar: they are, or fp16's scaling explains it.
            too_long: scalar that gradients are divided by; None: not.
            skips: faults in a row and in all that are borne; see `guard`.
        """
        assert self.guard is not None
        stop, in_a_row, in_all = self.guard.unbind()
        fault = (~fine).float()
        too_many = fault * ((in_a_row >= skips[0]) | (in_all >= skips[1])).float()
        optimizer: Any = self.optimizer
        optimizer.found_inf, optimizer.grad_scale = torch.maximum((~finite).float(), stop), too_long
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
                f"the optimizer's state does not fit in memory: {str(error).splitlines()[0]} Take a smaller model, "
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
) -> Parts:
    """Put the parts together; moves `model` to the device in place.

    Raises:
        ConfigError: a setting that this model or device cannot do.
    """
    from lightning_fabric import Fabric

    device = device or detect_device()
    precision = resolve_precision(config.precision, device)
    if config.gradient_checkpointing:
        switch_activation_checkpointing(model, on=True)
    # Fabric announces its precision on stderr; ours is in the results, where it can be found again.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    # Formats and scaling are ours: Fabric would convert the inputs too, and look at the gradients once more.
    scaler = torch.amp.GradScaler(device.kind) if precision.compute == "fp16" else None
    fabric = Fabric(accelerator=device.kind, devices=1, precision="32-true")
    model.to(fabric.device)
    optimizer = make_optimizer(model, config)
    own = TrainedModule(model, objective, config.compile_mode)
    trained, _ = fabric.setup(own, optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    schedule = Schedule(config, total_steps)
    parts = Parts(model, own, trained, objective, optimizer, schedule, parameters, fabric, device, precision, scaler)
    if device.kind == "cuda" and leaves_steps_out(optimizer):
        parts.guard = torch.zeros(3, device=fabric.device)
    return parts


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
