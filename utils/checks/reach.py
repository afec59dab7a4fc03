"""Whether an output depends on everything that it should see, and whether gradients go back the same way.

`independence` looks for dependence that must not be; here for dependence that must be.
Shapes: B batch, T positions, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from utils.check_result import Finding
from utils.checks.attention import captured_attention
from utils.checks.probe import Probe, relative
from utils.training.engine import rng

# Changes below this share of the outputs' size are no dependence, but rounding.
_NOTHING = 1e-7
_LENGTH = 12
# Positions of source and target, by which weights of cross-attention are recognised: no width or number of heads in use.
_SOURCE, _TARGET = 23, 19


def own_token_is_seen(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Causal models whose scores at a position depend on all tokens up to the one before, and not on its own."""
    length = min(_LENGTH, found.max_length)
    if not found.causal or not found.over_tokens or length < 6:
        return
    place = length // 2
    here, later = _changes(found, "input_ids", length, place, ((place, place + 1), (place + 1, length)))
    measured["change_by_own_token"] = here
    if here <= _NOTHING and later > found.tolerance:
        yield Finding(
            "own token unseen", "fail",
            f"The scores at a position do not depend on its own token, and those of later positions do (by {later:.2g} of "
            "their size): trained to predict the next token, the model predicts two tokens ahead.",
            "Shift once: either the inputs inside the model or the labels in the loss; let the causal mask keep the diagonal "
            "(tril(), or triu(1) for what is hidden).",
        )  # fmt: skip


def both_sides_are_seen(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Masked language models in which tokens reach later positions only: a causal mask."""
    length = min(_LENGTH, found.max_length)
    masked = getattr(found.task_spec, "task_type", None) == "masked_lm" or type(found.model).__name__.endswith(
        "ForMaskedLM"
    )
    if not masked or found.encoder_decoder or found.output != "tokens" or length < 6:
        return
    (back,) = _changes(found, "input_ids", length, length - 2, ((0, length - 2),))
    (ahead,) = _changes(found, "input_ids", length, 1, ((2, length),))
    measured["change_by_later_tokens"] = back
    if back <= _NOTHING and ahead > found.tolerance:
        yield Finding(
            "causal mask", "fail",
            "The task is masked language modelling, and no position sees a later token: a causal mask hides the right context.",
            "Remove the causal mask (is_causal=False, no triu), or train the model as a causal language model.",
        )  # fmt: skip


def whole_source_is_seen(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Encoder-decoders with a causal mask on cross-attention: a target position sees the source only up to its own position."""
    if not found.encoder_decoder or not found.over_tokens or found.max_length < _SOURCE:
        return
    found.model.eval()
    batch = found.batch(2, _SOURCE, seed=11)
    batch["decoder_input_ids"] = batch["decoder_input_ids"][:, :_TARGET]
    with torch.no_grad(), captured_attention(batch) as captured:
        found.call(batch)
    cross = [weights for weights in captured.layers if weights.shape[-2:] == (_TARGET, _SOURCE)]
    hidden = [weights for weights in cross if not bool(weights.triu(1).any()) and bool((weights.tril() > 0).any())]
    measured["cross_attention_layers_under_a_causal_mask"] = len(hidden)
    if hidden:
        yield Finding(
            "source hidden", "fail",
            f"Cross-attention is under a causal mask in {len(hidden)} of {len(cross)} layers: the first position that is "
            "generated sees one position of the encoder, and the last ones are never seen.",
            "Give cross-attention the source's padding mask only: no causal mask, no is_causal.",
        )  # fmt: skip


def gradients_between_positions(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Whether the gradient of the last scores reaches the embedded tokens whose values change these scores."""
    length = min(_LENGTH, found.max_length)
    if not found.over_tokens or found.encoder_decoder or found.output != "tokens" or length < 6:
        return
    sizes_T = _gradients_by_position(found, length)
    if sizes_T is None:
        return
    cut = [
        place for place in (0, length - 2)
        if float(sizes_T[place]) == 0
        and _changes(found, "input_ids", length, place, ((length - 1, length),))[0] > found.tolerance
    ]  # fmt: skip
    measured["positions_without_gradient"] = len(cut)
    if cut:
        yield Finding(
            "gradient between positions", "fail",
            "The last scores change with earlier tokens, but no gradient of theirs reaches these tokens: what is carried from "
            "position to position is not trained.",
            "Remove detach(), .data or no_grad() on the state, keys or values that pass from one position to the next.",
        )  # fmt: skip


def _changes(found: Probe, side: str, length: int, place: int, spans: tuple[tuple[int, int], ...]) -> list[float]:
    """Relative change of the outputs in each span of positions when the token at `place` is another one, in evaluation mode."""
    assert found.vocab_size is not None
    found.model.eval()
    batch = found.batch(2, length, seed=11)
    ids_BT = batch[side].clone()
    ids_BT[:, place] = (ids_BT[:, place] + 1) % found.vocab_size
    with torch.no_grad():
        before, after = found.call(batch), found.call({**batch, side: ids_BT})
    return [relative(before[:, start:end], after[:, start:end]) for start, end in spans]


def _gradients_by_position(found: Probe, length: int) -> Tensor | None:
    """Largest gradient (T,) of the last position's scores at each embedded token; None where no nn.Embedding embeds them."""
    embedded: list[Tensor] = []

    def cut_off(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        embedded.append(leaf)
        return leaf

    tables = [
        module for module in found.model.modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings >= (found.vocab_size or 0)
    ]  # fmt: skip
    hooks = [table.register_forward_hook(cut_off) for table in tables]
    found.model.train()  # cuDNN's recurrent layers have no gradient in evaluation mode
    rng.seed_all(0)
    try:
        with torch.enable_grad():
            scores_BV = found.call(found.batch(2, length, seed=11))[:, -1].float()
            weights_BV = torch.randn(scores_BV.shape, generator=torch.Generator().manual_seed(0)).to(scores_BV)
            if len(embedded) != 1 or tuple(embedded[0].shape[:2]) != (2, length):
                return None
            (gradient_BTD,) = torch.autograd.grad((scores_BV * weights_BV).sum(), embedded, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()
    return None if gradient_BTD is None else gradient_BTD.abs().amax((0, 2))
