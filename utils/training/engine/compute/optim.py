"""Optimizers, their parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from utils.errors import ConfigError, ModelError
from utils.training.engine.compute.muon import MuonWithAdamW, hidden_matrices
from utils.training.engine.distributed.sharding import is_sharded
from utils.training.training_config import TrainingConfig


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters that are trained, in two groups: matrices decay; vectors and scalars (biases, norms) do not.

    A norm's scale at 0 switches its channel off, and a bias has no scale to keep in check: decay only hurts them
    (as in GPT-3's and nanoGPT's training). Embeddings are matrices and decay.
    Raises:
        ModelError: nothing to train.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ModelError(
            f"{type(model).__name__} has no parameter with requires_grad=True, so there is nothing to train."
        )
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The config's optimizer over `model`, fused on CPU and CUDA: 5x faster updates, same formula."""
    groups = parameter_groups(model, config.weight_decay)
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for group in groups for p in group["params"])
    if config.optimizer == "sgd":
        fused = fused and not is_sharded(groups[0]["params"][0])  # torch has no such kernel for shards
        sgd = torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.betas[0], fused=fused)
        allocate_momentum(sgd)
        return sgd
    if config.optimizer == "muon":
        return _muon(model, groups, config, fused)
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=config.learning_rate)
    adam = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return adam(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=fused)


