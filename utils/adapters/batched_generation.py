"""Batched greedy decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils.adapters.decoding import is_encoder_decoder
from utils.adapters.forward import ModelCall
from utils.adapters.generation import generate


@dataclass(frozen=True)
class Written:
    """Greedy continuation of a prompt.

    Attributes:
        ids: the new tokens, without the one that ends them.
        ended: whether the model wrote that token.
    """

    ids: list[int]
    ended: bool


def write_after(
    model: nn.Module, prompts: Sequence[Sequence[int]], max_new_tokens: int, *, end_id: int | None, vocab_size: int | None,
    batch_size: int = 16, pad_id: int | None = None,
) -> list[Written]:  # fmt: skip
    """Greedy continuation of each prompt, identical to what `generate` returns for each prompt alone.

    Prompts of similar length go through the model together, padded where the model takes an attention mask and positions;
    other models get prompts of equal length only.

    Args:
        model: a language model or an encoder-decoder.
        prompts: token ids, at least one each.
        max_new_tokens: maximum number of new tokens per prompt.
        end_id: id of the end-of-sequence token; without one, every continuation has `max_new_tokens` tokens.
        vocab_size: ids at or above it are never generated.
        batch_size: maximum number of prompts per batch.
        pad_id: id that pads shorter prompts; defaults to 0, which is masked.
    """
    reads_text = is_encoder_decoder(model)
    can_pad = _can_pad(model, reads_text)
    found: list[Written | None] = [None] * len(prompts)
    for places in _batches([len(prompt) for prompt in prompts], batch_size, can_pad):
        longest = max(len(prompts[place]) for place in places)
        ids_BT = torch.full((len(places), longest), pad_id or 0)
        mask_BT = torch.zeros_like(ids_BT)
        for row, place in enumerate(places):
            prompt = torch.tensor(prompts[place])
            columns = slice(None, len(prompt)) if reads_text else slice(longest - len(prompt), None)
            ids_BT[row, columns], mask_BT[row, columns] = prompt, 1
        mask = None if bool(mask_BT.all()) else mask_BT
        output_BT = generate(
            model, ids_BT, max_new_tokens, 0.0, eos_token_id=end_id, vocab_size=vocab_size, attention_mask=mask
        )
        for place, new_ids in zip(places, output_BT[:, 1 if reads_text else longest :].tolist(), strict=True):
            ended = end_id is not None and end_id in new_ids
            found[place] = Written(new_ids[: new_ids.index(end_id)] if ended else new_ids, ended)
    return [written for written in found if written is not None]


def _can_pad(model: nn.Module, reads_text: bool) -> bool:
    call = ModelCall(model)
    ids = torch.zeros((1, 1), dtype=torch.int64)
    batch: dict[str, Tensor] = {"input_ids": ids, "attention_mask": ids + 1}
    # Padding before a text moves its positions, unless the model takes them too; an encoder's padding comes after the text.
    return call.lost_mask(batch) is None and (reads_text or call.has_parameter("position_ids", batch))


def _batches(lengths: Sequence[int], batch_size: int, can_pad: bool) -> Iterator[list[int]]:
    """Numbers of the prompts of each batch, the longest prompts first, so that memory runs out at once or never."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if batch and (len(batch) == batch_size or not (can_pad or lengths[place] == lengths[batch[0]])):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
