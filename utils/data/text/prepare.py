"""prepare_text: documents -> split -> tokenizer -> token ids -> blocks, checked at each stage, with a report."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from utils.data.documents import PackingSettings, check_packing, make_blocks
from utils.data.packing import UNMARKED_ENDS, TokenBlocks
from utils.data.prepared import PreparedData
from utils.data.text.report import DataReport, unigram_loss
from utils.data.text.splitting import Split, select, split_documents
from utils.data.unknown_tokens import unknown_note
from utils.errors import DataError, DataTypeError
from utils.tokenization.adaptive import check_fits, choose_tokenizer
from utils.tokenization.corpus_file import encode_corpus, encode_flat
from utils.tokenization.texts import checked_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from utils.training.task_spec import TaskSpec

# Above this, token ids go to a file: there they take no memory, below it is faster not to.
_IN_MEMORY_CHARACTERS = 64_000_000


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
    shuffle_documents: bool = False,
    document_masks: bool = False,
    packing: str = "concatenate",
) -> PreparedData:
    """Split, tokenize and pack documents.

    Args:
        documents: texts; those without a visible character are skipped. Other sequences than lists
            are iterated several times and never loaded whole.
        vocab_size: maximum size of the vocabulary of a new tokenizer.
        block_size: tokens per block, T.
        model_vocab_size: size of the model's vocabulary. Without it, a model may be created afterwards, with the size of the
            tokenizer, which is at most `vocab_size`.
        tokenizer: one that exists already; None: one is trained on the training part (`choose_tokenizer`).
        tokenizer_strategy, val_split, random_seed: see `DataSetup`.
        validation_documents: texts that are all for validation; without them `val_split` of the text is held out. Not used
            when `val_split` is 0.
        source, notes: for the report.
        cache_dir: folder in which the ids are kept, and found again for the same texts and tokenizer. None: they are in
            memory, or, above 64 million characters, in a temporary file that is deleted with the blocks.
        shuffle_documents: pack the training documents in another order in each epoch; validation keeps its order.
        document_masks: keep the documents of a block apart, in training and validation (`DocumentBlocks`).
        packing: "concatenate", or "best_fit": training documents that fit a block are not cut, and blocks have padding
            (`DocumentBlocks`). Validation is concatenated in either case, so that its loss is comparable.
    Raises:
        ConfigError: the tokenizer does not fit the vocabulary, `val_split` is out of range, `packing` is unknown, or one of
            `packing`, `shuffle_documents` and `document_masks` needs the end-of-text token that the tokenizer does not have.
        DataTypeError: documents that are not strings.
        DataError: too little text for one block in each part; says what would work. Or an id the model does not have.
    """
    settings = PackingSettings(packing, shuffle_documents, document_masks)
    check_packing(packing)
    most_ids = vocab_size if model_vocab_size is None else model_vocab_size
    texts = _with_text(documents)
    split = _split(texts, validation_documents, val_split, random_seed)
    if tokenizer is None:
        choice = choose_tokenizer(split.train, vocab_size, tokenizer_strategy)
        tokenizer, kind = choice.tokenizer, choice.reason
    else:
        kind = f"{type(tokenizer).__name__} with {len(tokenizer):,} tokens (given)"
    smaller = check_fits(tokenizer, most_ids)
    packed = _packed(tokenizer, split, block_size, val_split, settings, cache_dir)
    for part, blocks in (("training", packed.train), ("validation", packed.validation)):
        _check_ids(part, blocks, most_ids)

    skipped = len(documents) - len(texts)
    found = [
        *notes,
        *([f"{skipped:,} documents without text were skipped."] if skipped else []),
        *([smaller] if smaller and model_vocab_size is not None else []),
        *_notes(packed.train, tokenizer, settings, is_one=len(texts) == 1),
    ]
    report = _report(packed, texts, tokenizer, source=source, split=split.rule, kind=kind, packing=packing, notes=found)
    highest = max(tokenizer.get_vocab().values(), default=0)
    task_spec = _task_spec(tokenizer, model_vocab_size or max(len(tokenizer), highest + 1), block_size)
    return PreparedData(packed.train, packed.validation, tokenizer, task_spec, report, split)


def _split(texts: Sequence[str], validation: Sequence[str] | None, val_split: float, seed: int) -> Split:
    """Hold out `val_split` of the texts, or none of them where `validation` is used instead."""
    if validation is None or val_split == 0:
        return split_documents(texts, val_split, seed)
    return _given_split(texts, _with_text(validation))


@dataclass(frozen=True)
class _Packed:
    """Blocks of the training and validation documents, and how many tokens the documents have in all."""

    train: TokenBlocks
    validation: TokenBlocks | None
    num_tokens: int


def _packed(
    tokenizer: PreTrainedTokenizerFast,
    split: Split,
    block_size: int,
    val_split: float,
    settings: PackingSettings,
    cache_dir: str | os.PathLike[str] | None,
) -> _Packed:
    """Tokenize and pack both parts. Validation is concatenated in order, so that its loss is comparable."""
    train_ids = _encoded(tokenizer, split.train, cache_dir)
    validation_ids = _encoded(tokenizer, split.validation, cache_dir)
    _check_enough(len(train_ids), len(validation_ids), block_size, val_split)
    eos_id = tokenizer.eos_token_id
    train = make_blocks(train_ids, block_size, eos_id, settings)
    if val_split == 0:
        return _Packed(train, None, len(train_ids))
    concatenated = PackingSettings(document_masks=settings.document_masks)
    validation = make_blocks(validation_ids, block_size, eos_id, concatenated)
    return _Packed(train, validation, len(train_ids) + len(validation_ids))


def _report(
    packed: _Packed,
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    *,
    source: str,
    split: str,
    kind: str,
    packing: str,
    notes: list[str],
) -> DataReport:
    train, validation = packed.train, packed.validation
    num_train_tokens = train.num_tokens
    num_validation_tokens = 0 if validation is None else validation.num_tokens
    vocab_size = len(tokenizer)
    return DataReport(
        source=source,
        num_documents=len(texts),
        num_characters=sum(map(len, texts)),
        split=split,
        num_train_tokens=num_train_tokens,
        num_validation_tokens=num_validation_tokens,
        block_size=train.block_size,
        num_train_blocks=len(train),
        num_validation_blocks=0 if validation is None else len(validation),
        dropped_tokens=packed.num_tokens - num_train_tokens - num_validation_tokens,
        tokenizer=kind,
        vocab_size=vocab_size,
        unigram_loss=None if validation is None else unigram_loss(train.ids, validation.blocks, vocab_size),
        packing=packing,
        padding_tokens=train.num_padding,
        notes=notes,
    )


def _notes(
    train: TokenBlocks, tokenizer: PreTrainedTokenizerFast, settings: PackingSettings, *, is_one: bool
) -> Iterator[str]:
    """What the user should know of the blocks. `is_one`: the text is one document, which needs no end."""
    yield from unknown_note(train, tokenizer)
    if train.num_padding:
        yield _padding_note(tokenizer)
    if settings.shuffle_documents:
        yield "Training documents are packed in another order in each epoch."
    if settings.document_masks:
        yield "The documents of a block are kept apart by positions that begin again at 0."
    if tokenizer.eos_token_id is None and not is_one:
        yield UNMARKED_ENDS


def _padding_note(tokenizer: PreTrainedTokenizerFast) -> str:
    return (
        f"Training blocks are filled up on the right with {tokenizer.eos_token}: these positions are not scored, and no token "
        "attends to them."
    )


def training_documents(
    documents: Sequence[str], validation: Sequence[str] | None, val_split: float, random_seed: int
) -> Sequence[str]:
    """The documents that `prepare_text` trains on when it is given the same."""
    texts = _with_text(documents)
    return texts if validation is not None or val_split == 0 else split_documents(texts, val_split, random_seed).train


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


def _with_text(documents: Sequence[str]) -> Sequence[str]:
    """The documents that hold a visible character. Raises when no document does, or one is not a string."""
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
