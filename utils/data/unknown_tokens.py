"""Measure how much of a text the tokenizer maps to its unknown token."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from utils.data.sources import Source

# Rows that are looked at, evenly spaced.
_ROWS = 256
# Share of unknown tokens that is reported. A choice of this project: a WordPiece tokenizer on its own language stays below 1 %.
REPORTED = 0.05


def unknown_share(source: Source, tokenizer: Any) -> float | None:
    """Share of the tokens of `source` that are the tokenizer's unknown token, padding and other special tokens left out.

    Up to 256 rows are read, evenly spaced. None: the tokenizer has no unknown token, or one that also has another role (as
    GPT-2's, whose byte-level BPE knows every text).
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    roles = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "cls", "sep", "mask")}
    if unknown is None or unknown in roles.values() or not len(source):
        return None
    rows = np.unique(np.linspace(0, len(source) - 1, num=min(len(source), _ROWS)).astype(int))
    ids_BT = source.take(rows.tolist())["input_ids"]
    special = torch.tensor([role for role in roles.values() if role is not None], dtype=ids_BT.dtype)
    is_text = ~torch.isin(ids_BT, special)
    total = int(is_text.sum())
    return int((ids_BT[is_text] == unknown).sum()) / total if total else None


def unknown_note(source: Source, tokenizer: Any) -> list[str]:
    """A sentence when the tokenizer does not know a reportable share of the text; empty otherwise."""
    share = unknown_share(source, tokenizer)
    if share is None or share < REPORTED:
        return []
    return [
        f"{share:.0%} of the training tokens are {tokenizer.unk_token}: the tokenizer does not know this text, and nothing can "
        "be learned from these tokens. Use the tokenizer that belongs to the model and to the language of the text, or "
        "tokenizer_strategy='bpe' with a model that is trained from scratch."
    ]
