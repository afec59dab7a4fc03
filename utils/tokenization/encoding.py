"""Documents -> arrays of token ids, on all cores and without losing a character."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from utils.errors import DataTypeError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

T = TypeVar("T")
R = TypeVar("R")

# Characters per piece: 1,024 to 16,384 are equally fast on 2 cores (9 MB/s); one piece of 1 MB has a third of that.
_PIECE = 4096
# Characters per call of the tokenizer. What it returns takes about 100 bytes a token until it is copied: some 25 MB, twice.
_BATCH = 1_000_000
# A place where the split rules of GPT-like tokenizers always split: before a single space or line end between words.
_CUT = re.compile(r"(?<=\S)(?=[ \n]\w)")


def encode_documents(tokenizer: PreTrainedTokenizerFast, documents: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each document; no special tokens are added.

    The text is taken as text: "</s>" in a document is four characters, not the end of the document. Long documents are
    cut into pieces that are encoded on all cores, where the tokenizer splits anyway; if it turns out that this
    tokenizer does not, documents are encoded whole.

    Returns:
        One int32 array of shape (number of tokens,) per document, empty for an empty document.
    Raises:
        DataTypeError: the tokenizer has no `tokenizers` backend (a Python-only one).
    """
    ids: list[list[np.ndarray]] = [[] for _ in documents]
    for piece in encoded_pieces(tokenizer, documents):
        start = 0
        for number, end in zip(piece.owners, piece.ends.tolist(), strict=True):
            ids[number].append(piece.ids[start:end])
            start = end
    return [_joined(parts) for parts in ids]


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Parts of a document as one array. A single part stays the slice that it is: most documents have one."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.array([], dtype=np.int32)


@dataclass(frozen=True)
class EncodedPieces:
    """Pieces of documents that were encoded together, in the order of the text.

    Attributes:
        owners: the number of the document of each piece, rising.
        ids: of all pieces, one after the other; int32.
        ends: where each piece ends in `ids`; int64, one more than the last index of the piece.
    """

    owners: list[int]
    ids: np.ndarray
    ends: np.ndarray


def encoded_pieces(tokenizer: PreTrainedTokenizerFast, documents: Iterable[str]) -> Iterator[EncodedPieces]:
    """The ids of `documents` as they come, some megabytes of text at a time: neither texts nor ids are held as a whole.

    While the compiled library encodes the next texts, on all cores and outside of Python's lock, the ids of the last ones are
    copied: with 2 cores that copy is a tenth of the time, with 16 it would be half.

    Raises:
        DataTypeError: as `encode_documents`.
    """
    backend = _plain_backend(tokenizer)
    # Its ids come as Python lists: one list of all of a call becomes an array faster than many small ones do.
    for owners, encodings in _one_ahead(
        lambda batch: (batch[0], backend.encode_batch_fast(batch[1], add_special_tokens=False)),
        _batches(documents, whole=not _may_be_cut(backend)),
    ):
        ids: list[int] = []
        ends: list[int] = []
        for encoding in encodings:
            ids += encoding.ids
            ends.append(len(ids))
        yield EncodedPieces(owners, np.array(ids, dtype=np.int32), np.array(ends, dtype=np.int64))


def _plain_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the backend without truncation and padding: the caller's settings are neither used nor changed."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataTypeError(
            f"got a {type(tokenizer).__name__}, which has no fast backend; AutoTokenizer loads one that has."
        )
    plain: Tokenizer = copy.deepcopy(backend)
    plain.no_truncation()
    plain.no_padding()
    plain.encode_special_tokens = True
    return plain


def _batches(documents: Iterable[str], whole: bool) -> Iterator[tuple[list[int], list[str]]]:
    """Pieces and the numbers of their documents, about `_BATCH` characters at a time."""
    owners: list[int] = []
    texts: list[str] = []
    characters = 0
    for number, document in enumerate(documents):
        for part in [document] if whole else pieces(document):
            owners.append(number)
            texts.append(part)
            characters += len(part)
            if characters >= _BATCH:
                yield owners, texts
                owners, texts, characters = [], [], 0
    if texts:
        yield owners, texts


def _one_ahead(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map(work, items)`, with the next one under way in a thread while the caller looks at the last."""
    with ThreadPoolExecutor(1, thread_name_prefix="tokenizing") as thread:
        under_way: Future[R] | None = None
        for item in items:
            last, under_way = under_way, thread.submit(work, item)
            if last is not None:
                yield last.result()
        if under_way is not None:
            yield under_way.result()


def pieces(text: str, size: int = _PIECE) -> Iterator[str]:
    """`text` cut into pieces of at least `size` characters; joined, they are `text` again. None for an empty text."""
    start = 0
    while len(text) - start > size:
        cut = _CUT.search(text, start + size)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    if start < len(text):
        yield text[start:]


def _may_be_cut(backend: Tokenizer) -> bool:
    """Whether cutting where `pieces` does leaves the ids alone: not so where the beginning of a text is marked."""
    for left, right in (("The first", " second\n\n  third"), ("x = (1", "\ny_2 = 3)"), ("…don't;", " é 7")):
        parts = [backend.encode(part, add_special_tokens=False).ids for part in (left, right)]
        if backend.encode(left + right, add_special_tokens=False).ids != parts[0] + parts[1]:
            return False
    return True
