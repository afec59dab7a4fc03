"""Which optimizer presets should use: architectures by tasks, AdamW at the preset's rate against Muon, over several seeds.

    python -m benchmarks.default_optimizer [--steps 150] [--seeds 3] [--keep FILE] [--write]
    python -m benchmarks.default_optimizer --quick

The models are small ones of different make, on which the checks must stay silent; `benchmarks.default_tasks` lists them and
what they learn. Everyone trains with the settings of the preset `starter` (warm-up over a tenth of the steps, cosine decay to a
tenth, weight decay 0.1, clipping at 1) in fp32, and optimizers differ in name and rate only. A seed gives the initial weights
and the order of the samples, which are the same for all contenders; scored is the loss of a validation after the last step.

The reference is AdamW at the preset's rate. So that nobody is compared with an untuned rival, each optimizer is also trained at
the best of `--rates` by the loss with the first seed, which the other seeds take. Muon has to be no worse than AdamW at the
preset's rate, and its best rate no worse than AdamW's best. The p-values are those of two-sided paired t-tests over the seeds.
With few seeds they are large for all but clear differences, so the mean difference stands beside them.
The time of a step is processor time, the median of all steps of a training, as a multiple of AdamW's with the same seed. Where
a model has no matrix that Muon takes, `muon` is AdamW, and only the rate differs.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kept import Kept
from benchmarks.machine import facts
from benchmarks.report import RESULTS, Table, write_section
from benchmarks.time_to_loss import paired_p

#: The preset's rate for AdamW, and the rates at which Muon is a candidate.
REFERENCE_RATE, CANDIDATE_RATES, RATES = 1e-3, (1e-3, 3e-3), (1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class Outcome:
    """What one training reached.

    Attributes:
        loss: of the last validation, nats a target. step_s: processor seconds of a step, the median.
        matrices: parameters that Muon updated.
    """

    loss: float
    step_s: float
    matrices: int


def train(cell: Any, optimizer: str, rate: float, seed: int, steps: int) -> Outcome:
    """Train one cell of `benchmarks.default_tasks` once."""
    import torch
    from torch.utils.data import default_collate

    from utils.training import Callback, Trainer
    from utils.training.engine.compute.muon import hidden_matrices
    from utils.ui import PRESETS

    class Watch(Callback):
        """Processor time of each step."""

        def __init__(self) -> None:
            self.times: list[float] = []
            self._began = 0.0

        def on_batch_begin(self, batch_idx: int, trainer: Any, logs: dict[str, Any] | None = None) -> None:
            self._began = time.process_time()

        def on_step_end(self, step: int, trainer: Any, logs: dict[str, Any] | None = None) -> None:
            self.times.append(time.process_time() - self._began)

    training, validation = cell.split()
    torch.manual_seed(seed)
    model, watch = cell.make(), Watch()
    matrices = sum(matrix.numel() for matrix in hidden_matrices(model))
    with tempfile.TemporaryDirectory() as folder:
        config = PRESETS["starter"].setup().training_config.replace(
            epochs=1000, max_steps=steps, batch_size=16, optimizer=optimizer, learning_rate=rate, random_seed=seed,
            eval_every=steps, precision="32", output_dir=folder,
        )  # fmt: skip
        results = Trainer(
            model, training_config=config, task_spec=cell.spec, data_collator=default_collate, callbacks=[watch]
        ).train(training, validation)
    return Outcome(results.evaluate_rows[-1]["val/loss"], statistics.median(watch.times), matrices)


class Measured:
    """The trainings of one cell, each done once."""

    def __init__(self, cell: Any, steps: int, kept: Kept) -> None:
        self.cell, self._steps, self._kept = cell, steps, kept

    def outcome(self, optimizer: str, rate: float, seed: int) -> Outcome:
        """The training with this optimizer, rate and seed."""
        key = [self.cell.name, self.cell.task, self._steps, optimizer, rate, seed]
        known = self._kept.of(key, lambda: vars(train(self.cell, optimizer, rate, seed, self._steps)))
        return Outcome(**known)

    def losses(self, optimizer: str, rate: float, seeds: int) -> list[float]:
        """Final losses, seed by seed."""
        return [self.outcome(optimizer, rate, seed).loss for seed in range(seeds)]

    def best_rate(self, optimizer: str, rates: Sequence[float]) -> float:
        """The rate with the lowest loss with the first seed."""
        return min(rates, key=lambda rate: self.outcome(optimizer, rate, 0).loss)

    def step_ratio(self, seeds: int) -> float:
        """Processor time of a step with Muon to that with AdamW, the median over the seeds."""
        times = [
            [self.outcome(name, REFERENCE_RATE, seed).step_s for seed in range(seeds)] for name in ("muon", "adamw")
        ]
        return statistics.median(muon / adamw for muon, adamw in zip(*times, strict=True))


def row(measured: Measured, rates: Sequence[float], seeds: int) -> list[str]:
    """The row of a cell in the table of `compare`."""
    reference = measured.losses("adamw", REFERENCE_RATE, seeds)
    takes = measured.outcome("adamw", REFERENCE_RATE, 0).matrices > 0
    name = "muon" if takes else "adamw"  # the same updates otherwise
    candidates = [against(measured.losses(name, rate, seeds), reference) for rate in CANDIDATE_RATES]
    best = {optimizer: measured.best_rate(optimizer, rates) for optimizer in ("adamw", name)}
    tuned = {optimizer: measured.losses(optimizer, rate, seeds) for optimizer, rate in best.items()}
    ratio = f"{measured.step_ratio(seeds):.2f}" if takes else "no matrices"
    return [
        measured.cell.name, measured.cell.task, spread(reference), *candidates, f"{best['adamw']:g}: {spread(tuned['adamw'])}",
        f"{best[name]:g}: {against(tuned[name], tuned['adamw'])}" if takes else "", ratio,
    ]  # fmt: skip


def spread(losses: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(losses):.3f} ± {statistics.stdev(losses) if len(losses) > 1 else 0.0:.3f}"


def against(losses: Sequence[float], reference: Sequence[float]) -> str:
    """Mean difference and p-value; negative: the loss is lower than the reference's."""
    difference = statistics.mean(a - b for a, b in zip(losses, reference, strict=True))
    p = paired_p(losses, reference)
    return f"{difference:+.3f}{'' if p is None else f', p = {p:.1g}'}"


