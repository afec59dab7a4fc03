"""Whether an exported language model writes the same text as the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.facts import model_facts
from utils.training.export.parity import Logits, compare_greedy_tokens

# Tokens of the prompt: few, so that a short context slides as well.
_PROMPT = 4


def greedy_parity(
    model: nn.Module, original: Logits, exported: Logits, batches: Sequence[Mapping[str, Tensor]], tolerance: float
) -> dict[str, Any]:
    """`compare_greedy_tokens` from a short prompt, or {} for a model that does not write text.

    Args:
        model: decides whether text is compared: a causal or sequence-to-sequence language model.
        original, exported: from a batch to logits, which are called for the whole sequence at every step.
        batches: of `example_batches`; the first tokens of the longest are the prompt.
        tolerance: as for `compare_logits`.
    """
    if not writes_text(model, batches[0]):
        return {}
    longest = batches[-1]
    prompt = {name: longest[name][:1, :_PROMPT] for name in ("input_ids", "attention_mask") if name in longest}
    if "decoder_input_ids" in longest:
        prompt["decoder_input_ids"] = longest["decoder_input_ids"][:1, :1]
    elif "attention_mask" in prompt:
        original, exported = _with_mask(original), _with_mask(exported)
        del prompt["attention_mask"]
    return compare_greedy_tokens(original, exported, prompt, tolerance, max_length=model_facts(model).max_length)


def writes_text(model: nn.Module, batch: Mapping[str, Tensor]) -> bool:
    """Whether `model` gives logits over its vocabulary at every position, each from the positions before it."""
    if "input_ids" not in batch:
        return False
    inside = getattr(model, "get_base_model", None)  # of a PEFT model
    model = inside() if callable(inside) else model
    if hasattr(model, "main_input_name"):  # a transformers model says so by its class
        from transformers.models.auto import modeling_auto as auto

        heads = (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
        names = {name for mapping in heads for found in mapping.values() for name in _listed(found)}
        return any(base.__name__ in names for base in type(model).__mro__)
    from utils.adapters.forward import ModelCall

    with torch.no_grad():
        logits = ModelCall(model)(batch)
    return logits.dim() == 3 and logits.shape[-1] == model_facts(model).vocab_size


def _listed(found: Any) -> list[str]:
    return [found] if isinstance(found, str) else list(found)


def _with_mask(run: Logits) -> Logits:
    """`run` with a mask of ones: all tokens of a growing text are seen."""
    return lambda batch: run({**batch, "attention_mask": torch.ones_like(batch["input_ids"])})
