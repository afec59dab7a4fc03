"""Whether two models compute the same: their logits on batches of several shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from utils.errors import ExportError

Logits = Callable[[Mapping[str, Tensor]], Tensor]

# Most positions of a compared batch: parity does not need a long context to be seen.
_LONGEST = 256


def parity_batches(vocab_size: int, max_length: int | None, decoder: bool) -> list[dict[str, Tensor]]:
    """Random ids of three shapes (B, T): one token, several sequences, the longest sequence.

    Args:
        vocab_size: ids are below it.
        max_length: the most positions the model takes; None: it does not say.
        decoder: whether the model is an encoder-decoder, whose decoder needs ids too.
    """
    longest = min(max_length or _LONGEST, _LONGEST)
    generator = torch.Generator().manual_seed(0)
    batches = []
    for shape in ((1, 1), (3, max(1, longest // 2)), (1, longest)):
        ids_BT = torch.randint(vocab_size, shape, generator=generator)
        batches.append({"input_ids": ids_BT, **({"decoder_input_ids": ids_BT} if decoder else {})})
    return batches


def compare_logits(
    original: Logits, exported: Logits, batches: Sequence[Mapping[str, Tensor]], tolerance: float
) -> dict[str, Any]:
    """The largest difference of logits over all batches.

    Args:
        original, exported: from a batch to logits.
        batches: what they are compared on.
        tolerance: the largest difference allowed, as a share of the largest logit (at least of 1).
    Returns:
        {"max_abs_diff", "max_abs_logit", "shapes"}.
    Raises:
        ExportError: other shapes, NaN on one side only, or a difference above the tolerance; says how large.
    """
    largest_difference = largest_logit = 0.0
    shapes = []
    with torch.no_grad():
        for batch in batches:
            expected, got = original(batch).float().cpu(), exported(batch).float().cpu()
            if expected.shape != got.shape:
                raise ExportError(
                    f"the exported model returns logits of shape {tuple(got.shape)}, the model {tuple(expected.shape)}"
                )
            if not bool(expected.isfinite().all()):
                raise ExportError("the model returns NaN or infinite logits; such weights are not exported")
            difference, logit = float((expected - got).abs().max()), float(expected.abs().max())
            # `not <=`: a NaN difference is no agreement.
            if not difference <= tolerance * max(1.0, logit):
                raise ExportError(
                    f"the exported model computes something else: logits differ by {difference:.3g} on ids of shape "
                    f"{tuple(batch['input_ids'].shape)} (largest logit {logit:.3g}); nothing was exported"
                )
            largest_difference, largest_logit = max(largest_difference, difference), max(largest_logit, logit)
            shapes.append(tuple(batch["input_ids"].shape))
    return {"max_abs_diff": largest_difference, "max_abs_logit": largest_logit, "shapes": shapes}
