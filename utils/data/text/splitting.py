"""Documents -> a training and a validation part that share no text."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from utils.errors import ConfigError, DataError

#: From this many documents on, whole documents are held out; below, the end of each.
MANY_DOCUMENTS = 20
# A long document is skipped when it would take validation further than this above its share.
_MAX_OVERSHOOT = 1.1


@dataclass(frozen=True)
class Split:
    """Two parts of a text.

    Attributes:
        train, validation: documents, or parts of documents; `validation` is empty without validation. Lists where the
            documents were a list; else they are read on demand.
        rule: how they were divided, one sentence for the report.
    """

    train: Sequence[str]
    validation: Sequence[str]
    rule: str


class Selected(Sequence[str]):
    """Some of the documents, in their order, read on demand: iterating over them reads each document once, in sequence.

    Args:
        documents: a sequence that need not be in memory.
        chosen: bool, shape (len(documents),): which.
    """

    def __init__(self, documents: Sequence[str], chosen: np.ndarray) -> None:
        self._documents, self._chosen = documents, chosen
        self._numbers = np.flatnonzero(chosen)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self._documents[int(index)] for index in self._numbers[number]]
        return self._documents[int(self._numbers[number])]

    def __iter__(self) -> Iterator[str]:
        return (document for document, wanted in zip(self._documents, self._chosen, strict=True) if wanted)


class Cut(Sequence[str]):
    """The beginning or the end of each document, cut off when it is asked for.

    Args:
        cuts: where each document is cut, in characters; at_end: what is wanted is after the cut.
    """

    def __init__(self, documents: Sequence[str], cuts: Sequence[int], at_end: bool) -> None:
        self._documents, self._cuts, self._at_end = documents, cuts, at_end

    def __len__(self) -> int:
        return len(self._cuts)

    @overload
    def __getitem__(self, number: int) -> str: ...
    @overload
    def __getitem__(self, number: slice) -> list[str]: ...
    def __getitem__(self, number: int | slice) -> str | list[str]:
        if isinstance(number, slice):
            return [self[index] for index in range(len(self))[number]]
        text, cut = self._documents[number], self._cuts[number]
        return text[cut:] if self._at_end else text[:cut]


def select(documents: Sequence[str], chosen: np.ndarray) -> Sequence[str]:
    """Select documents: a list from a list, else `Selected`, which reads them on demand."""
    if isinstance(documents, list):
        return [document for document, wanted in zip(documents, chosen, strict=True) if wanted]
    return Selected(documents, chosen)


def split_documents(documents: Sequence[str], val_split: float, seed: int) -> Split:
    """Keep a share of the text from training.

    With 20 documents or more, whole ones are drawn with `seed` until `val_split` of the characters is reached. With
    fewer, it is the end of each document, cut between lines (between words where there is one line only).

    Args:
        documents: texts that are not empty.
        val_split: share of the characters for validation, 0 to 0.5; 0: none.
        seed: the same seed draws the same documents, on every machine.
    Raises:
        ConfigError: `val_split` is out of range.
    """
    check_val_split(val_split)
    if val_split == 0:
        return Split(documents, [], "all of it for training, no validation (val_split=0)")
    if len(documents) >= MANY_DOCUMENTS:
        return _whole_documents(documents, val_split, seed)
    return _ends(documents, val_split)


def check_val_split(val_split: float) -> None:
    """Raises `ConfigError` unless it is a share from 0 to 0.5."""
    if isinstance(val_split, bool) or not isinstance(val_split, (int, float)) or not 0 <= val_split <= 0.5:
        raise ConfigError(f"got val_split={val_split!r}; must be a number from 0 (no validation) to 0.5.")


def split_examples(strata: np.ndarray, val_split: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a share of the examples, stratified: the same share of every class, or of every range of a numeric target.

    The examples are ordered by stratum, within a stratum at random, and every (1 / val_split)-th is taken: systematic sampling
    (Cochran, Sampling Techniques, chapter 8). A class with a single example stays in training.

    Args:
        strata: the class of each example, whole numbers (N,); or a number to be predicted, float (N,).
        val_split: share of the examples for validation, 0 to 0.5; 0: none.
        seed: the same seed draws the same examples, on every machine; global generators are left alone.
    Returns:
        the numbers of the training and of the validation examples, each int64 and ascending.
    Raises:
        ConfigError: `val_split` is out of range.
        DataError: one example cannot be split.
    """
    check_val_split(val_split)
    everything = np.arange(len(strata))
    if val_split == 0:
        return everything, everything[:0]
    if len(strata) < 2:
        raise DataError(f"{len(strata)} example cannot be split; give more, or val_split=0 (no validation).")
    generator = np.random.Generator(np.random.PCG64(seed))
    order = np.lexsort((generator.random(len(strata)), strata))
    if strata.dtype.kind in "iu":
        _, stratum, sizes = np.unique(strata, return_inverse=True, return_counts=True)
        several = sizes[stratum[order]] > 1
        order = order[several] if several.any() else order
    count = min(max(1, int(val_split * len(strata))), len(order) // 2)
    places = ((np.arange(count) + generator.random()) * len(order) / count).astype(np.int64)
    validation = np.sort(order[places])
    return np.setdiff1d(everything, validation), validation


def _whole_documents(documents: Sequence[str], val_split: float, seed: int) -> Split:
    lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
    total = int(lengths.sum())
    wanted = val_split * total
    generator = random.Random(seed)  # its random() is the same in every version of Python
    keys = np.fromiter((generator.random() for _ in range(len(documents))), dtype=np.float64, count=len(documents))
    order = np.argsort(keys, kind="stable")
    chosen = np.zeros(len(documents), dtype=bool)
    taken = 0
    for number in order:
        if taken >= wanted:
            break
        if taken + int(lengths[number]) <= _MAX_OVERSHOOT * wanted:
            chosen[number] = True
            taken += int(lengths[number])
    if not taken:
        shortest = order[lengths[order].argmin()]
        chosen[shortest] = True
        taken = int(lengths[shortest])
    return Split(
        select(documents, ~chosen),
        select(documents, chosen),
        f"{int(chosen.sum()):,} of {len(documents):,} documents, drawn with seed {seed}, are for validation: "
        f"{taken / total:.1%} of the characters",
    )


def _ends(documents: Sequence[str], val_split: float) -> Split:
    lengths, cuts = zip(*((len(text), _cut(text, val_split)) for text in documents), strict=True)
    train: Sequence[str] = Cut(documents, cuts, at_end=False)
    validation: Sequence[str] = Cut(documents, cuts, at_end=True)
    if isinstance(documents, list):
        train, validation = [start for start in train if start], [end for end in validation if end]
    share = 1 - sum(cuts) / sum(lengths)
    whose = "the document" if len(documents) == 1 else f"each of the {len(documents):,} documents"
    return Split(train, validation, f"the end of {whose} is for validation: {share:.1%} of the characters")


def _cut(text: str, val_split: float) -> int:
    """Start of the last `val_split` of `text`: at the nearest line, else at the nearest word, else right there."""
    wanted = round(len(text) * (1 - val_split))
    for separator in ("\n", " "):
        before = text.rfind(separator, 0, wanted) + 1
        after = text.find(separator, wanted, len(text) - 1) + 1
        places = [place for place in (before, after) if 0 < place < len(text)]
        if places:
            return min(places, key=lambda place: abs(place - wanted))
    return wanted
