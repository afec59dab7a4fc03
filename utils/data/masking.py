"""Masked language modelling: which tokens are hidden from the model, drawn anew each time a sample is seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from utils.data.batch import IGNORED, Batch
from utils.data.text_collator import TextCollator
from utils.errors import ConfigError, DataTypeError

#: Devlin et al., BERT, section 3.1 (arXiv 1810.04805): 15 % of the positions are predicted. Of those, 80 % become the mask
#: token, 10 % a random token, and 10 % stay.
SHARE_CHOSEN, SHARE_MASKED, SHARE_RANDOM = 0.15, 0.8, 0.1


class MaskedLMCollator:
    """Samples of token ids -> `input_ids` with hidden tokens, `labels` with what they were, -100 everywhere else.

    Of each sample `share` of the positions that are neither padding nor special tokens is chosen, rounded, and at least one
    where there is any (as BERT's own `create_pretraining_data.py` counts). All draws are from torch's global generator and are
    made in `prepare`, so `DatasetSource` makes them a function of seed, epoch and sample: the masks of validation data, whose
    epoch never changes, are always the same. A sample whose labels already are -100 within its text was masked by somebody
    else and passes through.

    Args:
        mask_id: id of the mask token; None: only samples that are masked already are taken.
        special_ids: tokens that are never chosen.
        random_ids: what a random token is drawn from.
        pad_id, eos_id: as `TextCollator`.
        share: of the positions that are predicted, above 0, at most 1.
    """

    draws, packs = True, True

    def __init__(
        self, mask_id: int | None, special_ids: Sequence[int] = (), random_ids: Sequence[int] = (),
        pad_id: int | None = None, eos_id: int | None = None, share: float = SHARE_CHOSEN,
    ) -> None:  # fmt: skip
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise ConfigError(
                f"got mlm_probability={share!r}; must be a number above 0 and at most 1, such as {SHARE_CHOSEN}."
            )
        if mask_id is not None and len(random_ids) == 0:
            raise ConfigError("there is no token to replace another by: the vocabulary holds special tokens only.")
        self.mask_id, self.share = mask_id, share
        self._special = torch.tensor(sorted(special_ids), dtype=torch.int64)
        self._random = torch.tensor(sorted(random_ids), dtype=torch.int64)
        self._rows = TextCollator(pad_id, eos_id)

    def __call__(self, samples: list[Any]) -> Batch:
        return self.collate([self.prepare(sample) for sample in samples])

    def prepare(self, sample: Any) -> dict[str, Tensor]:
        """One sample, masked: 1-D `input_ids` and `labels`, and whatever else it has.

        Raises:
            DataTypeError: it is no row of ids, or it is not masked and no mask token is known.
        """
        row = self._rows.row(sample)
        special = torch.isin(row["input_ids"], self._special)
        candidates = ~special & self._is_text(row)
        if bool((row["labels"][candidates] == IGNORED).any()):
            return row
        if self.mask_id is None:
            raise DataTypeError(
                "masked language modelling was given a sample that is not masked, and no mask token is known. Give the "
                "tokenizer (Trainer(..., tokenizer=tokenizer)), or samples whose labels are -100 where nothing is predicted."
            )
        chosen = self._choose(candidates)
        row["labels"] = row["input_ids"].masked_fill(~chosen, IGNORED)
        row["input_ids"] = self._hide(row["input_ids"], chosen)
        return row

    def collate(self, samples: list[Any]) -> Batch:
        """Masked samples, padded to the longest."""
        return self._rows(samples)

    def _is_text(self, row: Batch) -> Tensor:
        """(T,) bool: what is no padding."""
        mask = row.get("attention_mask")
        if mask is not None:
            return mask != 0
        # Where nobody says what padding is, the labels that the row got do; labels of the user's say something else.
        return self._rows.row(row["input_ids"])["labels"] != IGNORED

    def _choose(self, candidates_T: Tensor) -> Tensor:
        """(T,) bool: which positions are predicted."""
        places = candidates_T.nonzero()[:, 0]
        count = max(1, round(self.share * len(places))) if len(places) else 0
        chosen = torch.zeros_like(candidates_T)
        chosen[places[torch.randperm(len(places))[:count]]] = True
        return chosen

    def _hide(self, ids_T: Tensor, chosen_T: Tensor) -> Tensor:
        """The ids, with 80 % of the chosen ones masked and 10 % replaced."""
        assert self.mask_id is not None
        draw_T = torch.rand(len(ids_T))
        other_T = self._random[torch.randint(len(self._random), (len(ids_T),))]
        hidden = ids_T.masked_fill(chosen_T & (draw_T < SHARE_MASKED), self.mask_id)
        return torch.where(
            chosen_T & (draw_T >= SHARE_MASKED) & (draw_T < SHARE_MASKED + SHARE_RANDOM), other_T, hidden
        )


def masked_lm_collator(tokenizer: Any, pad_id: int | None, eos_id: int | None, share: float) -> MaskedLMCollator:
    """The collator for a tokenizer's mask token, special tokens and vocabulary.

    Raises:
        ConfigError: the tokenizer has no mask token; says how to give it one.
    """
    if tokenizer is None:
        return MaskedLMCollator(None, pad_id=pad_id, eos_id=eos_id, share=share)
    mask_id = getattr(tokenizer, "mask_token_id", None)
    if mask_id is None:
        raise ConfigError(
            f"the tokenizer ({type(tokenizer).__name__}) has no mask token, which masked language modelling hides tokens "
            'with. Give it one: tokenizer.add_special_tokens({"mask_token": "<mask>"}), and a model with one more token.'
        )
    special = special_ids_of(tokenizer)
    return MaskedLMCollator(
        int(mask_id), sorted(special), sorted(set(tokenizer.get_vocab().values()) - special), pad_id, eos_id, share
    )


def special_ids_of(tokenizer: Any) -> set[int]:
    """Ids of special tokens, which stand for no text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_ids, *(int(number) for number, token in added.items() if token.special)}
