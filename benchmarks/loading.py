"""What it takes to load a large file of text: memory, time, and the disk.

    python -m benchmarks.loading                        1 GB of text, as .txt, .jsonl and .csv
    python -m benchmarks.loading --gigabytes 0.3

Each file is made from the built-in corpus, its paragraphs drawn at random, and loaded twice in a process of its own: read and
written as a table, then found in the cache. Memory is the peak above what the process holds after its imports. Pages of
mapped files can be dropped by the system at any time; the peak is given with them and without.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.children import call
from benchmarks.machine import MIB, MemoryMeter

FORMATS = ("txt", "jsonl", "csv")
#: What the benchmark must show: added memory, mapped pages included, as a share of the file.
LIMIT = 1.0


@dataclass(frozen=True)
class Loading:
    """One load of one file; MiB, seconds."""

    rows: int
    seconds: float
    added_mib: float
    added_without_mapped_mib: float


def paragraphs(size_bytes: int, seed: int = 0) -> Iterator[str]:
    """Paragraphs of the built-in corpus in a random order, until they have `size_bytes` bytes."""
    from utils.data import builtin_corpus

    known = [part for text in builtin_corpus() for part in text.split("\n\n") if len(part) > 100]
    generator = random.Random(seed)
    written = 0
    while written < size_bytes:
        paragraph = generator.choice(known)
        written += len(paragraph.encode()) + 2
        yield paragraph


def write_file(path: Path, size_bytes: int) -> None:
    """A file of about `size_bytes` of text in the format that its name says."""
    import csv

    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        if path.suffix == ".csv":
            rows.writerow(["text"])
        for paragraph in paragraphs(size_bytes):
            if path.suffix == ".csv":
                rows.writerow([paragraph])
            else:
                file.write(json.dumps({"text": paragraph}) + "\n" if path.suffix == ".jsonl" else paragraph + "\n\n")


def load(path: str, cache_dir: str) -> list[dict[str, Any]]:
    """Load a file twice; the figures of both times. Runs in a process of its own."""
    from utils.data import DatasetLoader

    loader = DatasetLoader(cache_dir=cache_dir)
    loader.load(["everything that is needed is imported now"])
    measured = []
    for _ in range(2):
        peak = _peak_with_mapped()
        meter, begun = MemoryMeter("cpu"), time.perf_counter()
        rows = loader.load_local_file(path)
        seconds = time.perf_counter() - begun
        measured.append({
            "rows": len(rows), "seconds": seconds, "added_mib": _peak_with_mapped() - peak,
            "added_without_mapped_mib": meter.peak_mib(),
        })  # fmt: skip
    return measured


def _peak_with_mapped() -> float:
    """Peak of this process with the files that are mapped, MiB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def report(name: str, size_bytes: int, loadings: list[Loading]) -> str:
    """One line a load."""
    lines = []
    for when, loading in zip(("read", "found in the cache"), loadings, strict=True):
        speed = size_bytes / 1e6 / loading.seconds
        lines.append(
            f"{name:<6} {when:<19} {loading.rows:>10,} rows  {loading.seconds:7.1f} s  {speed:8,.0f} MB/s  "
            f"added memory {loading.added_mib:7.0f} MiB, without mapped pages {loading.added_without_mapped_mib:7.0f} MiB"
        )
    return "\n".join(lines)


def measured(name: str, size_bytes: int, folder: Path) -> tuple[int, list[Loading]]:
    """The file's size and its two loads."""
    path = folder / f"corpus.{name}"
    write_file(path, size_bytes)
    size = path.stat().st_size
    figures = call("benchmarks.loading:load", path=str(path), cache_dir=str(folder / "cache"))
    path.unlink()
    return size, [Loading(**one) for one in figures]


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 0 when every file was loaded in less added memory than it has bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="text in each file, 10^9 bytes (default: 1)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parsed = parser.parse_args(arguments)
    within = True
    with tempfile.TemporaryDirectory() as folder:
        for name in parsed.formats:
            size, loadings = measured(name, round(parsed.gigabytes * 1e9), Path(folder))
            print(report(name, size, loadings))
            within &= all(loading.added_mib * MIB < LIMIT * size for loading in loadings)
    print(f"Added memory stayed below the file's size: {'yes' if within else 'no'}")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
