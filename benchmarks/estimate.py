"""The wizard's estimate against the training that it speaks of: `python -m benchmarks.estimate`. Prints a Markdown table.

For each of ten settings one process makes the estimate, and another one trains to the end. What the libraries take once in
a process, for their own kernels, is loaded in both before memory is measured. `--clock cpu` compares the time of the
processor instead of the wall's, with one thread: for a machine on which other programs run too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

# name -> the model's arguments, and what differs from the preset "starter"
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "starter, 4.2 M parameters": (
        {"vocab_size": 4096, "max_seq_len": 128},
        {"epochs": 2, "max_train_samples": 320, "max_val_samples": 32},
    ),
    "23 M parameters, accumulation of 2": (
        {"vocab_size": 8192, "max_seq_len": 256, "n_layer": 6, "n_embd": 512, "n_head": 8},
        {
            "batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 24, "max_length": 256, "eval_every": 12,
            "max_val_samples": 24,
        },
    ),
    "0.8 M parameters, characters, validation every 40 steps": (
        {"vocab_size": 256, "max_seq_len": 128, "n_layer": 4, "n_embd": 128, "n_head": 4},
        {
            "batch_size": 16, "tokenizer_strategy": "character", "max_length": 128, "max_steps": 120, "eval_every": 40,
            "max_val_samples": 96,
        },
    ),
    "length 512, gradient checkpointing": (
        {"vocab_size": 4096, "max_seq_len": 512, "n_layer": 4, "n_embd": 256, "n_head": 4},
        {
            "batch_size": 4, "max_length": 512, "gradient_checkpointing": True, "epochs": 3, "max_train_samples": 48,
            "max_val_samples": 8,
        },
    ),
    "Muon, fp32": (
        {"vocab_size": 4096, "max_seq_len": 128},
        {"optimizer": "muon", "precision": "32", "epochs": 2, "max_train_samples": 320, "max_val_samples": 32},
    ),
    "averaged weights, validation every 20 steps": (
        {"vocab_size": 2048, "max_seq_len": 128, "n_layer": 2, "n_embd": 256, "n_head": 4},
        {"weight_averaging": "ema", "max_steps": 120, "eval_every": 20, "max_val_samples": 64},
    ),
    "vocabulary of 32,768, batches of 2": (
        {"vocab_size": 32_768, "max_seq_len": 128, "n_layer": 2, "n_embd": 256, "n_head": 4},
        {"batch_size": 2, "max_steps": 120, "max_val_samples": 32},
    ),
    "six short epochs, a checkpoint after each": (
        {"vocab_size": 4096, "max_seq_len": 128, "n_layer": 4, "n_embd": 256, "n_head": 4},
        {"epochs": 6, "max_train_samples": 120, "max_val_samples": 32},
    ),
    "batches of 64 short blocks": (
        {"vocab_size": 1024, "max_seq_len": 32, "n_layer": 3, "n_embd": 192, "n_head": 4},
        {"batch_size": 64, "max_length": 32, "max_steps": 120, "max_val_samples": 256},
    ),
    "deep and narrow, SGD, dropout": (
        {"vocab_size": 1024, "max_seq_len": 128, "n_layer": 12, "n_embd": 96, "n_head": 4, "dropout": 0.1},
        {"optimizer": "sgd", "learning_rate": 0.1, "max_steps": 80, "max_val_samples": 48},
    ),
}  # fmt: skip
_MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--only", type=int, help="number of one setting, from 0")
    parser.add_argument("--child", choices=("estimate", "train"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_child(options.child, list(SETTINGS)[options.only], options.clock)))
        return
    print("| setting | time | estimate | off by | memory | estimate | off by |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for number, name in enumerate(SETTINGS):
        if options.only in (None, number):
            seen, truth = (_started(kind, number, options.clock) for kind in ("estimate", "train"))
            print(
                f"| {name} | {_compared(truth, seen, 'seconds', 's')} | {_compared(truth, seen, 'mib', 'MiB')} |",
                flush=True,
            )


def _compared(truth: dict[str, float], seen: dict[str, float], key: str, unit: str) -> str:
    off = seen[key] / truth[key] - 1
    return f"{truth[key]:,.0f} {unit} | {seen[key]:,.0f} {unit} | {off:+.0%}"


def _started(kind: str, number: int, clock: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.estimate", "--child", kind, "--only", str(number), "--clock", clock]
    threads = {"OMP_NUM_THREADS": "1"} if clock == "cpu" else {}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env={**os.environ, **threads})
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _child(kind: str, name: str, clock_name: str) -> dict[str, float]:
    """Estimate or train one setting in a folder of its own."""
    from utils.checks import test_gradient_flow
    from utils.data import prepare_data
    from utils.models import ModelRegistry
    from utils.training import Trainer
    from utils.training.engine.callbacks import Callback
    from utils.training.peak_memory import PeakMemory
    from utils.ui import SetupWizard
    from utils.ui.estimate import estimate_training

    clock = time.process_time if clock_name == "cpu" else time.perf_counter
    arguments, changes = SETTINGS[name]
    model = ModelRegistry.create("gpt-small", **arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        setup = SetupWizard().run(
            model, interactive=False, preset="starter", vocab_size=arguments["vocab_size"], **changes
        )
        if kind == "estimate":
            estimate = estimate_training(setup, model, clock=clock)
            return {"seconds": estimate.total_s, "mib": (estimate.memory_bytes or 0) / _MIB}
        data = prepare_data(setup, model)
        test_gradient_flow(model, setup)  # loads the libraries' kernels
        peak: list[PeakMemory] = []

        class Begin(Callback):
            def on_train_begin(self, trainer: Any, logs: Any = None) -> None:
                peak.append(PeakMemory(trainer.parts.device.kind))

        trainer = Trainer(
            model, training_config=setup.training_config, task_spec=data.task_spec, tokenizer=data.tokenizer,
            callbacks=[Begin()],
        )  # fmt: skip
        began = clock()
        trainer.train(data.train, data.validation)
        seconds = clock() - began
        held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        return {"seconds": seconds, "mib": (held + (peak[0].grown_bytes() or 0)) / _MIB}


if __name__ == "__main__":
    main()
