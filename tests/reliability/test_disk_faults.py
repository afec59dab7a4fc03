"""Disks that are full and folders that are not there: said before the first step, or without harm to what is saved."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
import torch

from tests.kit.crash import in_child, limit_file_size
from tests.kit.toys import assert_same_run, golden_config, gpt_of_one_layer, same_weights, train_set, validation_set
from utils.errors import CheckpointError, CheckpointWriteError, ConfigError, RunLockedError, TrainbookError
from utils.storage import FolderLock, atomic_write, read_json_lines
from utils.training import Callback, Trainer, TrainingResults
from utils.training.engine.checkpointing.store import (
    BEST,
    FORMAT,
    CheckpointStore,
    checkpoint_files,
    newest,
    read_checkpoint,
    write_file,
)
from utils.ui.setup_config import SetupConfig

FOLDER = Path("runs/golden/checkpoints")
HISTORY = Path("runs/golden/history.jsonl")


def train(model=None, *callbacks: Callback, resume_from=None, **changes) -> TrainingResults:
    trainer = Trainer(model or gpt_of_one_layer(), None, golden_config(**changes), callbacks=list(callbacks))
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
            train(gpt_of_one_layer(), FillDisk(9, size_bytes))
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
    assert_same_run(unbroken, train(gpt_of_one_layer(seed=9), resume_from="auto"))  # there is room again


def test_disk_full_with_a_warning_trains_on(saves, unbroken):
    def warned() -> tuple[int, list[str], list[str]]:
        records = log_records()
        results = train(gpt_of_one_layer(), FillDisk(9, 20_000), on_save_error="warn")
        return results.steps, results.notices, records

    steps, notices, records = in_child(warned).value
    assert steps == unbroken.steps
    (said,) = [notice for notice in notices if "checkpoint could not be saved" in notice]
    assert "epoch_3.pt: not enough disk space" in said
    assert [record.split(":")[0] for record in records] == ["Training continues without this checkpoint"] * 2
    assert "epoch_3.pt" in records[0]
    assert "epoch_4.pt" in records[1]
    assert newest(FOLDER)[1]["state"]["epoch"] == 2
    assert not list(FOLDER.glob(".*.tmp"))


def test_disk_too_full_for_a_history_row(unbroken):
    """A row is smaller than a checkpoint, but a disk that is really full has no room for it either."""

    def stopped() -> str:
        with pytest.raises(CheckpointWriteError) as caught:
            train(gpt_of_one_layer(), FillDisk(4))
        return str(caught.value)

    assert in_child(stopped).value.startswith(f"{HISTORY.absolute()} could not be written: ")
    assert HISTORY.read_bytes().endswith(b"}\n"), "a part of a row was left, and the next one would be glued to it"
    assert len(read_json_lines(HISTORY)) > 3
    assert_same_run(unbroken, train(gpt_of_one_layer(seed=9), resume_from="auto"))


def test_disk_too_full_for_a_history_row_with_a_warning(unbroken):
    def warned() -> tuple[int, list[str]]:
        records = log_records()
        return train(gpt_of_one_layer(), FillDisk(4), on_save_error="warn").steps, records

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
        train(gpt_of_one_layer(), Shrink())
    assert str(caught.value).startswith(f"{FOLDER.absolute() / 'epoch_2.pt'}: not enough disk space; ")
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
    model, steps = gpt_of_one_layer(), []

    class Count(Callback):
        def on_batch_begin(self, batch_idx, trainer, logs=None):
            steps.append(batch_idx)

    with pytest.raises(TrainbookError) as caught:
        train(model, Count(), **changes)
    assert isinstance(caught.value, (ConfigError, CheckpointError, RunLockedError))
    assert str(named) in str(caught.value)
    assert "hoose another" in str(caught.value)
    assert not steps
    assert same_weights(model, gpt_of_one_layer())


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


# ---- how much space is needed ----


@pytest.mark.parametrize(
    ("links", "share", "fits"), [(True, 1.2, True), (True, 0.9, False), (False, 1.2, False), (False, 2.5, True)]
)
def test_a_checkpoint_needs_its_own_size_and_twice_that_only_without_hard_links(links, share, fits, monkeypatch):
    """best.pt is another name of the same file: it takes no space where there are hard links."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *names: (_ for _ in ()).throw(OSError(errno.EPERM, "no hard links")))
    usage = namedtuple("usage", "total used free")
    model = torch.nn.Embedding(4000, 32)  # half a megabyte, beside which a few rows of history are nothing
    content = {
        "format": FORMAT, "run": {"id": "mine", "name": "mine"}, "state": {"step": 1, "epoch": 1}, "value": 1.0, "regular": True,
        "model": model.state_dict(), "optimizer": {}, "schedule": {}, "rng": {}, "config": {}, "fingerprint": {},
        "environment": {},
    }  # fmt: skip
    store = CheckpointStore(FOLDER, "mine")
    size = store.commit(content, "epoch_1.pt").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, int(share * size)))
    better = {**content, "value": 0.5, "state": {"step": 2, "epoch": 2}}
    if fits:
        store.commit(better, "epoch_2.pt")
        assert store.best.path.name == "epoch_2.pt"
    else:
        with pytest.raises(CheckpointWriteError, match="not enough disk space"):
            store.commit(better, "epoch_2.pt")


