"""Best-fit decreasing bin packing of items with integer sizes, as used for packing sequences into rows."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def best_fit(lengths: Sequence[int] | np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Assign items to rows: the longest first, each to the fullest row that still has room for it.

    Best-fit decreasing needs at most 22 % more rows than the optimum, for large inputs (Johnson, 1974). Items of the same
    length are placed together, so after one sort the work is in numpy: millions of items take about a second.

    Args:
        lengths: of each item, 1 to `capacity`; shape (n,).
        capacity: room of a row.
    Returns:
        order: int64 (n,), the items by decreasing length, as they were placed; equal ones in their own order.
        rows: int64 (n,), the row of each of these, numbered from 0 as rows were opened.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-sizes, kind="stable")
    rows = np.empty(len(sizes), dtype=np.int64)
    distinct, counts = np.unique(sizes, return_counts=True)
    open_rows: dict[int, list[np.ndarray]] = defaultdict(list)  # room that is left -> rows, the newest last
    rooms: list[int] = []  # the keys of open_rows, ascending
    num_rows = placed = 0
    for length, count in zip(distinct[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            place = bisect.bisect_left(rooms, length)
            room = rooms[place] if place < len(rooms) else capacity
            each = room // length  # a row that took one item is fuller, so it also takes the next one
            wanted = -(-count // each)
            if place < len(rooms):
                chosen = _newest(open_rows, rooms, room, wanted)
            else:
                chosen = np.arange(num_rows, num_rows + wanted)
                num_rows += wanted
            taken = min(count, each * len(chosen))
            rows[placed : placed + taken] = np.repeat(chosen, each)[:taken]
            full, rest = divmod(taken, each)
            for left, changed in ((room - each * length, chosen[:full]), (room - rest * length, chosen[full:])):
                if left and len(changed):
                    if left not in open_rows:
                        bisect.insort(rooms, left)
                    open_rows[left].append(changed)
            placed, count = placed + taken, count - taken
    return order, rows


def _newest(open_rows: dict[int, list[np.ndarray]], rooms: list[int], room: int, wanted: int) -> np.ndarray:
    """Take up to `wanted` rows with this room out of the open ones, the newest first."""
    found: list[np.ndarray] = []
    while wanted and open_rows[room]:
        last = open_rows[room].pop()
        if len(last) > wanted:
            open_rows[room].append(last[:-wanted])
            last = last[-wanted:]
        found.append(last[::-1])
        wanted -= len(last)
    if not open_rows[room]:
        del open_rows[room]
        rooms.remove(room)
    chosen: np.ndarray = np.concatenate(found)
    return chosen
