"""Profile the texts of a dataset in one pass: lengths, characters, damage, duplicates, labels.

`profile_texts` measures, `utils.checks.data_quality` judges. Memory grows by about 300 bytes a row, not with the text.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import zlib
from array import array
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from utils.data.labelled.table import is_missing
from utils.errors import DataError
from utils.schema import shown
from utils.tokenization.encoding import encode_documents

#: Words of a shingle, and the similarity from which on two texts are near duplicates: Lee et al. 2022, arXiv 2107.06499.
SHINGLE_WORDS = 5
NEAR = 0.8
#: Rows among which near duplicates are looked for: their signatures take 256 bytes each.
MOST_COMPARED = 500_000

# A signature has 64 numbers in 16 bands of 4: texts with a similarity of 0.8 share a band with probability 0.9998, of 0.5
# with 0.64 (and are told apart by the whole signature), of 0.2 with 0.03.
_HASHES, _BANDS = 64, 16
_SHINGLES_AT_ONCE = 4096
# Words are counted in this many classes by their hash: with more, the counts of 100,000 words differ mostly by chance.
_WORD_CLASSES = 1 << 10
_ROWS_AT_ONCE = 1000
_KEPT_EXAMPLES = 5

# UTF-8 that was read as Windows-1252: "Ã©" for "é", "â€™" for a quote. Confirmed by reading it back.
_MISREAD = re.compile(
    "[\u00c2-\u00f4][\u0080-\u00bf\u20ac\u201a\u0192\u201e-\u2026\u2020-\u2022\u02c6\u2030\u0160\u2039\u0152\u017d\u2018-\u201d\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\u017e\u0178]{1,3}"
)
_HAN = ("CJK", "IDEOGRAPHIC")


@dataclass(frozen=True)
class TextProfile:
    """Profile of a dataset's texts. Row numbers begin at 0, as the texts were given.

    Attributes:
        num_rows: all rows; num_not_text: those that are no str; num_empty: those without a visible character.
        lengths: characters of each row, uint32; 0 for rows that are no text.
        token_lengths: tokens of each row without special ones, uint32; None without a tokenizer.
        num_words: runs of characters between white space.
        characters: how often each character occurs.
        word_counts: how often words of each hash class occur, int64 of a fixed size.
        damaged: kind of damage -> the rows that have it: "replacement character", "control character", "misread UTF-8",
            "half a character".
        digests: 64-bit digest of each row's text, uint64; 0 for empty rows.
        signatures: MinHash signatures (uint32) of the first `MOST_COMPARED` rows; rows without words are all zero.
        labels: how often each label occurs; None without labels. num_unlabelled: rows without one.
        unit: what reports call a row: "row" of a table, or "text".
    """

    num_rows: int
    num_not_text: int
    num_empty: int
    lengths: np.ndarray
    token_lengths: np.ndarray | None
    num_words: int
    characters: Counter[str]
    word_counts: np.ndarray
    damaged: Mapping[str, Sequence[int]]
    digests: np.ndarray
    signatures: np.ndarray
    labels: Counter[Any] | None = None
    num_unlabelled: int = 0
    empty_examples: Sequence[int] = ()
    unit: str = "row"

    @property
    def num_characters(self) -> int:
        """Characters of all rows."""
        return int(self.lengths.sum(dtype=np.int64))

    def scripts(self) -> dict[str, float]:
        """Share of the letters of each script, largest first: "Latin", "Cyrillic", "Han", … (by the letters' Unicode names)."""
        counts: Counter[str] = Counter()
        for character, count in self.characters.items():
            if character.isalpha():
                counts[_script(character)] += count
        return _shares(counts)

    def kinds(self) -> dict[str, float]:
        """Share of the characters of each kind: letters, digits, white space, punctuation, symbols, others."""
        counts: Counter[str] = Counter()
        for character, count in self.characters.items():
            counts[_kind(character)] += count
        return _shares(counts)

    def duplicates(self) -> np.ndarray:
        """Rows (int64) whose text is exactly that of an earlier row. Empty rows are no duplicates of each other."""
        rows = np.flatnonzero(self.digests)
        _, first = np.unique(self.digests[rows], return_index=True)
        return np.setdiff1d(rows, rows[first])

    def near_duplicates(self) -> np.ndarray:
        """Pairs (row, earlier row), int64 of shape (M, 2), that are alike (`NEAR`, estimated) and not the very same."""
        pairs = _alike(self.signatures)
        return np.compress(self.digests[pairs[:, 0]] != self.digests[pairs[:, 1]], pairs, axis=0)


def profile_texts(
    texts: Iterable[Any], *, labels: Iterable[Any] | None = None, tokenizer: Any = None, unit: str = "row"
) -> TextProfile:
    """Measure texts.

    Args:
        texts: any number of them, read once and in order; what is no str is counted, not an error.
        labels: one a text: a class, or several (a list: multi-label); None: no label for this row.
        tokenizer: a fast tokenizer, to measure lengths in tokens; None: only characters.
        unit: what reports call one of them.
    Raises:
        DataError: there are not as many labels as texts.
    """
    found = _Pass(tokenizer)
    for block in _blocks(texts):
        found.add(block)
    label_counts, num_unlabelled = _counted(labels, found.num_rows)
    return TextProfile(
        num_rows=found.num_rows, num_not_text=found.num_not_text, num_empty=found.num_empty,
        lengths=np.frombuffer(found.lengths, dtype=np.uint32) if found.lengths else np.zeros(0, np.uint32),
        token_lengths=np.concatenate([np.zeros(0, np.uint32), *found.token_lengths]) if tokenizer is not None else None,
        num_words=found.num_words, characters=found.characters, word_counts=found.word_counts, damaged=found.damaged,
        digests=np.frombuffer(found.digests, dtype=np.uint64) if found.digests else np.zeros(0, np.uint64),
        signatures=np.stack(found.signatures) if found.signatures else np.zeros((0, _HASHES), np.uint32),
        labels=label_counts, num_unlabelled=num_unlabelled, empty_examples=found.empty_examples,
        unit=unit,
    )  # fmt: skip


def shared_rows(train: TextProfile, validation: TextProfile) -> tuple[np.ndarray, np.ndarray]:
    """Rows of `validation` (int64) whose text is in `train` too: exactly, and nearly (not counting the exact ones)."""
    exact = np.flatnonzero((validation.digests != 0) & np.isin(validation.digests, train.digests))
    first = len(train.signatures)
    pairs = _alike(np.concatenate([train.signatures, validation.signatures]))
    crossing = pairs[(pairs[:, 0] >= first) & (pairs[:, 1] < first)]
    return exact, np.setdiff1d(crossing[:, 0] - first, exact)


@dataclass
class _Pass:
    """The running measurements of one pass over the texts."""

    tokenizer: Any
    num_rows: int = 0
    num_not_text: int = 0
    num_empty: int = 0
    num_words: int = 0
    lengths: array[int] = field(default_factory=lambda: array("I"))
    token_lengths: list[np.ndarray] = field(default_factory=list)
    characters: Counter[str] = field(default_factory=Counter)
    word_counts: np.ndarray = field(default_factory=lambda: np.zeros(_WORD_CLASSES, np.int64))
    damaged: dict[str, list[int]] = field(default_factory=dict)
    digests: array[int] = field(default_factory=lambda: array("Q"))
    signatures: list[np.ndarray] = field(default_factory=list)
    empty_examples: list[int] = field(default_factory=list)

    def add(self, block: list[Any]) -> None:
        texts = [text if isinstance(text, str) else "" for text in block]
        self.num_not_text += sum(not isinstance(text, str) for text in block)
        for text in texts:
            self._row(text)
        if self.tokenizer is not None:
            # Half a character cannot be encoded; it is counted as damage already.
            sound = [text.encode("utf-8", "replace").decode() for text in texts]
            ids = encode_documents(self.tokenizer, sound)
            self.token_lengths.append(np.array([len(one) for one in ids], dtype=np.uint32))

    def _row(self, text: str) -> None:
        number, self.num_rows = self.num_rows, self.num_rows + 1
        self.lengths.append(len(text))
        words = text.casefold().split()
        self.num_words += len(words)
        if not words:
            self.num_empty += 1
            if len(self.empty_examples) < _KEPT_EXAMPLES:
                self.empty_examples.append(number)
        self.characters.update(text)
        raw = text.encode("utf-8", "surrogatepass")
        for kind in _damage(text):
            self.damaged.setdefault(kind, []).append(number)
        digest = hashlib.blake2b(raw, digest_size=8).digest()
        self.digests.append(int.from_bytes(digest, "little") or 1 if words else 0)
        hashes_W = np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words], dtype=np.uint64)
        self.word_counts += np.bincount((hashes_W % _WORD_CLASSES).astype(np.int64), minlength=_WORD_CLASSES)
        if len(self.signatures) < MOST_COMPARED:
            self.signatures.append(_signature(hashes_W))