def _muon(model: nn.Module, groups: list[dict[str, Any]], config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    matrices = hidden_matrices(model)
    taken = {id(matrix) for matrix in matrices}
    others = [{**group, "params": [p for p in group["params"] if id(p) not in taken]} for group in groups]
    return MuonWithAdamW(
        matrices, [group for group in others if group["params"]], learning_rate=config.learning_rate,
        weight_decay=config.weight_decay, betas=config.betas, eps=config.eps, fused=fused,
    )  # fmt: skip


def allocate_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give fused SGD its momentum buffers, zeros, before its first step.

    torch allocates them in the first step without initialising them and leaves it to the kernel to fill them, which a kernel
    that skips the step (`found_inf`) does not do. Zeros make no difference to a first step that is done, unless there is
    dampening, which torch applies from the second step on.
    """
    for parameter in _without_momentum(optimizer):
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _without_momentum(optimizer: torch.optim.Optimizer, with_dampening: bool = False) -> list[torch.Tensor]:
    """Parameters of fused SGD that need a momentum buffer and have none. `with_dampening`: those of such groups too."""
    if not isinstance(optimizer, torch.optim.SGD):
        return []
    groups = [
        group for group in optimizer.param_groups
        if group["fused"] and group["momentum"] and (with_dampening or not group["dampening"])
    ]  # fmt: skip
    return [
        parameter for group in groups for parameter in group["params"]
        if optimizer.state[parameter].get("momentum_buffer") is None
    ]  # fmt: skip


def leaves_steps_out(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its kernels can skip an update (`found_inf`) and scale gradients by themselves, from the first step on."""
    if isinstance(optimizer, MuonWithAdamW):
        return False  # Muon is not one kernel: the host looks at every step
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return fused and not _without_momentum(optimizer, with_dampening=True)


#: Shapes of the learning rate that depend on the number of planned steps.
SHAPES_OF_A_PLAN = ("cosine", "linear", "step", "wsd")


class Schedule:
    """The learning rate at each step: linear warm-up to `learning_rate`, then the config's shape down to `min_lr_ratio` of it.

    cosine, linear: falls until the last planned step. wsd (warm-up, stable, decay): stays until the last `lr_decay_ratio` of
    all steps, then falls by 1 - sqrt(share of the decay) (Hägele et al. 2024, arXiv 2405.18392); a run that is continued from
    the plateau with fewer steps decays from there, and so does one that is asked to finish now.
    step: two drops by the same factor, at one and two thirds of the way after warm-up, the second one to the floor (at least
    0.001 of the peak). constant: stays. plateau: halves after more than 2 validations in a row without improvement, never
    below the floor; this is the only shape with a memory (`plateau_factor`, `plateau_waits`), which checkpoints hold.
    """

    PLATEAU_FACTOR = 0.5
    PLATEAU_PATIENCE = 2

    def __init__(self, config: TrainingConfig, total_steps: int | None) -> None:
        self.peak = config.learning_rate
        self.shape = config.lr_schedule if config.use_lr_schedule else "constant"
        self.floor, self.decay = config.min_lr_ratio, config.lr_decay_ratio
        self.total_steps = total_steps
        self.plateau_factor, self.plateau_waits = 1.0, 0
        if total_steps is None and self.shape in SHAPES_OF_A_PLAN:
            raise ConfigError(
                f"lr_schedule={self.shape!r} needs to know how many steps there will be, and the data has no length; "
                "set max_steps, or lr_schedule='constant'."
            )
        if not config.use_lr_schedule:
            self.warmup_steps = 0
        elif config.warmup_steps is not None:
            self.warmup_steps = config.warmup_steps
        else:
            self.warmup_steps = int((config.warmup_ratio or 0.0) * (total_steps or 0))

    def earliest_end(self, step: int) -> int:
        """The fewest optimizer steps of a wsd run whose decay begins at `step` (0-based) or, within the warm-up, after it.

        Its decay has at least one step. At most `total_steps`, which is also the answer when the decay has begun.
        """
        assert self.total_steps is not None
        begins = max(step, self.warmup_steps)
        ends = (end for end in range(begins + 1, self.total_steps) if end - 1 > self._plateau_ends(end) >= begins)
        return next(ends, self.total_steps)

    def at(self, step: int) -> float:
        """Learning rate of optimizer step `step` (0-based)."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / (self.warmup_steps + 1)
        return self.peak * self._share(step)

    def _share(self, step: int) -> float:
        if self.shape == "constant":
            return 1.0
        if self.shape == "plateau":
            return max(self.plateau_factor, self.floor)
        assert self.total_steps is not None
        length = max(1, self.total_steps - 1 - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / length)
        shapes: dict[str, Callable[[float], float]] = {
            "cosine": lambda x: self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * x)),
            "linear": lambda x: self.floor + (1 - self.floor) * (1 - x),
            "wsd": lambda x: self.floor + (1 - self.floor) * (1 - math.sqrt(self._decayed(step))),
            "step": lambda x: max(self.floor, 1e-3) ** (min(int(3 * x), 2) / 2),
        }
        return shapes[self.shape](progress)

    def _decayed(self, step: int) -> float:
        """Share of the final decay that is behind `step`: 0 on the plateau, 1 in the last step."""
        assert self.total_steps is not None
        last, begins = self.total_steps - 1, self._decay_begins(self.total_steps)
        return min(1.0, max(0.0, (step - begins) / max(1, last - begins)))

    def _decay_begins(self, total_steps: int) -> int:
        """The step (0-based) at which the decay of a wsd run of so many steps begins."""
        return max(self.warmup_steps, self._plateau_ends(total_steps))

    def _plateau_ends(self, total_steps: int) -> int:
        """The same by the length of the decay alone; less than the warm-up's end where there is no room for a plateau."""
        return total_steps - 1 - round(self.decay * total_steps)

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set the learning rate of every group for `step` and return it."""
        rate = self.at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        return rate

    def after_evaluation(self, improved: bool) -> None:
        """Tell the schedule how a validation went; only `plateau` listens."""
        if self.shape != "plateau":
            return
        self.plateau_waits = 0 if improved else self.plateau_waits + 1
        if self.plateau_waits > self.PLATEAU_PATIENCE:
            self.plateau_factor, self.plateau_waits = max(self.plateau_factor * self.PLATEAU_FACTOR, self.floor), 0

    def after_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Nothing: these shapes go by steps and validations."""

    def state_dict(self) -> dict[str, Any]:
        """The memory that a checkpoint holds."""
        return {"plateau_factor": self.plateau_factor, "plateau_waits": self.plateau_waits}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a memory from `state_dict`."""
        state = {**self.state_dict(), **state}
        self.plateau_factor, self.plateau_waits = float(state["plateau_factor"]), int(state["plateau_waits"])
