"""A corpus as one flat array of token ids on disk, made without ever holding its text or its ids as a whole in memory.

The file is an ordinary .npy, which `numpy.load(path, mmap_mode="r")` reads anywhere. In a cache folder it is found again by
what it was made from, and a small .json beside it, written last, holds its checksum: without it, or with another one, the
array is made anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from utils.errors import ConfigError, DataError
from utils.storage import atomic_write, write_json
from utils.tokenization.cache import cache_folder, content_key
from utils.tokenization.encoding import EncodedPieces, encoded_pieces
from utils.tokenization.texts import checked_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger("trainbook.tokenization")

_READ_AT_ONCE = 1 << 24  # bytes


def encode_corpus(
    tokenizer: PreTrainedTokenizerFast, documents: Iterable[str], path: str | os.PathLike[str] | None = None, *,
    cache_dir: str | os.PathLike[str] | None = None,
) -> np.ndarray:  # fmt: skip
    """The ids of all documents, one after the other, with the end token after each. Empty documents are skipped.

    Args:
        tokenizer: what encodes; without an end token documents follow each other with nothing between them.
        documents: texts, read once and one at a time (twice with `cache_dir`, where they must be more than an iterator).
        path: the .npy file to write, in one step; what is there is replaced. None: a file without a name, which goes when the
            array goes.
        cache_dir: folder in which the file is kept under a digest of texts, tokenizer and versions, and found again.
    Returns:
        Memory-mapped, read-only, shape (number of tokens,): uint16 when all ids are below 65,536, else int32.
    Raises:
        ConfigError: both a path and a cache folder, or a folder that cannot be made; or an iterator with a cache folder.
        DataTypeError, DataError: what is no text among the documents; a path that cannot be written.
    """
    if path is not None and cache_dir is not None:
        raise ConfigError("got a path and a cache_dir; give the file to write or the folder to keep it in, not both.")
    if cache_dir is not None:
        return _cached(tokenizer, documents, cache_folder(cache_dir))
    writer = _Writer(tokenizer)
    if path is not None:
        return _mapped(_written(Path(path).expanduser(), writer, documents))
    with tempfile.TemporaryFile() as file:
        writer.write(file, documents)
        file.flush()
        return _mapped_file(file, writer)


def encode_flat(tokenizer: PreTrainedTokenizerFast, documents: Iterable[str]) -> np.ndarray:
    """Encode like `encode_corpus`, but in memory: int32, shape (number of tokens,)."""
    parts = _with_ends(encoded_pieces(tokenizer, documents), tokenizer.eos_token_id)
    return np.concatenate([*parts, np.array([], dtype=np.int32)])


def _cached(tokenizer: PreTrainedTokenizerFast, documents: Iterable[str], folder: Path) -> np.ndarray:
    from utils.tokenization.fast import backend_text

    if iter(documents) is documents:
        raise ConfigError("got an iterator with a cache_dir: it can be read only once. Give a list, or a path instead.")
    settings = {"kind": "ids", "tokenizer": backend_text(tokenizer), "end": tokenizer.eos_token_id}
    file = folder / f"ids-{content_key(settings, documents)[:16]}.npy"
    record = file.with_suffix(".json")
    if _is_intact(file, record):
        return _mapped(file)
    writer = _Writer(tokenizer)
    _written(file, writer, documents)
    write_json(record, {"num_tokens": writer.num_tokens, "checksum": writer.checksum})
    return _mapped(file)


def _written(path: Path, writer: _Writer, documents: Iterable[str]) -> Path:
    try:
        return atomic_write(path, lambda file: writer.write(file, documents))
    except OSError as error:
        raise DataError(
            f"{path} could not be written ({error.strerror or error}) after {writer.num_tokens:,} tokens. Make room, or choose "
            "another folder."
        ) from error


@dataclass
class _Writer:
    """Writes one .npy file.

    Attributes:
        num_tokens: how many ids were written; checksum: of them, when it is done.
    """

    tokenizer: PreTrainedTokenizerFast
    num_tokens: int = 0
    checksum: str = ""

    def __post_init__(self) -> None:
        highest = max(self.tokenizer.get_vocab().values(), default=0)
        self.dtype = np.dtype("<u2") if highest <= np.iinfo(np.uint16).max else np.dtype("<i4")

    def write(self, file: IO[bytes], documents: Iterable[str]) -> None:
        hasher = hashlib.blake2b(digest_size=16)
        self._write_header(file)
        begins = file.tell()
        for ids in _with_ends(encoded_pieces(self.tokenizer, checked_texts(documents)), self.tokenizer.eos_token_id):
            part = np.ascontiguousarray(ids, dtype=self.dtype).data
            hasher.update(part)
            file.write(part)
            self.num_tokens += len(ids)
        file.seek(0)
        self._write_header(file)  # numpy leaves room in a header for the array to grow
        assert file.tell() == begins
        self.checksum = hasher.hexdigest()

    def _write_header(self, file: IO[bytes]) -> None:
        description = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.num_tokens,)}
        np.lib.format.write_array_header_1_0(file, description)


def _with_ends(parts: Iterable[EncodedPieces], eos_id: int | None) -> Iterator[np.ndarray]:
    """The ids of the parts, with `eos_id` after the last token of each document. A document may continue in the next part."""
    open_document: int | None = None  # whose tokens were the last ones, so that its end is still to come
    for part in parts:
        lengths = np.diff(part.ends, prepend=0)
        owners = np.asarray(part.owners)[lengths > 0]
        if eos_id is None or owners.size == 0:
            yield part.ids
            continue
        begins = (part.ends - lengths)[lengths > 0]
        changes = np.flatnonzero(np.diff(owners, prepend=owners[0] if open_document is None else open_document))
        yield np.insert(part.ids, begins[changes], eos_id)
        open_document = int(owners[-1])
    if open_document is not None:
        yield np.array([eos_id], dtype=np.int32)


def _mapped(path: Path) -> np.ndarray:
    """The array of a file. One without tokens cannot be mapped and is read."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
    array: np.ndarray = np.load(path, mmap_mode="r" if shape[0] else None)
    return array


def _mapped_file(file: IO[bytes], writer: _Writer) -> np.ndarray:
    if writer.num_tokens == 0:
        return np.array([], dtype=writer.dtype)
    begins = file.seek(0, os.SEEK_END) - writer.num_tokens * writer.dtype.itemsize
    return np.memmap(file, dtype=writer.dtype, mode="r", offset=begins, shape=(writer.num_tokens,))


def _is_intact(path: Path, record: Path) -> bool:
    """Whether the file matches its record. Reads it once, at about 1 GB/s."""
    if not path.exists() or not record.exists():
        return False
    try:
        wanted = json.loads(record.read_text(encoding="utf-8"))
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, _ = np.lib.format.read_array_header_1_0(file)
            found = (shape[0], _digest(file))
        intact = found == (wanted["num_tokens"], wanted["checksum"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("The tokens kept in %s cannot be read (%s): they are made anew.", path, error)
        return False
    if not intact:
        logger.warning("The tokens kept in %s are damaged: they are made anew.", path)
    return intact


def _digest(file: IO[bytes]) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    while data := file.read(_READ_AT_ONCE):
        hasher.update(data)
    return hasher.hexdigest()
