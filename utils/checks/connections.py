"""Which modules get another module's output as it is, with nothing in between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from utils.check_result import Finding
from utils.checks.probe import Probe, few

# Output units of a linear layer for each of its inputs, from which on it widens: MLPs have 2 to 4.
_WIDENS = 1.5


def takers_of(found: Probe, sources: Iterable[nn.Module]) -> dict[nn.Module, set[nn.Module]]:
    """The modules that get the output of each source itself, in one forward pass in evaluation mode.

    A view, or dropout in evaluation mode, hands on the same values; an activation, a sum or a change in place does not.
    """
    wanted = dict.fromkeys(sources)
    outputs: dict[int, tuple[nn.Module, Tensor, int]] = {}  # kept alive, so that no address is used twice
    takers: dict[nn.Module, set[nn.Module]] = {source: set() for source in wanted}

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and module in wanted:
            outputs[output.data_ptr()] = module, output, output._version

    def enter(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        for value in (*inputs, *named.values()):
            if isinstance(value, Tensor) and (left := outputs.get(value.data_ptr())) is not None:
                source, output, version = left
                if value.numel() == output.numel() and value._version == version:
                    takers[source].add(module)

    hooks = [module.register_forward_hook(leave) for module in wanted]
    hooks += [module.register_forward_pre_hook(enter, with_kwargs=True) for module in found.model.modules()]
    found.model.eval()
    try:
        with torch.no_grad():
            found.call(found.batch(2, min(16, found.max_length)))
    finally:
        for hook in hooks:
            hook.remove()
    return takers


def idle_widening(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """A linear layer that widens and whose output goes into a narrowing one as it is: together they are one linear map.

    A narrow layer before a wide one is a factorisation, and two layers of one width may be projections of two parts: neither is
    reported.
    """
    names = {module: name for name, module in found.model.named_modules() if isinstance(module, nn.Linear)}
    wide = [layer for layer in names if layer.out_features >= _WIDENS * layer.in_features]
    pairs = []
    takers_by_source = takers_of(found, wide) if wide else {}
    for source in wide:
        takers = takers_by_source[source]
        ends = [taker for taker in takers if isinstance(taker, nn.Linear)]
        if (
            len(ends) == 1
            and ends[0].out_features < source.out_features
            and all(_passes_on(t) or t is ends[0] for t in takers)
        ):
            pairs.append(f"{names[source]} and {names[ends[0]]}")
    measured["linear_layers_in_sequence"] = len(pairs)
    if pairs and len(names) > 2:
        yield Finding(
            "linear", "warn", f"Nothing is between the widening layer and the narrowing one of {few(pairs)}: together they are "
            "one linear map, and the width in between has no effect.",
            "Put a nonlinearity such as ReLU or GELU between the two layers.",
        )  # fmt: skip


def _passes_on(module: nn.Module) -> bool:
    return isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd))
