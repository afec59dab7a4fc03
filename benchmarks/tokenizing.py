"""Tokenizing against the `tokenizers` library alone, on the same text, in turn; and the memory that a large text takes.

    python -m benchmarks.tokenizing                        the built-in corpus, repeated (about a minute on 2 cores)
    python -m benchmarks.tokenizing --text my.txt          a file, its lines the documents
    python -m benchmarks.tokenizing --megabytes 1000       also: memory added by preparing so much text
    python -m benchmarks.tokenizing --write                put the tables into RESULTS.md

How it is measured. All encode the same lines with the same byte-level BPE, in one process, one after the other in each round,
with as many threads as `tokenizers` takes. "Alone" is its fastest call in batches of 1,000 lines, with the ids of each taken
as a list and dropped. This library gives arrays; to a file it also adds end tokens, a checksum and an fsync. Figures are
medians over rounds of the ratio within a round, with quartiles: on a machine that others use as well only those mean anything.

Not covered: reading the file, learning the tokenizer.
"""

from __future__ import annotations

import argparse
import datetime
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.children import ChildError, call
from benchmarks.report import RESULTS, Spread, Table, ratios, write_section
from benchmarks.turns import alternating
from benchmarks.workload import MOST_TOKENS, read_lines

HEADING = "Tokenizing"

#: Texts a call of `tokenizers` alone, as its users batch them.
TEXTS_A_CALL = 1000

#: Megabytes of text that are encoded in each round.
MEGABYTES = 8


class Repeated(Sequence[str]):
    """Lines, over and over, of which none but the first are in memory: a text as large as one likes."""

    def __init__(self, lines: list[str], number: int) -> None:
        self._lines, self._number = lines, number

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[index] for index in range(len(self))[number]]
        return self._lines[range(self._number)[number] % len(self._lines)]

    def __iter__(self) -> Iterator[str]:
        return (self._lines[number % len(self._lines)] for number in range(self._number))


def sized(lines: list[str], megabytes: float) -> Repeated:
    """About so many megabytes of these lines."""
    size = sum(len(line.encode()) for line in lines)
    return Repeated(lines, max(1, round(len(lines) * megabytes * 1e6 / size)))


def measure_speed(lines: str, rounds: int, megabytes: float, device: str) -> dict[str, Any]:
    """In a child: seconds of each way in each round, bytes and tokens of the text."""
    from utils.tokenization import encode_corpus, encode_documents, train_bpe

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    known = Path(lines).read_text(encoding="utf-8").split("\n")
    texts = list(sized(known, megabytes))
    tokenizer = train_bpe(known[:2000], MOST_TOKENS)
    backend = tokenizer.backend_tokenizer

    def alone() -> None:
        for start in range(0, len(texts), TEXTS_A_CALL):
            for encoding in backend.encode_batch_fast(texts[start : start + TEXTS_A_CALL], add_special_tokens=False):
                _ = encoding.ids

    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first"

        def anew() -> None:
            shutil.rmtree(first, ignore_errors=True)
            encode_corpus(tokenizer, texts, cache_dir=first)

        ways: dict[str, Callable[[], Any]] = {
            "tokenizers alone": alone,
            "encode_documents, in memory": lambda: encode_documents(tokenizer, texts),
            "encode_corpus, to a file": lambda: encode_corpus(tokenizer, texts, Path(folder) / "ids.npy"),
            "encode_corpus, to a cache": anew,
            "encode_corpus, from the cache": lambda: encode_corpus(tokenizer, texts, cache_dir=first),
        }
        seconds = alternating(rounds, ways)
        tokens = len(encode_corpus(tokenizer, texts))
    return {"seconds": seconds, "tokens": tokens, "bytes": sum(len(text.encode()) for text in texts)}


def measure_memory(lines: str, megabytes: float, device: str) -> dict[str, float]:
    """In a child: how much the peak of its memory grew while `prepare_text` went through so much text, MiB; and seconds."""
    from utils.data import prepare_text
    from utils.tokenization import train_bpe

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    known = Path(lines).read_text(encoding="utf-8").split("\n")
    tokenizer = train_bpe(known[:2000], MOST_TOKENS)
    settings: dict[str, Any] = {"vocab_size": len(tokenizer), "block_size": 256, "tokenizer": tokenizer}
    prepare_text(known, **settings)
    before, began = _peak_mib(), time.perf_counter()
    data = prepare_text(sized(known, megabytes), **settings)
    return {
        "added": _peak_mib() - before,
        "seconds": time.perf_counter() - began,
        "tokens": float(data.train.num_tokens),
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB


def speed_table(figures: dict[str, Any]) -> Table:
    """Rows of tokens/s against `tokenizers` alone."""
    seconds, tokens = figures["seconds"], figures["tokens"]
    columns = ["tokenized by", "tokens/s, to tokenizers alone", "million tokens/s"]
    title = f"Tokenizing {figures['bytes'] / 1e6:.1f} MB of lines into {tokens:,} tokens"
    table = Table(title, columns, passing=frozenset(columns[2:]))
    alone = seconds["tokenizers alone"]
    for name, taken in seconds.items():
        table.rows.append([name, str(ratios(alone, taken)), f"{tokens / Spread.of(taken).median / 1e6:.2f}"])
    return table


def memory_table(megabytes: float, figures: dict[str, float]) -> Table:
    """One row."""
    columns = ["text, MB", "tokens, million", "peak added, MiB"]
    table = Table("Preparing a large text that is read lazily, tokenizer given", columns)
    table.rows.append([f"{megabytes:,.0f}", f"{figures['tokens'] / 1e6:.0f}", f"{figures['added']:,.0f}"])
    table.notes.append("Pages of the file of ids that the system holds for the process are counted as its memory.")
    return table


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tokenizing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--text", metavar="FILE", help="its lines are the documents (default: the built-in corpus)")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="rounds of everyone (default: 15)")
    parser.add_argument("--megabytes", type=float, metavar="N", help="also measure memory, with so much text")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {RESULTS.name}, other sections stay")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write when asked. Exit status 1 when a measurement fails."""
    parsed = arguments().parse_args(argv)
    command = " ".join(["python -m benchmarks.tokenizing", *(sys.argv[1:] if argv is None else argv)])
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "lines.txt"
        lines.write_text("\n".join(read_lines(parsed.text)), encoding="utf-8")
        common = {"lines": str(lines), "device": "cpu"}
        try:
            facts = call("benchmarks.machine:facts", device="cpu")["about"]
            tables = [
                speed_table(
                    call("benchmarks.tokenizing:measure_speed", rounds=parsed.rounds, megabytes=MEGABYTES, **common)
                )
            ]
            if parsed.megabytes:
                figures = call("benchmarks.tokenizing:measure_memory", megabytes=parsed.megabytes, **common)
                tables.append(memory_table(parsed.megabytes, figures))
        except ChildError as error:
            print(f"benchmarks.tokenizing: {error}", file=sys.stderr)
            return 1
    for table in tables:
        print(table.markdown(everything=True), end="\n\n")
    if parsed.write:
        today = datetime.date.today().isoformat()
        body = "\n\n".join(
            [f"`{command}`, {today}, on {facts}", *(table.markdown(everything=False) for table in tables)]
        )
        write_section(RESULTS, HEADING, body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