def test_tied_weights_count_once(monkeypatch):
    usage = namedtuple("usage", "total used free")
    first = torch.nn.Linear(400, 400, bias=False)
    second = torch.nn.Linear(400, 400, bias=False)
    second.weight = first.weight
    payload = {"model": torch.nn.Sequential(first, second).state_dict()}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, int(1.1 * 400 * 400 * 4)))
    write_file(Path("tied.pt"), payload)
    assert Path("tied.pt").stat().st_size < 1.1 * 400 * 400 * 4


@pytest.mark.parametrize(("failures", "written"), [(1, True), (2, False)])
def test_a_file_that_cannot_be_mapped_for_lack_of_memory_is_checked_again_once(failures, written):
    tries = []

    def check(path):
        tries.append(path)
        if len(tries) <= failures:
            raise CheckpointError(f"{path} cannot be read: unable to mmap: {os.strerror(errno.ENOMEM)} (12)")

    if written:
        write_file(Path("mine.pt"), {"model": torch.ones(3)}, check=check)
    else:
        with pytest.raises(CheckpointWriteError, match="could not be written"):
            write_file(Path("mine.pt"), {"model": torch.ones(3)}, check=check)
    assert len(tries) == 2
    assert [file.name for file in Path().iterdir()] == (["mine.pt"] if written else [])


# ---- a disk without a free byte ----


def full_disk(attempt: Callable[[], object]) -> str:
    """The error of `attempt` where not a single byte can be written to any file."""

    def tried() -> str:
        limit_file_size(0)
        with pytest.raises(TrainbookError) as caught:
            attempt()
        assert isinstance(caught.value, OSError)
        return str(caught.value)

    message: str = in_child(tried).value
    return message


@pytest.mark.parametrize(("name", "attempt"), [
    ("runs/golden/lock", lambda: train()),
    ("kept/lock", lambda: FolderLock(Path("kept/lock")).acquire()),
    ("kept/config.yaml", lambda: golden_config().save("kept/config.yaml")),
    ("kept/config.json", lambda: golden_config().save("kept/config.json")),
    ("kept/setup.yaml", lambda: SetupConfig().save("kept/setup.yaml")),
    ("kept/epoch_1.pt", lambda: write_file(Path("kept/epoch_1.pt"), {"model": torch.ones(3)})),
], ids=["run", "lock", "yaml", "json", "setup", "checkpoint"])  # fmt: skip
def test_a_disk_without_a_free_byte_is_one_error_with_the_path(name, attempt):
    Path("kept").mkdir()
    Path("kept/config.yaml").write_text("epochs: 1\n")
    message = full_disk(attempt)
    assert name in message
    assert "ree some space" in message
    assert Path("kept/config.yaml").read_text() == "epochs: 1\n"
    assert not list(Path("kept").glob(".*.tmp"))


def test_a_lock_that_could_not_be_written_is_given_back():
    Path("kept").mkdir()
    full_disk(lambda: FolderLock(Path("kept/lock")).acquire())
    with FolderLock(Path("kept/lock")).held():
        pass


def test_every_write_that_fails_says_where(tmp_path):
    """The operating system's own error, of a write, has no path."""

    def full(file: IO[bytes]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/a.txt'"):
        atomic_write(tmp_path / "a.txt", full)
