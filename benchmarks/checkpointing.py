"""What a checkpoint costs a training: written while training continues, and written while it waits, in turn.

    python -m benchmarks.checkpointing                                20 million parameters, 9 rounds
    python -m benchmarks.checkpointing --parameters 50 --rounds 15
    python -m benchmarks.checkpointing --parameters 0.02 --rounds 30   a toy: where a thread does not pay

Each round saves the same training once each way, with quiet steps between, and writes the same content once with a bare
`torch.save` and fsync. Printed are medians over the rounds of ratios within a round, and their quartiles:

- `blocked`: how much later the next step begins because of the save, as a share of the bare torch.save. The first round's is
  printed apart: it allocates the memory for the copy.
- `slower`: a step while the checkpoint is being written over a quiet step.
- `lost`: what the save adds to all steps until it is committed, as a share of the bare torch.save.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from utils.training import Callback, Trainer, TrainingConfig
from utils.training.engine.checkpointing import saver as saving

QUIET_STEPS = 8
WAYS = {"waiting": 1 << 62, "overlapping": 0}  # the smallest checkpoint that is written by a thread, in bytes


class LanguageModel(nn.Module):
    """Layers of width 1024, one for each million of parameters asked for; one narrow layer for less than a million."""

    def __init__(self, millions: float) -> None:
        super().__init__()
        width = 1024 if millions >= 1 else max(8, int((millions * 1e6) ** 0.5))
        self.embedding, self.head = nn.Embedding(64, width), nn.Linear(width, 64)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(max(1, int(millions))))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        return self.head(hidden)


class Rounds(Callback):
    """Asks for a save each way in turn and times the steps; `measured` has one dict of seconds a round."""

    def __init__(self, rounds: int) -> None:
        self.rounds, self.measured = rounds, []
        self._quiet: list[float] = []
        self._quiet_gaps: list[float] = []
        self._blocked: float | None = None
        self._since: list[float] | None = None
        self._found: dict[str, Any] = {}
        self._ways = iter(WAYS)
        self._way = ""
        self._at = self._gap = 0.0
        self._saved = False

    def on_checkpoint_saved(self, path: Path, trainer: Any, logs: Any = None) -> None:
        self._saved = True

    def on_batch_begin(self, batch_idx: int, trainer: Any, logs: Any = None) -> None:
        self._gap = time.perf_counter() - self._at
        if self._since is not None and self._blocked is None:
            self._blocked = self._gap

    def on_step_end(self, step: int, trainer: Any, logs: Any = None) -> None:
        seconds = time.perf_counter() - self._at
        if self._since is not None:
            self._since.append(seconds)
            if self._saved:
                self._note(self._since)
                self._since = None
        elif step > 1:
            self._quiet.append(seconds)
            self._quiet_gaps.append(self._gap)
        if self._since is None and len(self._quiet) >= QUIET_STEPS:
            self._begin(trainer)
        self._at = time.perf_counter()

    def _begin(self, trainer: Any) -> None:
        self._way = next(self._ways, "")
        if not self._way:
            self._ways = iter(WAYS)
            self._found["torch.save"] = _bare_save(trainer)
            self.measured.append(self._found)
            self._found, self._quiet = {}, []
            if len(self.measured) == self.rounds:
                trainer.request_stop("measured")
            return
        saving.SMALLEST_IN_BACKGROUND_BYTES = WAYS[self._way]
        self._since, self._saved, self._blocked = [], False, None
        trainer.control.save_now.set()

    def _note(self, steps: list[float]) -> None:
        quiet = statistics.median(self._quiet)
        assert self._blocked is not None
        self._found[self._way] = {
            "quiet": quiet,
            "blocked": self._blocked - statistics.median(self._quiet_gaps),
            "slower": statistics.median(steps[1:] or steps) / quiet,
            "lost": sum(steps) - len(steps) * quiet,
            "steps": len(steps),
        }
        self._quiet = []


def _bare_save(trainer: Any) -> float:
    """Seconds that torch.save of weights and optimizer takes, with fsync; nothing is verified."""
    path = trainer.run_dir / "bare.bin"
    began = time.perf_counter()
    with open(path, "wb") as file:
        torch.save({"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict()}, file)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds


def measure(millions: float, rounds: int, tokens: int) -> list[dict[str, Any]]:
    """Train until all rounds are measured."""
    data = TensorDataset(torch.randint(0, 64, (100_000, tokens)))
    watch = Rounds(rounds)
    with tempfile.TemporaryDirectory() as folder:
        config = TrainingConfig(epochs=1, batch_size=1, learning_rate=1e-4, precision="32", output_dir=folder)
        Trainer(LanguageModel(millions), training_config=config, callbacks=[watch]).train(data)
    return watch.measured


def _spread(values: list[float]) -> str:
    quarter, middle, three_quarters = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({quarter:.2f} to {three_quarters:.2f})"


def main() -> int:
    """Print the figures; exit status 1 when overlapping loses more of the training's time than waiting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=20.0, help="of the model, in millions")
    parser.add_argument("--rounds", type=int, default=9, help="at least 3")
    parser.add_argument("--tokens", type=int, default=32, help="a step")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    first, *rounds = measure(arguments.parameters, max(3, arguments.rounds) + 1, arguments.tokens)
    quiet = statistics.median(found["waiting"]["quiet"] for found in rounds)
    bare = statistics.median(found["torch.save"] for found in rounds)
    print(f"quiet step {1000 * quiet:.1f} ms, bare torch.save {1000 * bare:.0f} ms; {len(rounds)} rounds")
    print(f"first     overlapping blocked {first['overlapping']['blocked'] / first['torch.save']:.2f}")
    for way in WAYS:
        found = [(one[way], one["torch.save"]) for one in rounds]
        print(
            f"{way:12}blocked {_spread([one['blocked'] / bare for one, bare in found])}   "
            f"slower {_spread([one['slower'] for one, _ in found])}   "
            f"lost {_spread([one['lost'] / bare for one, bare in found])}   "
            f"steps until committed {statistics.median(one['steps'] for one, _ in found):g}"
        )
    lost = {way: statistics.median(one[way]["lost"] / one["torch.save"] for one in rounds) for way in WAYS}
    return int(lost["overlapping"] > lost["waiting"])


if __name__ == "__main__":
    sys.exit(main())