def compare(cells: Sequence[Any], steps: int, seeds: int, rates: Sequence[float], kept: Kept) -> Table:
    """The table, one row per cell."""
    table = Table(
        f"{steps} steps of batch 16: validation loss",
        [
            "architecture", "task", f"AdamW at {REFERENCE_RATE:g}", *(f"Muon at {rate:g}, to it" for rate in CANDIDATE_RATES),
            "AdamW at its best rate", "Muon at its best, to that", "time of a step",
        ],
    )  # fmt: skip
    for cell in cells:
        table.rows.append(row(Measured(cell, steps, kept), rates, seeds))
        print(" | ".join(table.rows[-1]), flush=True)
    table.notes.append(
        f"{seeds} seeds, rates of {', '.join(f'{rate:g}' for rate in rates)}. Differences are of the loss: negative is better."
    )
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write when asked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.default_optimizer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), help="the grid of both optimizers")
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="architectures and tasks whose name contains one of these"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--quick", action="store_true", help="one cell, three steps, to see that everything works")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="store finished trainings in FILE and continue from them"
    )
    parser.add_argument("--write", action="store_true", help=f"put the table into {RESULTS.name}")
    parsed = parser.parse_args(argv)
    import torch

    from benchmarks.default_tasks import CELLS

    torch.set_num_threads(parsed.threads)
    cells = [
        cell for cell in CELLS if not parsed.only or any(word in f"{cell.name}, {cell.task}" for word in parsed.only)
    ]
    if parsed.quick:
        cells, parsed.rates = [cell for cell in cells if cell.task == "table"][:1], parsed.rates[:2]
        parsed.steps, parsed.seeds = 3, 2
    machine = facts("cpu")
    assert machine is not None, "the CPU is always there"
    given = [Path(part).name if "/" in part else part for part in (sys.argv[1:] if argv is None else argv)]
    table = compare(cells, parsed.steps, parsed.seeds, parsed.rates, Kept(parsed.keep)).markdown(everything=True)
    command = " ".join(["python -m benchmarks.default_optimizer", *given])
    body = f"`{command}`, {datetime.date.today().isoformat()}, on {machine['about']}.\n\n{table}"
    print(body)
    if parsed.write:
        write_section(RESULTS, "The default optimizer: architectures by tasks", body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
