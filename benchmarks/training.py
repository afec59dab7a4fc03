"""This engine against a hand-written loop, HF Trainer, Lightning and Accelerate: same model, text, machine, in turn.

    python -m benchmarks.training                         everything, on the CPU (about an hour on 2 cores)
    python -m benchmarks.training --quick                 a small model, few rounds: one to two minutes
    python -m benchmarks.training --device cuda           GPT-2 124M; also tokens/s and MFU
    python -m benchmarks.training --sections throughput overhead --write

Sections:

- `throughput`: useful tokens per second (targets that count in the loss: no padding, not the first token of a row) at two
  vocabulary sizes, in fp32 and in bf16 where the device has it.
- `overhead`: step time against a bare loop that does the same work, on a tiny model and at about 50 ms a step.
- `memory`: peak above the start, each contender in a process of its own.
- `learning`: seconds of training to a given validation loss.
- `growth`: how this engine's time a token and memory grow with width, vocabulary, length and corpus.
- `micro`: making batches, saving a checkpoint, tokenizing.

How it is measured. All contenders have the same initial weights, AdamW at the same constant learning rate, no weight decay,
gradient clipping at 1, no dropout. They run in one process, each in a thread of its own, and take turns step by step; exactly
one works at any moment. Timed is one whole optimizer step from the end of one to the end of the next: the data for it,
forward, backward, clipping, update, and everything that the loop does around it with its default callbacks. Each figure is
the median over rounds of the ratio within a round, with its quartiles. A contender that is not installed is named in the
table. Before anything is timed, all train three steps on one batch and must have the same losses, those that pack and
those that pad among themselves: otherwise the command stops, for whoever computes something else cannot win.

Not covered: checkpoints fall outside the timed steps (see `micro`); several devices; loader processes (all load in the
process). HF Trainer, Lightning and Accelerate run without progress bars, loggers and checkpoints, which they have by default.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.children import ChildError, call
from benchmarks.options import Options, on_gpu, quick
from benchmarks.report import RESULTS, Table, write_section
from benchmarks.turns import ContenderError
from benchmarks.workload import read_lines
from utils.errors import TrainbookError

#: Section -> its heading in RESULTS.md.
SECTIONS = {
    "throughput": "Training: useful tokens per second",
    "overhead": "Training: step overhead",
    "memory": "Training: peak memory",
    "learning": "Training: time to a validation loss",
    "growth": "Training: growth",
    "micro": "Training: data, checkpoints, tokenizing",
}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small model and few rounds: one to two minutes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train (default: cpu)")
    parser.add_argument(
        "--rounds", type=_positive, default=30, metavar="N", help="laps of every contender (default: 30)"
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="what to measure")
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: as torch decides)")
    parser.add_argument(
        "--text", metavar="FILE", help="text to train on, a line a sample (default: the built-in corpus)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="let compiled contenders take part (on a GPU they always do)"
    )
    parser.add_argument(
        "--peak-tflops", type=float, metavar="X", help="the device's peak, for MFU where it is not listed"
    )
    parser.add_argument("--write", action="store_true", help=f"put the tables into {RESULTS.name}, other sections stay")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {number}")
    return number


def options_of(parsed: argparse.Namespace, folder: Path, default_precision: str) -> Options:
    """The choices as options."""
    options = Options(
        read_lines(parsed.text), folder, parsed.device, default_precision, parsed.threads, rounds=parsed.rounds,
        peak_tflops=parsed.peak_tflops,
    )  # fmt: skip
    if parsed.device == "cuda":
        options = on_gpu(options)
    if parsed.quick:
        options = quick(options)
    return replace(options, compile=options.compile or parsed.compile)


def body_of(tables: list[Table], facts: str, command: str, everything: bool) -> str:
    """A section's text: which command measured it, on what, when; and its tables."""
    today = datetime.date.today().isoformat()
    return "\n\n".join([f"`{command}`, {today}, on {facts}", *(table.markdown(everything) for table in tables)])


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write when asked. Exit status 1 when a contender fails or computes something else."""
    parsed = arguments().parse_args(argv)
    command = " ".join(["python -m benchmarks.training", *(sys.argv[1:] if argv is None else argv)])
    try:
        facts = call("benchmarks.machine:facts", parsed.threads, device=parsed.device)
        if facts is None:
            print("benchmarks.training: torch finds no CUDA device here; use --device cpu.", file=sys.stderr)
            return 1
        with tempfile.TemporaryDirectory() as folder:
            options = options_of(parsed, Path(folder), facts["default_precision"])
            about = f"{facts['about']}.{options.size_note}"
            for name in parsed.sections:
                began = time.perf_counter()
                tables = importlib.import_module(f"benchmarks.{name}").run(options)
                heading = SECTIONS[name] + (", GPU" if parsed.device == "cuda" else "")
                print(f"## {heading}\n\n{body_of(tables, about, command, everything=True)}\n")
                print(f"({time.perf_counter() - began:.0f} s)\n", flush=True)
                if parsed.write:
                    # Absolute figures of a processor that others use too say nothing next week.
                    write_section(RESULTS, heading, body_of(tables, about, command, everything=parsed.device == "cuda"))
    except (ContenderError, ChildError, TrainbookError, OSError) as error:
        print(f"benchmarks.training: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
