"""Findings about rows of token ids and what of them is scored."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from utils.data.batch import IGNORED
from utils.data.padding import evident_padding
from utils.data.quality.inspection.finding import DataFinding
from utils.data.quality.inspection.sampling import NO_TOKEN, Sample

#: Share of rows or targets that is "most" of them.
MOST = 0.5
# Share of the targets in positions of padding, beyond one a row (a padding id that ends the row too).
_PADDING = 0.05
# Share of the targets that are the same token at the same position in every row.
_PROMPT = 0.3
_SAME = 0.99
_FEWEST_PROMPT_TOKENS = 4
_FEWEST_ROWS = 8


def token_findings(
    sample: Sample, *, causal: bool, vocab_size: int | None = None, pad_id: int | None = None, eos_id: int | None = None,
    end_expected: bool = False,
) -> Iterator[DataFinding]:  # fmt: skip
    """Findings about rows of token ids.

    Args:
        causal: labels are the ids themselves, and position t predicts t + 1.
        eos_id: end-of-text id; None: not known.
        end_expected: rows are texts of their own, each of which should end with `eos_id`, as a tokenizer has it.
    """
    ids_NT, labels = sample.inputs, sample.labels
    yield from _vocabulary(ids_NT, vocab_size)
    if len(sample) < _FEWEST_ROWS or labels is None or labels.ndim != 2 or labels.dtype.kind != "i":
        return
    over_ids = labels.shape == ids_NT.shape
    if causal and over_ids:
        targets_NT = labels.copy()
        targets_NT[:, 0] = IGNORED  # nothing is there to predict the first token from
    else:
        targets_NT = labels
    scored_NT = targets_NT != IGNORED
    nothing = list(_no_targets(ids_NT, scored_NT, over_ids))
    yield from nothing
    if not over_ids or not causal or not scored_NT.any():
        return
    padding = list(_padding(sample, targets_NT, scored_NT, pad_id))
    yield from padding
    if not padding and not nothing:
        yield from _prompt(ids_NT, scored_NT)
    yield from _end(sample, targets_NT, scored_NT, eos_id, end_expected)


def moved_labels(sample: Sample) -> Iterator[DataFinding]:
    """Labels that are the ids moved by one already: the objective moves them once more, so position t predicts t + 2."""
    ids_NT, labels = sample.inputs, sample.labels
    if labels is None or labels.shape != ids_NT.shape or labels.dtype.kind != "i" or ids_NT.shape[1] < 3:
        return
    scored_NT = (labels[:, :-1] >= 0) & (ids_NT[:, 1:] != NO_TOKEN)
    if len(sample) < _FEWEST_ROWS or not scored_NT.any():
        return
    moved = float((labels[:, :-1] == ids_NT[:, 1:])[scored_NT].mean())
    own = float((labels[:, :-1] == ids_NT[:, :-1])[scored_NT].mean())
    if moved < _SAME or own > MOST:
        return
    yield DataFinding(
        "tokens", "labels moved twice", "fail",
        f"Labels are the next tokens already: {moved:.0%} of them equal the id one position later. The objective shifts them "
        "once more, so that each position would learn the token after the next.",
        "Give the ids themselves as labels (labels = input_ids, -100 where nothing is scored); the shift is done in training.",
        {"moved_share": moved, "unmoved_share": own}, {"moved_share": _SAME},
    )  # fmt: skip


def visible_targets(sample: Sample) -> Iterator[DataFinding]:
    """Masked language modelling whose inputs still hold what is to be predicted."""
    ids_NT, labels = sample.inputs, sample.labels
    if labels is None or labels.shape != ids_NT.shape or labels.dtype.kind != "i" or len(sample) < _FEWEST_ROWS:
        return
    scored_NT = (labels != IGNORED) & (ids_NT != NO_TOKEN)
    if not scored_NT.any():
        return
    visible = float((labels == ids_NT)[scored_NT].mean())
    if visible > MOST:
        yield DataFinding(
            "tokens", "targets visible", "fail",
            f"{visible:.0%} of the tokens to be predicted are in the input unmasked: the model copies them.",
            "Replace the tokens at scored positions by the mask token (BERT leaves 10 % of them as they are).",
            {"visible_share": visible}, {"visible_share": MOST},
        )  # fmt: skip


def visible_decoder_targets(sample: Sample) -> Iterator[DataFinding]:
    """Decoder inputs of a sequence-to-sequence model that hold, at each position, the token to be predicted there."""
    given, labels = (sample.batch.get(name) for name in ("decoder_input_ids", "labels"))
    if given is None or labels is None or given.shape != labels.shape or given.dim() != 2 or given.shape[1] < 2:
        return
    scored_NT = labels != IGNORED
    if len(given) < _FEWEST_ROWS or not bool(scored_NT.any()):
        return
    own = float((given == labels)[scored_NT].float().mean())
    before = scored_NT[:, :-1]
    shifted = float((given[:, 1:] == labels[:, :-1])[before].float().mean()) if bool(before.any()) else 0.0
    if own > _SAME and shifted < own:  # both are 1 where a row repeats a single token
        yield DataFinding(
            "tokens", "targets visible", "fail",
            f"{own:.0%} of the tokens to be predicted are the decoder's input at the same position: the model copies them.",
            "Leave decoder_input_ids out (transformers shifts the labels), or shift the labels one position to the right.",
            {"visible_share": own, "shifted_share": shifted}, {"visible_share": _SAME},
        )  # fmt: skip


def _vocabulary(ids_NT: np.ndarray, vocab_size: int | None) -> Iterator[DataFinding]:
    real = ids_NT[ids_NT != NO_TOKEN]
    least, largest = (int(real.min()), int(real.max())) if real.size else (0, 0)
    if vocab_size is None or (least >= 0 and largest < vocab_size):
        return
    yield DataFinding(
        "tokens", "out of vocabulary", "fail",
        f"Token ids run from {least:,} to {largest:,}, but the vocabulary of {vocab_size:,} has ids 0 to {vocab_size - 1:,}.",
        "Use the model's own tokenizer, or a model with a larger vocabulary.",
        {"largest_id": largest, "smallest_id": least}, {"vocab_size": vocab_size}, in_training=False,
    )  # fmt: skip


def _no_targets(ids_NT: np.ndarray, scored_NT: np.ndarray, over_ids: bool) -> Iterator[DataFinding]:
    without = np.asarray(~scored_NT.any(axis=1))
    share = float(without.mean())
    if share <= MOST:
        return
    lengths = (ids_NT != NO_TOKEN).sum(axis=1)
    longest = lengths.max()
    cut = over_ids and not without.all() and bool((lengths[without] == longest).all())
    cut = cut and float((lengths[~without] == longest).mean()) < MOST
    yield DataFinding(
        "tokens", "truncated labels" if cut else "no targets", "fail",
        f"Most samples have no target: in {share:.0%} of {len(without):,} examples every label is {IGNORED}"
        + (f", and all of these have the full length of {longest:,} tokens: truncation removes what is to be predicted."
           if cut else "."),
        "Raise the maximum length, or shorten the prompt instead of the answer." if cut else
        "Check how labels are masked: the text or token that marks where the answer begins is not found in these examples.",
        {"rows_without_target": share}, {"rows_without_target": MOST},
    )  # fmt: skip


def _padding(
    sample: Sample, targets_NT: np.ndarray, scored_NT: np.ndarray, pad_id: int | None
) -> Iterator[DataFinding]:
    total = int(scored_NT.sum())
    if sample.mask is not None and not sample.mask.all():
        masked = scored_NT & ~sample.mask
        beyond = int(np.maximum(masked.sum(axis=1) - 1, 0).sum())
        if beyond > _PADDING * total:
            yield DataFinding(
                "tokens", "padding scored", "warn",
                f"{masked.sum() / total:.0%} of the targets are padding (attention_mask 0).",
                f"Set labels to {IGNORED} where attention_mask is 0.", {"padding_share": float(masked.sum() / total)},
                {"padding_share": _PADDING},
            )  # fmt: skip
        return
    if sample.mask is not None and pad_id is None:
        return
    rows = [torch.from_numpy(row[row != NO_TOKEN]) for row in sample.inputs[:64]]
    padding = pad_id if pad_id is not None else evident_padding(rows)
    if padding is None:
        return
    is_padding = sample.inputs == padding
    runs = np.cumprod(is_padding[:, ::-1], axis=1)[:, ::-1].astype(bool) | np.cumprod(is_padding, axis=1).astype(bool)
    # Where padding marks the end too, the first of a run is a target.
    share = int(np.maximum((scored_NT & runs).sum(axis=1) - 1, 0).sum()) / total
    if share <= _PADDING:
        return
    yield DataFinding(
        "tokens", "padding scored", "warn",
        f"{'Most targets are' if share > MOST else f'{share:.0%} of the targets are'} padding: the id {padding} at either end "
        f"of the examples is scored like text ({share:.0%} of {total:,} targets).",
        f"Name pad_token_id={padding} in tokenizer or TaskSpec, or set labels to {IGNORED} there.",
        {"padding_share": share, "padding_id": padding}, {"padding_share": _PADDING},
        in_training=pad_id is not None,  # otherwise the engine reports it
    )  # fmt: skip


def _prompt(ids_NT: np.ndarray, scored_NT: np.ndarray) -> Iterator[DataFinding]:
    """Targets that are the same at the same position of all rows: a prompt."""
    if len(ids_NT) < 2 * _FEWEST_ROWS:
        return
    first = np.array(
        [np.bincount(column[column >= 0]).argmax() if (column >= 0).any() else NO_TOKEN for column in ids_NT.T]
    )
    same_T = ((ids_NT == first) & scored_NT).mean(axis=0) >= _SAME
    share = float(scored_NT[:, same_T].sum() / scored_NT.sum())
    if same_T.sum() < _FEWEST_PROMPT_TOKENS or share <= _PROMPT or bool(same_T[1:].all()):
        return
    yield DataFinding(
        "tokens", "prompt scored", "warn",
        f"{share:.0%} of the targets are the same token at the same position in every example ({int(same_T.sum())} positions): "
        "the prompt is scored.",
        f"Set labels to {IGNORED} for the prompt, so that only answers are learned.",
        {"prompt_share": share, "positions": np.flatnonzero(same_T)[:20].tolist()}, {"prompt_share": _PROMPT},
    )  # fmt: skip


def _end(
    sample: Sample, targets_NT: np.ndarray, scored_NT: np.ndarray, eos_id: int | None, end_expected: bool
) -> Iterator[DataFinding]:
    """The end of text is never a target though rows have an end."""
    if eos_id is None or bool((targets_NT == eos_id).any()):
        return
    rows = scored_NT.any(axis=1)
    ids_NT = sample.inputs
    masked_ends = float((ids_NT[rows, 1:] == eos_id).any(axis=1).mean())
    lengths = (ids_NT[rows] != NO_TOKEN).sum(axis=1) if sample.mask is None else sample.mask[rows].sum(axis=1)
    several_lengths = bool(lengths.min() < lengths.max())
    if masked_ends <= MOST and not (end_expected and several_lengths):
        return
    yield DataFinding(
        "tokens", "end never a target", "warn",
        f"The end-of-text token (id {eos_id}) is never a target in {int(rows.sum()):,} examples"
        + (f": it occurs in {masked_ends:.0%} of them, always with label {IGNORED}." if masked_ends > MOST else "."),
        "End each example with it and score the first one; give padding an id of its own. A model that is not trained to end a "
        "text generates up to the maximum length.",
        {"rows": int(rows.sum()), "rows_with_unscored_end": masked_ends}, {"end_targets": 1},
    )  # fmt: skip
