"""Documents -> arrays of token ids, on all cores and without losing a character."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from utils.errors import DataTypeError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

# Characters per piece: 1,024 to 16,384 are equally fast on 2 cores (9 MB/s); one piece of 1 MB has a third of that.
_PIECE = 4096
# Pieces per call of the tokenizer: 4 M characters. What it returns takes about 100 bytes a token until it is copied.
_BATCH = 1024
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
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataTypeError(
            f"got a {type(tokenizer).__name__}, which has no fast backend; AutoTokenizer loads one that has."
        )
    backend = copy.deepcopy(backend)  # a caller's truncation and padding are not ours to use, nor to change
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    whole = not _may_be_cut(backend)
    owners: list[int] = []
    texts: list[str] = []
    for number, document in enumerate(documents):
        parts = [document] if whole else list(pieces(document))
        owners += [number] * len(parts)
        texts += parts
    ids: list[list[np.ndarray]] = [[] for _ in documents]
    for start in range(0, len(texts), _BATCH):
        encodings = backend.encode_batch_fast(texts[start : start + _BATCH], add_special_tokens=False)
        for number, encoding in zip(owners[start : start + _BATCH], encodings, strict=True):
            ids[number].append(np.array(encoding.ids, dtype=np.int32))
    return [np.concatenate(parts) if parts else np.array([], dtype=np.int32) for parts in ids]


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
