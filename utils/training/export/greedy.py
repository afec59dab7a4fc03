"""Whether an exported language model writes the same text as the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.facts import model_facts
from utils.adapters.forward import ModelCall
from utils.adapters.generation import generate
from utils.errors import ExportError

#: Tokens that both models continue a prompt by.
STEPS = 64

# Tokens of the prompt: few, so that a short context slides as well.
_PROMPT = 4


def compare_greedy_tokens(
    original: nn.Module, exported: nn.Module | Callable[[Mapping[str, Tensor]], Tensor], tolerance: float, steps: int = STEPS
) -> dict[str, int]:
    """Continue a prompt with both models, always by the most likely token.

    Args:
        original: a causal language model in evaluation mode.
        exported: a module, or a function from a batch {"input_ids"} to logits, which is called for the whole sequence each
            time.
        tolerance: the share of the largest logit by which exported logits may differ. Two tokens closer than twice that are
            tied: either may follow, and what comes after is not compared.
    Returns:
        {"greedy_tokens_equal": the tokens that agree, from the first on; "greedy_tokens": `steps`}.
    Raises:
        ExportError: another token follows, and the two are not tied; says where.
    """
    facts = model_facts(original)
    vocab_size = facts.vocab_size or 1
    prompt = torch.randint(vocab_size, (1, _PROMPT), generator=torch.Generator().manual_seed(1))
    prompt = prompt[:, : facts.max_length or _PROMPT]
    device = next((parameter.device for parameter in original.parameters()), torch.device("cpu"))
    continuation = exported if isinstance(exported, nn.Module) else _AsModule(exported, vocab_size)
    expected, got = (
        generate(model, prompt, steps, temperature=0, max_context=facts.max_length)[0]
        for model in (original, continuation)
    )
    differing = (expected != got).nonzero()
    if not len(differing):
        return {"greedy_tokens_equal": steps, "greedy_tokens": steps}
    first = int(differing[0])
    with torch.no_grad():
        seen = expected[None, max(0, first - (facts.max_length or first)) : first].to(device)
        logits_V = ModelCall(original)({"input_ids": seen})[0, -1].float()
    gap = float(logits_V[expected[first]] - logits_V[got[first]])
    if not gap <= 2 * tolerance * max(1.0, float(logits_V[logits_V.isfinite()].abs().max())):
        raise ExportError(
            f"the exported model writes other text: token {first - prompt.shape[1] + 1} of the greedy continuation is "
            f"{int(got[first])} instead of {int(expected[first])}, whose logit is larger by {gap:.3g}; nothing was exported"
        )
    return {"greedy_tokens_equal": first - prompt.shape[1], "greedy_tokens": steps}


def writes_text(model: Any) -> bool:
    """Whether `model` is a transformers decoder with a language modelling head."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return type(model).__name__ in _names(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


def _names(values: Any) -> set[str]:
    return {name for value in values for name in ([value] if isinstance(value, str) else value)}


class _AsModule(nn.Module):
    """A function from a batch to logits, as a module that `generate` takes."""

    def __init__(self, run: Callable[[Mapping[str, Tensor]], Tensor], vocab_size: int) -> None:
        super().__init__()
        self._run, self.vocab_size = run, vocab_size

    def forward(self, input_ids: Tensor) -> Tensor:
        return self._run({"input_ids": input_ids})
