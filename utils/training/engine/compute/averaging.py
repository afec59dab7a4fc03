"""Averages of the weights over the steps of a run, kept beside the weights that are trained."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import ConfigError, ModelError
from utils.training.adapter_checkpoints import checkpoint_state
from utils.training.engine.checkpointing.weights import plain_name
from utils.training.training_config import TrainingConfig

#: Suffix of the metrics of the averaged weights: val/loss is of the trained weights, val/loss_averaged of their average.
AVERAGED = "_averaged"


class WeightAverage:
    """An average of a model's trained weights over optimizer steps.

    ema: average += (1 - d) * (weights - average) after each step, with d = min(decay, (1 + n) / (10 + n)) after n updates, so
    that the initial weights are soon forgotten (the warm-up of TensorFlow's ExponentialMovingAverage with num_updates).
    last: the arithmetic mean of the weights after each step from `first_step` on (tail averaging, as stochastic weight
    averaging does for the last epochs: Izmailov et al. 2018, arXiv 1803.05407).

    Steps that were skipped are not averaged. Buffers are not averaged either: the averaged weights are evaluated, exported and
    returned with the model's current buffers, such as the running statistics of batch normalisation.

    Attributes:
        step: steps done before the one that is under way; set by the loop.
        count: updates so far; 0: there is no average yet.
        better: whether the average had the better value of the monitored metric at the latest validation.
    """

    def __init__(self, model: nn.Module, kind: str, decay: float = 0.999, first_step: int = 0) -> None:
        self.kind, self.decay, self.first_step = kind, decay, first_step
        self.step, self.count, self.better = 0, 0, False
        trained = {id(p): p for p in model.parameters() if p.requires_grad}
        # All names of a tied weight: a checkpoint's model has them all.
        self._names = [
            (plain_name(name), list(trained).index(id(p)))
            for name, p in model.named_parameters(remove_duplicate=False)
            if id(p) in trained
        ]
        self._weights: list[Tensor] = list(trained.values())
        self._averages: list[Tensor] = []
        known = {plain_name(name) for name in checkpoint_state(model)}
        if unknown := [name for name, _ in self._names if name not in known]:
            raise ModelError(
                f"weight_averaging: the model's state_dict has no entry {unknown[0]!r}, so the averaged weights could not be "
                "loaded again. Set weight_averaging='none'."
            )
        self.restart()

    @classmethod
    def of(cls, model: nn.Module, config: TrainingConfig, total_steps: int | None) -> WeightAverage | None:
        """The average that the config asks for; None for none. Raises `ConfigError`, `ModelError`."""
        if config.weight_averaging == "none":
            return None
        if config.weight_averaging == "last" and total_steps is None:
            raise ConfigError(
                "weight_averaging='last' needs to know how many steps there will be, and the data has no length; set "
                "max_steps, or weight_averaging='ema'."
            )
        average = cls(model, config.weight_averaging, config.ema_decay, 0)
        average.plan(config, total_steps)
        return average

    def plan(self, config: TrainingConfig, total_steps: int | None) -> None:
        """Average the last steps of a run that has `total_steps`, where the config asks for the last ones."""
        if self.kind == "last" and total_steps is not None:
            self.first_step = total_steps - max(1, math.ceil(config.averaging_ratio * total_steps))

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew with the model's present weights."""
        self.count, self.better = 0, False
        self._averages = [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after an optimizer step."""
        if self.step < self.first_step:
            self.count, self.better = 0, False  # also of a run that was continued with a longer plan
            return
        torch._foreach_lerp_(self._averages, self._weights, self._share())
        self.count += 1

    def _share(self) -> float:
        """The share of the new weights in the average."""
        if self.kind == "last":
            return 1.0 / (self.count + 1)
        return 1.0 - min(self.decay, (1 + self.count) / (10 + self.count))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside the block and its own, bit for bit, after it."""
        with torch.no_grad():
            own = [weight.detach().clone() for weight in self._weights]
        self.take()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._weights, own)

    @torch.no_grad()
    def take(self) -> None:
        """Give the model the averaged weights."""
        torch._foreach_copy_(self._weights, self._averages)

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint; the tensors are the average's own, not copies."""
        weights = {name: self._averages[index] for name, index in self._names}
        return {"kind": self.kind, "count": self.count, "better": self.better, "weights": weights}

    def misfit(self, saved: Mapping[str, Any] | None) -> str | None:
        """Explain why a `state_dict` cannot be loaded here; None when it can."""
        if saved is None:
            return "the checkpoint has no averaged weights"
        if saved["kind"] != self.kind:
            return f"the checkpoint's average is {saved['kind']!r}"
        there = {plain_name(name): tensor for name, tensor in saved["weights"].items()}
        if there.keys() != {name for name, _ in self._names}:
            return "the checkpoint's average is of other parameters"
        for name, index in self._names:
            if (there[name].shape, there[name].dtype) != (self._weights[index].shape, self._weights[index].dtype):
                return f"{name}: the checkpoint's average has another shape or dtype"
        return None

    @torch.no_grad()
    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; it has no `misfit`."""
        there = {plain_name(name): tensor for name, tensor in saved["weights"].items()}
        for name, index in self._names:
            self._averages[index].copy_(there[name])
        self.count, self.better = saved["count"], saved["better"]
