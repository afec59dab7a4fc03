"""How this engine's time a token and memory grow with one size at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children import call
from benchmarks.contenders import ENGINE
from benchmarks.memory import LAPS
from benchmarks.options import Options
from benchmarks.report import Table
from benchmarks.workload import Sizes, Workload


@dataclass(frozen=True)
class Point:
    """One measurement: `name` was multiplied by `factor`, to `value`."""

    name: str
    factor: float
    value: str
    sizes: Sizes
    corpus: int = 1


def points(options: Options) -> Iterator[Point]:
    """Width, vocabulary and length (tokens a batch stay the same) by `growth`, the corpus by `corpus`.

    A quick look sees the corpus only.
    """
    base = options.sizes
    for factor in () if options.quick else options.growth:
        width = round(base.width * factor / base.heads) * base.heads
        yield Point("width", factor, f"{width:,}", base.with_(width=width))
    for factor in () if options.quick else options.growth:
        vocab = round(base.vocab * factor)
        yield Point("vocabulary", factor, f"{vocab:,}", base.with_(vocab=vocab))
    for factor in () if options.quick else options.growth:
        length, batch = round(base.length * factor), max(1, round(base.batch / factor))
        yield Point("T, with as many tokens a batch", factor, f"{length:,}", base.with_(length=length, batch=batch))
    for times in options.corpus:
        yield Point("corpus, tokens", times, "", base, times)


def run(options: Options) -> list[Table]:
    """One table: time a token, memory and time to the first step, each against the first of its size."""
    rows = [(point, *_measured(options, point)) for point in points(options)]
    return [growth_table(f"Growth from {options.sizes}, fp32", rows)]


def _measured(options: Options, point: Point) -> tuple[str, dict[str, float]]:
    """The point's value as text, and its figures."""
    text = options.workload(point.sizes, point.sizes.batch * (LAPS + 4))
    value, blocks = point.value, None
    if point.name.startswith("corpus"):
        blocks = options.folder / f"blocks-{point.corpus}.npy"
        value = f"{write_blocks(blocks, Workload.load(text).blocks, point.corpus):,}"
    figures: dict[str, Any] = call(
        "benchmarks.memory:measure", options.threads, entry=[ENGINE, "32"], sizes=vars(point.sizes), text=text,
        device=options.device, blocks=str(blocks) if blocks else None,
    )  # fmt: skip
    if blocks is not None:
        blocks.unlink()
    return value, figures


def write_blocks(path: Path, blocks: np.ndarray, times: int) -> int:
    """`blocks` repeated `times` times as a uint16 .npy file that can be memory-mapped. Returns its tokens."""
    shape = (len(blocks) * times, blocks.shape[1])
    file = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=shape)
    for number in range(times):
        file[number * len(blocks) : (number + 1) * len(blocks)] = blocks
    file.flush()
    return int(file.size)


def growth_table(title: str, rows: list[tuple[Point, str, dict[str, float]]]) -> Table:
    """Rows of ratios to the first point of the same size."""
    columns = [
        "size", "value", "times", "time a token, times", "exponent", "MiB above the start", "memory, times",
        "to the first step, times",
    ]  # fmt: skip
    table = Table(title, columns)
    first: dict[str, tuple[Point, dict[str, float]]] = {}
    for point, value, figures in rows:
        start, base = first.setdefault(point.name, (point, figures))
        grown = point.factor / start.factor
        slower = figures["step_s"] / _tokens(point) / (base["step_s"] / _tokens(start))
        exponent = f"{math.log(slower) / math.log(grown):.2f}" if grown != 1 else "—"
        table.rows.append([
            point.name, value, f"{grown:g}", f"{slower:.2f}", exponent, f"{figures['peak_mib']:,.0f}",
            f"{figures['peak_mib'] / base['peak_mib']:.2f}", f"{figures['first_s'] / base['first_s']:.2f}",
        ])  # fmt: skip
    table.notes.append(
        "Exponent e: time a token grew like the size to the power e since the first row of that size. The corpus is a "
        "memory-mapped file of uint16; it is read once before the first step, to know it again on a resume."
    )
    return table


def _tokens(point: Point) -> int:
    return point.sizes.batch * point.sizes.length
