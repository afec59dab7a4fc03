"""What a loop costs beyond the arithmetic: step times against a bare loop that does the same work."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from typing import Any

from benchmarks.children import call
from benchmarks.contenders import CONTENDERS, split
from benchmarks.options import TINY, Options
from benchmarks.report import Spread, Table, ratios
from benchmarks.throughput import Entry, measure, stage_of
from benchmarks.workload import Sizes, Workload

#: The bare loop that all are compared with comes first.
LOOPS = ("same-work", "trainbook", "hand-packed", "hf-packed", "lightning-packed", "accelerate-packed")

#: Milliseconds that one lap should take at least: short against what the machine does besides, long against cold caches.
LAP_MS = 60.0


def calibrate(sizes: dict[str, int], text: str, device: str, step_ms: float) -> int:
    """In a child: the number of layers with which the bare loop takes about `step_ms` milliseconds a step."""
    few, many = (_step_ms(Sizes(**sizes).with_(layers=layers), text, device) for layers in (1, 3))
    a_layer = max((many - few) / 2, 1e-3)
    return max(1, round(1 + (step_ms - few) / a_layer))


def _step_ms(sizes: Sizes, text: str, device: str) -> float:
    entry = Entry(LOOPS[0], "32")
    with (
        tempfile.TemporaryDirectory() as folder,
        stage_of([entry], sizes, Workload.load(text), device, folder) as stage,
    ):
        laps = stage.rounds(7, warmup=3)[entry.key]
    return 1000 * statistics.median(lap.seconds for lap in laps)


def run(options: Options) -> list[Table]:
    """A table on the tiny model, and one at steps of `paced_ms`."""
    tiny = _table(options, TINY, "Step overhead on a tiny model", steps=20)
    layers = options.paced.layers if options.quick else _paced_layers(options)
    title = (
        "Step overhead on a small model"
        if options.quick
        else f"Step overhead at about {options.paced_ms:.0f} ms a step"
    )
    steps = max(1, round(LAP_MS / options.paced_ms))
    return [tiny, _table(options, options.paced.with_(layers=layers), title, steps)]


def _paced_layers(options: Options) -> int:
    """Layers with which a step takes as long as asked for on this machine."""
    found = call(
        "benchmarks.overhead:calibrate", options.threads, sizes=vars(options.paced),
        text=options.workload(options.paced, options.rows(options.paced)), device=options.device, step_ms=options.paced_ms,
    )  # fmt: skip
    return int(found)


def _table(options: Options, sizes: Sizes, title: str, steps: int) -> Table:
    present, missing = split(LOOPS)
    figures = call(
        "benchmarks.overhead:measure_loops", options.threads, names=present, sizes=dataclasses.asdict(sizes),
        text=options.workload(sizes, options.rows(sizes, steps)), device=options.device, steps=steps, rounds=options.rounds,
        warmup=options.warmup,
    )  # fmt: skip
    times = {key: [1000 * seconds / steps for seconds, _ in laps] for key, laps in figures["laps"].items()}
    return overhead_table(f"{title}: {sizes}, fp32", times, missing)


def measure_loops(names: list[str], **arguments: Any) -> dict[str, Any]:
    """In a child: `throughput.measure` of these contenders in fp32."""
    return measure(entries=[[name, "32"] for name in names], **arguments)


def overhead_table(title: str, times: dict[str, list[float]], missing: dict[str, str]) -> Table:
    """Rows of step times (ms, by lap) against the first one's."""
    reference = next(iter(times.values()))
    columns = ["contender", "step time, to the bare loop", "added ms a step", "ms a step"]
    table = Table(title, columns, passing=frozenset(columns[2:]))
    for key, own in times.items():
        added = Spread.of([mine - bare for mine, bare in zip(own, reference, strict=True)])
        label = CONTENDERS[key.split()[0]].label
        table.rows.append([label, str(ratios(own, reference)), f"{added.median:+.3f}", f"{Spread.of(own).median:.3f}"])
    table.rows += [[f"{label}: not measured ({reason})", "—", "—", "—"] for label, reason in missing.items()]
    table.notes.append(
        f"Medians of {len(reference)} rounds' ratios, with their quartiles. The bare loop takes model, objective, precision, "
        "optimizer and fast paths of this engine and leaves out its loop; the others compute their own way."
    )
    return table
