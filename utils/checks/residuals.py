"""Whether a stack of attention blocks carries its input from block to block, as residual connections do.

Shapes: B batch, T positions, D width.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.maturity import is_untrained
from utils.check_result import Finding, Limit
from utils.checks.attention import captured_attention
from utils.checks.limits import OWN_CHOICE
from utils.checks.probe import Probe

# Median over the blocks of the cosine of a block's input and the next one's, each less its mean over rows and positions.
# x + f(x) with a branch as large as x has 0.7, and a first block whose branch is far larger than the embedding next to nothing:
# healthy stacks measured from 0.38. Where f(x) alone is handed on it is chance, up to 0.24 in stacks of width 16.
_LEAST_KEPT = 0.25
_LEAST_WIDTH = 8
_ROWS, _LENGTH = 4, 16

#: Limits of what is measured here, and where each is from.
RESIDUAL_LIMITS = (
    Limit("input_kept_by_blocks", at_least=_LEAST_KEPT,
          source=f"median cosine; x + f(x) has 0.7 where both are of one size; {OWN_CHOICE}; before training only"),
)  # fmt: skip


def input_is_kept(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Stacks of blocks with attention that hand on next to nothing of their input.

    Only blocks in which attention runs are judged: plain stacks of convolutions, recurrent or linear layers need no residual
    connections. What goes into each block is compared, so that a sum outside of the blocks counts as well.
    """
    stacks = _stacks(found.model)
    if not found.over_tokens or not stacks or not is_untrained(found.model):
        return
    found.model.eval()
    batch = found.batch(_ROWS, min(_LENGTH, found.max_length), seed=6)
    inputs: dict[nn.Module, Tensor] = {}
    outputs: dict[nn.Module, Tensor] = {}
    attended: dict[nn.Module, int] = {}
    blocks = {block: None for stack in stacks.values() for block in stack}
    with torch.no_grad(), captured_attention(batch) as captured:

        def enter(module: nn.Module, args: Any, named: dict[str, Any]) -> None:
            if (first := _first_tensor((*args, *named.values()))) is not None:
                inputs[module] = first.detach().float()
            attended[module] = -len(captured.layers)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            if (first := _first_tensor(output if isinstance(output, (tuple, list)) else (output,))) is not None:
                outputs[module] = first.detach().float()
            attended[module] += len(captured.layers)

        hooks = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in blocks]
        hooks += [block.register_forward_hook(leave) for block in blocks]
        try:
            found.call(batch)
        finally:
            for hook in hooks:
                hook.remove()
    for name, stack in stacks.items():
        if not all(attended.get(block) for block in stack) or not all(
            block in inputs and block in outputs for block in stack
        ):
            continue
        states = [*(inputs[block] for block in stack), outputs[stack[-1]]]
        kept = [_cosine(*pair) for pair in itertools.pairwise(states) if pair[0].shape == pair[1].shape]
        if len(kept) < len(states) - 1:
            continue
        measured[f"input_kept_by_blocks of {name}"] = kept
        if statistics.median(kept) < _LEAST_KEPT:
            yield Finding(
                "residual connections", "warn",
                f"The blocks of {name} do not hand on their input: what goes into one block and into the next have a median "
                f"cosine of {statistics.median(kept):.2g}. Residual connections are missing, and what tells tokens apart is "
                "lost with depth.",
                "Add each branch to its input, x = x + f(norm(x)), or x = norm(x + f(x)).",
            )  # fmt: skip


def _stacks(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Lists of two or more distinct blocks of one class."""
    return {
        name or "the model": list(module)
        for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential))
        and len(module) > 1
        and len({id(block) for block in module}) == len(module)
        and len({type(block) for block in module}) == 1
    }


def _first_tensor(values: Any) -> Tensor | None:
    """The first tensor of hidden states (B, T, D) among `values`."""
    return next(
        (
            v
            for v in values
            if isinstance(v, Tensor) and v.dim() == 3 and v.is_floating_point() and v.shape[-1] >= _LEAST_WIDTH
        ),
        None,
    )


def _cosine(first_BTD: Tensor, second_BTD: Tensor) -> float:
    one, two = (values - values.mean((0, 1)) for values in (first_BTD, second_BTD))
    return float(torch.cosine_similarity(one.flatten(), two.flatten(), 0).abs())
