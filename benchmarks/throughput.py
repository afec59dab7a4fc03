"""Useful tokens per second of every contender, as ratios, all in one process in turn."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import machine
from benchmarks.children import call
from benchmarks.contenders import CONTENDERS, ENGINE, REFERENCE, USUAL, split
from benchmarks.jobs import Job
from benchmarks.options import Options
from benchmarks.report import Spread, Table, ratios
from benchmarks.turns import ContenderError, Lap, Stage, Turn
from benchmarks.workload import Sizes, Workload

#: Contenders of the tables, in their order.
EAGER = (
    "hand-padded", "hand-dynamic", "hf", "lightning", "accelerate", "hand-packed", "hf-packed", "lightning-packed",
    "accelerate-packed", "trainbook",
)  # fmt: skip
COMPILED = ("hand-packed-compiled", "trainbook-compiled")

#: Largest relative difference between the losses of contenders that compute the same. After an update Adam has turned
#: rounding in small gradients into steps of full size, so later losses may differ by more than the first.
FIRST_LOSS, LATER_LOSS = {"32": 1e-4, "bf16": 1e-2}, {"32": 1e-3, "bf16": 2e-2}
CHECKED_STEPS = 3


@dataclass(frozen=True)
class Entry:
    """A contender in a precision: one row of a table."""

    name: str
    precision: str

    @property
    def key(self) -> str:
        """Unique in a table."""
        return f"{self.name} {self.precision}"


def job_of(entry: Entry, sizes: Sizes, workload: Workload, device: str, folder: str) -> Job:
    """What the contender of this entry is given."""
    compile_mode = "default" if CONTENDERS[entry.name].compiles else None
    return Job(sizes, workload, entry.precision, device, folder, compile_mode)


def stage_of(
    entries: Sequence[Entry], sizes: Sizes, workload: Workload, device: str, folder: str, steps: int = 1,
    wants_loss: bool = False, models: dict[str, Any] | None = None,
) -> Stage:  # fmt: skip
    """A stage on which each entry trains a model of its own, all with the same first weights.

    Args:
        models: takes each entry's model when it is made.
    """

    def runner(entry: Entry) -> Callable[[Turn], None]:
        def run(turn: Turn) -> None:
            model = sizes.model()
            if models is not None:
                models[entry.key] = model
            CONTENDERS[entry.name].run(job_of(entry, sizes, workload, device, folder), model, turn)

        return run

    runs = {entry.key: runner(entry) for entry in entries}
    return Stage(runs, steps, wants_loss, lambda: machine.synchronize(device))


def check_same(
    entries: Sequence[Entry], sizes: Sizes, workload: Workload, device: str, folder: str
) -> dict[str, list[float]]:
    """Let everyone train three steps on one batch, and compare the losses: the packed with each other, so those that pad.

    Returns:
        entry's key -> its losses.
    Raises:
        ContenderError: one has another loss than the first of its kind, so it does not do the same work.
    """
    losses: dict[str, list[float]] = {}
    for entry in entries:
        with stage_of([entry], sizes, workload.first(sizes.batch), device, folder, wants_loss=True) as stage:
            losses[entry.key] = [stage.turn(entry.key).losses[0] for _ in range(CHECKED_STEPS)]
    for packed in (True, False):
        alike = [entry for entry in entries if CONTENDERS[entry.name].packed is packed]
        for entry in alike[1:]:
            _compare(alike[0], entry, losses)
    return losses


def _compare(first: Entry, second: Entry, losses: dict[str, list[float]]) -> None:
    rough = "32" if first.precision == second.precision == "32" else "bf16"
    for step, (expected, found) in enumerate(zip(losses[first.key], losses[second.key], strict=True)):
        allowed = (LATER_LOSS if step else FIRST_LOSS)[rough] * abs(expected)
        if not abs(found - expected) <= allowed:
            raise ContenderError(
                f"{second.key} has loss {found:.6f} in step {step + 1} where {first.key} has {expected:.6f}: at most "
                f"{allowed:.6f} may lie between them. They do not compute the same, so their speeds cannot be compared."
            )


def measure(
    entries: list[list[str]], sizes: dict[str, int], text: str, device: str, steps: int, rounds: int, warmup: int
) -> dict[str, Any]:
    """In a child: check, then `rounds` rounds. Returns each entry's laps as [seconds, useful tokens]."""
    chosen, model_sizes, workload = [Entry(*entry) for entry in entries], Sizes(**sizes), Workload.load(text)
    with tempfile.TemporaryDirectory() as folder:
        check_same(chosen, model_sizes, workload, device, folder)
        with stage_of(chosen, model_sizes, workload, device, folder, steps) as stage:
            laps = stage.rounds(rounds, warmup)
    model = model_sizes.model()
    return {
        "laps": {key: [[lap.seconds, lap.useful] for lap in own] for key, own in laps.items()},
        "flops_per_token": machine.flops_per_token(model, model_sizes.layers, model_sizes.width, model_sizes.length),
    }


