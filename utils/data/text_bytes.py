"""Bytes of the text that token ids stand for: what makes losses of different tokenizers comparable."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.errors import DataError

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # how bytes that are no UTF-8 are decoded
_UNKNOWN = -1
# Decoders that map each token to its own bytes, whatever is around it; a space at the start of a text aside.
_PIECE_DECODERS = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}


class TextBytes:
    """Counts the UTF-8 bytes of the text of chosen tokens.

    - Byte-level BPE, characters, and SentencePiece's pieces: every token has its own bytes, read from a table. A piece's space
      at the start of a text, which the tokenizer puts there and its decoder removes, is not counted.
    - Other tokenizers, such as WordPiece: the bytes by which the decoded text grows with these tokens. A text that is counted
      as a whole has the bytes of the decoded text. It is not always the text that was encoded: an uncased tokenizer, say,
      decodes to lower case.
    - Special tokens have no text: 0 bytes.

    Args:
        tokenizer: one of transformers, or any object with `decode(ids)`.
    Raises:
        DataError: the tokenizer cannot decode.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not callable(getattr(tokenizer, "decode", None)):
            raise DataError(f"{type(tokenizer).__name__} has no method decode, so the text of a token is not known.")
        self._tokenizer = tokenizer
        self._special = _special_ids(tokenizer)
        unknown = getattr(tokenizer, "unk_token_id", None)
        # GPT-2's unknown token is its end of text, which byte-level BPE never uses for a text.
        roles = {getattr(tokenizer, f"{role}_token_id", None) for role in ("eos", "bos", "pad")}
        self._unknown_id = None if unknown in roles else unknown
        self._table = _byte_table(tokenizer, self._special)

    def count(self, ids_BT: np.ndarray, counted_BT: np.ndarray) -> int:
        """Bytes of the tokens `ids_BT` (int, (B, T)) where `counted_BT` (bool) holds; the others are what stands around them.

        A negative id is no token; a text ends there, as it does at special tokens.

        Raises:
            DataError: a counted token has no text that is known: the tokenizer's unknown token, an id that it does not have,
                or a part of a character that decodes only with its other parts.
        """
        if self._unknown_id is not None and bool((counted_BT & (ids_BT == self._unknown_id)).any()):
            name = getattr(self._tokenizer, "unk_token", None)
            raise DataError(f"the text holds the unknown token {name!r}, whose characters are not known.")
        if self._table is not None:
            return self._table.count(ids_BT, counted_BT)
        return sum(self._decoded(ids, counted) for ids, counted in zip(ids_BT, counted_BT, strict=True))

    def _decoded(self, ids_T: np.ndarray, counted_T: np.ndarray) -> int:
        has_no_text = (ids_T < 0) | np.isin(ids_T, self._special)
        total = 0
        for start, end in _stretches(~has_no_text):
            text_ids = ids_T[start:end].tolist()
            for first, last in _stretches(counted_T[start:end]):
                total += self._size(text_ids[:last]) - self._size(text_ids[:first])
        return total

    def _size(self, ids: list[int]) -> int:
        if not ids:
            return 0
        text = str(self._tokenizer.decode(ids))
        if _REPLACEMENT in text:
            raise DataError(f"{type(self._tokenizer).__name__} decodes a part of the text to no valid characters.")
        return len(text.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class _ByteTable:
    """Bytes of each id, int32 (V,), `_UNKNOWN` where there is no such token, and which ids begin with a space that is not
    counted at the start of a text."""

    sizes: np.ndarray
    leading_space: np.ndarray
    is_special: np.ndarray

    def count(self, ids_BT: np.ndarray, counted_BT: np.ndarray) -> int:
        chosen = ids_BT[counted_BT]
        largest = int(chosen.max(initial=0))
        if largest >= len(self.sizes) or bool((self.sizes[chosen[chosen >= 0]] == _UNKNOWN).any()):
            missing = [i for i in np.unique(chosen).tolist() if i >= len(self.sizes) or (i >= 0 and self.sizes[i] < 0)]
            raise DataError(f"the text holds the id {missing[0]}, which the tokenizer does not have.")
        total = int(self.sizes[chosen[chosen >= 0]].sum(dtype=np.int64))
        if not self.leading_space.any():
            return total
        known_BT = (ids_BT >= 0) & (ids_BT < len(self.sizes))
        safe_BT = np.where(known_BT, ids_BT, 0)
        ends_BT = ~known_BT | self.is_special[safe_BT]
        starts_BT = np.concatenate([np.ones_like(ends_BT[:, :1]), ends_BT[:, :-1]], axis=1)
        return total - int((starts_BT & counted_BT & known_BT & self.leading_space[safe_BT]).sum())


def _byte_table(tokenizer: Any, special: np.ndarray) -> _ByteTable | None:
    """The table of a fast tokenizer whose tokens have bytes of their own; None: they depend on what is around them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    decoder = json.loads(backend.to_str())["decoder"] or {"type": None}
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse"}:
        size, strips = _byte_level_size, False
    elif kinds <= _PIECE_DECODERS and all(map(_is_plain, parts)):
        with_fallback = "ByteFallback" in kinds
        replaces = bool(kinds & {"Replace", "Metaspace"})
        strips = any(map(_strips_start, parts))

        def size(token: str) -> int:
            return _piece_size(token, with_fallback, replaces)
    else:
        return None

    added = getattr(tokenizer, "added_tokens_decoder", {})
    vocabulary: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    num_ids = max([*vocabulary.values(), *special.tolist()], default=-1) + 1
    sizes = np.full(num_ids, _UNKNOWN, dtype=np.int32)
    leading_space = np.zeros(num_ids, dtype=bool)
    for token, number in vocabulary.items():
        sizes[number] = len(token.encode()) if number in added else size(token)
        leading_space[number] = strips and number not in added and token.startswith(_SPACE)
    is_special = np.zeros(num_ids, dtype=bool)
    is_special[special] = True
    sizes[special] = 0
    return _ByteTable(sizes, leading_space & ~is_special, is_special)


def _is_plain(decoder: dict[str, Any]) -> bool:
    """Whether a decoder only turns SentencePiece's spaces into spaces, bytes into bytes, or removes a space at the start."""
    if decoder["type"] == "Replace":
        return bool(decoder["pattern"] == {"String": _SPACE} and decoder["content"] == " ")
    if decoder["type"] == "Strip":
        return bool(decoder["content"] == " " and decoder["start"] <= 1 and decoder["stop"] == 0)
    return decoder["type"] != "Metaspace" or bool(decoder["replacement"] == _SPACE)


def _strips_start(decoder: dict[str, Any]) -> bool:
    if decoder["type"] == "Metaspace":
        return bool(decoder.get("prepend_scheme", "always") != "never")
    return bool(decoder["type"] == "Strip" and decoder["start"] == 1)


def _piece_size(token: str, byte_fallback: bool, replaces_spaces: bool) -> int:
    if byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return 1
    return len((token.replace(_SPACE, " ") if replaces_spaces else token).encode("utf-8", "surrogatepass"))


def _byte_level_size(token: str) -> int:
    """Each character of a byte-level token is a byte; of a token with other characters, the text itself."""
    return len(token) if all(character in _BYTE_CHARACTERS for character in token) else len(token.encode())


def _byte_characters() -> frozenset[str]:
    """The 256 characters that byte-level BPE writes bytes with (`bytes_to_unicode` of GPT-2): printable ones of Latin-1
    stand for themselves, the others are moved behind it."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return frozenset(map(chr, [*printable, *range(0x100, 0x100 + 256 - len(printable))]))


_BYTE_CHARACTERS = _byte_characters()


def _special_ids(tokenizer: Any) -> np.ndarray:
    """Ids of tokens that are not text, int64."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    marked = [number for number, token in added.items() if getattr(token, "special", False)]
    return np.unique(np.array([*(getattr(tokenizer, "all_special_ids", None) or []), *marked], dtype=np.int64))


def _stretches(chosen_T: np.ndarray) -> Iterator[tuple[int, int]]:
    """Start and end of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen_T, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
