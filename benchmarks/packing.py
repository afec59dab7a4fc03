"""How documents are packed and what a model learns: same model, weights, text and settings, over several seeds.

    python -m benchmarks.packing --text wiki.valid.tokens [--documents articles] [--write]
    python -m benchmarks.packing --text tinyshakespeare.txt --ahead [--write]
    python -m benchmarks.packing --quick

Compared are concatenation and best-fit packing, each packed once or anew in each epoch (`shuffle_documents`), and each with and
without `document_masks`, in one pass and in several epochs over the text. Documents are the paragraphs of the text, or its
articles, which begin at lines such as ` = Title = `; the last tenth of them is for validation. The learning rate falls by a
cosine to a tenth.

Everyone is scored by one function in two ways: on the validation documents concatenated to blocks, and on each of them in a row
of its own. Losses are given after the same number of steps, and after the same number of targets: the smallest that a
contender had in these steps, between two validations by linear interpolation. The p-value is that of a two-sided paired t-test
over the seeds against plain concatenation.

With --ahead it is measured what a target for the last token of a block is worth (T targets from T inputs instead of T - 1): the
hand-written loop of `benchmarks.rivals` on characters, with and without, scored apart on the last position of a full context
and on those before it.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import facts
from benchmarks.report import RESULTS, Table, write_section
from benchmarks.rivals import AHEAD, Race
from benchmarks.rivals import CONTENDERS as LOOPS
from benchmarks.rivals import REFERENCE as PACKED
from benchmarks.time_to_loss import paired_p, prepare
from benchmarks.turns import Turn
from benchmarks.workload import Sizes

SMALL = Sizes(layers=2, width=32, heads=2, length=256, batch=4, vocab=512)
CHARACTERS = Sizes(layers=2, width=48, heads=2, length=64, batch=12)
TOY = Sizes(layers=1, width=16, heads=2, length=32, batch=4, vocab=300)
#: Peak learning rate, and shares of the steps at which everyone is scored.
RATE, SCORED_AT = 3e-3, (0.96, 1.0)
#: Contenders: packing, a new order in each epoch, masks.
CONTENDERS = tuple(itertools.product(("concatenate", "best_fit"), (False, True), (False, True)))
REFERENCE = CONTENDERS[0]


@dataclass
class Curve:
    """Losses of one training (nats a target) on concatenated documents and on documents alone, and targets until then."""

    targets: list[int] = field(default_factory=list)
    losses: list[tuple[float, float]] = field(default_factory=list)

    def at(self, targets: int, which: int) -> float:
        """Loss after `targets` targets, interpolated."""
        return float(np.interp(targets, self.targets, [loss[which] for loss in self.losses]))


@dataclass(frozen=True)
class Scored:
    """Validation rows: ids and labels, (M, T) int64, -100 where nothing is scored."""

    ids: Any
    labels: Any

    def loss(self, model: Any, batch: int = 32) -> float:
        """Mean loss a target, nats, in fp32 and evaluation mode; the model's mode is kept."""
        import torch
        from torch.nn import functional as F

        training, total = model.training, 0.0
        model.eval()
        with torch.no_grad():
            for ids_BT, labels_BT in zip(self.ids.split(batch), self.labels.split(batch), strict=True):
                logits_NV = model(input_ids=ids_BT).logits[:, :-1].flatten(0, 1).float()
                total += float(F.cross_entropy(logits_NV, labels_BT[:, 1:].flatten(), reduction="sum"))
        model.train(training)
        return total / int((self.labels[:, 1:] != -100).sum())


def documents_of(text: str, kind: str) -> list[str]:
    """The paragraphs of a text without headings, or its articles."""
    if kind == "paragraphs":
        lines = [line.strip() for line in text.split("\n")]
        return [line for line in lines if line and not line.startswith("=")]
    return [part for part in re.split(r"(?m)^(?= = [^=]+ = $)", text) if part.strip()]


def scored_on(documents: Sequence[str], tokenizer: Any, length: int, most_rows: int) -> tuple[Scored, Scored]:
    """Validation documents as concatenated blocks, and each in a row of its own, without what is beyond a row."""
    import torch

    from utils.data import pack

    encoded = tokenizer(list(documents), add_special_tokens=False)["input_ids"]
    blocks = torch.from_numpy(pack(encoded, length, tokenizer.eos_token_id)[:most_rows].astype(np.int64))
    alone = torch.full((min(most_rows, len(encoded)), length), -100)
    for row, ids in zip(alone, encoded, strict=False):
        whole = [*ids, tokenizer.eos_token_id][:length]
        row[: len(whole)] = torch.tensor(whole)
    return Scored(blocks, blocks), Scored(alone.clamp(min=0), alone)


