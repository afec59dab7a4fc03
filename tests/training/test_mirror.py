"""The second place for checkpoints: only whole copies, and never in training's way."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from utils.training import CheckpointManager
from utils.training.mirror import Mirror


@pytest.fixture
def manager():
    Path("drive").mkdir()
    return CheckpointManager("local", drive_backup=True, drive_backup_path="drive/copies")


def save(manager, epoch):
    model = nn.Linear(2, 2)
    manager.save_latest_checkpoint(model, torch.optim.SGD(model.parameters(), lr=1.0), epoch, 0.5, 50.0)
    return Path("local/latest_checkpoint.pt").read_bytes()


COPY = Path("drive/copies/latest_checkpoint.pt")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_f42_a_mirror_that_fails_is_stale_and_training_goes_on(manager, monkeypatch, caplog, number):
    before = save(manager, 1)
    assert manager.mirror.finish()
    assert COPY.read_bytes() == before

    def full(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfileobj", full)
        save(manager, 2)
        save(manager, 3)
        assert not manager.mirror.finish()
    assert manager.mirror.stale
    assert COPY.read_bytes() == before, "a part of a copy is no copy"
    assert [path.name for path in COPY.parent.iterdir()] == [COPY.name]
    assert caplog.text.count("not up to date") == 1

    after = save(manager, 4)
    assert manager.mirror.finish()
    assert not manager.mirror.stale
    assert COPY.read_bytes() == after


def test_a_copy_that_reads_back_differently_is_not_taken(manager, monkeypatch):
    before = save(manager, 1)
    manager.mirror.finish()

    def flipping(source, target, length):
        data = bytearray(source.read())
        data[len(data) // 2] ^= 1
        target.write(data)

    monkeypatch.setattr(shutil, "copyfileobj", flipping)
    save(manager, 2)
    assert not manager.mirror.finish()
    assert "not what was written" in manager.mirror.reason
    assert COPY.read_bytes() == before


def test_a_drive_that_is_not_mounted_is_said_and_nothing_is_made_in_its_place(caplog):
    manager = CheckpointManager("local", drive_backup=True, drive_backup_path="MyDrive/copies")
    save(manager, 1)
    assert not manager.mirror.finish()
    assert "is the drive mounted?" in manager.mirror.reason
    assert not Path("MyDrive").exists()


def test_what_is_replaced_or_removed_is_emptied_first(manager, monkeypatch):
    emptied = []
    truncate, unlink = os.truncate, Path.unlink

    def spying(path, length):
        truncate(path, length)
        emptied.append(Path(path).name)

    def checking(path, missing_ok=False):
        if "copies" in path.parts:
            assert path.stat().st_size == 0, f"{path} goes into the bin with its size"
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(os, "truncate", spying)
    monkeypatch.setattr(Path, "unlink", checking)
    save(manager, 1)
    manager.mirror.finish()
    save(manager, 2)
    manager.mirror.finish()
    manager.mirror.remove(COPY.name)
    assert manager.mirror.finish()
    assert emptied == [".latest_checkpoint.pt.old", "latest_checkpoint.pt"]
    assert not COPY.exists()


def test_a_slow_drive_is_not_waited_for_and_gets_the_newest(tmp_path, monkeypatch):
    go, begun = threading.Event(), threading.Event()
    copy = shutil.copyfileobj

    def slow(*arguments):
        begun.set()
        go.wait()
        copy(*arguments)

    monkeypatch.setattr(shutil, "copyfileobj", slow)
    mirror, source = Mirror(tmp_path / "copies"), tmp_path / "model.pt"
    for version in (b"first", b"second", b"third"):
        source.unlink(missing_ok=True)
        source.write_bytes(version)
        mirror.submit(source)
        begun.wait()
    assert not mirror.finish(timeout_s=0)
    assert mirror.stale
    source.unlink()  # rotated away before its turn
    go.set()
    assert mirror.finish()
    assert (tmp_path / "copies" / "model.pt").read_bytes() == b"third"
