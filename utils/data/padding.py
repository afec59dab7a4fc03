"""Find padding in rows of token ids, and mask it in the labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from utils.data.batch import IGNORED

# A run of equal ids at the edge of a row counts as evidence of padding from this length on, and in this share of the rows.
_SHORTEST_RUN = 2
_SHARE_OF_ROWS = 0.1


def padding_of(ids: Tensor, pad_id: int | None, eos_id: int | None = None) -> Tensor:
    """Mask of the padding in rows without an attention mask: runs of `pad_id` at either end.

    Where the padding id is also the end-of-text id, the token of each run that touches the text is the text's own (its end,
    or its beginning where one id serves as both) and is not padding.

    Args:
        ids: (T,) or (B, T) int64.
    Returns:
        bool, the same shape; all False without a `pad_id`.
    """
    if pad_id is None:
        return torch.zeros_like(ids, dtype=torch.bool)
    leading, trailing = _runs(ids, pad_id)
    if eos_id == pad_id:
        trailing = trailing & torch.nn.functional.pad(trailing, (1, 0))[..., :-1]
        leading = leading & torch.nn.functional.pad(leading, (0, 1))[..., 1:]
    return leading | trailing


def labels_of(ids: Tensor, mask: Tensor | None = None, pad_id: int | None = None, eos_id: int | None = None) -> Tensor:
    """Labels for causal language modelling: a copy of `ids` with -100 on padding.

    Args:
        ids: (T,) or (B, T) int64.
        mask: attention mask of the same shape; 0 marks padding. None: runs of `pad_id` at either end are padding. Where it is
            also the end-of-text id, the first of the trailing run is the end of the text and is scored.
    """
    if mask is not None:
        return ids.masked_fill(mask == 0, IGNORED)
    if pad_id is None:
        return ids.clone()
    # The whole leading run: a beginning-of-text token has nothing before it to be predicted from.
    return ids.masked_fill(padding_of(ids, pad_id, eos_id) | _runs(ids, pad_id)[0], IGNORED)


def left_padding_mask(ids: Tensor, pad_id: int | None = None, eos_id: int | None = None) -> Tensor | None:
    """Attention mask (B, T) that hides padding on the left; None where no row begins with any.

    A causal model does not see what is on the right of a token, but it does see padding on its left.

    Args:
        ids: (B, T) int64.
    """
    if pad_id is None or not bool((ids[:, 0] == pad_id).any()):
        return None
    leading = padding_of(ids, pad_id, eos_id) & _runs(ids, pad_id)[0]
    return (~leading).long() if bool(leading.any()) else None


def evident_padding(rows: Sequence[Tensor]) -> int | None:
    """The id that rows without labels or mask are visibly padded with; None where there is no sign of padding.

    The sign is one id that fills the same end of several rows, in runs of at least two.

    Args:
        rows: some rows of ids, (T,) each.
    """
    for end in (-1, 0):
        runs = Counter(
            int(row[end]) for row in rows if len(row) > _SHORTEST_RUN and bool((_edge(row, end) == row[end]).all())
        )
        for token_id, count in runs.most_common(1):
            if count >= max(2, _SHARE_OF_ROWS * len(rows)):
                return token_id
    return None


def _edge(row: Tensor, end: int) -> Tensor:
    return row[:_SHORTEST_RUN] if end == 0 else row[-_SHORTEST_RUN:]


def _runs(ids: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
    """Masks of the leading and of the trailing run of `pad_id`. A row of nothing else counts as a trailing run."""
    is_pad = ids == pad_id
    trailing = is_pad.flip(-1).cumprod(-1).flip(-1).bool()
    leading = is_pad.cumprod(-1).bool() & ~is_pad.all(-1, keepdim=True)
    return leading, trailing
