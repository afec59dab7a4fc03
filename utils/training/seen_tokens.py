"""Token ids that no sample of a training had, by what its optimizer holds of the embedding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from utils.adapters.attribution import token_table
from utils.adapters.facts import model_facts

# Below this a squared gradient of 1e-8 that was averaged away would be smaller than the smallest float32.
_SMALLEST_SHARE = 1e-30


def never_seen_ids(checkpoint: Mapping[str, Any], model: nn.Module) -> frozenset[int] | None:
    """Token ids whose embedding never had a gradient; None where that is not known.

    It is known of models that began with random weights and were trained with AdamW's second moments: a row of these that is
    zero has had no gradient. It is not known where the embedding is the output layer too, which moves every row, or where two
    tensors have its shape; nor after so many steps that a moment has faded to zero.

    Args:
        checkpoint: as `read_checkpoint` returns it; the optimizer's tensors are read.
        model: that was trained.
    """
    weight = getattr(token_table(model), "weight", None)
    if weight is None or model_facts(model).pretrained:
        return None
    optimizer = checkpoint["optimizer"]
    moments = [
        (state["exp_avg_sq"], float(state["step"]))
        for state in optimizer["state"].values()
        if isinstance(state, Mapping) and isinstance(state.get("exp_avg_sq"), Tensor) and "step" in state
    ]
    of_table = [one for one in moments if one[0].shape == weight.shape]
    fading = max((float(group["betas"][1]) for group in optimizer["param_groups"] if "betas" in group), default=1.0)
    if len(of_table) != 1 or fading >= 1:
        return None
    moment_VD, steps = of_table[0]
    if steps * math.log(fading) < math.log(_SMALLEST_SHARE):
        return None
    return frozenset((moment_VD == 0).all(dim=1).nonzero().flatten().tolist())
