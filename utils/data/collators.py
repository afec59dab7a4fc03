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
from utils.data.numeric_rows import (
    ImageCollator,
    as_row,
    holds_tokens,
    image_of,
    is_image,
    pixels_of,
    stacked_labels,
    whole_labels_of,
)
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


def register_collator(task_type: str, make: MakeCollate) -> None:
    """Have `collator_for` use `make` for a task type. A later registration takes the place of an earlier one.

    Args:
        make: called with the TaskSpec and the tokenizer, or None. A collator that draws at random has
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
        if not samples or not is_image(samples[0]):
            return super().__call__(samples)
        return ImageCollator(whole_labels=False)(samples)

    def of_columns(self, inputs_B: Tensor, labels_B: Tensor | None) -> Batch | None:
        """As `utils.data.batch.ColumnCollate`."""
        if type(self) is not AnyCollator or holds_tokens(inputs_B):
            return None
        return ImageCollator(whole_labels=False).of_columns(inputs_B, labels_B)


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
        rows = [as_row(sample) for sample in samples]
        raw = [row for row in rows if "input_ids" not in row and not is_image(row)]
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

    def of_columns(self, inputs_B: Tensor, labels_B: Tensor | None) -> Batch | None:
        """As `utils.data.batch.ColumnCollate`."""
        kind = type(self)
        as_usual = (kind.__call__, kind.batch, kind._inputs) == (
            InputCollator.__call__,
            InputCollator.batch,
            InputCollator._inputs,
        )
        if not as_usual or holds_tokens(inputs_B):
            return None
        inputs = {"pixel_values": pixels_of(inputs_B)}
        return inputs if labels_B is None else {**inputs, "labels": self.labels(list(labels_B.unbind()), inputs)}

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
        if is_image(rows[0]):  # features that are no tokens
            return {"pixel_values": torch.stack([pixels_of(image_of(row)) for row in rows])}
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
        stacked = stacked_labels(labels)
        return stacked.float() if stacked.dim() > 1 else whole_labels_of(stacked)

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
        return stacked_labels(labels).float()


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
                    "token, -100 where a token has no label, or the words and their tags and let the tokenizer align them."
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


def _ids(values: Any) -> Tensor:
    """A row of ids or labels as int64. Raises `DataTypeError` for anything else."""
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
