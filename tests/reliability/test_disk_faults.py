"""Disks that are full and folders that are not there: said before the first step, or without harm to what is saved."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from tests.kit.crash import in_child, limit_file_size
from tests.kit.toys import assert_same_run, golden_config, same_weights, tiny_gpt, train_set, validation_set
from utils.errors import CheckpointError, CheckpointWriteError, ConfigError, RunLockedError, TrainbookError
from utils.storage import read_json_lines
from utils.training import Callback, Trainer, TrainingResults
from utils.training.engine.checkpoint import BEST, checkpoint_files, newest, read_checkpoint

FOLDER = Path("runs/golden/checkpoints")
HISTORY = Path("runs/golden/history.jsonl")


def train(model=None, *callbacks: Callback, resume_from=None, **changes) -> TrainingResults:
    trainer = Trainer(model or tiny_gpt(), None, golden_config(**changes), callbacks=list(callbacks))
    return trainer.train(train_set(), validation_set(), resume_from=resume_from)


class FillDisk(Callback):
    """After a step, no file can become larger than this any more; in children only.

    Without a size: than the history is then, and a few bytes, so that a part of its next row fits.
    """

    def __init__(self, step: int, size_bytes: int | None = None) -> None:
        self.step, self.size_bytes = step, size_bytes

    def on_step_end(self, step, trainer, logs=None):
        if step == self.step:
            limit_file_size(self.size_bytes or HISTORY.stat().st_size + 20)


def log_records() -> list[str]:
    """The messages that are logged from now on; in children only, for the handler stays."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("trainbook").addHandler(handler)
    return records


@pytest.mark.parametrize("size_bytes", [20_000, 200_000])
def test_f04_disk_full_while_saving(size_bytes, saves, unbroken):
    def stopped() -> tuple[str, str, dict[str, bytes]]:
        with pytest.raises(CheckpointWriteError) as caught:
            train(tiny_gpt(), FillDisk(9, size_bytes))
        return (
            str(caught.value),
            type(caught.value.__cause__).__name__,
            {path.name: path.read_bytes() for path in FOLDER.glob("*.pt")},
        )

    message, _, files = in_child(stopped).value
    assert str(FOLDER / "epoch_3.pt") in message
    assert "not enough disk space" in message
    needed, free = (int(word.replace(",", "")) for word in message.split() if word.replace(",", "").isdigit())
    assert needed > len(files["epoch_2.pt"])
    assert free > 0
    assert "Older checkpoints are intact" in message
    assert sorted(files) == [BEST, "epoch_1.pt", "epoch_2.pt"]
    for path in checkpoint_files(FOLDER):
        read_checkpoint(path)
    assert not list(FOLDER.glob(".*.tmp"))
    assert_same_run(unbroken, train(tiny_gpt(seed=9), resume_from="auto"))  # there is room again


def test_disk_full_with_a_warning_trains_on(saves, unbroken):
    def warned() -> tuple[int, list[str]]:
        records = log_records()
        return train(tiny_gpt(), FillDisk(9, 20_000), on_save_error="warn").steps, records

    steps, records = in_child(warned).value
    assert steps == unbroken.steps
    assert [record.split(":")[0] for record in records] == ["Training goes on without this checkpoint"] * 2
    assert "epoch_3.pt" in records[0]
    assert "epoch_4.pt" in records[1]
    assert newest(FOLDER)[1]["state"]["epoch"] == 2
    assert not list(FOLDER.glob(".*.tmp"))


def test_disk_too_full_for_a_history_row(unbroken):
    """A row is smaller than a checkpoint, but a disk that is really full has no room for it either."""

    def stopped() -> str:
        with pytest.raises(CheckpointWriteError) as caught:
            train(tiny_gpt(), FillDisk(4))
        return str(caught.value)

    assert in_child(stopped).value.startswith(f"{HISTORY} could not be written: ")
    assert HISTORY.read_bytes().endswith(b"}\n"), "a part of a row was left, and the next one would be glued to it"
    assert len(read_json_lines(HISTORY)) > 3
    assert_same_run(unbroken, train(tiny_gpt(seed=9), resume_from="auto"))


