"""Files whose rows are records: conversations, and inputs with labels: classes, numbers, tags or target texts.

`recognise` says what the first rows hold, `prepare_files` makes training data of all of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from utils.data.read.columns import KNOWN_NAMES
from utils.data.read.files import find_files, format_of
from utils.data.read.records import labelled_format, read_tables
from utils.data.read.rows import BadLines, ReadOptions, listed
from utils.errors import ConfigError, DataError
from utils.training.task_kinds import TASKS, kind_of_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from utils.data.prepared import PreparedData

# Rows that tell what a file holds.
_FIRST_ROWS = 100


@dataclass(frozen=True)
class LoadedRecords:
    """Records as read from their source, before any processing.

    Attributes:
        records: one dict per row; validation: those of the source's own validation split, None if it has none.
        source: what they are, for the report.
        notes: what the user should know, one sentence each.
    """

    records: Sequence[Mapping[str, Any]]
    validation: Sequence[Mapping[str, Any]] | None
    source: str
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Recognised:
    """Kind of data in the first rows of files.

    Attributes:
        columns: names of the columns; none for plain text.
        layouts: names of the conversation layouts that fit, see `utils.data.conversations.LAYOUTS`.
        descriptions: the same with their columns, for messages.
        has_texts: whether a column has a usual name of texts, which is read unless a layout is chosen.
        example: a value of each column, the first that is not missing; None where all are.
        task: the task that the columns suggest, one of `utils.training.task_kinds.TASKS`; reason: why, as a sentence.
        is_text: whether the file is plain text, without columns.
    """

    columns: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    has_texts: bool = False
    example: Mapping[str, Any] = field(default_factory=dict)
    task: str = "causal_lm"
    reason: str = ""
    is_text: bool = False

    @property
    def sentence(self) -> str:
        """The recognised kind in a sentence."""
        if not self.columns:
            return "Plain text."
        found = f"Columns: {listed(self.columns)}."
        if not self.layouts:
            return found
        layouts = " or ".join(self.descriptions)
        if self.has_texts:
            return f"{found} Read as texts; as conversations they would be {layouts}."
        return f"{found} Conversations found: {layouts}."


def recognise(path: str | os.PathLike[str]) -> Recognised:
    """Recognise the kind of data from the first rows of the first file at `path`.

    Raises:
        DataNotFoundError, DataError: there is no such file, or it cannot be read.
    """
    file = find_files(path).files[0]
    file_format = labelled_format(file)
    if file_format == "txt":
        return Recognised(is_text=True)
    options = ReadOptions(file_format=file_format)
    first = next((table for _, table in read_tables([file], options, BadLines("skip"))), None)
    if first is None:
        return Recognised()
    return recognise_rows(first.slice(0, _FIRST_ROWS).to_pylist())


def recognise_rows(rows: Sequence[Mapping[str, Any]]) -> Recognised:
    """Recognise the kind of data from rows of a table, which all have the same columns."""
    from utils.data.conversations.layouts import fitting_layouts
    from utils.data.labelled.suggestion import suggest_task
    from utils.data.labelled.table import as_table

    if not rows:
        return Recognised()
    fitting = fitting_layouts(list(rows))
    has_texts = any(isinstance(rows[0].get(name), str) for name in KNOWN_NAMES)
    suggested = suggest_task(rows, is_conversation=bool(fitting))
    return Recognised(
        tuple(rows[0]), tuple(layout.name for layout in fitting), tuple(map(str, fitting)), has_texts,
        as_table(rows, "").example(), suggested.task, suggested.reason,
    )  # fmt: skip


def load_records(
    path: str | os.PathLike[str], *, with_validation: bool = True, keep_empty: bool = False
) -> LoadedRecords:
    """The rows of a file, a folder or a pattern of paths, held in memory.

    Args:
        with_validation: also read the files of a folder whose names say that they are for validation.
        keep_empty: keep columns without a value in a row; else the row's dict leaves them out.
    Raises:
        DataNotFoundError, DataError: what is wrong, with path:line.
    """
    found = find_files(path)
    options = ReadOptions()
    records = _records(found.files, options, keep_empty)
    if not records:
        raise DataError(f"{os.fspath(path)}: holds no rows. Give a file with at least one.")
    has_validation = with_validation and bool(found.validation)
    validation = _records(found.validation, options, keep_empty) if has_validation else None
    notes = list(found.notes)
    if validation is not None:
        notes.append(f"Validation is the files that are named so (files: {len(found.validation):,}).")
    counted = "" if len(found.files) == 1 else f", {len(found.files):,} files"
    return LoadedRecords(records, validation, f"{os.fspath(path)}{counted}", notes)


def label_names(
    rows: Any, task: str = "text_classification", *, text_column: str | None = None, label_column: str | None = None
) -> tuple[str, ...]:
    """The classes or tags in records with labels, in the order of their numbers; for regression, a name for each target.

    Args:
        rows: a file, a folder or a pattern of paths; or records, as `prepare_examples` takes them.
    Raises:
        DataNotFoundError, DataError, ConfigError: they cannot be read, or have no column of labels; says which they have.
    """
    import numpy as np  # here: the wizard's form reads this module, and needs neither numpy nor torch

    from utils.data.labelled.table import as_table
    from utils.data.labelled.targets import read_targets
    from utils.data.labelled.usable_rows import usable_rows
    from utils.data.read.task_columns import find_columns

    is_path = isinstance(rows, (str, os.PathLike))
    table = as_table(labelled_rows(rows, with_validation=False).records if is_path else rows, task)
    columns = find_columns(task, table.example(), text=text_column, label=label_column)
    part = usable_rows(table, columns, task, "skip", "records")
    known = table.class_names.get(columns.label or "")
    targets, _ = read_targets([part.labels()], task, known, None)
    classes, values = targets[0].classes, targets[0].values
    if classes is None and isinstance(values, np.ndarray):
        return tuple(f"target_{number}" for number in range(1 if values.ndim == 1 else values.shape[1]))
    return () if classes is None else classes.names


def prepare_files(
    path: str | os.PathLike[str], *, task: str, max_length: int, vocab_size: int | None, val_split: float, random_seed: int,
    text_column: str | None = None, label_column: str | None = None, layout: str | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None, model: Any = None, tokenizer_strategy: str = "auto",
) -> PreparedData | None:  # fmt: skip
    """Prepare files of conversations, or of inputs with labels, for training.

    Args:
        path: a file, a folder or a pattern of paths.
        task: one of `utils.training.task_kinds.TASKS`.
        layout: name of the conversation layout (`utils.data.conversations.LAYOUTS`); detected from the columns by default.
        max_length, vocab_size, val_split, random_seed, text_column, label_column, tokenizer, model, tokenizer_strategy: as
            for `prepare_examples` and `prepare_conversations`.
    Returns:
        None if the files contain plain text for a language model.
    Raises:
        ConfigError, DataError: as for these.
    """
    if task not in TASKS:
        raise ConfigError(f"task: got {task!r}; must be one of {', '.join(TASKS)}.")
    if kind_of_task(task).labelled:
        return prepare_labelled(
            labelled_rows(path, with_validation=val_split > 0), task, max_length=max_length, vocab_size=vocab_size,
            val_split=val_split, random_seed=random_seed, text_column=text_column, label_column=label_column,
            tokenizer=tokenizer, model=model, tokenizer_strategy=tokenizer_strategy,
        )  # fmt: skip
    if text_column is not None:
        return None
    from utils.data.conversations.prepare import prepare_conversations

    if not holds_conversations(path, layout):
        _refuse_tagged(path)
        return None
    found = load_records(path, with_validation=val_split > 0)
    data = prepare_conversations(
        found.records, tokenizer=tokenizer, model=model, layout=layout, max_length=max_length, vocab_size=vocab_size,
        val_split=val_split, random_seed=random_seed, validation=found.validation, source=found.source,
        on_bad_row="skip", tokenizer_strategy=tokenizer_strategy,
    )  # fmt: skip
    data.report.notes.extend(found.notes)
    return data


def prepare_labelled(
    rows: LoadedRecords, task: str, *, max_length: int, vocab_size: int | None, val_split: float, random_seed: int,
    text_column: str | None = None, label_column: str | None = None, tokenizer: PreTrainedTokenizerFast | None = None,
    model: Any = None, tokenizer_strategy: str = "auto",
) -> PreparedData:  # fmt: skip
    """Examples of records with labels. Rows that cannot be used are skipped and counted.

    Args:
        task: one of `utils.training.task_kinds.TASKS` but "causal_lm". The others are as for `prepare_examples`.
    Raises:
        ConfigError: the model cannot learn the task, such as a decoder sequence-to-sequence; or as `prepare_examples`.
        DataError: as `prepare_examples`.
    """
    from utils.adapters.decoding import is_encoder_decoder
    from utils.data.labelled.prepare import prepare_examples

    if task == "seq2seq" and model is not None and not is_encoder_decoder(model):
        raise ConfigError(
            f"task: got 'seq2seq', which needs an encoder-decoder such as T5, and {type(model).__name__} has no decoder of its "
            'own. Choose another model, or task="causal_lm" with data_kind="pairs" to train a decoder on the same rows.'
        )
    has_classes = kind_of_task(task).targets in ("classes", "tags")
    data = prepare_examples(
        rows.records, task, tokenizer, text_column=text_column, label_column=label_column, max_length=max_length,
        val_split=val_split, random_seed=random_seed, vocab_size=None if tokenizer is not None else vocab_size,
        validation=rows.validation, class_names=named_classes(model) if has_classes else None, on_bad_row="skip",
        model=model, source=rows.source, tokenizer_strategy=tokenizer_strategy,
    )  # fmt: skip
    data.report.notes.extend(rows.notes)
    return data


def named_classes(model: Any) -> list[str] | None:
    """The names of a classifier's classes in the order of their numbers; None where its config only numbers them."""
    names = getattr(getattr(model, "config", None), "id2label", None)
    if not isinstance(names, Mapping) or not names:
        return None
    found = [str(names[number]) for number in sorted(names, key=int)]
    return None if all(name.startswith("LABEL_") for name in found) else found


