"""Data arguments of a call, and their validation before anything is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from utils.adapters.facts import model_facts
from utils.data.documents import PackingSettings, packing_problem
from utils.data.mixture_settings import mixture_sources
from utils.data.read.files import FORMAT_OF_SUFFIX, is_pattern
from utils.data.source_kinds import SOURCE_KINDS, source_problem
from utils.data.text.hub import dataset_name_problem
from utils.errors import ConfigError, Problem
from utils.schema import nearest, shown
from utils.tokenization.adaptive import STRATEGIES
from utils.training.task_kinds import TASKS
from utils.training.task_spec import TaskSpec

if TYPE_CHECKING:
    from torch import nn

#: The name of the corpus that needs no network.
BUILTIN = "builtin"

Kind = Literal["mixture", "builtin", "named", "file", "table", "texts", "rows", "module", "nothing"]

# Blocks are as long as the model takes, but not longer than this where no length is given.
_DEFAULT_LENGTH = 512
_TEXT_KINDS = ("mixture", "builtin", "named", "file", "table", "texts")
# Arguments that mean something for some kinds of data only.
_MEANT_FOR: Mapping[str, tuple[str, ...]] = {
    "config_name": ("named",),
    "text_column": ("named", "file", "table"),
    "dataset_split": ("named",),
    "task": ("file", "named"),
    "label_column": ("file", "named"),
    "conversation_layout": ("file",),
    "data_kind": ("builtin", "named", "file", "table"),
    "max_length": _TEXT_KINDS,
    "tokenizer_strategy": _TEXT_KINDS,
    "val_split": (*_TEXT_KINDS, "rows"),
    "shuffle_documents": _TEXT_KINDS,
    "document_masks": _TEXT_KINDS,
    "packing": _TEXT_KINDS,
}
_KIND_WORDS: Mapping[str, str] = {
    "mixture": "a mixture",
    "builtin": "the built-in corpus",
    "file": "files",
    "table": "a table",
    "texts": "a list of texts",
    "rows": "rows of token ids",
    "module": "a datamodule",
}


@dataclass(frozen=True)
class DataArguments:
    """Training data of a call. Lengths are in tokens.

    Attributes:
        dataset: "builtin", the id of a dataset of the Hugging Face Hub, the path of a folder or a text file; a table (a
            Hugging Face Dataset, a pandas DataFrame); a list of texts; rows of token ids; or None.
        dataset_path: a file of texts (txt, csv, tsv, json, jsonl, parquet, conll), a folder of them, or a pattern of paths.
        dataset_source: "drive": dataset_path is one of the user's Google Drive; other sources follow from what is named.
        config_name: the part or version of a named dataset; dataset_split: its split, None for "train";
            text_column: the column of texts.
        vocab_size: most token ids that are used; None: as many as the model has.
        max_length: tokens of a block; None: what the model takes, at most 512.
        val_split: share for validation, 0 to 0.5; 0: none. A dataset's own validation split is taken instead.
        tokenizer: one that exists; tokenizer_strategy: how it is trained otherwise, "auto", "bpe" or "character".
        datamodule: has `train_dataloader()` and perhaps `val_dataloader()`; or what `prepare_data` returned.
        task_spec: the task; None: next-token prediction. For other tasks a table has labels.
        seed: draws the validation part.
        task, label_column, conversation_layout: of files with records, see `utils.data.file_records.prepare_files`.
        mixture, mixture_by, mixture_temperature: several datasets instead of one, as a setup names them (`MixtureSource`).
        data_kind: what the rows are: "conversations", "pairs" (a text, and the text to write for it), "text", or "auto":
            texts.
        packing, shuffle_documents, document_masks: how texts are packed; see `utils.data.text.prepare.prepare_text`.
    """

    dataset: Any = None
    dataset_path: str | os.PathLike[str] | None = None
    config_name: str | None = None
    text_column: str | None = None
    vocab_size: int | None = None
    max_length: int | None = None
    val_split: float = 0.1
    tokenizer: Any = None
    tokenizer_strategy: str = "auto"
    datamodule: Any = None
    task_spec: TaskSpec | None = None
    seed: int = 42
    dataset_source: str | None = None
    task: str = "causal_lm"
    label_column: str | None = None
    conversation_layout: str | None = None
    data_kind: str = "auto"
    shuffle_documents: bool = False
    document_masks: bool = False
    mixture: Any = None
    mixture_by: str = "examples"
    mixture_temperature: float = 1.0
    dataset_split: str | None = None
    packing: str = "concatenate"

    @property
    def packing_settings(self) -> PackingSettings:
        """The arguments that say how texts are packed."""
        return PackingSettings.of(self)

    @property
    def kind(self) -> Kind:
        """Kind of dataset that was given."""
        if self.datamodule is not None:
            return "module"
        if self.mixture is not None:
            return "mixture"
        if self.dataset_path is not None:
            return "file"
        return "builtin" if self.dataset is None else kind_of(self.dataset)

    @property
    def is_on_drive(self) -> bool:
        """Whether the path is one below the user's Google Drive."""
        return self.dataset_source is not None and SOURCE_KINDS[self.dataset_source].on_drive

    @property
    def is_text(self) -> bool:
        """Whether texts are to be tokenized, as opposed to token ids or batches that are there."""
        return self.kind in _TEXT_KINDS

    @property
    def is_labelled(self) -> bool:
        """Whether a table with labels is to be learned from."""
        wanted = getattr(self.task_spec, "task_type", None)
        return self.kind == "table" and wanted not in (None, "causal_lm")

    @property
    def names_data(self) -> bool:
        """Whether the caller said what to train on."""
        return any(value is not None for value in (self.dataset, self.dataset_path, self.datamodule, self.mixture))

    def block_length(self, model: nn.Module) -> int:
        """Tokens of a block."""
        if self.max_length is not None:
            return self.max_length
        return min(model_facts(model).max_length or _DEFAULT_LENGTH, _DEFAULT_LENGTH)

    def problems(self, model: nn.Module) -> list[Problem]:
        """Everything in which the arguments contradict each other, or the model."""
        return [
            *self._place_problems(),
            *self._source_problems(),
            *self._idle_problems(),
            *self._object_problems(),
            *self._task_problems(),
            *self._tokenizer_problems(),
            *filter(None, [packing_problem(self.packing)]),
            *self._vocabulary_problems(model),
            *self._length_problems(model),
        ]

    def _place_problems(self) -> list[Problem]:
        given = [
            name for name in ("mixture", "dataset", "dataset_path", "datamodule") if getattr(self, name) is not None
        ]
        if len(given) > 1:
            return [Problem(given[1], f"given together with {given[0]}; keep one of the two")]
        if self.mixture is not None:
            try:
                if not mixture_sources(self.mixture):
                    return [Problem("mixture", "got no dataset; give at least two, or leave it out")]
            except ConfigError as error:
                return [Problem("mixture", str(error).removeprefix("mixture: "))]
        if self.kind == "nothing":
            return [Problem("dataset", f"got {_described(self.dataset)}; {_what_data_is(self.dataset)}")]
        if isinstance(self.dataset, str) and self.kind == "named" and (problem := dataset_name_problem(self.dataset)):
            return [Problem("dataset", problem)]
        return []

    def _source_problems(self) -> list[Problem]:
        source = self.dataset_source
        if source is None:
            return []
        if problem := source_problem(source):
            return [problem]
        if self.kind not in SOURCE_KINDS[source].given_as:
            named = _KIND_WORDS.get(self.kind, "a named dataset")
            return [Problem("dataset_source", f"got {source!r} together with {named}; keep one of the two")]
        return []

    def _idle_problems(self) -> list[Problem]:
        """Arguments that would be ignored, and an invalid share."""
        if not _is_share(self.val_split):
            return [Problem("val_split", f"got {shown(self.val_split)}; must be a number from 0 to 0.5", 0.1)]
        return [
            Problem(name, f"got {shown(getattr(self, name))}; it says nothing about {_KIND_WORDS[self.kind]}")
            for name, kinds in _MEANT_FOR.items()
            if getattr(self, name) != getattr(DataArguments, name)
            and self.kind in _KIND_WORDS
            and self.kind not in kinds
        ]

    def _object_problems(self) -> list[Problem]:
        """Words, where the object that they may stand for is to be made first."""
        found = []
        given: Any = self.task_spec
        if given is not None and not isinstance(given, TaskSpec):
            message = f"got {shown(given)}; must be a TaskSpec, such as TaskSpec.classification()"
            found.append(Problem("task_spec", message))
        if self.tokenizer is not None and not callable(getattr(self.tokenizer, "decode", None)):
            message = (
                f"got {shown(self.tokenizer)}; must be a tokenizer, such as AutoTokenizer.from_pretrained(name) gives"
            )
            found.append(Problem("tokenizer", message))
        return found

    def _task_problems(self) -> list[Problem]:
        if self.task not in TASKS:
            guess = nearest(str(self.task), TASKS)
            return [Problem("task", f"got {shown(self.task)}; must be one of {', '.join(TASKS)}", guess)]
        if self.task != "causal_lm" and self.task_spec is not None:
            return [Problem("task_spec", f"given together with task={self.task!r}; keep one of the two")]
        wanted = getattr(self.task_spec, "task_type", None)
        if not self.is_text or self.is_labelled or wanted in (None, "causal_lm"):
            return []
        message = (
            f"got {wanted}; texts alone teach to predict the next token: give a table with labels, or a datamodule"
        )
        return [Problem("task_spec", message)]

    def _tokenizer_problems(self) -> list[Problem]:
        if self.tokenizer_strategy not in STRATEGIES:
            guess = nearest(str(self.tokenizer_strategy), STRATEGIES)
            message = f"got {shown(self.tokenizer_strategy)}; must be one of {', '.join(STRATEGIES)}"
            return [Problem("tokenizer_strategy", message, guess)]
        if self.is_labelled and self.tokenizer_strategy != "auto":
            message = (
                f"got {shown(self.tokenizer_strategy)}; it is for predicting the next token: give a tokenizer instead"
            )
            return [Problem("tokenizer_strategy", message, "auto")]
        if self.tokenizer is None:
            return []
        if self.tokenizer_strategy != "auto":
            return [Problem("tokenizer_strategy", "given together with a tokenizer; keep one of the two", "auto")]
        size = len(self.tokenizer) if hasattr(self.tokenizer, "__len__") else None
        if size is not None and isinstance(self.vocab_size, int) and 1 <= self.vocab_size < size:
            message = f"got {self.vocab_size:,}, and the tokenizer has {size:,} tokens; give that many, or leave it out"
            return [Problem("vocab_size", message, size)]
        return []

    def _vocabulary_problems(self, model: nn.Module) -> list[Problem]:
        known, name = model_facts(model).vocab_size, type(model).__name__
        if self.vocab_size is None:
            missing = known is None and self.is_text
            message = f"is not set, and the model ({name}) does not say how many token ids it takes; set it"
            return [Problem("vocab_size", message)] if missing else []
        if not _is_whole(self.vocab_size, 1):
            return [Problem("vocab_size", f"got {shown(self.vocab_size)}; must be a whole number, at least 1")]
        if known is not None and self.vocab_size > known:
            message = f"got {self.vocab_size:,}, but the model ({name}) takes {known:,} token ids; at most {known:,}"
            return [Problem("vocab_size", message, known)]
        return []

    def _length_problems(self, model: nn.Module) -> list[Problem]:
        longest = model_facts(model).max_length
        if self.max_length is None:
            return []
        if not _is_whole(self.max_length, 2):
            return [Problem("max_length", f"got {shown(self.max_length)}; must be a whole number, at least 2")]
        if longest is not None and self.max_length > longest:
            message = (
                f"got {self.max_length:,}, but the model ({type(model).__name__}) takes at most {longest:,} tokens"
            )
            return [Problem("max_length", message, longest)]
        return []


