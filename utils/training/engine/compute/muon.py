"""Muon for the matrices of hidden layers, AdamW for everything else, as one optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from utils.environment import has_bf16

# Nesterov momentum and its warm-up over the first steps, as in the speed runs in which Muon was developed (Jordan et al. 2024,
# https://kellerjordan.github.io/posts/muon/, and its modded-nanogpt).
MOMENTUM, FIRST_MOMENTUM, MOMENTUM_WARMUP_STEPS = 0.95, 0.85, 300

# Coefficients and number of the Newton-Schulz iterations (same source): the largest slope at 0 of those that do not diverge.
NEWTON_SCHULZ, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
_LEAST_NORM = 1e-7
#: Elements of the matrices that are multiplied together, which bounds the memory of a step.
_ELEMENTS_AT_ONCE = 2**24

_METHOD = "method"


class MuonWithAdamW(Optimizer):
    """Muon over `matrices`, and `torch.optim.AdamW` over the other groups.

    Muon orthogonalises the momentum of each matrix, as `torch.optim.Muon` does, which not every supported torch has and which
    multiplies in bf16 on any device. The update is scaled to the root mean square of AdamW's (0.2 sqrt(max(rows, columns)),
    Liu et al. 2025, arXiv 2502.16982), so one learning rate and one weight decay serve both.

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
        self._adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=fused) if groups else None
        muon = {"params": matrices, "lr": learning_rate, "weight_decay": weight_decay, "momentum": FIRST_MOMENTUM}
        others = [] if self._adamw is None else [{**group, _METHOD: "adamw"} for group in self._adamw.param_groups]
        super().__init__([{**muon, _METHOD: "muon"}, *others] if matrices else others, {})
        self._share()

    def _share(self) -> None:
        """AdamW works on this optimizer's groups and state, so that schedules and checkpoints see one optimizer."""
        if self._adamw is not None:
            self._adamw.param_groups, self._adamw.state = self._groups("adamw"), self.state

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
        for group in self._groups("muon"):
            group["momentum"] = self._momentum(group["params"])
            self._update_matrices(group)
        if self._adamw is not None:
            self._adamw.step()
        return loss

    def _update_matrices(self, group: dict[str, Any]) -> None:
        matrices: list[Tensor] = [matrix for matrix in group["params"] if matrix.grad is not None]
        if not matrices:
            return
        for matrix in matrices:
            state = self.state[matrix]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(matrix)
            state["step"] = state.get("step", torch.zeros(())) + 1
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        buffers = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        directions = orthogonalised(list(torch._foreach_lerp(gradients, buffers, group["momentum"])))  # Nesterov's
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        for matrix, direction in zip(matrices, directions, strict=True):
            matrix.add_(direction, alpha=-0.2 * math.sqrt(max(matrix.shape)) * group["lr"])

    def _momentum(self, matrices: list[Tensor]) -> float:
        done = max(
            (float(self.state[matrix].get("step", 0)) for matrix in matrices if matrix in self.state), default=0.0
        )
        return FIRST_MOMENTUM + (MOMENTUM - FIRST_MOMENTUM) * min(1.0, done / MOMENTUM_WARMUP_STEPS)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_adamw": self._adamw}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()


def orthogonalised(matrices: list[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Matrices with nearly the same singular vectors and singular values between 0.7 and 1.2, by Newton-Schulz iterations.

    Matrices of one shape are multiplied together.

    Args:
        dtype: to multiply in; None means bf16 where the device multiplies it in hardware, else fp32: on a CPU without it, bf16
            takes about twenty times as long.
    """
    found: list[Tensor | None] = [None] * len(matrices)
    alike: dict[tuple[torch.Size, torch.device], list[int]] = {}
    for number, matrix in enumerate(matrices):
        alike.setdefault((matrix.shape, matrix.device), []).append(number)
    for (shape, device), numbers in alike.items():
        kind = dtype or (torch.bfloat16 if has_bf16(device.type) else torch.float32)
        tall, at_once = shape[0] > shape[1], max(1, _ELEMENTS_AT_ONCE // shape.numel())
        for start in range(0, len(numbers), at_once):
            chosen = numbers[start : start + at_once]
            stack = torch.stack([matrices[number] for number in chosen]).to(kind)
            result = _newton_schulz(stack.mT if tall else stack)
            for number, one in zip(chosen, result.mT if tall else result, strict=True):
                found[number] = one.to(matrices[number].dtype)
    return [one for one in found if one is not None]


def _newton_schulz(stack_NRC: Tensor) -> Tensor:
    """The iteration for matrices with at most as many rows as columns. The norm bounds their largest singular value by 1."""
    a, b, c = NEWTON_SCHULZ
    wide: Tensor = stack_NRC / stack_NRC.norm(dim=(1, 2), keepdim=True).clamp(min=_LEAST_NORM)
    for _ in range(ITERATIONS):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide


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