def test_disk_too_full_for_a_history_row_with_a_warning(unbroken):
    def warned() -> tuple[int, list[str]]:
        records = log_records()
        return train(tiny_gpt(), FillDisk(4), on_save_error="warn").steps, records

    steps, records = in_child(warned).value
    assert steps == unbroken.steps
    assert sum("history.jsonl could not be written" in record for record in records) == 1
    assert newest(FOLDER)[1]["state"]["epoch"] == 1


def test_too_little_space_is_seen_before_anything_is_written(monkeypatch):
    usage = namedtuple("usage", "total used free")
    written: list[str] = []

    class Shrink(Callback):
        def on_epoch_end(self, epoch, trainer, logs=None):
            if epoch == 1:
                monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5_000, 5_000))
                monkeypatch.setattr(os, "replace", lambda *names: written.append(names))

    with pytest.raises(CheckpointWriteError) as caught:
        train(tiny_gpt(), Shrink())
    assert str(caught.value).startswith(f"{FOLDER / 'epoch_2.pt'}: not enough disk space; ")
    assert "5,000 are free" in str(caught.value)
    assert not [names for names in written if "epoch_2.pt" in str(names)]


def broken_folders(tmp_path: Path) -> dict[str, tuple[dict, Path]]:
    """Settings that cannot work, and the path that the error must name."""
    file = tmp_path / "a-file"
    file.write_text("not a folder")
    taken = tmp_path / "runs"
    (taken / "golden" / "lock").mkdir(parents=True)
    occupied = tmp_path / "occupied"
    (occupied / "golden").mkdir(parents=True)
    (occupied / "golden" / "checkpoints").write_text("not a folder")
    return {
        "checkpoint_dir_below_a_file": ({"checkpoint_dir": str(file / "checkpoints")}, file / "checkpoints"),
        "checkpoint_dir_is_a_file": ({"checkpoint_dir": str(file)}, file),
        "output_dir_below_a_file": ({"output_dir": str(file / "runs")}, file / "runs"),
        "output_dir_is_a_file": ({"output_dir": str(file)}, file),
        "lock_is_a_folder": ({"output_dir": str(taken), "resume_from": "auto"}, taken / "golden" / "lock"),
        "checkpoints_is_a_file": (
            {"output_dir": str(occupied), "resume_from": "auto"},
            occupied / "golden" / "checkpoints",
        ),
    }


CASES = (
    "checkpoint_dir_below_a_file", "checkpoint_dir_is_a_file", "output_dir_below_a_file", "output_dir_is_a_file",
    "lock_is_a_folder", "checkpoints_is_a_file",
)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_f06_folder_that_cannot_be_made_fails_before_the_first_step(case, tmp_path):
    changes, named = broken_folders(tmp_path)[case]
    model, steps = tiny_gpt(), []

    class Count(Callback):
        def on_batch_begin(self, batch_idx, trainer, logs=None):
            steps.append(batch_idx)

    with pytest.raises(TrainbookError) as caught:
        train(model, Count(), **changes)
    assert isinstance(caught.value, (ConfigError, CheckpointError, RunLockedError))
    assert str(named) in str(caught.value)
    assert "hoose another" in str(caught.value)
    assert not steps
    assert same_weights(model, tiny_gpt())


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_read_only_folder_fails_before_the_first_step(code, monkeypatch):
    """The operating system's refusal, as a read-only mount gives it: permissions do not bind root."""
    train(epochs=1)
    real = open

    def refused(path, mode="r", *arguments, **options):
        if "checkpoints" in str(path) and "w" in mode:
            raise OSError(code, os.strerror(code), str(path))
        return real(path, mode, *arguments, **options)

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(CheckpointError, match=f"runs/golden/checkpoints: {os.strerror(code)}"):
        train(resume_from="auto", epochs=2, on_config_change="continue")


def test_no_hard_links_no_symlinks(monkeypatch, unbroken):
    def refused(*names, **options):
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refused)
    results = train()
    best = Path(results.best_model_path)
    assert not best.is_symlink()
    assert best.read_bytes() == FOLDER.joinpath(f"epoch_{results.best_epoch}.pt").read_bytes()
    assert_same_run(unbroken, results)
    assert not list(FOLDER.glob(".*.tmp"))