def kind_of(data: Any) -> Kind:
    """Kind of dataset that `data`, which is not None, is."""
    if isinstance(data, (str, os.PathLike)):
        return _kind_of_name(data)
    if hasattr(data, "train") and hasattr(data, "task_spec"):
        return "module"
    if hasattr(data, "column_names"):
        return "rows" if "input_ids" in _columns(data.column_names) else "table"
    if type(data).__name__ == "DataFrame":
        return "rows" if "input_ids" in data.columns else "table"
    if isinstance(data, (Mapping, bytes)) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        return "nothing"
    if isinstance(data, (list, tuple)) and data:
        if isinstance(data[0], str):
            return "texts"
        if isinstance(data[0], Mapping) and "input_ids" not in data[0]:
            return "table"
    return "rows"


def _kind_of_name(name: str | os.PathLike[str]) -> Kind:
    if name == BUILTIN:
        return "builtin"
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return "named"
        # A path is a file, there or not; a word is one when it is there, when it ends as files do, or is a pattern of files.
        ends_as_files_do = path.suffix.lower() in FORMAT_OF_SUFFIX
        return (
            "file" if path.is_file() or not isinstance(name, str) or ends_as_files_do or is_pattern(name) else "named"
        )
    except (OSError, RuntimeError, ValueError):  # too long, no home folder, a NUL: no path
        return "named"


def _columns(names: Any) -> list[str]:
    """The columns of a dataset, or of the first part of a dataset in parts."""
    if isinstance(names, Mapping):
        return list(next(iter(names.values()), None) or ())
    return list(names or ())


def _what_data_is(data: Any) -> str:
    if hasattr(data, "dataset") and hasattr(data, "batch_size"):
        return "give the dataset that it loads, or a datamodule with train_dataloader()"
    return (
        "must be 'builtin', a dataset's id on the Hub, a path, a list of texts, a Hugging Face Dataset, a DataFrame, or "
        "rows of token ids"
    )


def _described(data: Any) -> str:
    return shown(data) if isinstance(data, (int, float, bytes)) else f"a {type(data).__name__}"


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 0.5