def train(sizes: Sizes, data: Any, scored: tuple[Scored, Scored], steps: int, seed: int) -> Curve:
    """Train one model for `steps` steps, and score it in the course of the last ones."""
    from utils.training import Callback, Trainer, TrainingConfig

    due, curve = {max(1, round(share * steps)) for share in SCORED_AT}, Curve()

    class Scores(Callback):
        def on_step_end(self, step: int, trainer: Any, logs: dict[str, Any] | None = None) -> None:
            if trainer.state.step in due:
                curve.targets.append(int(trainer.state.targets_done))
                curve.losses.append((scored[0].loss(trainer.model), scored[1].loss(trainer.model)))

    with tempfile.TemporaryDirectory() as folder:
        config = TrainingConfig(
            epochs=1000, max_steps=steps, batch_size=sizes.batch, learning_rate=RATE, warmup_steps=min(50, steps // 4),
            precision="32", random_seed=seed, output_dir=folder, save_every_n_epochs=1000, early_stopping_patience=None,
        )  # fmt: skip
        trainer = Trainer(
            sizes.model(seed), training_config=config, task_spec=data.task_spec, tokenizer=data.tokenizer, callbacks=[Scores()]
        )
        trainer.train(data.train)
    return curve


def measure(parsed: argparse.Namespace) -> list[Table]:
    """Train all contenders and make the tables."""
    from utils.data import builtin_corpus, prepare_text, read_text_file

    sizes = parsed.sizes
    text = "\n".join(builtin_corpus()) if parsed.text is None else read_text_file(parsed.text).text
    documents = documents_of(text[: parsed.characters], parsed.documents)
    kept = round(len(documents) * 0.9)
    prepared: dict[tuple[str, bool, bool], Any] = {}
    tokenizer = None
    for packing, shuffle, masks in CONTENDERS:
        prepared[packing, shuffle, masks] = data = prepare_text(
            documents[:kept], vocab_size=sizes.vocab, block_size=sizes.length, tokenizer=tokenizer, tokenizer_strategy="bpe",
            val_split=0, packing=packing, shuffle_documents=shuffle, document_masks=masks,
        )  # fmt: skip
        tokenizer = data.tokenizer
    scored = scored_on(documents[kept:], tokenizer, sizes.length, parsed.rows)
    once = len(prepared[REFERENCE].train) // sizes.batch
    tables = []
    for epochs in (1, parsed.epochs):
        steps = once * epochs
        curves: dict[tuple[str, bool, bool], list[Curve]] = {contender: [] for contender in CONTENDERS}
        for seed, contender in itertools.product(range(parsed.seeds), CONTENDERS):
            curve = train(sizes, prepared[contender], scored, steps, seed)
            curves[contender].append(curve)
            print(f"{epochs} epochs, seed {seed}, {contender}: {curve.targets[-1]:,} targets, {curve.losses[-1]}", flush=True)
        tables.append(_table(f"{epochs} epoch{'s' * (epochs > 1)}, {steps:,} steps: {sizes}", curves, prepared))
    tokens = len(prepared[REFERENCE].train.ids)
    tables[-1].notes.append(
        f"{kept:,} {parsed.documents} of {tokens:,} tokens for training; {parsed.seeds} seeds, mean and standard deviation."
    )
    return tables


def _table(title: str, curves: dict[tuple[str, bool, bool], list[Curve]], prepared: dict[tuple[str, bool, bool], Any]) -> Table:
    columns = ["packing", "new in each epoch", "masks", "padding", "concatenated, same steps", "p", "same targets"]
    table = Table(title, [*columns, "alone, same steps", "p", "same targets"])
    least = min(curve.targets[-1] for runs in curves.values() for curve in runs)
    for contender, runs in curves.items():
        packing, shuffle, masks = contender
        train = prepared[contender].train
        cells = [packing, "yes" if shuffle else "", "yes" if masks else ""]
        cells.append(f"{train.num_padding / (len(train) * train.block_size):.2%}")
        for which in (0, 1):
            finals = [run.losses[-1][which] for run in runs]
            p = paired_p(finals, [run.losses[-1][which] for run in curves[REFERENCE]])
            same = [run.at(least, which) for run in runs]
            cells += [_spread(finals), "—" if p is None else f"{p:.1g}", f"{statistics.mean(same):.3f}"]
        table.rows.append(cells)
    return table


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.3f}"