def labelled_rows(path: str | os.PathLike[str], *, with_validation: bool) -> LoadedRecords:
    """The rows of files with labels, columns without a value included. Raises as `load_records`, and for plain text."""
    if labelled_format(find_files(path).files[0]) == "txt":
        raise DataError(
            f"{os.fspath(path)} is plain text, which has no labels. Give a csv, tsv, json, jsonl or parquet file with a "
            "column of texts and one of labels; for words with tags also a CoNLL file: a word and its tag a line, a blank line "
            "after each sentence."
        )
    return load_records(path, with_validation=with_validation, keep_empty=True)


def _records(files: Sequence[Any], options: ReadOptions, keep_empty: bool) -> list[dict[str, Any]]:
    bad = BadLines(options.on_bad_line)
    formats = {file: labelled_format(file) for file in files}
    tables = (
        table for file in files for _, table in read_tables([file], replace(options, file_format=formats[file]), bad)
    )
    rows = (row for table in tables for row in table.to_pylist())
    return list(rows) if keep_empty else [_without_nulls(row) for row in rows]


def _refuse_tagged(path: str | os.PathLike[str]) -> None:
    """Raises ConfigError for a CoNLL file, which a language model would read with its tags."""
    if format_of(find_files(path).files[0]) == "conll":
        raise ConfigError(
            f'{os.fspath(path)} holds words with tags, which token classification learns: set task="token_classification". '
            "For a language model save its words as a .txt file."
        )


def _without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without columns that only other rows have."""
    return {name: value for name, value in row.items() if value is not None}


def holds_conversations(path: str | os.PathLike[str], layout: str | None = None) -> bool:
    """Whether the first rows of the first file at `path` are conversations, and no table with a column of texts.

    Args:
        layout: the layout that somebody chose; then a column of texts does not count.
    Raises:
        DataError: several layouts fit; names them.
    """
    found = recognise(path)
    if layout is not None:
        return bool(found.columns)
    if found.has_texts or not found.layouts:
        return False
    if len(found.layouts) > 1:
        raise DataError(
            f"{os.fspath(path)}: the records can be read as {' or '.join(found.descriptions)}; say which with "
            f"conversation_layout or layout: {' or '.join(map(repr, found.layouts))}."
        )
    return True