def run(options: Options) -> list[Table]:
    """Two tables a vocabulary: everyone in fp32 (and this engine at its default beside them), and everyone in bf16.

    The second only where bf16 is the default, and not in a quick look.
    """
    default = options.default_precision
    tables = []
    for vocab in options.vocabularies:
        sizes = options.sizes.with_(vocab=vocab)
        extra = (*EAGER, *COMPILED) if options.compile else EAGER
        own_default = [Entry(ENGINE, "auto")] if default != "32" else []
        tables.append(_table(options, sizes, [Entry(name, "32") for name in extra] + own_default, "fp32", default))
        if default == "bf16" and not options.quick:
            tables.append(_table(options, sizes, [Entry(name, "bf16") for name in extra], "bf16", default))
    return tables


def _table(options: Options, sizes: Sizes, wanted: list[Entry], precision: str, default: str) -> Table:
    present, missing = split(dict.fromkeys(entry.name for entry in wanted))
    entries = [entry for entry in wanted if entry.name in present]
    figures = call(
        "benchmarks.throughput:measure", options.threads, entries=[[e.name, e.precision] for e in entries],
        sizes=vars(sizes), text=options.workload(sizes, options.rows(sizes)), device=options.device, steps=options.steps,
        rounds=options.rounds, warmup=options.warmup,
    )  # fmt: skip
    labels = {e.key: _label(e, default) for e in entries}
    laps = {key: [Lap(*lap) for lap in own] for key, own in figures["laps"].items()}
    table = throughput_table(f"{sizes}, {precision}", laps, labels, missing, len(laps[entries[0].key]))
    if options.device == "cuda" or options.peak_tflops:
        name = call("benchmarks.machine:device_name", options.threads, device=options.device)
        _add_mfu(table, laps, figures["flops_per_token"], _peaks(options, entries, name, default))
    return table


def _label(entry: Entry, default: str) -> str:
    label = CONTENDERS[entry.name].label
    return f"{label}, default precision ({default})" if entry.precision == "auto" else label


def throughput_table(
    title: str, laps: dict[str, list[Lap]], labels: dict[str, str], missing: dict[str, str], rounds: int
) -> Table:
    """Rows of ratios to the hand-written packed loop and to HF Trainer as people run it; then those that are missing."""
    rates = {key: [lap.useful / lap.seconds for lap in own] for key, own in laps.items()}
    columns = [
        "contender",
        "useful tokens/s, to hand-written packed",
        "to HF Trainer as users run it",
        "useful tokens/s",
    ]
    table = Table(title, columns, passing=frozenset(columns[3:]))
    for key, own in rates.items():
        others = (_like(rates, REFERENCE), _like(rates, USUAL))
        to = [str(ratios(own, rates[other])) if other in rates else "—" for other in others]
        table.rows.append([labels[key], *to, f"{Spread.of(own).median:,.0f}"])
    table.rows += [[f"{label}: not measured ({reason})", "—", "—", "—"] for label, reason in missing.items()]
    table.notes.append(f"Medians of {rounds} rounds' ratios, with their quartiles.")
    return table


def _like(rates: dict[str, Any], name: str) -> str:
    """The key of contender `name` in a table where it stands once."""
    return next((key for key in rates if key.split()[0] == name), "")


def _peaks(options: Options, entries: list[Entry], device_name: str, default: str) -> dict[str, float | None]:
    """Each entry's peak in TFLOP/s: as given, else as listed for the card and format, else None."""
    formats = {entry.key: default if entry.precision == "auto" else entry.precision for entry in entries}
    return {key: options.peak_tflops or machine.peak_tflops(device_name, form) for key, form in formats.items()}


def _add_mfu(table: Table, laps: dict[str, list[Lap]], flops: float, peaks: dict[str, float | None]) -> None:
    """A column with the share of the device's peak that useful tokens make up."""
    table.columns.append("MFU")
    for number, row in enumerate(table.rows):
        key = list(laps)[number] if number < len(laps) else None
        peak = peaks.get(key) if key else None
        rate = Spread.of([lap.useful / lap.seconds for lap in laps[key]]).median if key else 0.0
        row.append(f"{rate * flops / (peak * 1e12):.1%}" if peak else "—")
    table.notes.append(
        f"MFU: useful tokens/s x (6 N + 12 L H Q T) / peak (PaLM, arXiv 2204.02311, appendix B) with {flops / 1e6:,.0f} "
        f"MFLOP a token; peaks in TFLOP/s: {', '.join(sorted({f'{p:g}' for p in peaks.values() if p})) or 'none known'}. "
        "— where the card's peak is not in the list: give it with --peak-tflops."
    )