def _blocks(texts: Iterable[Any]) -> Iterator[list[Any]]:
    rows = iter(texts)
    while block := list(islice(rows, _ROWS_AT_ONCE)):
        yield block


def _counted(labels: Iterable[Any] | None, num_rows: int) -> tuple[Counter[Any] | None, int]:
    """Count each label, and the rows without one."""
    if labels is None:
        return None, 0
    counts: Counter[Any] = Counter()
    rows = missing = 0
    for label in labels:
        rows += 1
        if is_missing(label):
            missing += 1
            continue
        counts.update(_classes_of(label))
    if rows != num_rows:
        raise DataError(
            f"got {rows:,} labels for {num_rows:,} texts; give one label per text, or None for a text without one."
        )
    return counts, missing


def _classes_of(label: Any) -> list[Any]:
    """The classes in one row's label, as values that can be counted. A dict of class -> 0 or 1 has those that are set; what
    cannot be hashed, such as a span, counts by how it is written."""
    if isinstance(label, np.ndarray):
        label = label.tolist()
    if isinstance(label, Mapping) and all(
        isinstance(value, (bool, int)) and value in (0, 1) for value in label.values()
    ):
        return [name for name, value in label.items() if value]
    entries = label if isinstance(label, (list, tuple, set, frozenset)) else [label]
    return [
        entry if isinstance(entry, Hashable) and not isinstance(entry, tuple) else shown(entry) for entry in entries
    ]


