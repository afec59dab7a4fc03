"""Samples -> batches, for every task: `collator_for` gives the collate function of a task.

A batch has the names that transformers has: `input_ids`, `attention_mask`, `token_type_ids`, `pixel_values`, `labels`. What is
not scored has the label -100. Samples are dicts of ids, pairs (inputs, labels), or records with raw texts, which the task's
tokenizer turns into ids on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from utils.data.batch import IGNORED, Batch, Collate
from utils.data.encoding import encode_pairs_of_sequences, encode_texts, encode_words
from utils.data.labelled.labels import is_list
from utils.data.labelled.usable_rows import input_problem
from utils.data.masking import SHARE_CHOSEN, masked_lm_collator
from utils.data.padding import labels_of, padding_of
from utils.data.read.rows import listed
from utils.data.read.task_columns import Columns, find_columns
from utils.data.text_collator import TextCollator
from utils.errors import ConfigError, DataError, DataTypeError
from utils.schema import shown

if TYPE_CHECKING:
    from utils.training.task_spec import TaskSpec

MakeCollate = Callable[["TaskSpec", Any], Collate]

_MAKERS: dict[str, MakeCollate] = {}

# Names under which samples hold images and labels.
_IMAGES = ("pixel_values", "image", "images", "img")
_LABELS = ("labels", "label", "target")
# The range of pixels that are whole numbers.
_LARGEST_PIXEL = {torch.uint8: 255, torch.uint16: 65_535}


def register_collator(task_type: str, make: MakeCollate) -> None:
    """Have `collator_for` use `make` for a task type. A later registration takes the place of an earlier one.

    Args:
        make: called with the TaskSpec and the tokenizer (None where there is none). A collator that draws at random has
            `prepare` and `collate` (`utils.data.batch.PreparingCollate`).
    """
    if not isinstance(task_type, str) or not task_type or not callable(make):
        raise ConfigError(
            f"register_collator takes the name of a task type and a function (task_spec, tokenizer) -> collate; got "
            f"{task_type!r} and a {type(make).__name__}."
        )
    _MAKERS[task_type] = make


def collator_for(task_spec: TaskSpec | None, tokenizer: Any = None) -> Collate:
    """The collate function of a task.

    Args:
        task_spec: the task. None, or of a type that nobody registered: token ids are padded and images stacked
            (`AnyCollator`).
        tokenizer: gives special ids, and turns raw texts into ids. None: samples must hold ids.
    Raises:
        ConfigError: the tokenizer lacks what the task needs; says how to give it.
    """
    make = _MAKERS.get((task_spec.task_type if task_spec is not None else None) or "")
    if make is None or task_spec is None:
        return AnyCollator(*_padding(task_spec, tokenizer))
    return make(task_spec, tokenizer)


class AnyCollator(TextCollator):
    """For a task that is not known yet: token ids as `TextCollator` has them, images as `ImageCollator`."""

    def __call__(self, samples: list[Any]) -> Batch:
        if not samples or not _is_image(samples[0]):
            return super().__call__(samples)
        return ImageCollator(whole_labels=False)(samples)


class InputCollator:
    """Base class for texts whose labels are not their own tokens: `input_ids` and `attention_mask`, right-padded.

    Args:
        task_spec: gives the longest input, the names of classes and, without a tokenizer, the padding id.
        tokenizer: turns raw texts into ids; None: samples hold ids.
    """

    draws, packs = False, False
    task_type = ""

    def __init__(self, task_spec: TaskSpec, tokenizer: Any = None) -> None:
        self.tokenizer = tokenizer
        self.max_length = task_spec.max_seq_len
        self.pad_id, self.eos_id = _padding(task_spec, tokenizer)
        self.class_names: list[str] | None = task_spec.preprocessing_config.get("class_names")
        self.class_values: list[int] | None = task_spec.preprocessing_config.get("class_values")
        self._rows = TextCollator(self.pad_id, self.eos_id)

    def __call__(self, samples: list[Any]) -> Batch:
        rows = [_as_row(sample) for sample in samples]
        raw = [row for row in rows if "input_ids" not in row and not _is_image(row)]
        if raw:
            rows = self._encoded(raw, len(raw) == len(rows))
        return self.batch(rows)

    def batch(self, rows: list[dict[str, Any]]) -> Batch:
        """Rows with `input_ids` (or `pixel_values`) and perhaps `labels`, as one batch."""
        labels = [row.pop("labels") for row in rows if "labels" in row]
        if labels and len(labels) != len(rows):
            raise DataError(f"{len(rows) - len(labels)} of {len(rows)} samples of a batch have no labels.")
        inputs = self._inputs(rows)
        return {**inputs, "labels": self.labels(labels, inputs)} if labels else inputs

    def labels(self, labels: list[Any], inputs: Batch) -> Tensor:
        """The samples' labels as one tensor."""
        raise NotImplementedError

    def encode(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Records with raw texts as rows with `input_ids` and perhaps `labels`."""
        columns = self.columns_of(records)
        texts = [record[columns.text] for record in records]
        pairs = None if columns.pair is None else [record[columns.pair] for record in records]
        found = encode_texts(self.tokenizer, texts, pairs, self.max_length)
        rows: list[dict[str, Any]] = _by_row(found.rows)
        if columns.label is not None:
            for row, record in zip(rows, records, strict=True):
                row["labels"] = self.class_ids(record[columns.label])
        return rows

    def columns_of(self, records: list[dict[str, Any]]) -> Columns:
        """Columns of the texts and labels of records. Raises DataError when one of them has no text, or no label as others."""
        columns = find_columns(self.task_type, records[0], labelled=None)
        for record in records:
            texts = [record.get(name) for name in (columns.text, columns.pair) if name is not None]
            problem = next(filter(None, (input_problem(text, self.task_type) for text in texts)), None)
            if columns.label is not None and record.get(columns.label) is None:
                problem = problem or "no label"
            if problem:
                raise DataError(
                    f"a record of a batch has {problem}: {shown(record)}. Repair it, or let prepare_examples(records, ..., "
                    'on_bad_row="skip") pass over such records.'
                )
        return columns

    def class_ids(self, label: Any) -> Any:
        """A label, or labels, with names of classes replaced by their numbers."""
        if isinstance(label, (list, tuple, np.ndarray)):
            return [self.class_ids(entry) for entry in label]
        if self.class_values is not None and label in self.class_values:
            return self.class_values.index(label)
        if not isinstance(label, str):
            return label
        if self.class_names is None or label not in self.class_names:
            known = "no class names are known"
            if self.class_names is not None:
                known = f"the classes are [{listed(map(repr, self.class_names[:12]))}]"
            raise DataError(
                f"the label {shown(label)} is a name, and {known}. prepare_examples(records, ...) finds the classes."
            )
        return self.class_names.index(label)

    def _encoded(self, raw: list[dict[str, Any]], all_of_them: bool) -> list[dict[str, Any]]:
        if not all_of_them:
            raise DataTypeError("some samples of a batch hold input_ids and some do not.")
        if self.tokenizer is None:
            raise DataTypeError(
                f"Expected samples with input_ids; got {sorted(raw[0])}. Texts need a tokenizer: "
                "Trainer(..., tokenizer=...), or prepare_examples(records, task_spec, tokenizer)."
            )
        return self.encode(raw)

    def _inputs(self, rows: list[dict[str, Any]]) -> Batch:
        if _is_image(rows[0]):  # features that are no tokens
            return {"pixel_values": torch.stack([_pixels(_image_of(row)) for row in rows])}
        known = ("input_ids", "attention_mask", "token_type_ids")
        batch = self._rows([self._masked({name: row[name] for name in known if name in row}) for row in rows])
        del batch["labels"]  # of predicting the ids themselves
        return batch

    def _masked(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with an `attention_mask`: without one, runs of padding ids at either end are padding."""
        if "attention_mask" not in row:
            ids = torch.as_tensor(row["input_ids"])
            row["attention_mask"] = (~padding_of(ids, self.pad_id, self.eos_id)).long()
        return row


class ClassificationCollator(InputCollator):
    """One text or pair of texts and its class: `labels` (B,) int64, or (B, C) float where a text may have several classes.

    Several classes are given as a vector with 1 for each class that the text has and 0 for the others; of records, also as a
    list of their names.
    """

    task_type = "text_classification"

    def __init__(self, task_spec: TaskSpec, tokenizer: Any = None) -> None:
        super().__init__(task_spec, tokenizer)
        self.several = bool(task_spec.multi_label)

    def labels(self, labels: list[Any], inputs: Batch) -> Tensor:
        if self.several:  # floats: a row of one whole number is taken for one class
            values = [torch.as_tensor(label) for label in labels]
            labels = [value.float() if value.dim() else value for value in values]
        stacked = _stacked(labels)
        return stacked.float() if stacked.dim() > 1 else _whole(stacked)

    def class_ids(self, label: Any) -> Any:
        if not isinstance(label, (list, tuple, set, frozenset)) or self.class_names is None:
            return super().class_ids(label)
        if label and self.class_values is None and not any(isinstance(entry, str) for entry in label):
            return list(label)  # a vector
        having = {super(ClassificationCollator, self).class_ids(entry) for entry in label}
        return [float(number in having) for number in range(len(self.class_names))]


class RegressionCollator(InputCollator):
    """A text, or a row of features, and its number or numbers: `labels` (B,) or (B, K) float32."""

    task_type = "regression"

    def class_ids(self, label: Any) -> Any:
        """A number, or several, also where they are written as text."""
        try:
            return [float(number) for number in label] if is_list(label) else float(label)
        except (TypeError, ValueError) as error:
            raise DataError(f"a record of a batch has a label that is no number: {shown(label)}.") from error

    def labels(self, labels: list[Any], inputs: Batch) -> Tensor:
        return _stacked(labels).float()


class TokenClassificationCollator(InputCollator):
    """A label for each word: `labels` (B, T) int64, -100 on padding, special tokens and all but a word's first token.

    Samples that hold ids have a label for each id already. Records have words and a tag for each of them.
    """

    task_type = "token_classification"

    def batch(self, rows: list[dict[str, Any]]) -> Batch:
        for row in rows:
            if "labels" in row and len(row["labels"]) != len(row["input_ids"]):
                raise DataError(
                    f"a sample has {len(row['input_ids'])} tokens and {len(row['labels'])} labels; give one label for each "
                    "token, -100 where there is none, or the words and their tags and let the tokenizer align them."
                )
        return super().batch(rows)

    def labels(self, labels: list[Any], inputs: Batch) -> Tensor:
        return _padded(labels, IGNORED).masked_fill(inputs["attention_mask"] == 0, IGNORED)

    def encode(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        columns = self.columns_of(records)
        tags = None if columns.label is None else [self.class_ids(record[columns.label]) for record in records]
        words = [record[columns.text] for record in records]
        return _by_row(encode_words(self.tokenizer, words, tags, self.max_length).rows)


class Seq2SeqCollator(InputCollator):
    """A text and its target text: `labels` (B, T_out) int64, padded on their own with -100.

    What the decoder reads is made from the labels by the objective, so `decoder_input_ids` of a sample are not passed on.
    """

    task_type = "seq2seq"

    def __init__(self, task_spec: TaskSpec, tokenizer: Any = None) -> None:
        super().__init__(task_spec, tokenizer)
        self.max_target_length = task_spec.preprocessing_config.get("max_target_length", self.max_length)

    def labels(self, labels: list[Any], inputs: Batch) -> Tensor:
        return _padded([labels_of(_ids(label), None, self.pad_id, self.eos_id) for label in labels], IGNORED)

    def encode(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        columns = self.columns_of(records)
        texts = [record[columns.text] for record in records]
        if columns.label is None:
            return _by_row(encode_texts(self.tokenizer, texts, None, self.max_length).rows)
        targets = [record[columns.label] for record in records]
        found = encode_pairs_of_sequences(self.tokenizer, texts, targets, self.max_length, self.max_target_length)
        return _by_row(found.rows)


class ImageCollator:
    """Images and their classes: `pixel_values` (B, C, H, W) float32, `labels` (B,) int64 where there are any.

    A sample is an image, a pair (image, label) or a dict with `pixel_values` or `image`. An image is a tensor or array
    (C, H, W), or (H, W), which gets one channel. uint8 (0 to 255) and uint16 (0 to 65,535) become 0 to 1; other types stay as
    they are.

    Args:
        whole_labels: labels are classes. False: labels of any dtype and shape, (B, ...), for a criterion of one's own.
    """

    draws, packs = False, False

    def __init__(self, whole_labels: bool = True) -> None:
        self._whole_labels = whole_labels

    def __call__(self, samples: list[Any]) -> Batch:
        rows = [_as_row(sample) for sample in samples]
        images = [_pixels(_image_of(row), channels=True) for row in rows]
        shapes = sorted({tuple(image.shape) for image in images})
        if len(shapes) > 1:
            raise DataError(
                f"the images of a batch have different shapes: {', '.join(map(str, shapes[:4]))}. Bring them to one size first."
            )
        batch = {"pixel_values": torch.stack(images)}
        labels = [row["labels"] for row in rows if "labels" in row]
        if labels and len(labels) != len(rows):
            raise DataError(f"{len(rows) - len(labels)} of {len(rows)} samples of a batch have no label.")
        if labels:
            stacked = _stacked(labels)
            whole = self._whole_labels or not stacked.is_floating_point()
            batch["labels"] = _whole(stacked) if whole else stacked
        return batch


def _as_row(sample: Any) -> dict[str, Any]:
    """A sample as a dict; labels are called `labels`."""
    if isinstance(sample, Mapping):
        row = dict(sample)
        named = [name for name in _LABELS if name in row]
        if named and ("input_ids" in row or _is_image(row)):
            row["labels"] = row[named[0]]
        return row
    if isinstance(sample, (tuple, list)) and len(sample) == 2 and isinstance(sample[0], (Tensor, np.ndarray)):
        return {_kind(sample[0]): sample[0], "labels": sample[1]}
    if isinstance(sample, (tuple, list)) and len(sample) == 1:
        return _as_row(sample[0])
    if isinstance(sample, (Tensor, np.ndarray)):
        return {_kind(sample): sample}
    raise DataTypeError(
        "Expected a sample to be a dict, a pair (inputs, labels) of tensors, or a record with texts; got a "
        f"{type(sample).__name__}. Other kinds of samples need data_collator=."
    )


def _kind(values: Any) -> str:
    values = torch.as_tensor(values)
    return "input_ids" if values.dim() == 1 and not values.is_floating_point() else "pixel_values"


def _is_image(sample: Any) -> bool:
    """Whether a sample holds pixels or features, not tokens."""
    if isinstance(sample, Mapping):
        return "input_ids" not in sample and any(name in sample for name in _IMAGES)
    if isinstance(sample, (tuple, list)) and 1 <= len(sample) <= 2:
        sample = sample[0]
    return isinstance(sample, (Tensor, np.ndarray)) and _kind(sample) == "pixel_values"


def _image_of(row: Mapping[str, Any]) -> Any:
    name = next((name for name in _IMAGES if name in row), None)
    if name is None:
        raise DataTypeError(f"Expected a sample with {' or '.join(_IMAGES[:2])}; got {sorted(map(str, row))[:8]}.")
    return row[name]


def _pixels(image: Any, channels: bool = False) -> Tensor:
    """An image, or a row of features, as float32; uint8 and uint16 as 0 to 1."""
    if not isinstance(image, Tensor):
        image = np.asarray(image)
        if image.dtype.kind not in "buif":
            raise DataTypeError(f"Expected an image of numbers; got an array of {image.dtype}.")
        image = torch.as_tensor(image)
    pixels: Tensor = image.float() / _LARGEST_PIXEL.get(image.dtype, 1)
    if channels and pixels.dim() == 2:
        pixels = pixels[None]
    if channels and pixels.dim() not in (1, 3):  # 1: features that are no image
        raise DataTypeError(f"Expected an image of shape (channels, height, width); got {tuple(pixels.shape)}.")
    return pixels


def _ids(values: Any) -> Tensor:
    """A row of ids or labels as int64. Raises `DataTypeError` when it is none."""
    ids = torch.as_tensor(values)
    if ids.is_floating_point() or ids.dim() != 1:
        raise DataTypeError(
            f"labels of a sample must be a row of whole numbers; got shape {tuple(ids.shape)}, {ids.dtype}"
        )
    return ids.long()


def _padded(rows: Sequence[Any], fill: int) -> Tensor:
    """Rows of ids, padded to the longest of them: int64."""
    ids = [_ids(row) for row in rows]
    length = max(len(row) for row in ids)
    return torch.stack([torch.nn.functional.pad(row, (0, length - len(row)), value=fill) for row in ids])


def _stacked(labels: list[Any]) -> Tensor:
    values = [torch.as_tensor(label) for label in labels]
    shapes = {tuple(value.shape) for value in values}
    if len(shapes) > 1:
        raise DataError(
            f"the labels of a batch have different shapes: {', '.join(map(str, sorted(shapes)[:4]))}. Where a sample may have "
            "several classes, its label is a vector with one number, 0 or 1, for each class there is."
        )
    stacked = torch.stack(values)
    return (
        stacked[:, 0] if stacked.dim() == 2 and stacked.shape[1] == 1 and not stacked.is_floating_point() else stacked
    )


def _whole(labels: Tensor) -> Tensor:
    if labels.is_floating_point():
        raise DataTypeError(
            f"classes are whole numbers from 0 on; got labels of {labels.dtype}, such as {float(labels.flatten()[0])}. "
            "Convert them, or use task_type='regression'."
        )
    return labels.long()


def _by_row(rows: Mapping[str, list[list[int]]]) -> list[dict[str, Any]]:
    return [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]


def _padding(task_spec: TaskSpec | None, tokenizer: Any) -> tuple[int | None, int | None]:
    """The padding id (of the tokenizer, else of the task), and the end-of-text id."""
    pad_id = getattr(tokenizer, "pad_token_id", None)
    return task_spec.pad_token_id if pad_id is None and task_spec else pad_id, getattr(tokenizer, "eos_token_id", None)


def _masked_lm(task_spec: TaskSpec, tokenizer: Any) -> Collate:
    share = task_spec.preprocessing_config.get("mlm_probability", SHARE_CHOSEN)
    return masked_lm_collator(tokenizer, *_padding(task_spec, tokenizer), share)


register_collator("causal_lm", lambda task_spec, tokenizer: TextCollator(*_padding(task_spec, tokenizer)))
register_collator("masked_lm", _masked_lm)
register_collator("text_classification", ClassificationCollator)
register_collator("token_classification", TokenClassificationCollator)
register_collator("seq2seq", Seq2SeqCollator)
register_collator("regression", RegressionCollator)
register_collator("image_classification", lambda _task_spec, _tokenizer: ImageCollator())
