"""Inputs and outputs of an exported graph: a fixed list of tensors, and the logits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.forward import ModelCall

# A benchmark ends after this many rounds or seconds, whichever comes first.
_RUNS, _LEAST_RUNS, _SECONDS = 15, 3, 3.0

#: Inputs of a graph, in the order in which it takes them; the mask, which may be left out, comes last.
ORDER = ("input_ids", "decoder_input_ids", "attention_mask")


class LogitsOnly(nn.Module):
    """A model whose forward takes the tensors called `names`, by position, and returns its logits."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self._names = tuple(names)
        self._call = ModelCall(model)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._call(dict(zip(self._names, inputs, strict=True)))


def graph_batches(batches: Sequence[Mapping[str, Tensor]]) -> tuple[tuple[str, ...], list[dict[str, Tensor]]]:
    """The inputs of a graph for these batches, in order, and the batches with a mask of ones where they have none."""
    names = {name for batch in batches for name in batch}
    ordered = tuple(name for name in ORDER if name in names) or tuple(batches[0])
    filled = []
    for batch in batches:
        mask = {} if "attention_mask" not in names else {"attention_mask": torch.ones_like(batch["input_ids"])}
        given = {**mask, **batch}
        filled.append({name: given[name] for name in ordered})
    return ordered, filled


def traced_batch(batches: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The batch to trace: several samples of several positions, with padding where a batch has some.

    Sizes 0 and 1 are taken for constants, and a mask of ones may be left out of the graph.
    """
    several = [batch for batch in batches if len(next(iter(batch.values()))) > 1]
    masked = [batch for batch in several if "attention_mask" in batch and not bool(batch["attention_mask"].all())]
    return (masked or several or list(batches))[0]


def measured(
    original: Callable[[Mapping[str, Tensor]], Any],
    exported: Callable[[Mapping[str, Tensor]], Any],
    batch: Mapping[str, Tensor],
    name: str,
) -> dict[str, Any]:
    """Median milliseconds of a forward pass of both, taken in turn: {"pytorch_ms", f"{name}_ms", "speedup", "shape", …}."""
    times: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for _ in range(3):  # the first calls allocate and, in TorchScript, optimise
            original(batch), exported(batch)
        started = time.perf_counter()
        while len(times[0]) < _RUNS:
            if len(times[0]) >= _LEAST_RUNS and time.perf_counter() - started > _SECONDS:
                break
            for run, taken in zip((original, exported), times, strict=True):
                before = time.perf_counter()
                run(batch)
                taken.append(time.perf_counter() - before)
    pytorch_ms, exported_ms = (1000 * statistics.median(taken) for taken in times)
    return {
        "pytorch_ms": pytorch_ms,
        f"{name}_ms": exported_ms,
        "speedup": pytorch_ms / exported_ms,
        "shape": tuple(next(iter(batch.values())).shape),
        "threads": torch.get_num_threads(),
        "runs": len(times[0]),
    }
