"""SIGKILL at any moment: the newest committed checkpoint is intact, and what is continued from it is the run that was never killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.kit.crash import Fuse, file_operations, in_child, killed_before, limit_file_size, watch_files
from tests.kit.toys import assert_same_run, golden_config, gpt_of_one_layer, train_set, validation_set
from utils.errors import CheckpointNotFoundError
from utils.storage import read_json_lines
from utils.training import Trainer
from utils.training.engine.checkpointing.background import BackgroundCommit
from utils.training.engine.checkpointing.snapshot import SnapshotMemory
from utils.training.engine.checkpointing.store import (
    BEST,
    FORMAT,
    CheckpointStore,
    checkpoint_files,
    newest,
    read_checkpoint,
)

VALUES = {
    1: 3.0,
    2: 1.0,
    3: 2.0,
}  # what three checkpoints are worth before the one that is killed; the second is the best


def content(epoch: int, value: float) -> dict:
    return {
        "format": FORMAT, "run": {"id": "mine", "name": "mine"}, "state": {"step": 10 * epoch, "epoch": epoch}, "value": value,
        "regular": True, "model": {"weight": torch.full((64, 64), value)}, "optimizer": {}, "schedule": {}, "rng": {},
        "config": {}, "fingerprint": {}, "environment": {},
    }  # fmt: skip


def save(folder: Path, epoch: int, value: float, saves: str = "waiting") -> None:
    store = CheckpointStore(folder, "mine")
    store.adopt()
    if saves == "waiting":
        store.commit(content(epoch, value), f"epoch_{epoch}.pt")
    else:
        copy = SnapshotMemory().take(content(epoch, value))
        commit = BackgroundCommit(store, copy, f"epoch_{epoch}.pt", lambda path, payload: None)
        commit.start()
        commit.outcome()


def assert_recovered(folder: Path, before: dict[int, float], epoch: int, value: float) -> None:
    """What a process that comes after the crash finds: every file whole, nothing older than one commit, best.pt the best."""
    assert not any(path.is_symlink() for path in folder.glob("*"))
    found = {path.name: read_checkpoint(path) for path in checkpoint_files(folder)}  # raises when one is torn
    committed = before | {epoch: value} if f"epoch_{epoch}.pt" in found else before
    if epoch in before and found[f"epoch_{epoch}.pt"]["value"] != value:
        committed = before
    if not committed:
        assert not found
        with pytest.raises(CheckpointNotFoundError):
            newest(folder)
    else:
        assert newest(folder)[1]["state"]["epoch"] == max(committed)
        best = min(committed, key=committed.__getitem__)
        for kept in {*sorted(committed)[-2:], best}:
            assert found[f"epoch_{kept}.pt"]["value"] == committed[kept]
        if BEST in found:  # it may lag behind a commit, but not behind the one before
            assert found[BEST]["value"] in (min(committed.values()), min(before.values(), default=None))
        assert BEST in found or not before

    save(folder, epoch + 1, 0.5)  # and it goes on as if nothing had been
    after = {path.name: read_checkpoint(path) for path in checkpoint_files(folder)}
    assert after[BEST]["value"] == 0.5
    assert not list(folder.glob(".*.tmp"))


SAVES = {"first": (0, 1, 3.0), "a_new_best": (3, 4, 0.7), "no_new_best": (3, 4, 2.5), "written_again": (3, 3, 0.7)}


@pytest.mark.parametrize("case", SAVES)
def test_f01_killed_before_every_file_operation_of_a_save(case, saves, tmp_path):
    count, epoch, value = SAVES[case]
    before = {number: VALUES[number] for number in range(1, count + 1)}

    template = tmp_path / "template"
    template.mkdir()
    for number, worth in before.items():
        save(template, number, worth)

    def prepared(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(template, folder)
        if before:
            (folder / BEST).unlink()
            os.link(folder / "epoch_2.pt", folder / BEST)  # a second name, as in the template
        return folder

    folder = prepared("counted")
    operations = file_operations(lambda: save(folder, epoch, value, saves), folder)
    committed = next(n for n, name in enumerate(operations) if name.endswith(f" epoch_{epoch}.pt"))
    removed = [n for n, name in enumerate(operations) if name.startswith("remove epoch_")]
    # What a kill cannot show, because only a loss of power would: data before the name, the name before what it replaces.
    assert operations[committed].startswith("rename ")
    assert operations[committed - 1] == operations[committed + 1] == "fsync"
    assert all(number > committed + 1 for number in removed)
    for k in range(1, len(operations) + 1):
        folder = prepared(f"killed-{k}")
        assert killed_before(k, lambda folder=folder: save(folder, epoch, value, saves), folder).killed, operations[
            k - 1
        ]
        assert_recovered(folder, before, epoch, value)

    size = (prepared("sized") / "epoch_3.pt").stat().st_size if before else 4096
    for limit in (1, 64, size // 2, size - 1):
        folder = prepared(f"torn-{limit}")

        def torn(folder: Path = folder, limit: int = limit) -> None:
            limit_file_size(limit, fatal=True)
            save(folder, epoch, value, saves)

        assert in_child(torn).signal == signal.SIGXFSZ
        assert_recovered(folder, before, epoch, value)


def train(run_name: str, fuse: Fuse | None = None, *, resume_from: str | None = "auto"):
    folder = Path("runs") / run_name
    fresh = not list(folder.glob("checkpoints/*_*.pt"))
    model = gpt_of_one_layer(seed=0 if fresh else 9)  # other initial weights: whatever goes on must come from the file
    if fuse is not None:
        watch_files(folder, fuse.burn)
        model.register_forward_pre_hook(fuse.burn)
    # A checkpoint after each step, so that a kill often falls into a save.
    config = golden_config(
        run_name=run_name, epochs=3, batch_size=1, save_every_minutes=1e-9, early_stopping_patience=None
    )
    return Trainer(model, None, config).train(train_set(), validation_set(), resume_from=resume_from)


def test_f02_a_run_killed_twelve_times_ends_as_one_that_was_not(saves):
    unbroken = train("unbroken", resume_from=None)
    draw = random.Random(1)
    reached = []
    for _ in range(12):
        moment = draw.randint(5, 85)  # in file operations and micro-batches
        ended = in_child(lambda moment=moment: train("killed", Fuse(moment)) and None)
        assert ended.killed, f"the run came to its end before it was killed often enough: {reached}"
        files = list(Path("runs/killed/checkpoints").glob("*_*.pt"))
        reached.append(newest(Path("runs/killed/checkpoints"))[1]["state"]["step"] if files else 0)
    assert reached == sorted(reached), "a committed checkpoint was lost"
    assert len(set(reached)) > 4, f"the kills fell too often on the same place to show anything: {reached}"
    continued = train("killed")
    assert_same_run(unbroken, continued)
    rows = read_json_lines(continued.run_dir / "history.jsonl")
    numbers = [(row["event"], row["step"]) for row in rows]
    assert len(numbers) == len(set(numbers))
    assert not list(continued.run_dir.rglob(".*.tmp"))
