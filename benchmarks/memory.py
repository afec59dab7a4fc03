"""Peak memory and speed of each contender, in a process of its own.

The speed is measured here too because a process's memory allocator belongs to all contenders that take turns in it: what one
of them sets for itself, the others have as well.
"""

from __future__ import annotations

import statistics
import tempfile
from typing import Any

from benchmarks.children import call
from benchmarks.contenders import CONTENDERS, ENGINE, REFERENCE, USUAL, split
from benchmarks.machine import MemoryMeter
from benchmarks.options import TINY, Options
from benchmarks.report import Table
from benchmarks.throughput import Entry, stage_of
from benchmarks.workload import Sizes, Workload, build

#: Laps that are measured: memory has reached its height after two, when optimizer states and gradients are there.
LAPS = 6

#: Processes that each contender gets, in turn with the others.
REPETITIONS = 1

#: What this engine's memory is compared with besides the reference.
FRAMEWORK = "hf-packed"


def measure(
    entry: list[str], sizes: dict[str, int], text: str, device: str, blocks: str | None = None
) -> dict[str, float]:
    """In a child: train a few steps and say what they took.

    Args:
        blocks: a .npy file of blocks to take instead of the text's, memory-mapped.
    Returns:
        useful_per_s: median of the laps' targets a second; peak_mib above the start: before the model is made, after a tiny
        one was trained the same way, so that what is imported on first use counts for nobody; first_s: seconds until the
        first step was done; step_s: median of the others.
    """
    import numpy as np

    chosen, model_sizes, workload = Entry(*entry), Sizes(**sizes), Workload.load(text)
    if blocks is not None:
        workload.blocks = np.load(blocks, mmap_mode="r")
    with tempfile.TemporaryDirectory() as folder:
        tiny = build(["a few words, and then some more of them"] * 200, TINY)
        with stage_of([chosen], TINY, tiny, device, folder) as stage:
            stage.rounds(1)
        meter = MemoryMeter(device)
        with stage_of([chosen], model_sizes, workload, device, folder) as stage:
            first = stage.turn(chosen.key)
            laps = [stage.turn(chosen.key) for _ in range(LAPS)]
            peak = meter.peak_mib()
    return {
        "peak_mib": peak, "first_s": first.seconds, "step_s": statistics.median(lap.seconds for lap in laps),
        "useful_per_s": statistics.median(lap.useful / lap.seconds for lap in laps),
    }  # fmt: skip


def run(options: Options) -> list[Table]:
    """A table a vocabulary: in fp32, and the packed ones in bf16 too where the device has it."""
    names = (REFERENCE, FRAMEWORK, ENGINE) if options.quick else (REFERENCE, USUAL, FRAMEWORK, ENGINE)
    present, missing = split(names)
    entries = [Entry(name, "32") for name in present]
    if options.default_precision == "bf16" and not options.quick:
        entries += [Entry(name, "bf16") for name in (REFERENCE, FRAMEWORK, ENGINE) if name in present]
    tables = []
    for vocab in options.vocabularies:
        sizes = options.sizes.with_(vocab=vocab)
        repetitions = range(1 if options.quick else REPETITIONS)
        alone = [{entry: _alone(options, entry, sizes) for entry in entries} for _ in repetitions]
        peaks = {entry: max(found[entry]["peak_mib"] for found in alone) for entry in entries}
        speeds = {entry: statistics.median(found[entry]["useful_per_s"] for found in alone) for entry in entries}
        tables.append(memory_table(f"Alone in a process: {sizes}", peaks, speeds, missing))
    return tables


def _alone(options: Options, entry: Entry, sizes: Sizes) -> dict[str, Any]:
    text = options.workload(sizes, sizes.batch * (LAPS + 4))
    found: dict[str, Any] = call(
        "benchmarks.memory:measure", options.threads, entry=[entry.name, entry.precision], sizes=vars(sizes), text=text,
        device=options.device,
    )  # fmt: skip
    return found


def memory_table(
    title: str, peaks: dict[Entry, float], speeds: dict[Entry, float], missing: dict[str, str]
) -> Table:
    """Rows of peaks in MiB, and as ratios to the packed loop and to HF Trainer packed, each in the same precision; and of
    useful tokens a second, as ratios to the packed loop and to HF Trainer as users run it, both in fp32."""
    table = Table(
        title,
        ["contender", "precision", "MiB above the start", "to hand-written packed", "to HF Trainer packed",
         "speed, to hand-written packed in fp32", "to HF Trainer as users run it in fp32"],
    )  # fmt: skip
    for entry, peak in peaks.items():
        others = (peaks.get(Entry(name, entry.precision)) for name in (REFERENCE, FRAMEWORK))
        to = [f"{peak / other:.2f}" if other else "—" for other in others]
        to += [
            f"{speeds[entry] / base:.2f}" if (base := speeds.get(Entry(name, "32"))) else "—" for name in (REFERENCE, USUAL)
        ]
        form = "fp32" if entry.precision == "32" else entry.precision
        table.rows.append([CONTENDERS[entry.name].label, form, f"{peak:,.0f}", *to])
    table.rows += [[f"{label}: not measured ({reason})", *["—"] * 6] for label, reason in missing.items()]
    table.notes.append(
        f"Each in a process of its own: the highest resident memory of {LAPS + 1} steps (on a GPU: allocated by torch) above "
        "what the process held before it made the model. Speed: the median step after the first."
    )
    return table