class _Steps(Turn):
    """Lets a loop do so many steps, untimed."""

    def __init__(self, steps: int) -> None:
        super().__init__(steps, wants_loss=False, synchronize=lambda: None)
        self._left = steps

    def done(self, useful: int, loss: Any = None) -> bool:
        self._left -= 1
        return self._left > 0


def losses_of(model: Any, race: Race) -> tuple[float, float]:
    """Mean validation loss at all positions of a full context but the last, and at the last one: nats a target."""
    import torch
    from torch.nn import functional as F

    length = race.sizes.length
    ids_N: Any = torch.from_numpy(race.validation.reshape(-1).astype(np.int64))
    rows_MT = ids_N[: (len(ids_N) - 1) // length * length + 1].unfold(0, length + 1, length)
    model.eval()
    with torch.no_grad():
        logits_MTV = torch.cat([model(input_ids=rows[:, :-1]).logits.float() for rows in rows_MT.split(64)])
    losses_MT: Any = F.cross_entropy(logits_MTV.transpose(1, 2), rows_MT[:, 1:], reduction="none")
    return float(losses_MT[:, :-1].mean()), float(losses_MT[:, -1].mean())


def measure_ahead(parsed: argparse.Namespace) -> list[Table]:
    """Train the hand-written loop with T - 1 and with T targets a block."""
    race = prepare(parsed.text, parsed.sizes, parsed.rows)
    losses: dict[str, list[tuple[float, float]]] = {PACKED: [], AHEAD: []}
    for seed, name in itertools.product(range(parsed.seeds), losses):
        model = race.sizes.model(seed)
        LOOPS[name].run(race, model, RATE, seed, parsed.steps, _Steps(parsed.steps))
        losses[name].append(losses_of(model, race))
        print(f"seed {seed}, {name}: {losses[name][-1]}", flush=True)
    columns = ["targets a block", "positions before the last", "p", "last position", "p"]
    table = Table(f"{parsed.steps:,} steps: {race.sizes}", columns)
    for name, targets in ((PACKED, "T - 1"), (AHEAD, "T")):
        cells = [targets]
        for which in (0, 1):
            values = [pair[which] for pair in losses[name]]
            p = paired_p(values, [pair[which] for pair in losses[PACKED]])
            cells += [_spread(values), "—" if p is None else f"{p:.1g}"]
        table.rows.append(cells)
    return [table]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write when asked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.packing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", metavar="FILE", help="text with a paragraph a line; default: the built-in corpus")
    parser.add_argument("--characters", type=int, default=200_000, help="characters of the text that are used")
    parser.add_argument("--documents", choices=("paragraphs", "articles"), default="paragraphs")
    parser.add_argument("--epochs", type=int, default=4, help="of the second table")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, help="most validation rows of each kind; default: 48, or 400 with --ahead")
    parser.add_argument("--ahead", action="store_true", help="measure T targets from T inputs instead")
    parser.add_argument("--steps", type=int, default=600, help="with --ahead")
    parser.add_argument("--quick", action="store_true", help="a toy model for a few steps, to see that everything works")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {RESULTS.name}")
    parsed = parser.parse_args(argv)
    parsed.rows = parsed.rows or (400 if parsed.ahead else 48)
    parsed.sizes = TOY if parsed.quick else CHARACTERS if parsed.ahead else SMALL
    if parsed.quick:
        parsed.seeds, parsed.epochs, parsed.rows, parsed.characters = 1, 2, 8, 6_000
        parsed.steps = 8
    given = [Path(part).name if "/" in part else part for part in (sys.argv[1:] if argv is None else argv)]
    machine = facts("cpu")
    assert machine is not None, "the CPU is always there"
    body = "\n\n".join(table.markdown(everything=True) for table in (measure_ahead if parsed.ahead else measure)(parsed))
    command = " ".join(["python -m benchmarks.packing", *given])
    body = f"`{command}`, {datetime.date.today().isoformat()}, on {machine['about']}.\n\n{body}"
    print(body)
    if parsed.write:
        heading = "T targets from T inputs" if parsed.ahead else f"Packing of documents: {parsed.documents}"
        write_section(RESULTS, heading, body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
