"""Compare the blocks of a stack, and its settings, before training: copied initial weights, normalisation that forgets at once,
embeddings whose padding row is another token's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.maturity import is_untrained
from utils.check_result import Finding, Limit
from utils.checks.probe import Probe, few, is_stock

# Matrices with fewer numbers than this may be equal by design (a scale for each head, a small table of decays).
_LEAST_VALUES = 16
# Share of distinct values from which on a matrix looks drawn rather than computed or constant.
_DISTINCT = 0.5
# Weight of the newest batch in running statistics. torch's default is 0.1, TensorFlow's momentum of 0.99 is 0.01 here.
_LARGEST_MOMENTUM = 0.5
# torch's own stacks copy the layer that they are given, and say so in their documentation.
_COPYING_STACKS = (nn.TransformerEncoder, nn.TransformerDecoder)

#: Limits of what is measured here, and where each is from.
SIBLING_LIMITS = (
    Limit("momentum of batch normalisation", at_most=_LARGEST_MOMENTUM,
          source="torch's default is 0.1: the weight of the newest batch (TensorFlow's momentum is 1 minus it)"),
)  # fmt: skip


def copied_blocks(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Blocks of a list whose random weights are equal and are two tensors: `copy.deepcopy` of one block.

    Only before training, as upcycled experts and stacked layers of a trained model are copies on purpose. Frozen copies are
    targets of a momentum encoder; zeros, constants and computed tables say nothing.
    """
    if not is_untrained(found.model):
        return
    copied = stacks_of_copies(found.model)
    side_by_side = any("expert" in name.rsplit(".", 1)[-1].lower() for name in copied)
    measured["stacks_of_copies"] = copied
    if copied:
        consequence = (
            "experts that are the same stay the same but for what the router sends them"
            if side_by_side
            else ("the random start that breaks their symmetry is drawn once instead of for each")
        )
        yield Finding(
            "copied blocks", "warn",
            f"The blocks of {few(copied)} start with the same random weights, as copy.deepcopy of one block gives them: "
            f"{consequence}.",
            "Make each block anew, [Block() for _ in range(n)], or initialise the weights after copying.",
        )  # fmt: skip


def stacks_of_copies(model: nn.Module) -> list[str]:
    """Names of the lists that hold blocks with equal random weights; torch's own stacks, which copy by design, are left out."""
    inside_torch = {id(module.layers) for module in model.modules() if isinstance(module, _COPYING_STACKS)}
    return [
        name or "the model" for name, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and id(module) not in inside_torch
        and any(_first_copy(blocks) for blocks in _by_class(module))
    ]  # fmt: skip


def _by_class(module: Iterable[nn.Module]) -> Iterator[list[nn.Module]]:
    """The distinct blocks of a list, those of one class together."""
    kinds: dict[type[nn.Module], dict[int, nn.Module]] = {}
    for block in module:
        kinds.setdefault(type(block), {})[id(block)] = block
    return (list(blocks.values()) for blocks in kinds.values() if len(blocks) > 1)


def _first_copy(blocks: list[nn.Module]) -> bool:
    """Whether two of the blocks have equal random weights under one name."""
    seen: dict[tuple[str, torch.Size, float], list[tuple[int, Tensor]]] = {}
    for index, block in enumerate(blocks):
        for name, parameter in block.named_parameters():
            if parameter.dim() < 2 or parameter.numel() < _LEAST_VALUES or not parameter.requires_grad:
                continue
            others = seen.setdefault((name, parameter.shape, float(parameter.detach().sum())), [])
            if any(_is_copy(parameter, other) for place, other in others if place != index) and _looks_drawn(parameter):
                return True
            others.append((index, parameter))
    return False


def _is_copy(parameter: Tensor, other: Tensor) -> bool:
    return parameter.data_ptr() != other.data_ptr() and torch.equal(parameter, other)


def _looks_drawn(parameter: Tensor) -> bool:
    """Whether values are of both signs and mostly distinct, with rows that are not multiples of one another."""
    values = parameter.detach().float().flatten(1)
    if torch.unique(values).numel() < _DISTINCT * values.numel() or not bool((values < 0).any() and (values > 0).any()):
        return False
    first, second = values[0], values[1] if len(values) > 1 else values[0].roll(1)
    return float(torch.cosine_similarity(first, second, 0).abs()) < 0.99 or values.shape[1] < 3


def fast_running_statistics(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Batch normalisation whose running statistics are all but those of the last batch.

    Not reported of unchanged stock models: transformers' conversions of TensorFlow models hand over its momentum as it was.
    """
    momenta = {
        name: module.momentum for name, module in found.model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats and module.momentum is not None
    }  # fmt: skip
    fast = [f"{name} ({momentum:g})" for name, momentum in momenta.items() if momentum > _LARGEST_MOMENTUM]
    if momenta:
        measured["largest_batch_norm_momentum"] = max(momenta.values())
    if fast and not is_stock(found.model):
        yield Finding(
            "batch norm momentum", "warn",
            f"The running statistics of batch normalisation are all but those of the last batch (momentum): {few(fast)}.",
            "In torch momentum is the weight of the newest batch, 0.1 by default: TensorFlow's 0.99 is 0.01 here.",
        )  # fmt: skip


def padding_row(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """An embedding of tokens whose `padding_idx`, a row that is never trained, is not the padding token."""
    pad = _padding_id(found)
    if pad is None or not found.over_tokens:
        return
    for name, module in found.model.named_modules():
        if not isinstance(module, nn.Embedding) or module.padding_idx is None or "position" in name:
            continue
        if module.num_embeddings >= (found.vocab_size or 0) and module.padding_idx != pad % module.num_embeddings:
            yield Finding(
                "padding row", "warn",
                f"{name}.padding_idx is {module.padding_idx}, and the padding token is {pad}: token {module.padding_idx} "
                "gets no gradient in its embedding, and the padding token is trained.",
                f"Give nn.Embedding padding_idx={pad}, or none.",
            )  # fmt: skip


def _padding_id(found: Probe) -> int | None:
    """The id of the padding token as task, tokenizer or the model's config have it; None where they do not say."""
    for source in (found.task_spec, found.tokenizer, getattr(found.model, "config", None)):
        pad = getattr(source, "pad_token_id", None)
        if isinstance(pad, int) and not isinstance(pad, bool) and pad >= 0:
            return pad
    return None
