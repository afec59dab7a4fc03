"""What is measured and how long: the command line's choices, and the full, quick and GPU sizes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.workload import Sizes, build

#: The smallest model that still is one: what a step costs there is what the loop around it costs.
TINY = Sizes(layers=1, width=32, heads=2, length=32, batch=2, vocab=512)


@dataclass(frozen=True)
class Options:
    """One run of the benchmark.

    Attributes:
        lines: the text; folder: for temporary files; threads: CPU threads, None: as torch decides.
        default_precision: what this engine's precision="auto" means on the device.
        sizes: the model to compare on; vocabularies: measured each; rounds: laps of everyone; warmup: before them.
        steps: optimizer steps a lap. On a GPU several, because waiting for the device after each would hide how well a loop
            keeps it busy.
        paced: the model of the overhead at `paced_ms` a step; its layers are chosen for that.
        learning_steps: steps that the reference trains; its validation loss is what the others must reach.
        growth: factors by which one size is multiplied at a time; corpus: factors of the text's length.
        compile: whether compiled contenders take part; peak_tflops: the device's peak, where it is not in the list.
    """

    lines: list[str]
    folder: Path
    device: str = "cpu"
    default_precision: str = "32"
    threads: int | None = None
    quick: bool = False
    rounds: int = 30
    warmup: int = 2
    steps: int = 1
    sizes: Sizes = field(default_factory=Sizes)
    vocabularies: tuple[int, ...] = (8192, 50_257)
    paced: Sizes = field(default_factory=lambda: Sizes(layers=1, width=128, length=128, vocab=2048))
    paced_ms: float = 50.0
    learning_steps: int = 150
    growth: tuple[float, ...] = (0.5, 1, 2, 4)
    corpus: tuple[int, ...] = (1, 10, 100, 1000)
    compile: bool = False
    peak_tflops: float | None = None

    def workload(self, sizes: Sizes, rows: int = 0) -> str:
        """Path of the text for `sizes`, long enough for `rows` rows in one epoch; made when it is first asked for."""
        path = self.folder / f"text-{sizes.vocab}-{sizes.length}-{sizes.batch}-{rows}.npz"
        if not path.exists():
            build(self.lines, sizes).repeated(rows).save(path)
        return str(path)

    def rows(self, sizes: Sizes, steps: int | None = None) -> int:
        """Rows that one contender takes in all rounds, and some more for those that fetch ahead."""
        return sizes.batch * ((steps or self.steps) * (self.rounds + self.warmup) + 4)

    @property
    def size_note(self) -> str:
        """One sentence when this was only a quick look."""
        return " A quick look at a small model in few rounds: not to be quoted." if self.quick else ""


def quick(options: Options) -> Options:
    """The same in about a minute: a small model, few rounds."""
    return dataclasses.replace(
        options, quick=True, rounds=min(options.rounds, 5), warmup=1, sizes=Sizes(2, 64, 4, 64, 8, 2048),
        vocabularies=(2048,), paced=Sizes(1, 64, 4, 64, 8, 1024), paced_ms=20.0, learning_steps=30, growth=(1, 2),
        corpus=(1, 10),
    )  # fmt: skip


def on_gpu(options: Options) -> Options:
    """GPT-2 124M at T = 1,024, several steps a lap."""
    return dataclasses.replace(
        options, sizes=Sizes(12, 768, 12, 1024, 16, 50_257), vocabularies=(50_257,), steps=5, compile=True,
        paced=Sizes(1, 768, 12, 1024, 8, 8192), growth=(0.5, 1, 2),
    )  # fmt: skip
