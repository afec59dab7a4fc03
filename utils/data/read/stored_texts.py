"""Texts that stay on disk: a column of a memory-mapped table as a sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

from utils.data.read.columns import one_text

#: Bytes of a table up to which its texts are a list in memory.
HELD_BYTES = 64_000_000
_ROWS_AT_ONCE = 1000


class StoredTexts(Sequence[str]):
    """The texts of a column, each read when it is asked for. A loop over all of them holds a thousand at once.

    Args:
        rows: a `datasets.Dataset`.
        column: of texts, or of lists of texts, which are joined by line ends; null is "".
    """

    def __init__(self, rows: Any, column: str) -> None:
        self._rows, self._column = rows.select_columns([column]), column

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> StoredTexts: ...
    def __getitem__(self, index: int | slice) -> str | StoredTexts:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        return one_text(self._rows[int(index)][self._column])

    def __iter__(self) -> Iterator[str]:
        for batch in self._rows.iter(batch_size=_ROWS_AT_ONCE):
            yield from map(one_text, batch[self._column])

    def select(self, indices: Sequence[int]) -> StoredTexts:
        """Some of the texts, in this order; still on disk."""
        return StoredTexts(self._rows.select(indices), self._column)


def held_or_stored(rows: Any, column: str) -> Sequence[str]:
    """The texts of a column: a list where the table is small."""
    texts = StoredTexts(rows, column)
    return list(texts) if rows.data.nbytes <= HELD_BYTES else texts
