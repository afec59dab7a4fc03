"""How the starter preset should train: optimizer, learning rate and epochs, on its own model and corpus, over several seeds.

    python -m benchmarks.starter [--seeds 3] [--keep FILE] [--write]
    python -m benchmarks.starter --quick

Every contender trains the notebook's model (`ModelRegistry.create("gpt-small", vocab_size=4096, max_seq_len=128)`) on the
preset's data with the preset's other settings, in fp32, and differs in what its row says. The first contender is the reference.
A seed gives the initial weights and the order of the data, so that contenders are compared seed by seed: the p-value is that of
a two-sided paired t-test. The loss is that of the engine's last validation.
Times are processor time of the whole process, which other programs disturb less than they do the clock; a step's is the median
over the steps.

Averages of the weights, kept beside them in each training, are validated at its end: exponential ones, whose first steps keep
less as in `weight_averaging="ema"`, and means of the last steps.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kept import Kept
from benchmarks.machine import facts
from benchmarks.packing import Scored
from benchmarks.report import RESULTS, Table, write_section
from benchmarks.time_to_loss import paired_p

#: Name -> settings that differ from the preset's. The first one is the reference.
CONTENDERS: dict[str, dict[str, Any]] = {
    "AdamW, 0.001, 8 epochs": {"optimizer": "adamw", "learning_rate": 1e-3, "epochs": 8},
    "Muon, 0.003, 4 epochs": {"optimizer": "muon", "learning_rate": 3e-3, "epochs": 4},
    "AdamW, 0.003, 4 epochs": {"optimizer": "adamw", "learning_rate": 3e-3, "epochs": 4},
    "AdamW, 0.003, 8 epochs": {"optimizer": "adamw", "learning_rate": 3e-3, "epochs": 8},
    "Muon, 0.001, 4 epochs": {"optimizer": "muon", "learning_rate": 1e-3, "epochs": 4},
    "Muon, 0.006, 4 epochs": {"optimizer": "muon", "learning_rate": 6e-3, "epochs": 4},
}
#: Averages: decays of exponential ones, and the shares of the last steps whose mean is taken.
EMA_DECAYS, TAIL_SHARES = (0.98, 0.99), (0.1, 0.2)


def train(settings: dict[str, Any], seed: int, quick: bool) -> dict[str, Any]:
    """Train once.

    Returns:
        `loss`: of the last validation, nats a token; `averaged`: name of an average -> loss with it; `step_s`, `run_s`:
        processor time of a step and of the training with its validations, in seconds; `steps`: done.
    """
    import torch

    from utils.data import prepare_data
    from utils.models import ModelRegistry
    from utils.training import Callback, Trainer
    from utils.ui import SetupWizard

    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2} if quick else {}
    limits = {"max_steps": 4, "max_train_samples": 64, "max_val_samples": 16} if quick else {}
    model = ModelRegistry.create("gpt-small", vocab_size=4096, max_seq_len=128, seed=seed, **sizes)

    class Watch(Callback):
        """Times the steps and keeps the averages, whose time does not count."""

        def __init__(self) -> None:
            self.times: list[float] = []
            self.averages: dict[str, list[torch.Tensor]] = {}
            self.spent_s = self._began = 0.0

        def on_batch_begin(self, batch_idx: int, trainer: Any, logs: dict[str, Any] | None = None) -> None:
            self._began = time.process_time()

        def on_step_end(self, step: int, trainer: Any, logs: dict[str, Any] | None = None) -> None:
            ended = time.process_time()
            self.times.append(ended - self._began)
            done, weights = len(self.times), [parameter.detach() for parameter in model.parameters()]
            shares = {f"EMA, {decay:g}": 1 - min(decay, done / (9 + done)) for decay in EMA_DECAYS}
            for share in TAIL_SHARES:
                first = total_steps - round(share * total_steps)
                if done > first:
                    shares[f"last {share:.0%}"] = 1 / (done - first)
            for name, new in shares.items():
                mean = self.averages.setdefault(name, [weight.clone() for weight in weights])
                torch._foreach_lerp_(mean, weights, new)
            self.spent_s += time.process_time() - ended

    with tempfile.TemporaryDirectory() as folder:
        setup = SetupWizard().run(
            model=model, preset="starter", interactive=False, random_seed=seed, precision="32", output_dir=folder,
            **settings, **limits,
        )  # fmt: skip
        data = prepare_data(setup, model)
        total_steps = limits.get("max_steps") or -(-len(data.train) // setup.batch_size) * setup.epochs
        watch, began = Watch(), time.process_time()
        trainer = Trainer(
            model,
            training_config=setup.training_config,
            task_spec=data.task_spec,
            tokenizer=data.tokenizer,
            callbacks=[watch],
        )
        results = trainer.train(data.train, data.validation)
        run_s = time.process_time() - began - watch.spent_s
        assert len(watch.times) == total_steps == results.steps
        loss = results.evaluate_rows[-1]["val/loss"]
    blocks = torch.from_numpy(np.asarray(data.validation.blocks)[: limits.get("max_val_samples")].astype(np.int64))
    scored, averaged = Scored(blocks, blocks), {}
    with torch.no_grad():
        for name, mean in watch.averages.items():
            torch._foreach_copy_(list(model.parameters()), mean)
            averaged[name] = scored.loss(model)
    return {
        "loss": loss, "averaged": averaged, "step_s": statistics.median(watch.times), "run_s": run_s, "steps": total_steps
    }  # fmt: skip


def tables(runs: dict[str, list[dict[str, Any]]]) -> list[Table]:
    """Contenders against the first one, and what averages change.

    Args:
        runs: contender -> what `train` returned for each seed, the same seeds for all.
    """
    first, *_ = runs
    base = [run["loss"] for run in runs[first]]
    compared = Table(
        "Contenders",
        ["contender", "steps", "final loss", "difference", "p", "processor time: a step", "the whole training"],
    )
    for name, found in runs.items():
        losses = [run["loss"] for run in found]
        pairs = list(zip(found, runs[first], strict=False))
        steps, whole = (statistics.median(a[key] / b[key] for a, b in pairs) for key in ("step_s", "run_s"))
        compared.rows.append([
            name, f"{found[0]['steps']:,}", ", ".join(f"{loss:.3f}" for loss in losses),
            "" if name == first else f"{statistics.mean(a - b for a, b in zip(losses, base, strict=False)):+.3f}",
            _p(losses, base[: len(losses)]), f"{steps:.2f}", f"{whole:.2f}",
        ])  # fmt: skip
    title = "Averages of the weights: loss minus that of the trained weights"
    averages = Table(title, ["contender", "average", "difference", "p"])
    for name, found in runs.items():
        for average in found[0]["averaged"]:
            losses, others = [run["averaged"][average] for run in found], [run["loss"] for run in found]
            difference = ", ".join(f"{a - b:+.4f}" for a, b in zip(losses, others, strict=True))
            averages.rows.append([name, average, difference, _p(losses, others)])
    return [compared, averages]


def _p(values: Sequence[float], others: Sequence[float]) -> str:
    found = paired_p(values, others)
    return "—" if found is None else f"{found:.1g}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write when asked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.starter", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), help="the first is the reference"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--quick", action="store_true", help="a toy model for four steps, to see that everything works")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="store finished trainings in FILE and continue from them"
    )
    parser.add_argument("--write", action="store_true", help=f"put the tables into {RESULTS.name}")
    parsed = parser.parse_args(argv)
    import torch

    torch.set_num_threads(parsed.threads)
    kept, runs = Kept(parsed.keep), {name: [] for name in parsed.only}
    for seed in range(parsed.first_seed, parsed.first_seed + (2 if parsed.quick else parsed.seeds)):
        for name in parsed.only:
            settings = CONTENDERS[name]
            found = kept.of([settings, seed, parsed.quick], lambda given=(settings, seed): train(*given, parsed.quick))
            runs[name].append(found)
            print(f"seed {seed}, {name}: {found}", flush=True)
    machine = facts("cpu")
    assert machine is not None, "the CPU is always there"
    given = [Path(part).name if "/" in part else part for part in (sys.argv[1:] if argv is None else argv)]
    body = "\n\n".join(table.markdown(everything=True) for table in tables(runs))
    command = " ".join(["python -m benchmarks.starter", *given])
    body = f"`{command}`, {datetime.date.today().isoformat()}, on {machine['about']}.\n\n{body}"
    print(body)
    if parsed.write:
        write_section(RESULTS, "The starter preset: optimizer, rate and epochs", body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
