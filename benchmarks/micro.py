"""What stands beside the steps: making batches, saving a checkpoint, turning text into tokens."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.children import call
from benchmarks.contenders import installed
from benchmarks.machine import MIB
from benchmarks.options import Options
from benchmarks.report import Spread, Table, ratios
from benchmarks.tokenizing import speed_table
from benchmarks.turns import alternating
from benchmarks.workload import Sizes, Workload

#: Batches of one measurement.
BATCHES = 60

#: Steps between two saves of the checkpoint measurement: enough for a save in the background to end.
STEPS_BETWEEN = 20


def run(options: Options) -> list[Table]:
    """One table each."""
    sizes = options.sizes
    rounds = options.rounds if options.quick else max(5, options.rounds // 3)
    common = {"text": options.workload(sizes), "sizes": vars(sizes), "device": options.device}
    batches = call("benchmarks.micro:measure_batches", options.threads, rounds=rounds, **common)
    saves = call("benchmarks.micro:measure_saves", options.threads, rounds=min(rounds, 6), **common)
    lines = options.folder / "lines.txt"
    lines.write_text("\n".join(options.lines * (1 if options.quick else 10)), encoding="utf-8")
    tokens = call(
        "benchmarks.tokenizing:measure_speed", options.threads, rounds=rounds, lines=str(lines),
        megabytes=lines.stat().st_size / 1e6, device=options.device,
    )  # fmt: skip
    return [batch_table(sizes, batches), save_table(saves), speed_table(tokens)]


def measure_batches(text: str, sizes: dict[str, int], device: str, rounds: int) -> dict[str, list[float]]:
    """In a child: seconds for `BATCHES` batches by the engine's data module, and by DataLoaders with Python collators."""
    import torch
    from torch.utils.data import DataLoader

    from utils.data import TokenBlocks, UniversalDataModule

    batch = sizes["batch"]
    blocks = Workload.load(text).repeated(batch * BATCHES).blocks[: batch * BATCHES]
    module = UniversalDataModule(TokenBlocks(blocks), batch_size=batch)
    rows = [{"input_ids": row.tolist()} for row in blocks]

    def by_engine() -> None:
        for _ in module.steps(epoch=0, skip=0, accumulation=1):
            pass

    def stacked(samples: list[Any]) -> dict[str, Any]:
        ids_BT = torch.tensor([sample["input_ids"] for sample in samples])
        return {"input_ids": ids_BT, "labels": ids_BT.clone()}

    def by_loader(collate: Callable[[list[Any]], Any]) -> Callable[[], None]:
        loader: DataLoader[Any] = DataLoader(rows, batch_size=batch, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]

        def batches() -> None:
            for _ in loader:
                pass

        return batches

    ways = {"this engine": by_engine, "DataLoader, lists stacked in Python": by_loader(stacked)}
    if installed("transformers"):
        from transformers import DataCollatorForLanguageModeling

        from utils.tokenization import train_bpe

        collate = DataCollatorForLanguageModeling(train_bpe([""], 260), mlm=False)
        ways["DataLoader, HF's collator for language modelling"] = by_loader(collate)
    return alternating(rounds, ways)


def batch_table(sizes: Sizes, seconds: dict[str, list[float]]) -> Table:
    """Rows of the time against this engine's."""
    columns = ["batches by", "time, to this engine", f"ms for {BATCHES} batches"]
    table = Table(
        f"Data: {BATCHES} packed batches of {sizes.batch} x {sizes.length}", columns, passing=frozenset(columns[2:])
    )
    own = next(iter(seconds.values()))
    for name, taken in seconds.items():
        table.rows.append([name, str(ratios(taken, own)), f"{1000 * Spread.of(taken).median:.2f}"])
    return table


def measure_saves(text: str, sizes: dict[str, int], device: str, rounds: int) -> dict[str, Any]:
    """In a child: what the engine's saves cost the training, and torch.save of the same state beside each of them.

    `blocking`: from the end of an epoch's events to the beginning of the next epoch's; in between the engine saves.
    `slower`: how much longer the steps of an epoch took, together, than at the pace of its second half: what is written in
    the background delays those after a save.
    """
    from utils.data import TokenBlocks
    from utils.training import Callback, Trainer, TrainingConfig

    model_sizes = Sizes(**sizes)
    blocks = Workload.load(text).repeated(model_sizes.batch * STEPS_BETWEEN).blocks[: model_sizes.batch * STEPS_BETWEEN]
    found: dict[str, list[float]] = {"blocking": [], "slower": [], "torch.save": [], "torch.save + fsync": []}

    class Clock(Callback):
        ended = 0.0
        stamps: list[float]

        def on_train_begin(self, trainer: Any, logs: Any = None) -> None:
            trainer.optimizer.register_step_post_hook(lambda *_: self.stamps.append(time.perf_counter()))

        def on_epoch_begin(self, epoch: int, trainer: Any, logs: Any = None) -> None:
            self.stamps = [time.perf_counter()]
            if epoch > 1:  # the first save also reads back what it wrote, and finds no file to replace
                found["blocking"].append(self.stamps[0] - self.ended)

        def on_epoch_end(self, epoch: int, trainer: Any, logs: Any = None) -> None:
            if epoch > 1:
                seconds = np.diff(self.stamps)
                found["slower"].append(float(seconds.sum() - len(seconds) * np.median(seconds[len(seconds) // 2 :])))
            if 0 < epoch <= rounds:
                for name, sync in (("torch.save", False), ("torch.save + fsync", True)):
                    found[name].append(_torch_save_s(trainer, Path(folder) / "plain.pt", sync))
            self.ended = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        config = TrainingConfig(
            epochs=rounds + 2, batch_size=model_sizes.batch, precision="32", output_dir=folder, lr_schedule="constant"
        )
        trainer = Trainer(model_sizes.model(), training_config=config, callbacks=[Clock()])
        trainer.train(TokenBlocks(blocks))
        size = (Path(folder) / "plain.pt").stat().st_size
    return {"seconds": found, "bytes": size, "parameters": sum(p.numel() for p in trainer.model.parameters())}


def _torch_save_s(trainer: Any, path: Path, sync: bool) -> float:
    """Seconds to write model and optimizer with torch.save, on the disk for certain with `sync`."""
    import torch

    began = time.perf_counter()
    with path.open("wb") as file:
        torch.save({"model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict()}, file)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    return time.perf_counter() - began


def save_table(figures: dict[str, Any]) -> Table:
    """Rows of the time for which a save stops the training, against torch.save of the same state."""
    seconds = figures["seconds"]
    plain = seconds["torch.save"]
    in_all = [still + slower for still, slower in zip(seconds["blocking"], seconds["slower"], strict=True)]
    rows = {
        "this engine (self-verifying, committed, resumable)": seconds["blocking"],
        "the same, with the slower steps after it": in_all,
        "torch.save, not synced": plain,
        "torch.save + fsync": seconds["torch.save + fsync"],
    }
    columns = ["saved by", "training stands still, to torch.save", "ms"]
    size = f"{figures['parameters'] / 1e6:.1f} M parameters with AdamW, {figures['bytes'] / MIB:,.0f} MiB"
    table = Table(f"Checkpoint: {size}", columns, passing=frozenset(columns[2:]))
    for label, values in rows.items():
        table.rows.append([label, str(ratios(values, plain)), f"{1000 * Spread.of(values).median:.1f}"])
    table.notes.append(
        f"{len(plain)} saves, one every {STEPS_BETWEEN} steps; torch.save writes model and optimizer beside each."
    )
    return table
