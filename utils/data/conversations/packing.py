"""Tokenized conversations -> rows of a batch: cut where too long, several to a row where the model keeps them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from utils.adapters.facts import model_facts
from utils.adapters.forward import ModelCall
from utils.adapters.left_as_found import state_kept
from utils.data.batch import IGNORED
from utils.data.best_fit import best_fit
from utils.data.conversations.rendering import TokenizedConversation
from utils.errors import ModelError

# Logits of a segment alone and beside another differ by rounding only; attention across segments changes them by far more.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Truncated:
    """Conversations that fit, and what that cost.

    Attributes:
        kept: each at most as long as a row.
        shortened: conversations that lost turns at their end.
        dropped: conversations whose first answer does not fit; nothing of them is kept.
        lost_tokens: of both.
    """

    kept: list[TokenizedConversation]
    shortened: int
    dropped: int
    lost_tokens: int


def truncate(conversations: Sequence[TokenizedConversation], max_length: int) -> Truncated:
    """Truncate conversations after the last complete answer, so that no answer loses its end.

    Args:
        conversations: of any length.
        max_length: tokens that fit.
    """
    kept, shortened, dropped, lost = [], 0, 0, 0
    for one in conversations:
        if len(one) <= max_length:
            kept.append(one)
            continue
        ends = tuple(end for end in one.ends if end <= max_length)
        if not ends or not one.targets[: ends[-1]].any():
            dropped, lost = dropped + 1, lost + len(one)
            continue
        shortened, lost = shortened + 1, lost + len(one) - ends[-1]
        kept.append(TokenizedConversation(one.ids[: ends[-1]], one.targets[: ends[-1]], ends, one.row))
    return Truncated(kept, shortened, dropped, lost)


def pack_rows(
    conversations: Sequence[TokenizedConversation],
    length: int,
    pad_id: int,
    rows: Sequence[Sequence[int]] | None = None,
) -> dict[str, np.ndarray]:
    """Conversations in rows of `length`, by best fit in order of decreasing length (Johnson, 1974: at most 22 % more rows
    than needed, for large inputs).

    Args:
        conversations: each of at most `length` tokens.
        pad_id: fills the rows up; filled positions are no targets and a segment of their own.
        rows: indices of the conversations in each row; packed by `rows_of` by default.
    Returns:
        `input_ids`, `labels` (-100 where nothing is predicted) and `position_ids`, which begin at 0 with each conversation:
        int32 (N, T). There is no attention mask: models keep segments apart by the positions (`keeps_segments_apart`).
    """
    rows = rows_of([len(one) for one in conversations], length) if rows is None else rows
    ids = np.full((len(rows), length), pad_id, np.int32)
    labels = np.full((len(rows), length), IGNORED, np.int32)
    positions = np.zeros((len(rows), length), np.int32)
    for row, members in enumerate(rows):
        place = 0
        for member in members:
            one = conversations[member]
            end = place + len(one)
            ids[row, place:end] = one.ids
            labels[row, place:end] = np.where(one.targets, one.ids, IGNORED)
            positions[row, place:end] = np.arange(len(one))
            place = end
        positions[row, place:] = np.arange(length - place)
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


def rows_of(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Groups of items whose lengths add up to at most `capacity`, by `best_fit`."""
    groups: dict[int, list[int]] = {}
    for item, row in zip(*(found.tolist() for found in best_fit(lengths, capacity)), strict=True):
        groups.setdefault(row, []).append(item)
    return [groups[row] for row in sorted(groups)]


def keeps_segments_apart(model: nn.Module) -> bool:
    """Whether positions that begin again at 0 make `model` treat a row as separate segments.

    transformers' models derive a block-diagonal attention mask from such positions; others read only the embeddings of the
    positions, and attend across. Decided by a trial: the logits of a segment alone and behind another one must agree.
    """
    facts = model_facts(model)
    longest = facts.max_length or 16
    if facts.vocab_size is None or longest < 8:
        return False
    generator = torch.Generator().manual_seed(0)
    ids_1T = torch.randint(facts.vocab_size, (1, min(16, longest)), generator=generator)
    first = ids_1T.shape[1] // 2 - 1
    positions_1T = torch.cat([torch.arange(first), torch.arange(ids_1T.shape[1] - first)])[None]
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    call = ModelCall(model)
    try:
        with state_kept(model):
            batch = {"input_ids": ids_1T.to(device), "position_ids": positions_1T.to(device)}
            if "position_ids" not in call.inputs(batch)[1]:
                return False
            together = call(batch)[:, first:].float()
            alone = call({name: tensor[:, first:] for name, tensor in batch.items()}).float()
    except (ModelError, RuntimeError, TypeError, ValueError, IndexError):  # a model that cannot be tried like this
        return False
    scale = max(1.0, float(alone.abs().max()))
    return bool((together - alone).abs().max() <= _TOLERANCE * scale)
