"""prepare_data: text -> documents -> split -> tokenizer -> token ids -> blocks, checked and reported at each stop."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from utils import colab
from utils.adapters.special_ids import set_special_ids
from utils.data.corpus import BUILTIN_NAME, builtin_corpus
from utils.data.hub import LoadedTexts, dataset_name_problem, load_hub_texts
from utils.data.local_texts import load_local_texts
from utils.data.packing import UNMARKED_ENDS, TokenBlocks, blocks_of
from utils.data.record_sources import (
    DATA_KINDS,
    LoadedRecords,
    builtin_records,
    file_records,
    has_answers,
    hub_records,
    prepare_records,
)
from utils.data.report import DataReport, unigram_loss
from utils.data.splitting import Split, select, split_documents
from utils.errors import ConfigError, DataError, DataTypeError, Problem
from utils.models.inspect import max_seq_len_of, vocab_size_of
from utils.schema import nearest, shown
from utils.storage import path_from
from utils.tokenization.adaptive import check_fits, choose_tokenizer
from utils.tokenization.corpus_file import encode_corpus, encode_flat
from utils.tokenization.texts import checked_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from utils.data.conversations.report import ConversationsReport
    from utils.data.encoded import EncodedExamples
    from utils.data.report import ExamplesReport
    from utils.training.task_spec import TaskSpec

SOURCES = ("builtin", "local", "huggingface", "drive", "upload")
_OF_FILES = ("local", "drive", "upload")
# Of DataSetup, what a run records so that the same data can be prepared again.
_SETTINGS = (
    "dataset_source", "dataset_path", "dataset_name", "config_name", "text_column", "vocab_size", "max_length",
    "tokenizer_strategy", "val_split", "random_seed", "data_kind",
)  # fmt: skip

# Above this, token ids go to a file: there they take no memory, below it is faster not to.
_IN_MEMORY_CHARACTERS = 64_000_000


class DataSetup(Protocol):
    """What `prepare_data` reads from a setup: a SetupConfig, or anything with these attributes."""

    @property
    def dataset_source(self) -> str:
        """ "builtin", "local", "huggingface", "drive" or "upload"."""

    @property
    def dataset_path(self) -> str | None:
        """The file, folder or pattern of paths, for "local", "drive" (below the user's Drive) and "upload"."""

    @property
    def dataset_name(self) -> str | None:
        """The data set's id or folder, for "huggingface"; see `load_hub_texts`."""

    @property
    def config_name(self) -> str | None:
        """Its part or version, for "huggingface"; None: the default."""

    @property
    def text_column(self) -> str | None:
        """The column of texts of its tables; None: one with a usual name, or else the only one."""

    @property
    def vocab_size(self) -> int | None:
        """Most tokens of the tokenizer; None: as many as the model has."""

    @property
    def max_length(self) -> int:
        """Tokens per block, T."""

    @property
    def tokenizer_strategy(self) -> str:
        """ "auto", "bpe" or "character"."""

    @property
    def val_split(self) -> float:
        """Share of the text for validation, 0 to 0.5; 0: none. A data set's own validation split is taken instead."""

    @property
    def random_seed(self) -> int:
        """Draws the validation documents."""


@dataclass(frozen=True)
class PreparedData:
    """Data that are ready to train on.

    Attributes:
        train: what to train on: blocks of tokens (`TokenBlocks`) for language models, else `EncodedExamples`.
        validation: the same, never seen in training; None when `val_split` is 0.
        tokenizer: given, or learnt from the training part; to be saved with the model.
        task_spec: the task with these sizes.
        report: what became of the data; `data.report.show()`.
        texts: the documents of both parts, for `utils.checks.check_data_quality(data)`; None where records were given.
    """

    train: TokenBlocks | EncodedExamples
    validation: TokenBlocks | EncodedExamples | None
    tokenizer: PreTrainedTokenizerFast
    task_spec: TaskSpec
    report: DataReport | ExamplesReport | ConversationsReport
    texts: Split | None = field(default=None, repr=False, compare=False)

    def show_samples(self, n: int = 3) -> None:
        """Show the first `n` training samples as the model gets them: tokens, labels, masks."""
        from utils.data.preview import show_samples

        show_samples(self, n)


def prepare_data(setup: DataSetup, model: Any = None) -> PreparedData:
    """Load, check, tokenize and pack the text that `setup` names, for `model`.

    Files of conversations (`utils.data.conversations.LAYOUTS`) become rows of a chat template's tokens, with the loss on the
    answers only; with a column of texts, or a `text_column`, they are read as texts. A setup may say what its rows are, with
    `data_kind`: "conversations" or "pairs" (a text, and the text to write for it) from any source, the built-in one included,
    or "text".

    Args:
        setup: data source, sizes and split (`DataSetup`).
        model: the `nn.Module` to be trained; its vocabulary and its longest input are limits, and its config is given the
            special ids of the tokenizer. One of `load_pretrained` brings its tokenizer, which is used unless the setup's
            `tokenizer_strategy` asks for another. None: only the setup's.
    Raises:
        ConfigError: setup and model contradict each other; lists every problem, before anything is read.
        DataNotFoundError, DataError: the text cannot be read or is too short; says what would work.
        HubError: the data set cannot be had from the Hub.
    """
    vocab_size = _checked_vocab_size(setup, model)
    if (conversations := _conversations(setup, model, vocab_size)) is not None:
        return conversations
    loaded = _load(setup)
    data = prepare_text(
        loaded.documents,
        vocab_size=vocab_size,
        block_size=setup.max_length,
        model_vocab_size=vocab_size_of(model),
        tokenizer=_own_tokenizer(setup, model),
        tokenizer_strategy=setup.tokenizer_strategy,
        val_split=setup.val_split,
        random_seed=setup.random_seed,
        validation_documents=loaded.validation,
        source=loaded.source,
        notes=loaded.notes,
    )
    data.train.origin = {name: getattr(setup, name, None) for name in _SETTINGS}
    changed = None if model is None else set_special_ids(model, data.tokenizer)
    if changed is not None:
        data.report.notes.append(changed)
    return data


def prepare_text(
    documents: Sequence[str],
    *,
    vocab_size: int,
    block_size: int,
    model_vocab_size: int | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    tokenizer_strategy: str = "auto",
    val_split: float = 0.1,
    random_seed: int = 42,
    validation_documents: Sequence[str] | None = None,
    source: str = "texts",
    notes: Sequence[str] = (),
    cache_dir: str | os.PathLike[str] | None = None,
) -> PreparedData:
    """Split, tokenize and pack documents.

    Args:
        documents: texts; those without a visible character are passed over. A sequence that is no list is gone through from
            its beginning to its end, several times, and never held as a whole.
        vocab_size: most tokens of the tokenizer.
        block_size: tokens per block, T.
        model_vocab_size: token ids that the model takes; None: `vocab_size`.
        tokenizer: one that exists already; None: one is learnt from the training part (`choose_tokenizer`).
        tokenizer_strategy, val_split, random_seed: see `DataSetup`.
        validation_documents: texts that are all for validation; None: `val_split` of the text is kept from training. Not
            used when `val_split` is 0.
        source, notes: for the report.
        cache_dir: folder in which the ids are kept, and found again for the same texts and tokenizer. None: they are in
            memory, or with more than 64 million characters in a temporary file that goes when the blocks go.
    Raises:
        ConfigError: the tokenizer does not fit the vocabulary, or `val_split` is out of range.
        DataTypeError: documents that are no texts.
        DataError: too little text for one block in each part; says what would work. Or an id the model does not have.
    """
    model_vocab_size = vocab_size if model_vocab_size is None else model_vocab_size
    texts = _with_text(documents)
    if validation_documents is None or val_split == 0:
        split = split_documents(texts, val_split, random_seed)
    else:
        split = _given_split(texts, _with_text(validation_documents))
    if tokenizer is None:
        choice = choose_tokenizer(split.train, vocab_size, tokenizer_strategy)
        tokenizer, kind = choice.tokenizer, choice.reason
    else:
        kind = f"{type(tokenizer).__name__} with {len(tokenizer):,} tokens (given)"
    smaller = check_fits(tokenizer, model_vocab_size)

    train_ids = _encoded(tokenizer, split.train, cache_dir)
    validation_ids = _encoded(tokenizer, split.validation, cache_dir)
    num_train, num_validation = len(train_ids), len(validation_ids)
    _check_enough(num_train, num_validation, block_size, val_split)
    train = TokenBlocks(blocks_of(train_ids, block_size))
    validation = TokenBlocks(blocks_of(validation_ids, block_size)) if val_split > 0 else None
    for part, blocks in (("training", train), ("validation", validation)):
        _check_ids(part, blocks, model_vocab_size)

    passed_over = len(documents) - len(texts)
    report = DataReport(
        source=source,
        num_documents=len(texts),
        num_characters=sum(map(len, texts)),
        split=split.rule,
        num_train_tokens=train.num_tokens,
        num_validation_tokens=0 if validation is None else validation.num_tokens,
        block_size=block_size,
        num_train_blocks=len(train),
        num_validation_blocks=0 if validation is None else len(validation),
        dropped_tokens=num_train
        - train.num_tokens
        + (0 if validation is None else num_validation - validation.num_tokens),
        tokenizer=kind,
        vocab_size=len(tokenizer),
        unigram_loss=None if validation is None else unigram_loss(train.blocks, validation.blocks, len(tokenizer)),
        notes=[
            *notes,
            *([f"{passed_over:,} documents without text were passed over."] if passed_over else []),
            *([smaller] if smaller else []),
            *([UNMARKED_ENDS] if tokenizer.eos_token_id is None and len(texts) > 1 else []),
        ],
    )
    task_spec = _task_spec(tokenizer, model_vocab_size, block_size)
    return PreparedData(train, validation, tokenizer, task_spec, report, split)


def _checked_vocab_size(setup: DataSetup, model: Any) -> int:
    """The tokenizer's limit. Raises ConfigError that lists everything in which setup and model do not fit."""
    problems = []
    if setup.dataset_source not in SOURCES:
        guess = nearest(str(setup.dataset_source), SOURCES)
        hint = f"; did you mean {guess!r}?" if guess else ""
        problems.append(
            Problem(
                "dataset_source", f"got {shown(setup.dataset_source)}; must be one of {', '.join(SOURCES)}{hint}", guess
            )
        )
    if setup.dataset_source in _OF_FILES and not setup.dataset_path:
        message = f'is needed for dataset_source="{setup.dataset_source}": the path of a file, a folder or a pattern'
        problems.append(Problem("dataset_path", message))
    if setup.dataset_source == "huggingface" and (problem := dataset_name_problem(setup.dataset_name)):
        problems.append(Problem("dataset_name", problem))
    if (kind := getattr(setup, "data_kind", "auto")) not in DATA_KINDS:
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


def _given_split(train: Sequence[str], validation: Sequence[str]) -> Split:
    kept, held_out = sum(map(len, train)), sum(map(len, validation))
    share = held_out / (kept + held_out)
    rule = f"{len(validation):,} documents of their own are for validation: {share:.1%} of the characters"
    return Split(train, validation, rule)


def _encoded(
    tokenizer: PreTrainedTokenizerFast, documents: Sequence[str], cache_dir: str | os.PathLike[str] | None
) -> np.ndarray:
    """The ids of the documents with their ends, flat: in memory, or on disk where they are many or to be kept."""
    if cache_dir is not None and len(documents):
        return encode_corpus(tokenizer, documents, cache_dir=cache_dir)
    if sum(map(len, documents)) > _IN_MEMORY_CHARACTERS:
        return encode_corpus(tokenizer, documents)
    return encode_flat(tokenizer, documents)


def _files_of(setup: DataSetup) -> str | os.PathLike[str]:
    """Where the files of the setup are."""
    assert setup.dataset_path is not None
    if setup.dataset_source == "drive":
        return colab.drive_path(setup.dataset_path)
    return path_from(getattr(setup, "home", Path.cwd()), setup.dataset_path)


def _load_records(setup: DataSetup, kind: str) -> LoadedRecords:
    """The records with answers that the setup names."""
    if setup.dataset_source == "builtin":
        return builtin_records(kind)
    if setup.dataset_source == "huggingface":
        assert setup.dataset_name is not None
        return hub_records(setup.dataset_name, setup.config_name, with_validation=setup.val_split > 0)
    return file_records(_files_of(setup), with_validation=setup.val_split > 0)


def _conversations(setup: DataSetup, model: Any, vocab_size: int) -> PreparedData | None:
    """The data of a setup whose rows have answers: it says so, or its files hold conversations. None: they are texts."""
    kind = getattr(setup, "data_kind", "auto")  # which setups of other make need not have
    if has_answers(kind):
        data = prepare_records(
            _load_records(setup, kind), kind, column=setup.text_column, model=model,
            tokenizer=_own_tokenizer(setup, model), max_length=setup.max_length, vocab_size=vocab_size,
            val_split=setup.val_split, seed=setup.random_seed,
        )  # fmt: skip
        data.train.origin = {name: getattr(setup, name, None) for name in _SETTINGS}
        return data
    if kind == "text" or setup.dataset_source not in _OF_FILES or setup.text_column is not None:
        return None
    from utils.data.conversations.files import holds_conversations, load_conversation_files
    from utils.data.conversations.prepare import prepare_conversations

    path = _files_of(setup)
    if not holds_conversations(path):
        return None
    found = load_conversation_files(path, with_validation=setup.val_split > 0)
    data = prepare_conversations(
        found.records, tokenizer=_own_tokenizer(setup, model), model=model, max_length=setup.max_length,
        vocab_size=vocab_size, val_split=setup.val_split, random_seed=setup.random_seed, validation=found.validation,
        source=found.source, on_bad_row="skip",
    )  # fmt: skip
    data.report.notes.extend(found.notes)
    return data


def _own_tokenizer(setup: DataSetup, model: Any) -> PreTrainedTokenizerFast | None:
    """The tokenizer that came with a pretrained model; None where there is none, or the setup asks for one of its own."""
    from transformers import PreTrainedTokenizerFast

    from utils.models.origins import tokenizer_of

    found = tokenizer_of(model) if setup.tokenizer_strategy == "auto" else None
    return found if isinstance(found, PreTrainedTokenizerFast) else None


def _load(setup: DataSetup) -> LoadedTexts:
    """The documents, where they are from, and notes for the report."""
    if setup.dataset_source == "builtin":
        return LoadedTexts(builtin_corpus(), None, f"built-in: {BUILTIN_NAME}, CPython {platform.python_version()}")
    if setup.dataset_source == "huggingface":
        assert setup.dataset_name is not None
        return load_hub_texts(
            setup.dataset_name, setup.config_name, setup.text_column, with_validation=setup.val_split > 0
        )
    return load_local_texts(_files_of(setup), setup.text_column, with_validation=setup.val_split > 0)


def _with_text(documents: Sequence[str]) -> Sequence[str]:
    """The documents that hold a visible character. Raises when there is none, or one is no text."""
    if isinstance(documents, str):
        raise DataTypeError("got one text as the documents; give a list: [text].")
    texts = checked_texts(documents, "document")
    visible = np.fromiter((bool(text) and not text.isspace() for text in texts), dtype=bool)
    if not visible.any():
        raise DataError(f"none of the {len(documents):,} documents holds any text.")
    return documents if visible.all() else select(documents, visible)


def _check_enough(num_train: int, num_validation: int, block_size: int, val_split: float) -> None:
    """Raises DataError, with the counts and settings that would work, when a part does not fill one block."""
    parts = [("training", num_train)] + ([("validation", num_validation)] if val_split > 0 else [])
    short = [(part, count) for part, count in parts if count < block_size]
    if not short:
        return
    counts = " and ".join(f"the {part} part has {count:,} token{'' if count == 1 else 's'}" for part, count in short)
    longest = min(count for _, count in parts)
    ways = [f"max_length={longest} (or less)"] if longest >= 2 else []
    if num_train >= block_size:
        ways.append("val_split=0 (no validation)")
    ways.append("more text")
    raise DataError(
        f"too little text: {counts}, but one block takes max_length={block_size:,}. What works: {', or '.join(ways)}."
    )


def _check_ids(part: str, blocks: TokenBlocks | None, vocab_size: int) -> None:
    if blocks is None or blocks.max_id() < vocab_size:
        return
    block, position = np.unravel_index(int(blocks.blocks.argmax()), blocks.blocks.shape)
    raise DataError(
        f"the {part} data holds the token id {blocks.max_id():,} (block {block:,}, position {position:,}), but the "
        f"model's vocabulary has ids 0 to {vocab_size - 1:,}. Use the model's own tokenizer, or a larger vocabulary."
    )


def _task_spec(tokenizer: PreTrainedTokenizerFast, vocab_size: int, block_size: int) -> TaskSpec:
    from utils.training.task_spec import TaskSpec

    return TaskSpec.language_modeling(
        vocab_size=vocab_size, max_seq_len=block_size, pad_token_id=tokenizer.pad_token_id
    )
