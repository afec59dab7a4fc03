"""Which optimizer reaches a loss in how many steps: same model, text and target, learning rates tried over a grid.

    python -m benchmarks.optimizers --text tinyshakespeare.txt [--steps 2000] [--seeds 1] [--write]

The model and the batches are nanoGPT's small CPU settings on characters (its README: 4 layers, 4 heads, width 128, block 64,
batch 12, 2,000 steps, no dropout; validation loss 1.88 there), which all contenders train in fp32. The last tenth of the text
is for validation. Steps are those to the first validation (every 50 steps) at or below the target. The learning rate of a
contender is the best of its grid by the final loss with the first seed; the other seeds take that rate. The time of a step is
the median as a multiple of the first contender's, measured in this run, one after the other.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import facts
from benchmarks.report import RESULTS, Table, write_section

TARGET = 1.88
EVERY = 50

#: Name -> the settings that differ. The first one is the reference.
CONTENDERS: dict[str, dict[str, Any]] = {
    "AdamW, cosine": {"optimizer": "adamw", "lr_schedule": "cosine"},
    "Muon, cosine": {"optimizer": "muon", "lr_schedule": "cosine"},
    "Muon, wsd": {"optimizer": "muon", "lr_schedule": "wsd"},
    "Adafactor, cosine": {"optimizer": "adafactor", "lr_schedule": "cosine"},
}
RATES = (1e-3, 3e-3, 6e-3)
#: Grids of contenders whose rates are on another scale. Adafactor's are relative to the size of the weights.
RATES_OF = {"Adafactor, cosine": (1e-2, 3e-2, 1e-1)}


@dataclass(frozen=True)
class Outcome:
    """What one training reached.

    Attributes:
        rate: peak learning rate.
        loss: validation loss after the last step, in nats per character.
        steps: optimizer steps to the first validation at or below `TARGET`; None: not reached.
        tokens_per_s: median over the steps.
    """

    rate: float
    loss: float
    steps: int | None
    tokens_per_s: float


def measure(text: str, settings: dict[str, Any], rate: float, steps: int, seed: int, folder: str) -> Outcome:
    """Train once."""
    from utils.data import prepare_text, read_text_file
    from utils.models import ModelRegistry
    from utils.tokenization import SPECIAL_TOKENS
    from utils.training import Trainer, TrainingConfig

    content = read_text_file(text).text
    size = len(set(content)) + len(SPECIAL_TOKENS)
    data = prepare_text([content], vocab_size=size, block_size=64, tokenizer_strategy="character", val_split=0.1)
    model = ModelRegistry.create(
        "gpt-small", vocab_size=size, max_seq_len=64, n_layer=4, n_embd=128, n_head=4, dropout=0.0, seed=seed
    )
    config = TrainingConfig(
        epochs=1000, max_steps=steps, batch_size=12, learning_rate=rate, warmup_steps=min(100, steps // 4), betas=(0.9, 0.99),
        weight_decay=0.1, random_seed=seed, eval_every=EVERY, max_val_samples=400, precision="32", output_dir=folder,
        min_lr_ratio=0.0, **settings,
    )  # fmt: skip
    results = Trainer(model, training_config=config, task_spec=data.task_spec, tokenizer=data.tokenizer).train(
        data.train, data.validation
    )
    validations = [(row["step"], row["val/loss"]) for row in results.evaluate_rows]
    reached = next((step for step, loss in validations if loss <= TARGET), None)
    speed = statistics.median(row["time/tokens_per_s"] for row in results.step_rows())
    return Outcome(rate, validations[-1][1], reached, speed)


def compare(parsed: argparse.Namespace) -> Table:
    """The table, one row per contender."""
    table = Table(
        f"Steps to a validation loss of {TARGET}, {parsed.steps:,} steps in all",
        ["contender", "best learning rate", "losses over the grid", "final loss", "steps to the target", "time per step"],
    )
    reference: float | None = None
    for name in parsed.only:
        tried = [_one(parsed, name, rate, parsed.first_seed) for rate in RATES_OF.get(name, RATES)]
        best = min(tried, key=lambda one: one.loss)
        seeds = range(parsed.first_seed + 1, parsed.first_seed + parsed.seeds)
        runs = [best, *(_one(parsed, name, best.rate, seed) for seed in seeds)]
        speed = statistics.median(one.tokens_per_s for one in runs)
        reference = reference or speed
        table.rows.append(
            [
                name, f"{best.rate:g}", ", ".join(f"{one.rate:g}: {one.loss:.3f}" for one in tried),
                ", ".join(f"{one.loss:.3f}" for one in runs),
                ", ".join("not reached" if one.steps is None else f"{one.steps:,}" for one in runs),
                f"{reference / speed:.2f}",
            ]
        )  # fmt: skip
    return table


def _one(parsed: argparse.Namespace, name: str, rate: float, seed: int) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        found = measure(parsed.text, CONTENDERS[name], rate, parsed.steps, seed, folder)
    print(f"{name}, {rate:g}, seed {seed}: {found}", flush=True)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write when asked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.optimizers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", metavar="FILE", required=True, help="text for the character model")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=1, help="trainings at the best learning rate")
    parser.add_argument("--first-seed", type=int, default=1337)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--write", action="store_true", help=f"put the table into {RESULTS.name}")
    parsed = parser.parse_args(argv)
    given = [Path(part).name if "/" in part else part for part in (sys.argv[1:] if argv is None else argv)]
    machine = facts("cpu")
    assert machine is not None, "the CPU is always there"
    command = " ".join(["python -m benchmarks.optimizers", *given])
    table = compare(parsed).markdown(everything=True)
    body = f"`{command}`, {datetime.date.today().isoformat()}, on {machine['about']}.\n\n{table}"
    print(body)
    if parsed.write:
        write_section(RESULTS, "Optimizers: steps to a loss", body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
