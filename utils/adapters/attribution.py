"""What a score rests on: integrated gradients over token embeddings (Sundararajan et al. 2017, arXiv 1703.01365)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import MissingPackageError

#: The package that computes the integral.
PACKAGE = "captum"


def can_attribute() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def token_table(model: nn.Module) -> nn.Module | None:
    """The embedding of token ids: what the model names, else the first table that is not one of positions."""
    getter = getattr(model, "get_input_embeddings", None)
    if callable(getter):
        try:
            named = getter()
        except NotImplementedError:  # how transformers reports a missing one
            named = None
        if isinstance(named, nn.Module):
            return named
    tables = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Embedding))
    return next((module for name, module in tables if "pos" not in name.lower()), None)


def token_attributions(
    score_of: Callable[[Tensor], Tensor], table: nn.Module, ids_BT: Tensor, n_steps: int = 50
) -> tuple[list[float], float]:
    """How much each token of one row adds to a score, compared with the same row whose embeddings are those of id 0.

    Args:
        score_of: ids (B, T) int64 -> the score (B,), differentiable through `table`.
        table: the embedding of token ids; ids_BT: one row, (1, T) int64.
        n_steps: steps of the numerical integral.
    Returns:
        a value for each token, and by which share of the score's change they miss it in sum (0: exact).
    Raises:
        MissingPackageError: captum is not installed.
    """
    if not can_attribute():
        raise MissingPackageError(PACKAGE, "to attribute a prediction to its tokens")
    from captum.attr import LayerIntegratedGradients

    baseline = torch.zeros_like(ids_BT)
    method: Any = LayerIntegratedGradients(score_of, table)
    attributions = method.attribute(ids_BT, baselines=baseline, n_steps=n_steps, internal_batch_size=16)
    # Only the embeddings go along the path. With the ids themselves at 0, a model that looks for its last token by the padding
    # id would read another position.
    with torch.no_grad():
        embedded = table(baseline)
        hook = table.register_forward_hook(lambda module, arguments, output: embedded)
        try:
            from_baseline = score_of(ids_BT)
        finally:
            hook.remove()
        change = float(score_of(ids_BT) - from_baseline)
    scores = attributions.detach().sum(-1)[0]
    size = max(abs(change), float(attributions.detach().abs().sum()) * 0.1, 1e-9)
    return scores.tolist(), abs(float(scores.sum()) - change) / size
