"""What the live view costs a training: the same run with and without it, in a notebook's kernel, in turn.

    python -m benchmarks.live_view                       50 ms steps, 5 repetitions
    python -m benchmarks.live_view --step-ms 20 --repetitions 9

Two figures, both as a share of the step's time:

- `work`: processor time that the view takes from the run. The main thread's whole processor time from the first step's
  end to the last one's (taking events, drawing, sending, letting clicks through) plus what the callback costs in the
  training's thread. It can delay the training by at most this, and does not depend on what else the machine does. What
  it takes before the first step and after the last one is printed beside it, in milliseconds.
- `wall`: median time a step with the view over median time a step without, the repetitions interleaved. Noisy on a shared
  machine; the spread of the repetitions is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from utils.training.engine.callbacks import Callback

ROOT = Path(__file__).resolve().parent.parent

#: What the benchmark must show.
LIMIT = 0.01


async def measure(step_ms: float, repetitions: int, steps: int) -> dict[str, Any]:
    """In the kernel: run the training `repetitions` times each way and return the figures."""
    import asyncio
    import tempfile

    import torch
    from torch.utils.data import TensorDataset

    from utils.ui.live_run import LiveFeed
    from widgets.live import train_live

    torch.set_num_threads(1)
    folder = tempfile.mkdtemp()
    data = SimpleNamespace(train=TensorDataset(torch.randint(0, 64, (steps * 2, 32))), validation=None)
    rounds = _calibrated(step_ms)
    plain, live, work, outside = [], [], [], []
    for number in range(repetitions):
        for way in (plain, live) if number % 2 else (live, plain):
            trainer = _trainer(rounds, folder)
            if way is plain:
                await asyncio.to_thread(trainer.train, data.train)
            else:
                clock = MainClock()
                trainer.callbacks.append(clock)
                main_before = time.thread_time()
                await train_live(trainer, data, ui="widget", resume_from=None)
                main_s = time.thread_time() - main_before
            # The loop's own clock: what the view does before the first and after the last step delays no step.
            way.append(trainer.state.elapsed_s / trainer.state.step)
            if way is live:
                work.append((clock.main_s + _feed_s(LiveFeed, trainer, steps)) / clock.seconds)
                outside.append(main_s - clock.main_s)
    return {
        "steps": steps,
        "step_ms": 1000 * statistics.median(plain),
        "work": statistics.median(work),
        "outside_ms": 1000 * statistics.median(outside),
        "wall": statistics.median(live) / statistics.median(plain) - 1,
        "wall_spread": (max(plain) - min(plain)) / statistics.median(plain),
    }


class MainClock(Callback):
    """Time and the main thread's processor time from the first step's end to the last one's."""

    def __init__(self) -> None:
        self._clock = time.pthread_getcpuclockid(threading.main_thread().ident)
        self._began: tuple[float, float] | None = None
        self.seconds = self.main_s = 0.0

    def on_step_end(self, step: int, trainer: Any, logs: dict[str, Any] | None = None) -> None:
        """Read both clocks."""
        now = time.perf_counter(), time.clock_gettime(self._clock)
        self._began = self._began or now
        self.seconds, self.main_s = now[0] - self._began[0], now[1] - self._began[1]


def _trainer(rounds: int, folder: str) -> Any:
    import torch
    from torch import nn

    from utils.training import Trainer, TrainingConfig

    class Paced(nn.Module):
        """A small language model that multiplies matrices besides, until a step takes as long as asked."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(64, 32), nn.Linear(32, 64)
            self.register_buffer("ballast", torch.full((256, 256), 1 / 256), persistent=False)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                product = self.ballast
                for _ in range(rounds):
                    product = product @ self.ballast
            return self.head(self.embedding(input_ids)) + 0 * product[0, 0]

    config = TrainingConfig(epochs=1, batch_size=2, learning_rate=1e-3, precision="32", output_dir=folder)
    return Trainer(Paced(), training_config=config)


def _calibrated(step_ms: float) -> int:
    """Matrix products that take `step_ms` milliseconds here."""
    import torch

    matrix = torch.full((256, 256), 1 / 256)
    for _ in range(50):
        matrix @ matrix
    began = time.perf_counter()
    for _ in range(200):
        matrix @ matrix
    return max(1, round(step_ms / 1000 / ((time.perf_counter() - began) / 200)))


def _feed_s(feed_class: Any, trainer: Any, steps: int) -> float:
    """Seconds that the callback takes in `steps` steps."""
    import queue

    feed = feed_class(queue.SimpleQueue().put)
    began = time.perf_counter()
    for step in range(steps):
        feed.on_step_end(step, trainer, {"train/loss": 1.0, "train/learning_rate": 1e-3, "epoch": 0})
    return time.perf_counter() - began


def in_kernel(call: str, timeout_s: int = 3600) -> Any:
    """Evaluate `await call` of this module in a new kernel and return its value."""
    import nbformat
    from nbclient import NotebookClient

    source = f"import json\nfrom benchmarks.live_view import measure\nprint(json.dumps(await {call}))"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    NotebookClient(notebook, timeout=timeout_s, resources={"metadata": {"path": str(ROOT)}}).execute()
    streams = [output for output in notebook.cells[0].outputs if output["output_type"] == "stream"]
    printed = "".join(output["text"] for output in streams if output["name"] == "stdout")
    return json.loads(printed.splitlines()[-1])


def main() -> int:
    """Print the figures; exit status 1 when the view's work is above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step-ms", type=float, default=50.0, help="milliseconds that a step should take")
    parser.add_argument("--repetitions", type=int, default=5, help="of each way")
    parser.add_argument("--steps", type=int, default=200, help="steps of one repetition")
    arguments = parser.parse_args()
    figures = in_kernel(f"measure({arguments.step_ms}, {arguments.repetitions}, {arguments.steps})")
    print(
        f"step without the view   {figures['step_ms']:.1f} ms (spread of repetitions {figures['wall_spread']:.1%})\n"
        f"work of the view        {figures['work']:.2%} of the step's time (limit {LIMIT:.0%}), and "
        f"{figures['outside_ms']:.0f} ms before the first step and after the last\n"
        f"wall clock with it      {figures['wall']:+.2%}"
    )
    return int(figures["work"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
