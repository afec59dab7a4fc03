"""Preview of samples as the model sees them: tokens, ids, masks and labels of a batch made as in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from torch import Tensor

from utils.data.batch import IGNORED, Batch
from utils.data.module import UniversalDataModule
from utils.data.packing import TokenBlocks
from utils.data.sources import StreamSource
from utils.errors import DataTypeError


@dataclass(frozen=True)
class TokenView:
    """One position.

    Attributes:
        token: its text, with spaces at its ends shown as ␣, line breaks as ⏎ and tabs as ⇥.
        id: token id.
        attended: False for padding.
        label: what is to be predicted here; None: nothing.
        token_type: 0 for the first text, 1 for the second; None where the batch does not say.
        role: whose turn it belongs to, in a conversation; None elsewhere.
        is_target: whether the model is trained to produce it; None where labels are not tokens.
        begins: whether a conversation begins with it.
    """

    token: str
    id: int
    attended: bool = True
    label: str | None = None
    token_type: int | None = None
    role: str | None = None
    is_target: bool | None = None
    begins: bool = False


@dataclass(frozen=True)
class SampleView:
    """One sample of a batch.

    Attributes:
        number: of the sample in the data.
        text: the tokens that are no padding, as text; for images shape and range of the pixels.
        label: what is to be predicted of the whole sample, or None where each token has a label or the sample has none.
        tokens: the input; empty for images.
        target: the target text of a sequence-to-sequence model.
    """

    number: int
    text: str
    label: str | None
    tokens: tuple[TokenView, ...] = ()
    target: tuple[TokenView, ...] = ()


def preview_batch(data: Any, n: int = 3) -> list[SampleView]:
    """The first `n` training samples as the model gets them in the first epoch.

    Args:
        data: a PreparedData, or anything with `train`, `tokenizer` and `task_spec`.
    Raises:
        DataTypeError: data that only come in their own order.
    """
    module = UniversalDataModule(data.train, None, data.task_spec, data.tokenizer)
    if isinstance(module.train, StreamSource):
        raise DataTypeError("data that only come in their own order have no samples by number to show; give a Dataset.")
    numbers = list(range(min(n, len(module.train))))
    batch = module.train.take(numbers)
    if isinstance(module.train, TokenBlocks) and module.train.num_padding:
        batch["attention_mask"] = module.train.attention_mask(numbers)
    roles = getattr(data, "roles", ())[: len(numbers)]
    samples = [_sample(number, row, batch, data.task_spec, data.tokenizer) for row, number in enumerate(numbers)]
    positions = batch.get("position_ids")
    return [
        _with_roles(sample, roles[row], None if positions is None else positions[row].tolist())
        if row < len(roles)
        else sample
        for row, sample in enumerate(samples)
    ]


def show_samples(data: Any, n: int = 3) -> None:
    """Show `preview_batch`: tables in a notebook, text elsewhere; conversations turn by turn, with what is trained on."""
    from utils.views.display import show_html
    from utils.views.samples import samples_html, samples_text

    samples = preview_batch(data, n)
    show_html(samples_html(samples), samples_text(samples))


def _sample(number: int, row: int, batch: Batch, task_spec: Any, tokenizer: Any) -> SampleView:
    labels = batch.get("labels")
    ids_BT = batch.get("input_ids")
    if ids_BT is None:
        return SampleView(number, _pixels(batch["pixel_values"][row]), _label_of(labels, row, task_spec))
    if labels is not None and task_spec.task_type == "seq2seq":
        target = tuple(_token(int(i), tokenizer) for i in labels[row] if i != IGNORED)
        return SampleView(number, _text(batch, row, tokenizer), None, _tokens(batch, row, None, tokenizer), target)
    if labels is None or labels.shape != ids_BT.shape or labels.is_floating_point():
        label = _label_of(labels, row, task_spec)
        return SampleView(number, _text(batch, row, tokenizer), label, _tokens(batch, row, None, tokenizer))
    names = [_label_name(int(i), task_spec, tokenizer) for i in labels[row]]
    targets = None
    if task_spec.task_type == "causal_lm":
        targets = [False, *(name is not None for name in names[1:])]
        names = [*names[1:], None]  # a position predicts the next token
    return SampleView(number, _text(batch, row, tokenizer), None, _tokens(batch, row, names, tokenizer, targets))


def _with_roles(sample: SampleView, roles: Sequence[str | None], positions: Sequence[int] | None) -> SampleView:
    """The sample with the role of each token; positions that begin again at 0 begin a conversation."""
    tokens = [
        replace(token, role=role, begins=role is not None and place == 0)
        for token, role, place in zip_longest(
            sample.tokens, roles[: len(sample.tokens)], positions or range(len(sample.tokens))
        )
    ]
    return replace(sample, tokens=tuple(tokens))


def _tokens(
    batch: Batch, row: int, labels: list[str | None] | None, tokenizer: Any, targets: Sequence[bool] | None = None
) -> tuple[TokenView, ...]:
    ids = batch["input_ids"][row].tolist()
    mask = batch["attention_mask"][row].tolist() if "attention_mask" in batch else [1] * len(ids)
    types = batch["token_type_ids"][row].tolist() if "token_type_ids" in batch else [None] * len(ids)
    names = labels or [None] * len(ids)
    produced: Sequence[bool | None] = targets or [None] * len(ids)
    return tuple(
        _token(i, tokenizer, attended=bool(seen), label=name, token_type=kind, is_target=target)
        for i, seen, name, kind, target in zip(ids, mask, names, types, produced, strict=True)
    )


def _token(token_id: int, tokenizer: Any, **values: Any) -> TokenView:
    return TokenView(_piece(token_id, tokenizer), token_id, **values)


def _piece(token_id: int, tokenizer: Any) -> str:
    """A token as text: spaces at its ends and line ends as signs; one that is a part of a character as the tokenizer has it."""
    if tokenizer is None:
        return f"<{token_id}>"
    piece = str(tokenizer.decode([token_id]))
    if "\ufffd" in piece or not piece:
        piece = str(tokenizer.convert_ids_to_tokens(token_id))
    inner = piece.strip(" ")
    start = len(piece) - len(piece.lstrip(" "))
    marked = "␣" * start + inner + "␣" * (len(piece) - start - len(inner)) if inner else "␣" * len(piece)
    return marked.replace("\n", "⏎").replace("\t", "⇥")


def _text(batch: Batch, row: int, tokenizer: Any) -> str:
    ids = batch["input_ids"][row]
    if "attention_mask" in batch:
        ids = ids[batch["attention_mask"][row] != 0]
    return "" if tokenizer is None else str(tokenizer.decode(ids.tolist()))


def _label_name(label: int, task_spec: Any, tokenizer: Any) -> str | None:
    """A label of a position: a class where the task has some, else a token."""
    if label == IGNORED:
        return None
    return _class_name(label, task_spec) if task_spec.task_type == "token_classification" else _piece(label, tokenizer)


def _label_of(labels: Tensor | None, row: int, task_spec: Any) -> str | None:
    """The label of a whole sample."""
    if labels is None:
        return None
    label = labels[row]
    if task_spec.task_type == "regression" or (label.dim() == 0 and label.is_floating_point()):
        return ", ".join(f"{value:g}" for value in label.flatten().tolist())
    if label.dim() == 0:
        return _class_name(int(label), task_spec)
    return ", ".join(_class_name(place, task_spec) for place in label.nonzero()[:, 0].tolist()) or "none"


def _class_name(number: int, task_spec: Any) -> str:
    names = task_spec.preprocessing_config.get("class_names") or []
    return f"{names[number]} ({number})" if 0 <= number < len(names) and names[number] != str(number) else str(number)


def _pixels(pixels: Tensor) -> str:
    shape = " × ".join(map(str, pixels.shape))
    return (
        f"{shape} numbers from {float(pixels.min()):.3g} to {float(pixels.max()):.3g}, mean {float(pixels.mean()):.3g}"
    )
