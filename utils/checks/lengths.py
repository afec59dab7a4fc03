"""Whether a model takes what it states: outputs are finite at every length, and every id of the vocabulary can be embedded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from utils.check_result import Finding
from utils.checks.probe import Probe, reserved_positions

# Longest input that is given here: the stated maximum of small models, and enough of the others' to see overflow.
_LONGEST = 2048
# Positions times width that are given at most: about a second for 10 M parameters on two cores.
_LARGEST_WORK = 2**34

# Output layers are padded to multiples of this or more (tensor cores): the scores above the vocabulary are never taken.
_ROUND_SIZE = 8


def lengths(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """One row of each of some lengths up to the stated maximum, and of one more where positions come from a table."""
    if not found.over_tokens:
        return
    found.model.eval()
    parameters = sum(parameter.numel() for parameter in found.model.parameters())
    longest = min(found.length, _LONGEST, max(_LARGEST_WORK // max(parameters, 1), 1))
    tried = sorted({length for length in (1, 2, 3, 7, longest // 2, longest - 1, longest) if 1 <= length <= longest})
    bad = [length for length in tried if not _is_finite(found, length)]
    measured["lengths_tried"] = tried
    if bad:
        yield Finding(
            "length", "fail", f"Outputs are NaN or infinite at length {', '.join(map(str, bad))}.",
            "Look at masks of rows without any allowed position, at positions beyond a table, and at overflow.",
        )  # fmt: skip
    rows = _position_rows(found)
    if rows is None or longest < found.length:
        return
    try:
        _is_finite(found, rows + 1)
    except Exception as error:  # noqa: BLE001 - refusing is right, whatever the error
        measured["one_beyond"] = f"refused with {type(error).__name__}"
        return
    yield Finding(
        "length", "warn",
        f"{rows + 1} positions are accepted although the table of positions has {rows}: the last ones share a position.",
        "Refuse longer inputs with an error rather than clamping or wrapping positions.",
    )  # fmt: skip


def vocabulary(found: Probe, measured: dict[str, Any]) -> Iterator[Finding]:
    """Rows of the embedding against the ids that config or task name, and against those that the model predicts."""
    rows = found.vocab_size
    if rows is None or found.encoder_decoder:  # whose two sides may have vocabularies of their own
        return
    if (stated := found.stated_vocab_size or 0) > rows:
        yield Finding(
            "vocabulary", "fail",
            f"The vocabulary is stated to have {stated:,} ids, and the model embeds {rows:,}: ids from {rows:,} on raise an "
            "IndexError.",
            f"Make the embedding with {stated:,} rows, or extend it (resize_token_embeddings in transformers).",
        )  # fmt: skip
        return
    if not (found.causal and found.output == "tokens" and found.scores_vocabulary):
        return
    with torch.no_grad():
        scores = found.call(found.batch(1, min(2, found.max_length))).shape[-1]
    measured["embedded_ids"], measured["predicted_ids"] = rows, scores
    if scores > rows and scores % _ROUND_SIZE:
        yield Finding(
            "vocabulary", "warn",
            f"The model predicts {scores:,} ids and embeds {rows:,}: an id from {rows:,} on, once generated, cannot be its "
            "next input.",
            "Give embedding and output layer the same number of rows.",
        )  # fmt: skip


def _is_finite(found: Probe, length: int) -> bool:
    with torch.no_grad():
        return bool(found.call(found.batch(1, length)).isfinite().all())


def _position_rows(found: Probe) -> int | None:
    """Positions that a learned table has room for, where its size is that of the stated maximum."""
    if reserved_positions(found.model):  # positions are counted from the ids there, so T says little about them
        return None
    for name, module in found.model.named_modules():
        of_positions = isinstance(module, nn.Embedding) and "pos" in name.lower() and "rel" not in name.lower()
        if of_positions and module.num_embeddings == found.length:
            return found.length
    return None
