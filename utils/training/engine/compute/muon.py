"""Muon for the matrices of hidden layers, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

# Nesterov momentum and its warm-up over the first steps, as in the speed runs in which Muon was developed (Jordan et al. 2024,
# https://kellerjordan.github.io/posts/muon/, and its modded-nanogpt).
MOMENTUM, FIRST_MOMENTUM, MOMENTUM_WARMUP_STEPS = 0.95, 0.85, 300

_METHOD = "method"


class MuonWithAdamW(Optimizer):
    """`torch.optim.Muon` over `matrices` and `torch.optim.AdamW` over the other groups.

    Muon orthogonalises the momentum of each matrix. Its update is scaled to the root mean square of AdamW's (0.2 sqrt(max(rows,
    columns)), Liu et al. 2025, arXiv 2502.16982), so one learning rate and one weight decay serve both.

    Args:
        matrices: 2-dimensional parameters, which decay by `weight_decay`.
        groups: AdamW's parameter groups, each with its own weight decay.
        learning_rate, betas, eps: betas and eps are AdamW's.
        fused: whether AdamW uses its fused kernel.
    """

    def __init__(
        self, matrices: list[Tensor], groups: list[dict[str, Any]], *, learning_rate: float, weight_decay: float,
        betas: tuple[float, float], eps: float, fused: bool,
    ) -> None:  # fmt: skip
        self._parts: dict[str, Optimizer] = {}
        if matrices:
            self._parts["muon"] = torch.optim.Muon(
                matrices, lr=learning_rate, weight_decay=weight_decay, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"
            )
        if groups:
            self._parts["adamw"] = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=fused)
        for name, part in self._parts.items():
            for group in part.param_groups:
                group[_METHOD] = name
        super().__init__([group for part in self._parts.values() for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The parts work on this optimizer's groups and state, so that schedules and checkpoints see one optimizer."""
        for name, part in self._parts.items():
            part.param_groups, part.state = self._groups(name), self.state

    def _groups(self, name: str) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group[_METHOD] == name]

    def parameters(self, name: str) -> list[Tensor]:
        """Parameters that "muon" or "adamw" updates."""
        return [parameter for group in self._groups(name) for parameter in group["params"]]

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient; `closure`, where given, computes loss and gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices = self.parameters("muon")
        for group in self._groups("muon"):
            group["momentum"] = self._momentum(matrices)
        for part in self._parts.values():
            part.step()
        for matrix in matrices:
            if matrix.grad is not None:
                state = self.state[matrix]
                state["step"] = state.get("step", torch.zeros(())) + 1
        return loss

    def _momentum(self, matrices: list[Tensor]) -> float:
        done = max((float(self.state[matrix].get("step", 0)) for matrix in matrices if matrix in self.state), default=0.0)
        return FIRST_MOMENTUM + (MOMENTUM - FIRST_MOMENTUM) * min(1.0, done / MOMENTUM_WARMUP_STEPS)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_parts": self._parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """Trained weights of linear layers and attention projections, without the output layer and what is tied to an embedding.

    The output layer is the model's `get_output_embeddings()` where it has one, else the linear layer that was registered last.
    Convolutions, recurrent weights, stacked experts and parameters that are used outside of such layers are left to AdamW.
    """
    found = {id(weight): weight for weight in _linear_weights(model) if weight.requires_grad and weight.dim() == 2}
    embeddings = (nn.Embedding, nn.EmbeddingBag)
    excluded = {id(module.weight) for module in model.modules() if isinstance(module, embeddings)}
    head = _output_weight(model)
    return [weight for key, weight in found.items() if key not in excluded and weight is not head]


def _output_weight(model: nn.Module) -> Tensor | None:
    accessor = getattr(model, "get_output_embeddings", None)
    head = getattr(accessor() if callable(accessor) else None, "weight", None)
    if isinstance(head, Tensor):
        return head
    return next(reversed(list(_linear_weights(model))), None)


def _linear_weights(model: nn.Module) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":  # transformers' Linear, transposed
            weight = module._parameters.get("weight")  # None where a parametrization computes it
        elif isinstance(module, nn.MultiheadAttention):
            weight = module.in_proj_weight
        else:
            continue
        if weight is not None:
            yield weight


def described(optimizer: Optimizer) -> str | None:
    """Describe which parameters Muon updates and which AdamW, in one sentence; None for other optimizers."""
    if not isinstance(optimizer, MuonWithAdamW):
        return None
    matrices, others = optimizer.parameters("muon"), optimizer.parameters("adamw")
    if not matrices:
        return (
            "Muon updates nothing, because the model has no trained linear layer besides its output layer: AdamW updates all "
            f"{_size(others)} parameters."
        )
    return (
        f"Muon updates {_size(matrices)} parameters in {len(matrices)} matrices of hidden layers, AdamW {_size(others)} in "
        f"{len(others)} other tensors (embeddings, output layer, convolutions, vectors)."
    )


def _size(parameters: list[Tensor]) -> str:
    return f"{sum(parameter.numel() for parameter in parameters):,}"
