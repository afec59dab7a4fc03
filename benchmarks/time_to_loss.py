"""Steps and time to a validation loss, side by side: same model, weights, text and target, over several seeds.

    python -m benchmarks.time_to_loss --text tinyshakespeare.txt [--steps 2000] [--seeds 5] [--write]
    python -m benchmarks.time_to_loss --text tinyshakespeare.txt --seconds 300 [--write]
    python -m benchmarks.time_to_loss --quick

The model is a GPT-2 on characters in nanoGPT's small CPU settings (its README: 4 layers, 4 heads, width 128, block 64, batch
12, 2,000 steps, no dropout). The last tenth of the text is for validation: its first packed blocks, the same for all, scored in
fp32 by one function. Everyone begins with the same weights for the same seed and clips gradients to a norm of 1.

The targets are those of --target, and the worst final loss of the hand-written loop over the seeds, which it reaches in all of
them.
The hand-written loop is tuned: its peak learning rate is the best of a grid by the mean final loss over seeds of their own, and
so is that of Muon. This engine with AdamW and HF Trainer take the hand-written loop's rate. A contender is trained `--every`
steps at a time, in turn with the others, and the clock runs only during its own turn. Steps do not depend on the machine's
load. The p-value is that of a two-sided paired t-test over the seeds, of the logarithm of the steps to the target or of the
final losses.
With --seconds everyone trains as many steps as its own pace, measured first, allows in that time.
With --keep FILE finished trainings are stored, and the same command continues where it was interrupted.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from benchmarks.machine import facts
from benchmarks.report import RESULTS, Table, write_section
from benchmarks.rivals import CONTENDERS, REFERENCE, Race
from benchmarks.turns import Stage
from benchmarks.workload import Sizes

CHARACTERS = Sizes(layers=4, width=128, heads=4, length=64, batch=12)
TOY = Sizes(layers=1, width=16, heads=2, length=16, batch=4)
RATES = (1e-3, 3e-3, 6e-3)
#: First seed of the trainings that choose learning rates; those that are compared take other ones.
TUNING_SEED = 1000


@dataclass
class Curve:
    """What one training did.

    Attributes:
        losses: validation loss (nats a token) after each lap; steps: steps done then; seconds: of training until then.
    """

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def reached(self, target: float) -> int | None:
        """Steps to the first validation at or below the target, or None if it is not reached."""
        return next((step for step, loss in zip(self.steps, self.losses, strict=True) if loss <= target), None)

    def seconds_to(self, target: float) -> float | None:
        """Seconds of training to there."""
        step = self.reached(target)
        return None if step is None else self.seconds[self.steps.index(step)]


class KeptCurves:
    """Curves of trainings that are done, in a file of JSON lines, so that an interrupted measurement can be continued.

    Args:
        path: created when the first training ends. With None, nothing is stored.
        race: a training on other data or of another model is another training.
    """

    def __init__(self, path: Path | None, race: Race) -> None:
        self._path = path
        data = hashlib.sha256(race.blocks.tobytes() + race.validation.tobytes()).hexdigest()
        self._race = [str(race.sizes), data[:16]]
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
        self._known = {json.dumps(entry["of"]): entry["curves"] for entry in map(json.loads, lines)}

    def of(
        self, race: Race, entries: dict[str, float], seed: int, steps: dict[str, int], every: int
    ) -> dict[str, Curve]:
        """As `train`, which is called unless the same trainings were done before."""
        key = [*self._race, entries, seed, {name: steps[name] for name in entries}, every]
        known = self._known.get(json.dumps(key))
        if known is not None:
            return {name: Curve(**curve) for name, curve in known.items()}
        curves = train(race, entries, seed, steps, every)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"of": key, "curves": {name: vars(curve) for name, curve in curves.items()}}) + "\n")
        return curves


def prepare(text: str | None, sizes: Sizes, most_blocks: int) -> Race:
    """The text as characters: blocks for training and validation, and flat ids for who cuts them differently.

    Args:
        text: a UTF-8 file, the built-in corpus by default. most_blocks: maximum number of validation blocks.
    """
    from utils.data import TokenBlocks, builtin_corpus, prepare_text, read_text_file
    from utils.tokenization import SPECIAL_TOKENS

    content = "\n".join(builtin_corpus())[:200_000] if text is None else read_text_file(text).text
    vocab = len(set(content)) + len(SPECIAL_TOKENS)
    data = prepare_text([content], vocab_size=vocab, block_size=sizes.length, tokenizer_strategy="character", val_split=0.1)
    assert isinstance(data.train, TokenBlocks)
    assert isinstance(data.validation, TokenBlocks)
    validation = np.asarray(data.validation.blocks[:most_blocks])
    num_bytes = len(str(data.tokenizer.decode(validation[:, 1:].ravel().tolist())).encode())
    return Race(sizes.with_(vocab=vocab), np.asarray(data.train.blocks), validation, num_bytes)


def train(race: Race, entries: dict[str, float], seed: int, steps: dict[str, int], every: int) -> dict[str, Curve]:
    """Train the named contenders at these rates with one seed, in turn. Each gets one step, then laps of `every`.

    Args:
        steps: name -> steps of its schedule, one more than a multiple of `every`.
    """
    models = {name: race.sizes.model(seed) for name in entries}
    curves = {name: Curve() for name in entries}
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: CONTENDERS[name].starter(replace(race, folder=folder), models[name], rate, seed, steps[name])
            for name, rate in entries.items()
        }
        with Stage(runs, every) as stage:
            for name in entries:
                stage.turn(name)  # one step, with all that is built in it; its time is not counted
            for lap in range(1, max(steps.values()) // every + 1):
                for name in entries:
                    done = 1 + lap * every
                    if done > steps[name]:
                        continue
                    curve = curves[name]
                    curve.seconds.append((curve.seconds[-1] if curve.seconds else 0.0) + stage.turn(name).seconds)
                    curve.steps.append(done)
                    curve.losses.append(race.validation_loss(models[name]))
    return curves


def tune(
    race: Race, names: Sequence[str], steps: int, every: int, rates: Sequence[float], seeds: int, kept: KeptCurves
) -> dict[str, dict[float, float]]:
    """Final loss of each rate, the mean over `seeds` trainings, for the contenders that choose their own."""
    grids: dict[str, dict[float, float]] = {}
    for name in names:
        if CONTENDERS[name].tuned_like == name:
            grids[name] = {}
            for rate in rates:
                finals = [
                    kept.of(race, {name: rate}, seed, {name: steps}, every)[name].losses[-1]
                    for seed in range(TUNING_SEED, TUNING_SEED + seeds)
                ]
                grids[name][rate] = statistics.mean(finals)
                print(f"{name}, {rate:g}: {', '.join(f'{loss:.4f}' for loss in finals)}", flush=True)
    return grids


def paired_p(values: Sequence[float], reference: Sequence[float]) -> float | None:
    """Two-sided p-value of the paired t-test; None with fewer than two pairs, or where all differences are the same."""
    from scipy.stats import ttest_rel  # type: ignore[import-untyped, unused-ignore]

    differences = [a - b for a, b in zip(values, reference, strict=True)]
    if len(differences) < 2 or max(differences) - min(differences) < 1e-12:
        return None
    return float(ttest_rel(values, reference).pvalue)


def comparison(title: str, curves: dict[str, list[Curve]], rates: dict[str, float], target: float) -> Table:
    """One row per contender; ratios to the reference, seed by seed."""
    columns = [
        "contender", "rate", f"steps to {target:.3f}", "to the reference, p", "final loss", "p", "time to it, to the reference",
    ]  # fmt: skip
    table = Table(title, columns)
    base = curves[REFERENCE]
    for name, runs in curves.items():
        steps = [run.reached(target) for run in runs]
        pairs = [
            (run, other) for run, other in zip(runs, base, strict=True)
            if run.reached(target) is not None and other.reached(target) is not None
        ]  # fmt: skip
        mine, theirs = ([math.log(pair[side].reached(target) or 1) for pair in pairs] for side in (0, 1))
        finals, others = [run.losses[-1] for run in runs], [run.losses[-1] for run in base]
        times = [(run.seconds_to(target) or 0.0) / (other.seconds_to(target) or 1.0) for run, other in pairs]
        ratio = f"{math.exp(statistics.mean(mine) - statistics.mean(theirs)):.2f}{_p(paired_p(mine, theirs))}" if pairs else "—"
        table.rows.append([
            CONTENDERS[name].label, f"{rates[name]:g}", ", ".join("not reached" if n is None else f"{n:,}" for n in steps),
            ratio, f"{statistics.mean(finals):.3f} ± {statistics.stdev(finals) if len(finals) > 1 else 0.0:.3f}",
            _p(paired_p(finals, others)).removeprefix(", ") or "—", f"{statistics.median(times):.2f}" if times else "—",
        ])  # fmt: skip
    return table


def _p(value: float | None) -> str:
    return "" if value is None else f", p = {value:.1g}"


def budget_table(title: str, curves: dict[str, list[Curve]], rates: dict[str, float], race: Race) -> Table:
    """Bits per byte of the validation text after the same time."""
    table = Table(title, ["contender", "rate", "steps", "bits per byte", "p"])
    base = [race.bits_per_byte(run.losses[-1]) for run in curves[REFERENCE]]
    for name, runs in curves.items():
        bits = [race.bits_per_byte(run.losses[-1]) for run in runs]
        table.rows.append([
            CONTENDERS[name].label, f"{rates[name]:g}", ", ".join(f"{run.steps[-1]:,}" for run in runs),
            ", ".join(f"{value:.3f}" for value in bits), _p(paired_p(bits, base)).removeprefix(", ") or "—",
        ])  # fmt: skip
    return table


def paces(race: Race, names: Sequence[str], seconds: float, every: int) -> dict[str, int]:
    """Steps that each contender does in `seconds`, by the fastest of three laps after its first step."""
    laps = dict.fromkeys(names, 1 + 3 * every)
    curves = train(race, dict.fromkeys(names, 1e-3), TUNING_SEED, laps, every)
    fastest = {name: float(np.diff([0.0, *curve.seconds]).min()) for name, curve in curves.items()}
    return {name: 1 + every * max(1, round(seconds / lap_s)) for name, lap_s in fastest.items()}


def measure(parsed: argparse.Namespace) -> list[Table]:
    """Tune, compare, and make the tables."""
    race = prepare(parsed.text, parsed.sizes, parsed.blocks)
    missing = {name: reason for name in parsed.only if (reason := CONTENDERS[name].missing()) is not None}
    names = [REFERENCE, *(name for name in parsed.only if name != REFERENCE and name not in missing)]
    kept = KeptCurves(parsed.keep, race)
    steps = {name: 1 + parsed.every * math.ceil(parsed.steps / parsed.every) for name in names}
    grids = tune(race, names, steps[REFERENCE], parsed.every, parsed.rates, parsed.tuning_seeds, kept)
    rates = {name: CONTENDERS[name].rate(grids) for name in names}
    if parsed.seconds is not None:
        steps = paces(race, names, parsed.seconds, parsed.every)
    curves: dict[str, list[Curve]] = {name: [] for name in names}
    for seed in range(parsed.seeds):
        for name, curve in kept.of(race, rates, seed, steps, parsed.every).items():
            curves[name].append(curve)
            print(f"seed {seed}, {name}: {curve.losses[-1]:.4f} after {curve.steps[-1]} steps", flush=True)
    if parsed.seconds is not None:
        tables = [budget_table(f"{parsed.seconds:g} seconds of training: {race.sizes}", curves, rates, race)]
    else:
        targets = [*parsed.target, max(curve.losses[-1] for curve in curves[REFERENCE])]
        title = f"{steps[REFERENCE]:,} steps: {race.sizes}"
        tables = [comparison(f"To {target:.3f}, {title}", curves, rates, target) for target in targets]
    tables[-1].notes.append(
        f"Reference: {CONTENDERS[REFERENCE].label}. {parsed.seeds} seeds. Ratios of steps and times are over the seeds in "
        "which both reached the target; final losses are over all of them."
    )
    grid = Table("Learning rates tried: final validation loss", ["contender", *(f"{rate:g}" for rate in parsed.rates)])
    for name, losses in grids.items():
        grid.rows.append([CONTENDERS[name].label, *(f"{loss:.3f}" for loss in losses.values())])
    grid.notes += [f"{CONTENDERS[name].label}: not measured ({reason})." for name, reason in missing.items()]
    return [*tables, grid]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write when asked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.time_to_loss", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", metavar="FILE", help="text for the character model; default: the built-in corpus")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seconds", type=float, help="a fixed budget of training time instead of steps")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tuning-seeds", type=int, default=2, help="trainings at each learning rate of the grid")
    parser.add_argument("--every", type=int, default=50, help="steps between two validations")
    parser.add_argument(
        "--target", type=float, nargs="+", default=[], help="validation losses beside the worst final one of the reference"
    )
    parser.add_argument(
        "--model", type=int, nargs=5, metavar=("LAYERS", "WIDTH", "HEADS", "LENGTH", "BATCH"), help="other sizes"
    )
    parser.add_argument("--threads", type=int, help="CPU threads; default: as torch decides")
    parser.add_argument("--blocks", type=int, default=400, help="most validation blocks")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help=f"beside {REFERENCE}")
    parser.add_argument("--quick", action="store_true", help="a toy model for a few steps, to see that everything works")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="store finished trainings in FILE and continue from them")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {RESULTS.name}")
    parsed = parser.parse_args(argv)
    parsed.sizes = TOY if parsed.quick else Sizes(*parsed.model) if parsed.model else CHARACTERS
    if parsed.quick:
        parsed.steps, parsed.every, parsed.seeds, parsed.blocks, parsed.rates = 12, 4, 2, 16, parsed.rates[:2]
        parsed.tuning_seeds = 1
    if parsed.threads is not None:
        import torch

        torch.set_num_threads(parsed.threads)
    given = [Path(part).name if "/" in part else part for part in (sys.argv[1:] if argv is None else argv)]
    machine = facts("cpu")
    assert machine is not None, "the CPU is always there"
    body = "\n\n".join(table.markdown(everything=True) for table in measure(parsed))
    command = " ".join(["python -m benchmarks.time_to_loss", *given])
    body = f"`{command}`, {datetime.date.today().isoformat()}, on {machine['about']}.\n\n{body}"
    print(body)
    if parsed.write:
        write_section(RESULTS, f"Time to a loss{'' if parsed.seconds is None else ': fixed budget'}", body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
