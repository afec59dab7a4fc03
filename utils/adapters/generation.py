"""Text from a trained language model: one token after another, for any model that maps ids to logits.

Shapes: B sequences, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.decoding import NextLogits, is_encoder_decoder
from utils.adapters.facts import model_facts
from utils.adapters.left_as_found import state_kept
from utils.errors import ConfigError, Problem
from utils.schema import shown


def generate(
    model: nn.Module,
    input_ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | None = None,
    seed: int | None = None,
    max_context: int | None = None,
    vocab_size: int | None = None,
    attention_mask: Tensor | None = None,
    use_cache: bool | None = None,
    on_token: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """Continue sequences of token ids by sampling, or greedily with `temperature=0`.

    The model's training mode, the global random state and the weights are as before afterwards.

    A key/value cache is used where the model has one: its forward takes `past_key_values` and `use_cache`, returns a cache,
    and the first step from that cache agrees with a full pass within rounding (that comparison costs one more pass). Other
    models compute the whole sequence for every token, as every model does once its context is full: the positions of all
    tokens then shift with each step. The tokens are the same either way, except where two logits are tied within rounding.

    Args:
        model: maps ids (B, T) to logits (B, T, V); a transformers model or a plain module. An encoder-decoder reads
            `input_ids` with its encoder, which runs once, and its decoder begins with the config's start token.
        input_ids: the prompts, integers, shape (B, T), T >= 1; shorter ones are padded on the left.
        max_new_tokens: at most this many are added; fewer when every sequence has ended.
        temperature: logits are divided by it; below 1 sharper, above 1 flatter.
        top_k: only the k most likely tokens are drawn from.
        top_p: only the smallest set of most likely tokens with at least this probability is drawn from (nucleus
            sampling, arXiv 1904.09751).
        eos_token_id: ends a sequence; its remaining positions are filled with this id.
        seed: the same seed gives the same tokens; None: other ones each time.
        max_context: the most positions that the model is shown, older ones are cut off; default: what the model says it
            takes.
        vocab_size: ids from this one on are never drawn; for models with more ids than their tokenizer.
        attention_mask: (B, T), 1 at tokens, 0 at padding, which decoders take on the left only; None: no padding.
        use_cache: False: no key/value cache; None or True: where the model has one, see above.
        on_token: called with the new ids, int64 (B,), after each step; an exception that it raises ends the generation.
    Returns:
        int64, shape (B, T + n), n <= max_new_tokens, on the device of `input_ids`: the prompts and what follows them; of an
        encoder-decoder (B, 1 + n), the start token and what follows it.
    Raises:
        ConfigError: an argument is out of range; lists every problem.
        ModelError: the model does not return logits of shape (B, T, V), or takes no mask for padded prompts.
        NonFiniteError: the logits are NaN or infinite.
    Not covered: beam search, and tokens that a generation config forces or forbids.
    """
    _check_arguments(
        model, input_ids, max_new_tokens, temperature, top_k, top_p, max_context, vocab_size, attention_mask
    )
    device = next((parameter.device for parameter in model.parameters()), input_ids.device)
    context = max_context or model_facts(model).max_length
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    prompt_BT = input_ids.to(device=device, dtype=torch.int64)
    mask_BT = None if attention_mask is None else attention_mask.to(device)
    next_logits = NextLogits(model, prompt_BT, mask_BT, context, vocab_size, max_new_tokens, use_cache)
    ids_BT = next_logits.first_ids()
    ended_B = torch.zeros(ids_BT.shape[0], dtype=torch.bool, device=device)
    with state_kept(model):
        for _ in range(max_new_tokens):
            next_B = _drawn(next_logits(ids_BT), temperature, top_k, top_p, generator)
            if eos_token_id is not None:
                next_B = next_B.masked_fill(ended_B, eos_token_id)
                ended_B |= next_B == eos_token_id
            ids_BT = torch.cat([ids_BT, next_B[:, None]], dim=1)
            if on_token is not None:
                on_token(next_B)
            if eos_token_id is not None and bool(ended_B.all()):
                break
    return ids_BT.to(input_ids.device)


def generate_text(
    model: nn.Module,
    tokenizer: Any,
    prompt: str,
    max_new_tokens: int = 100,
    temperature: float = 0.8,
    top_k: int | None = 50,
    top_p: float | None = None,
    seed: int | None = None,
    max_context: int | None = None,
) -> str:
    """The prompt and what the model writes after it, up to the tokenizer's end-of-text token; see `generate`.

    Args:
        model: a language model that was trained with `tokenizer`. An encoder-decoder reads the prompt, and the text that it
            writes is returned without it.
        tokenizer: has `encode(text)` and `decode(ids)`, as transformers' and this library's tokenizers do.
        prompt: the beginning; empty: the tokenizer's beginning or end-of-text token stands for it.
        max_new_tokens, temperature, top_k, top_p, seed, max_context: as for `generate`.
    Raises:
        ConfigError: as for `generate`, or an empty prompt that no special token can stand for.
    """
    eos = _special_id(tokenizer, "eos_token_id")
    translates = is_encoder_decoder(model)
    ids = _encoded(tokenizer, prompt, special_tokens=translates)
    if not ids:
        start = _special_id(tokenizer, "bos_token_id")
        start = eos if start is None else start
        if start is None:
            raise ConfigError(
                f"got {shown(prompt)} as prompt, which holds no token; give at least one character the tokenizer knows"
            )
        ids = [start]
    known = len(tokenizer) if hasattr(tokenizer, "__len__") else None
    output = generate(
        model, torch.tensor([ids]), max_new_tokens, temperature, top_k, top_p, eos, seed, max_context, vocab_size=known
    )  # fmt: skip
    new_ids = output[0, 1 if translates else len(ids) :].tolist()
    if eos in new_ids:
        new_ids = new_ids[: new_ids.index(eos)]
    # Decoded together: a character can be spread over the last token of the prompt and the first new one.
    shown_ids = (ids if prompt and not translates else []) + new_ids
    return str(tokenizer.decode(shown_ids))


def _drawn(
    logits_BV: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> Tensor:
    """One token id for each sequence, int64 (B,)."""
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    logits_BV = logits_BV / temperature
    if top_k is not None and top_k < logits_BV.shape[-1]:
        least = logits_BV.topk(top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits_BV.softmax(dim=-1).sort(dim=-1, descending=True)
        # A token is dropped when those before it already have the probability: the first always stays.
        dropped = ordered.cumsum(dim=-1) - ordered >= top_p
        logits_BV = logits_BV.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
    return torch.multinomial(logits_BV.softmax(dim=-1), num_samples=1, generator=generator)[:, 0]


def _encoded(tokenizer: Any, text: str, special_tokens: bool) -> list[int]:
    """`text` as ids, whether `encode` returns a list, a mapping or an object with `.ids`.

    Args:
        special_tokens: whether a transformers tokenizer adds its special tokens; others do as they do.
    """
    is_transformers = hasattr(tokenizer, "num_special_tokens_to_add")
    encoded = tokenizer.encode(text, add_special_tokens=special_tokens) if is_transformers else tokenizer.encode(text)
    if isinstance(encoded, Mapping):
        encoded = encoded["input_ids"]
    ids = getattr(encoded, "ids", encoded)
    return [int(token) for token in (ids.flatten().tolist() if isinstance(ids, Tensor) else ids)]


def _special_id(tokenizer: Any, name: str) -> int | None:
    value = getattr(tokenizer, name, None)
    return value if isinstance(value, int) else None


def _check_arguments(
    model: nn.Module,
    input_ids: Any,
    max_new_tokens: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    max_context: Any,
    vocab_size: Any,
    attention_mask: Any,
) -> None:
    problems = _problems_of_ids(model, input_ids)
    if attention_mask is not None and not problems:
        problems += _problems_of_mask(model, input_ids, attention_mask)
    for name, count in (("top_k", top_k), ("max_context", max_context), ("vocab_size", vocab_size)):
        if count is not None and (not _is_whole(count) or count < 1):
            problems.append(Problem(name, f"got {shown(count)}; must be at least 1 or None"))
    if not _is_whole(max_new_tokens) or max_new_tokens < 0:
        problems.append(Problem("max_new_tokens", f"got {shown(max_new_tokens)}; must be a whole number, at least 0"))
    if not isinstance(temperature, (int, float)) or not 0 <= temperature < float("inf"):
        problems.append(Problem("temperature", f"got {shown(temperature)}; must be finite and at least 0 (0: greedy)"))
    if top_p is not None and (not isinstance(top_p, (int, float)) or not 0 < top_p <= 1):
        problems.append(Problem("top_p", f"got {shown(top_p)}; must be greater than 0 and at most 1, or None"))
    if problems:
        raise ConfigError.from_problems("generate's arguments", problems)


def _problems_of_ids(model: nn.Module, input_ids: Any) -> list[Problem]:
    if not isinstance(input_ids, Tensor):
        return [Problem("input_ids", f"got a {type(input_ids).__name__}; must be an integer tensor of shape (B, T)")]
    if input_ids.dim() != 2 or input_ids.is_floating_point() or input_ids.numel() == 0:
        got = f"{input_ids.dtype} {tuple(input_ids.shape)}"
        return [Problem("input_ids", f"got {got}; must be integers of shape (B, T) with at least one token")]
    limit = model_facts(model).vocab_size
    low, high = int(input_ids.min()), int(input_ids.max())
    if low < 0 or (limit is not None and high >= limit):
        allowed = "0 and up" if limit is None else f"0 to {limit - 1}"
        return [Problem("input_ids", f"got id {low if low < 0 else high}; {type(model).__name__} takes {allowed}")]
    return []


def _problems_of_mask(model: nn.Module, input_ids: Tensor, mask: Any) -> list[Problem]:
    if not isinstance(mask, Tensor) or mask.shape != input_ids.shape:
        got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        return [Problem("attention_mask", f"got {got}; must be a tensor of input_ids' shape {tuple(input_ids.shape)}")]
    seen_BT = mask != 0
    if not bool(seen_BT.any(dim=1).all()):
        return [Problem("attention_mask", "a prompt is padding only; each needs at least one token")]
    if bool((seen_BT[:, :-1] & ~seen_BT[:, 1:]).any()) and not is_encoder_decoder(model):
        return [Problem("attention_mask", "padding follows a token; a decoder's prompts are padded on the left")]
    return []


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