def _damage(text: str) -> list[str]:
    """The kinds of damage that a text shows."""
    kinds = []
    if "\ufffd" in text:
        kinds.append("replacement character")
    if any(ord(character) < 32 and character not in "\t\n\r\f\v" for character in text) or "\x7f" in text:
        kinds.append("control character")
    if any(_reads_back(match.group()) for match in _MISREAD.finditer(text)):
        kinds.append("misread UTF-8")
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        kinds.append("half a character")
    return kinds


def _reads_back(misread: str) -> bool:
    """Whether some beginning of the characters is one visible character when they are taken as Windows-1252's bytes."""
    for end in range(2, len(misread) + 1):
        try:
            character = misread[:end].encode("cp1252").decode()
        except UnicodeError:
            continue
        if len(character) == 1 and (character.isprintable() or character == "\u00a0"):
            return True
    return False


_MULTIPLIERS, _OFFSETS = np.random.default_rng(20_220_714).integers(1, 1 << 63, (2, _HASHES), dtype=np.uint64)
_POWERS = np.array([pow(1_000_003, power, 1 << 64) for power in range(SHINGLE_WORDS)], dtype=np.uint64)


def _signature(hashes_W: np.ndarray) -> np.ndarray:
    """MinHash of a text's shingles: uint32 of shape (64,). The share of equal numbers in two signatures estimates the Jaccard
    similarity of the texts' sets of shingles (Broder 1997). A text of fewer words than a shingle is one shingle."""
    if not len(hashes_W):
        return np.zeros(_HASHES, np.uint32)
    if len(hashes_W) < SHINGLE_WORDS:
        hashes_W = np.concatenate([hashes_W, np.zeros(SHINGLE_WORDS - len(hashes_W), np.uint64)])
    windows_SW = np.lib.stride_tricks.sliding_window_view(hashes_W + np.uint64(1), SHINGLE_WORDS)
    shingles_S = np.unique((windows_SW * _POWERS).sum(axis=1, dtype=np.uint64))
    least_K = np.full(_HASHES, np.iinfo(np.uint32).max, dtype=np.uint32)
    odd_K = (_MULTIPLIERS | np.uint64(1))[:, None]
    for start in range(0, len(shingles_S), _SHINGLES_AT_ONCE):
        part_KS = odd_K * shingles_S[None, start : start + _SHINGLES_AT_ONCE] + _OFFSETS[:, None]
        least_K = np.minimum(least_K, (part_KS >> np.uint64(32)).min(axis=1).astype(np.uint32))
    return np.maximum(least_K, 1)


def _alike(signatures_MK: np.ndarray) -> np.ndarray:
    """Pairs (row, earliest row like it), int64 of shape (P, 2): their signatures agree in a share of at least `NEAR`."""
    rows = np.flatnonzero(signatures_MK.any(axis=1)) if len(signatures_MK) else np.zeros(0, np.int64)
    partner = np.full(len(signatures_MK), -1, dtype=np.int64)
    width = _HASHES // _BANDS
    for band in range(_BANDS):
        keys = np.ascontiguousarray(signatures_MK[rows, band * width : (band + 1) * width])
        _, first, group = np.unique(
            keys.view(f"V{keys.itemsize * width}").ravel(), return_index=True, return_inverse=True
        )
        earliest = rows[first[group]]
        later = earliest != rows
        pairs = np.stack([rows[later], earliest[later]], axis=1)
        agreeing = (signatures_MK[pairs[:, 0]] == signatures_MK[pairs[:, 1]]).mean(axis=1) >= NEAR
        for row, earlier in pairs[agreeing]:
            if partner[row] < 0 or earlier < partner[row]:
                partner[row] = earlier
    found = np.flatnonzero(partner >= 0)
    return np.stack([found, partner[found]], axis=1)


def _script(letter: str) -> str:
    name = unicodedata.name(letter, "OTHER").split()[0].split("-")[0]
    return "Han" if name in _HAN else name.capitalize()


def _kind(character: str) -> str:
    category = unicodedata.category(character)[0]
    if character.isspace():
        return "white space"
    return {"L": "letters", "M": "letters", "N": "digits", "P": "punctuation", "S": "symbols"}.get(category, "others")


def _shares(counts: Counter[str]) -> dict[str, float]:
    total = counts.total()
    return {name: count / total for name, count in counts.most_common()} if total else {}
