"""Records with a question and an answer, from any source that a setup can name: built in, files, the Hub, a table."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, get_args

from utils.adapters.decoding import is_encoder_decoder
from utils.data.file_records import LoadedRecords
from utils.data.read.task_columns import find_columns
from utils.data.text.corpus import BUILTIN_NAME, builtin_questions, builtin_summaries
from utils.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from utils.data.prepared import PreparedData

#: What the rows of a dataset are. "auto": conversations in files that hold them, else texts.
DataKind = Literal["auto", "text", "conversations", "pairs"]
DATA_KINDS: tuple[str, ...] = get_args(DataKind)

# Characters of a dataset of the Hub that are read: records are held in memory.
_MOST_CHARACTERS = 300_000_000


def has_answers(kind: str) -> bool:
    """Whether rows of this kind are questions with answers, and no texts."""
    return kind in ("conversations", "pairs")


def builtin_records(kind: str) -> LoadedRecords:
    """The built-in stand-in: questions about the Python language reference, or its sections with their titles."""
    records = builtin_questions() if kind == "conversations" else builtin_summaries()
    what = "questions and answers" if kind == "conversations" else "sections and titles"
    return LoadedRecords(records, None, f"built-in: {BUILTIN_NAME}, {what}, CPython {platform.python_version()}")


def hub_records(
    name: str, config_name: str | None, split: str | None = None, *, with_validation: bool, as_tables: bool = False
) -> LoadedRecords:
    """The rows of a dataset of the Hub, or of a folder. Raises as `load_hub_texts`.

    Args:
        split: None means "train".
        as_tables: give `datasets.Dataset`s, which know the names of their classes, instead of lists of dicts.
    """
    from utils.data.text.hub import VALIDATION_SPLITS, load_hub_table

    read = as_stored_table if as_tables else _beginning
    table = load_hub_table(name, config_name, split or "train")
    rows, complete = read(table.rows)
    notes = list(table.notes)
    if not complete:
        notes.append(f"Only the first {len(rows):,} rows were read: as many as are held in memory.")
    own = next((known for known in VALIDATION_SPLITS if known in table.splits and known != table.split), None)
    validation = None
    if with_validation and own is not None:
        validation, _ = read(table.splits[own])
        notes.append(f"Validation is the dataset's own split {own!r} (rows: {len(validation):,}).")
    return LoadedRecords(rows, validation, table.source, notes)


def as_stored_table(rows: Any) -> tuple[Any, bool]:
    """A `datasets.Dataset` of the rows, and whether it has all of them: a stream is read up to what is held in memory."""
    from datasets import Dataset  # type: ignore[import-untyped]

    if hasattr(rows, "num_rows"):
        return rows, True
    records, complete = _beginning(rows)
    return Dataset.from_list(records, features=rows.features), complete


def prepare_records(
    loaded: LoadedRecords, kind: str, *, column: str | None = None, model: Any = None,
    tokenizer: PreTrainedTokenizerFast | None = None, max_length: int, vocab_size: int | None, val_split: float, seed: int,
    tokenizer_strategy: str = "auto",
) -> PreparedData:  # fmt: skip
    """Rows of tokens with the answers as targets.

    Args:
        kind: "conversations", or "pairs": a text, and the text to write for it. The text is cut at its end where it is too
            long for both to fit.
        column: the column of conversations, or of the first text of a pair; None: found by the columns' names.
    Raises:
        ConfigError: the model is an encoder-decoder, or no such column.
        DataError: the records are of another kind, or nothing is left of them; says what was found.
    """
    from utils.data.conversations.prepare import prepare_conversations

    if model is not None and is_encoder_decoder(model):
        raise ConfigError(
            f"data_kind={kind!r} trains a decoder, and {type(model).__name__} is an encoder-decoder. Use "
            "prepare_examples(records, TaskSpec.seq2seq(...)) for it."
        )
    records, validation = as_conversations(loaded, kind, column)
    data = prepare_conversations(
        records, tokenizer=tokenizer, model=model, max_length=max_length, vocab_size=vocab_size, val_split=val_split,
        random_seed=seed, validation=validation, source=loaded.source, on_bad_row="skip", shorten_prompts=kind == "pairs",
        tokenizer_strategy=tokenizer_strategy,
    )  # fmt: skip
    return replace(data, report=replace(data.report, notes=[*loaded.notes, *data.report.notes]))


def as_conversations(
    loaded: LoadedRecords, kind: str, column: str | None
) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None]:
    """Records of a kind of `has_answers`, and those of their own validation split, as `prepare_conversations` takes them."""
    convert = _as_messages if kind == "conversations" else _as_completions
    validation = None if loaded.validation is None else convert(loaded.validation, column, loaded.source)
    return convert(loaded.records, column, loaded.source), validation


def _beginning(rows: Any) -> tuple[list[dict[str, Any]], bool]:
    """Rows up to the most characters that are held in memory, and whether they are all."""
    records: list[dict[str, Any]] = []
    characters = 0
    for row in rows:
        if characters >= _MOST_CHARACTERS:
            return records, False
        characters += len(str(row))
        records.append(dict(row))
    return records, True


def _as_messages(records: Sequence[Mapping[str, Any]], column: str | None, source: str) -> Sequence[Mapping[str, Any]]:
    """Records that `read_conversations` takes: a column of lists of texts becomes turns of user and assistant."""
    from utils.data.conversations.layouts import find_layout

    example = _example(records, source)
    if column is not None and column not in example:
        raise ConfigError(f"text_column: there is no column {column!r} in {source}; there are {', '.join(example)}.")
    if column is None:
        if find_layout(list(records[:100])) is not None:
            return records
        column = next((name for name, value in example.items() if _is_dialogue(value)), None)
        if column is None:
            return records  # whose columns the error of read_conversations lists
    return [{"messages": _turns(record.get(column))} for record in records]


def _as_completions(
    records: Sequence[Mapping[str, Any]], column: str | None, source: str
) -> Sequence[Mapping[str, Any]]:
    """Records of prompt and completion."""
    columns = find_columns("seq2seq", _example(records, source), text=column)
    assert columns.label is not None
    return [{"prompt": record.get(columns.text), "completion": record.get(columns.label)} for record in records]


def _example(records: Sequence[Mapping[str, Any]], source: str) -> dict[str, Any]:
    """A value of each column of the first rows."""
    if not records:
        raise DataError(f"{source}: holds no rows.")
    found: dict[str, Any] = {}
    for name, value in chain.from_iterable(record.items() for record in records[:100]):
        if found.get(name) is None:
            found[name] = value
    return found


def _is_dialogue(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 1 and all(isinstance(turn, str) for turn in value)


def _turns(value: Any) -> Any:
    """Alternate messages of user and assistant, the user first; other values unchanged."""
    if not _is_dialogue(value):
        return value
    return [{"role": role, "content": text} for role, text in zip(_alternating(), value, strict=False)]


def _alternating() -> Iterable[str]:
    while True:
        yield from ("user", "assistant")
