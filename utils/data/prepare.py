"""prepare_data: what a setup names -> data that are ready to train on.

Text goes through `utils.data.text.prepare`, files of conversations or of labelled texts through `utils.data.file_records`, and
other sources of answers through `utils.data.record_sources`.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from utils import colab
from utils.adapters.special_ids import set_special_ids
from utils.data.documents import PackingSettings, check_is_text
from utils.data.file_records import (
    LoadedRecords,
    labelled_rows,
    load_records,
    prepare_files,
    prepare_labelled,
)
from utils.data.mixture_settings import mixture_sources
from utils.data.prepared import PreparedData
from utils.data.record_sources import (
    DATA_KINDS,
    builtin_records,
    has_answers,
    hub_records,
    prepare_records,
)
from utils.data.source_kinds import kind_of_source, source_problem, unread
from utils.data.text.corpus import BUILTIN_NAME, builtin_corpus
from utils.data.text.hub import LoadedTexts, dataset_name_problem, load_hub_texts
from utils.data.text.local import load_local_texts
from utils.data.text.prepare import prepare_text
from utils.errors import ConfigError, Problem
from utils.models.inspect import max_seq_len_of, vocab_size_of
from utils.schema import shown
from utils.storage import path_from
from utils.training.task_kinds import kind_of_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


# What a run records only where it is not the default.
_RECORDED_IF_SET: Mapping[str, Any] = {
    "task": "causal_lm", "label_column": None, "conversation_layout": None, "mixture_by": "examples",
    "mixture_temperature": 1.0, "dataset_split": None, "packing": "concatenate",
}  # fmt: skip
# Settings that a setup need not have, with what they are then.
_OPTIONAL: Mapping[str, Any] = {**_RECORDED_IF_SET, "data_kind": "auto", "mixture": ()}
# Of DataSetup, what a run records so that the same data can be prepared again.
_SETTINGS = (
    "dataset_source", "dataset_path", "dataset_name", "config_name", "text_column", "vocab_size", "max_length",
    "tokenizer_strategy", "val_split", "random_seed", "data_kind", "shuffle_documents", "document_masks",
)  # fmt: skip


class DataSetup(Protocol):
    """Settings that `prepare_data` reads: a SetupConfig, or anything with these attributes."""

    @property
    def dataset_source(self) -> str:
        """ "builtin", "local", "huggingface", "drive" or "upload"."""

    @property
    def dataset_path(self) -> str | None:
        """The file, folder or pattern of paths, for "local", "drive" (below the user's Drive) and "upload"."""

    @property
    def dataset_name(self) -> str | None:
        """The dataset's id or folder, for "huggingface"; see `load_hub_texts`."""

    @property
    def config_name(self) -> str | None:
        """Configuration of the dataset on the Hub; None: the default."""

    @property
    def text_column(self) -> str | None:
        """The column of texts of its tables; None: one with a usual name, or else the only one."""

    @property
    def vocab_size(self) -> int | None:
        """Maximum vocabulary size of the tokenizer; None: the model's."""

    @property
    def max_length(self) -> int:
        """Tokens per block, T."""

    @property
    def tokenizer_strategy(self) -> str:
        """ "auto", "bpe" or "character"."""

    @property
    def val_split(self) -> float:
        """Share of the text for validation, 0 to 0.5; 0: none. A dataset's own validation split is taken instead."""

    @property
    def random_seed(self) -> int:
        """Draws the validation documents."""


def optional_setting(setup: DataSetup, name: str) -> Any:
    """A setting that not every setup has, or its default."""
    return getattr(setup, name, _OPTIONAL[name])


def prepare_data(setup: DataSetup, model: Any = None) -> PreparedData:
    """Load, check, tokenize and pack the text that `setup` names, for `model`.

    Files of conversations (`utils.data.conversations.LAYOUTS`) become rows of a chat template's tokens, with the loss on the
    answers only; with a column of texts, or a `text_column`, they are read as texts. A setup with `task` "text_classification"
    makes examples of the rows of its files. Such a setup also has `label_column` and `conversation_layout`.
    A setup may also say what its rows are, with `data_kind`: "conversations" or "pairs" (a text, and the text to write for it)
    from any source, the built-in one included, or "text". With `packing`, `shuffle_documents` and `document_masks` it says
    how texts are packed (`prepare_text`). A setup with a `mixture` names several datasets of text and conversations;
    `utils.data.prepare_mixture` says how.

    Args:
        setup: data source, sizes and split (`DataSetup`).
        model: the `nn.Module` to be trained; its vocabulary and its longest input are limits, and its config is given the
            special ids of the tokenizer. One of `load_pretrained` brings its tokenizer, which is used unless the setup's
            `tokenizer_strategy` asks for another. None: only the setup's.
    Raises:
        ConfigError: setup and model contradict each other; lists every problem, before anything is read.
        DataNotFoundError, DataError: the text cannot be read or is too short; says what would work.
        HubError: the dataset cannot be had from the Hub.
    """
    if optional_setting(setup, "mixture"):
        from utils.data.prepare_mixture import prepare_mixture

        data = prepare_mixture(setup, model)
    else:
        data = prepare_one(setup, model, checked_vocab_size(setup, model), own_tokenizer(setup, model))
    data.train.origin = _origin(setup)
    return data


def prepare_one(
    setup: DataSetup, model: Any, vocab_size: int, tokenizer: PreTrainedTokenizerFast | None
) -> PreparedData:
    """Prepare the single dataset that a setup without problems names.

    Args:
        vocab_size: maximum vocabulary size of a newly trained tokenizer; tokenizer: one that exists, used as it is.
    """
    packing = PackingSettings.of(setup)
    if (records := _records(setup, model, vocab_size, tokenizer)) is not None:
        check_is_text(packing)
        return records
    loaded = load_texts(setup)
    data = prepare_text(
        loaded.documents,
        vocab_size=vocab_size,
        block_size=setup.max_length,
        model_vocab_size=vocab_size_of(model),
        tokenizer=tokenizer,
        tokenizer_strategy=setup.tokenizer_strategy,
        val_split=setup.val_split,
        random_seed=setup.random_seed,
        validation_documents=loaded.validation,
        source=loaded.source,
        notes=loaded.notes,
        **asdict(packing),
    )
    changed = None if model is None else set_special_ids(model, data.tokenizer)
    if changed is not None:
        data.report.notes.append(changed)
    return data


def _origin(setup: DataSetup) -> dict[str, Any]:
    """What a run records of a setup; of settings that only some setups have, those that differ from their defaults."""
    found: dict[str, Any] = {name: getattr(setup, name, None) for name in _SETTINGS}
    for name, default in _RECORDED_IF_SET.items():
        if (value := optional_setting(setup, name)) != default:
            found[name] = value
    if mixture := optional_setting(setup, "mixture"):
        found["mixture"] = [source.to_dict() for source in mixture_sources(mixture)]
    return found


def checked_vocab_size(setup: DataSetup, model: Any) -> int:
    """The tokenizer's limit. Raises ConfigError that lists everything in which setup and model do not fit."""
    problems: list[Problem] = []
    unknown = source_problem(setup.dataset_source)
    place = None if unknown else kind_of_source(setup.dataset_source).place
    problems.extend(filter(None, [unknown]))
    if place == "dataset_path" and not setup.dataset_path:
        message = f'is needed for dataset_source="{setup.dataset_source}": the path of a file, a folder or a pattern'
        problems.append(Problem("dataset_path", message))
    if place == "dataset_name" and (problem := dataset_name_problem(setup.dataset_name)):
        problems.append(Problem("dataset_name", problem))
    if (kind := optional_setting(setup, "data_kind")) not in DATA_KINDS:
        problems.append(Problem("data_kind", f"got {shown(kind)}; must be one of {', '.join(DATA_KINDS)}"))
    available = vocab_size_of(model)
    name = type(model).__name__
    vocab_size = setup.vocab_size if setup.vocab_size is not None else available
    if vocab_size is None:
        problems.append(
            Problem(
                "vocab_size", f"is not set, and the model ({name}) does not say how many token ids it takes; set it"
            )
        )
    elif available is not None and vocab_size > available:
        message = f"got {vocab_size:,}, but the model ({name}) takes {available:,} token ids; at most {available:,}"
        problems.append(Problem("vocab_size", message, available))
    longest = max_seq_len_of(model)
    if setup.max_length < 2:
        problems.append(
            Problem("max_length", f"got {setup.max_length}; must be at least 2, or there is nothing to predict", 2)
        )
    elif longest is not None and setup.max_length > longest:
        message = f"got {setup.max_length:,}, but the model ({name}) takes at most {longest:,} tokens at once"
        problems.append(Problem("max_length", message, longest))
    if problems:
        raise ConfigError.from_problems("the setup", problems)
    assert vocab_size is not None
    return vocab_size


def files_of(setup: DataSetup) -> str | os.PathLike[str]:
    """Location of the setup's files."""
    assert setup.dataset_path is not None
    if kind_of_source(setup.dataset_source).on_drive:
        return colab.drive_path(setup.dataset_path)
    return path_from(getattr(setup, "home", Path.cwd()), setup.dataset_path)


def load_answers(setup: DataSetup, kind: str) -> LoadedRecords:
    """The records with answers that the setup names."""
    reader = kind_of_source(setup.dataset_source).reader
    if reader == "corpus":
        return builtin_records(kind)
    if reader == "hub":
        assert setup.dataset_name is not None
        split = optional_setting(setup, "dataset_split")
        return hub_records(setup.dataset_name, setup.config_name, split, with_validation=setup.val_split > 0)
    if reader == "files":
        return load_records(files_of(setup), with_validation=setup.val_split > 0)
    raise unread(setup.dataset_source, "records with answers", f"load_answers in {__name__}")


def load_labelled(setup: DataSetup, *, with_validation: bool) -> LoadedRecords:
    """The records with labels that the setup names. Raises ConfigError for the built-in text, which has none."""
    reader = kind_of_source(setup.dataset_source).reader
    if reader == "hub":
        assert setup.dataset_name is not None
        split = optional_setting(setup, "dataset_split")
        return hub_records(
            setup.dataset_name, setup.config_name, split, with_validation=with_validation, as_tables=True
        )
    if reader == "files":
        return labelled_rows(files_of(setup), with_validation=with_validation)
    if reader != "corpus":
        raise unread(setup.dataset_source, "records with labels", f"load_labelled in {__name__}")
    raise ConfigError(
        f"task: got {optional_setting(setup, 'task')!r}, which needs a file with labels: set dataset_path to a .csv, .tsv, "
        ".json, .jsonl or .parquet file (for words with tags also .conll), or dataset_name to a dataset of the Hub."
    )


def _records(
    setup: DataSetup, model: Any, vocab_size: int | None, tokenizer: PreTrainedTokenizerFast | None
) -> PreparedData | None:
    """Prepare rows with answers or labels. None if the setup names plain text."""
    task, kind = optional_setting(setup, "task"), optional_setting(setup, "data_kind")
    if has_answers(kind):
        return prepare_records(
            load_answers(setup, kind), kind, column=setup.text_column, model=model, tokenizer=tokenizer,
            max_length=setup.max_length, vocab_size=vocab_size,
            val_split=setup.val_split, seed=setup.random_seed, tokenizer_strategy=setup.tokenizer_strategy,
        )  # fmt: skip
    if kind_of_task(task).labelled:
        return prepare_labelled(
            load_labelled(setup, with_validation=setup.val_split > 0), task, max_length=setup.max_length,
            vocab_size=vocab_size, val_split=setup.val_split, random_seed=setup.random_seed,
            text_column=setup.text_column, label_column=optional_setting(setup, "label_column"), tokenizer=tokenizer,
            model=model, tokenizer_strategy=setup.tokenizer_strategy,
        )  # fmt: skip
    if kind_of_source(setup.dataset_source).reader != "files" or kind == "text":
        return None
    return prepare_files(
        files_of(setup), task=task, max_length=setup.max_length, vocab_size=vocab_size, val_split=setup.val_split,
        random_seed=setup.random_seed, text_column=setup.text_column, label_column=optional_setting(setup, "label_column"),
        layout=optional_setting(setup, "conversation_layout"), tokenizer=tokenizer, model=model,
        tokenizer_strategy=setup.tokenizer_strategy,
    )  # fmt: skip


def own_tokenizer(setup: DataSetup, model: Any) -> PreTrainedTokenizerFast | None:
    """The tokenizer that came with a pretrained model; None without one, or if the setup asks for another."""
    from transformers import PreTrainedTokenizerFast

    from utils.models.origins import tokenizer_of

    found = tokenizer_of(model) if setup.tokenizer_strategy == "auto" else None
    return found if isinstance(found, PreTrainedTokenizerFast) else None


def load_texts(setup: DataSetup) -> LoadedTexts:
    """The documents, where they are from, and notes for the report."""
    reader = kind_of_source(setup.dataset_source).reader
    if reader == "corpus":
        return LoadedTexts(builtin_corpus(), None, f"built-in: {BUILTIN_NAME}, CPython {platform.python_version()}")
    if reader == "hub":
        assert setup.dataset_name is not None
        return load_hub_texts(
            setup.dataset_name, setup.config_name, setup.text_column, optional_setting(setup, "dataset_split") or "train",
            with_validation=setup.val_split > 0,
        )  # fmt: skip
    if reader == "files":
        return load_local_texts(files_of(setup), setup.text_column, with_validation=setup.val_split > 0)
    raise unread(setup.dataset_source, "texts", f"load_texts in {__name__}")
