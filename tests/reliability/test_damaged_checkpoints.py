"""Files that are torn, rotten, strange or foreign: never loaded by accident, always named."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.kit.faults import flip_bit, record_data, truncate
from tests.kit.toys import (
    assert_same_run,
    golden_config,
    gpt_of_one_layer,
    plain_lm,
    same_weights,
    train_set,
    validation_set,
)
from utils.errors import CheckpointError, CheckpointNotFoundError
from utils.storage import host_name
from utils.training import Callback, Trainer, TrainingResults
from utils.training.engine.checkpointing.store import BEST, FORMAT, CheckpointStore, newest, read_checkpoint

DEAD_PID = 2**22 + 1  # above any pid_max


def train(model=None, *, resume_from=None, callbacks=(), **changes) -> TrainingResults:
    trainer = Trainer(model or gpt_of_one_layer(), None, golden_config(**changes), callbacks=list(callbacks))
    return trainer.train(train_set(), validation_set(), resume_from=resume_from)


class StopAfter(Callback):
    """Stops once an epoch is done: its end and two older checkpoints are on disk."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch_end(self, epoch, trainer, logs=None):
        if epoch + 1 == self.epochs:
            trainer.request_stop("test")


def stopped_run() -> tuple[Path, Path]:
    """A run that was stopped after three epochs: its newest checkpoint, and the one before."""
    results = train(callbacks=[StopAfter(3)], keep_last_n=3)
    checkpoints = [Path(path) for path in results.checkpoint_paths]
    assert [path.name for path in checkpoints] == ["epoch_1.pt", "epoch_2.pt", "epoch_3.pt"]
    Path(results.best_model_path).unlink()  # a second name of the newest one: only the newest is to be damaged
    shutil.copyfile(checkpoints[1], results.best_model_path)
    return checkpoints[2], checkpoints[1]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_f07_truncated_checkpoint(share, caplog, unbroken):
    damaged, older = stopped_run()
    truncate(damaged, share)
    with pytest.raises(CheckpointError, match=f"{damaged.name} is damaged"):
        train(resume_from=damaged, run_name="other")
    with caplog.at_level(logging.WARNING, logger="trainbook"):
        path, payload = newest(damaged.parent)
    assert (path, payload["state"]["epoch"]) == (older, 2)
    (warning,) = caplog.messages
    assert str(damaged) in warning
    assert f"{damaged.stat().st_size} bytes" in warning
    continued = train(gpt_of_one_layer(seed=9), resume_from="auto")
    assert_same_run(unbroken, continued)
    assert read_checkpoint(damaged)["state"]["epoch"] == 3  # done again, and written over


def test_nothing_intact_is_an_error_that_lists_what_was_tried():
    newer, older = stopped_run()
    for path in newer.parent.glob("*.pt"):
        truncate(path, 0.5)
    with pytest.raises(CheckpointError, match="no intact checkpoint") as caught:
        train(resume_from="auto")
    assert not isinstance(caught.value, CheckpointNotFoundError)
    assert "train anew with another run_name" in str(caught.value)
    assert str(newer) in str(caught.value)
    assert str(older) in str(caught.value)


def test_f08_one_flipped_bit_in_each_record(tmp_path):
    damaged, older = stopped_run()
    intact = damaged.read_bytes()
    spans = record_data(damaged)
    assert len(spans) > 50
    for number, (name, (offset, length)) in enumerate(spans.items()):
        damaged.write_bytes(intact)
        flip_bit(damaged, offset + number * 7919 % length, number % 8)
        with pytest.raises(CheckpointError, match="is damaged") as caught:
            read_checkpoint(damaged)
        assert repr(name) in str(caught.value)
    assert newest(damaged.parent)[0] == older


def test_a_flipped_bit_anywhere_is_found_or_harmless(tmp_path):
    """Between the records are names, lengths and offsets: what they lead to is either refused, or the same numbers."""
    store = CheckpointStore(tmp_path, "mine")
    content = {
        "format": FORMAT, "run": {"id": "mine", "name": "mine"}, "state": {"step": 1, "epoch": 1}, "value": 0.5, "regular": True,
        "model": {"weight": torch.arange(8.0)}, "optimizer": {}, "schedule": {}, "rng": {}, "config": {}, "fingerprint": {},
        "environment": {},
    }  # fmt: skip
    path = store.commit(content, "epoch_1.pt")
    intact = path.read_bytes()
    entry = intact.index(b"PK\1\2")  # the list of records: a single bit can change what the tensor's entry means
    while b"data/0" not in intact[entry : entry + 80]:
        entry = intact.index(b"PK\1\2", entry + 1)
    everywhere = [(offset, offset % 8) for offset in range(len(intact))]
    flips = everywhere + [(offset, bit) for offset in range(entry, entry + 60) for bit in range(8)]
    refused = 0
    for offset, bit in flips:
        path.write_bytes(intact)
        flip_bit(path, offset, bit)
        try:
            found = read_checkpoint(path)
        except CheckpointError:
            refused += 1
            continue
        assert torch.equal(found.pop("model")["weight"], content["model"]["weight"]), (offset, bit)
        assert found == {name: value for name, value in content.items() if name != "model"}
    assert refused > 0.4 * len(flips)


def test_f09_leftovers_and_strangers_in_the_folder(caplog, unbroken):
    newest_one, _ = stopped_run()
    folder, run = newest_one.parent, newest_one.parent.parent
    stale = [folder / f".epoch_4.pt.{host_name()}.{DEAD_PID}.tmp", run / f".state.json.{host_name()}.{DEAD_PID}.tmp"]
    at_work = [  # somebody who may still be writing, in a folder that is shared
        folder / f".epoch_4.pt.another-host.{DEAD_PID}.tmp", folder / f".epoch_4.pt.{host_name()}.{os.getppid()}.tmp",
    ]  # fmt: skip
    strangers = [
        folder / name for name in ("epoch_x.pt", "epoch_99.pt.bak", "notes.txt", "step_.pt", "model.safetensors")
    ]
    for path in (*stale, *at_work, *strangers):
        path.write_bytes(b"left over")
    (folder / "epoch_9.pt").mkdir()
    with caplog.at_level(logging.WARNING, logger="trainbook"):
        continued = train(gpt_of_one_layer(seed=9), resume_from="auto")
    assert_same_run(unbroken, continued)
    assert not caplog.messages
    assert not any(path.exists() for path in stale)
    assert all(path.read_bytes() == b"left over" for path in (*at_work, *strangers))
    assert (folder / "epoch_9.pt").is_dir()
    for path, reason in ((folder / "epoch_9.pt", "folder"), (folder / "notes.txt", "not the zip archive")):
        with pytest.raises(CheckpointError, match=reason):
            read_checkpoint(path)


def rewritten(path: Path, change) -> Path:
    """The checkpoint with something in it changed."""
    payload = read_checkpoint(path)
    change(payload)
    torch.save(payload, path)
    return path


def test_f10_checkpoint_of_a_newer_format_another_model_or_another_torch():
    newest_one, _ = stopped_run()

    model = plain_lm()
    before = plain_lm()
    with pytest.raises(CheckpointError, match="another model") as caught:
        train(model, resume_from=newest_one, run_name="other-model")
    message = str(caught.value)
    assert "transformer.wte.weight: only in the checkpoint" in message
    assert message.count("\n  ") == 6, "the first five differences and how many more there are"
    assert same_weights(model, before)
    with pytest.raises(CheckpointError, match=r"wpe\.weight: \(16, 32\) in the checkpoint, \(20, 32\) in the model"):
        train(gpt_of_one_layer(length=20), resume_from=newest_one, run_name="longer")

    rewritten(newest_one, lambda payload: payload["environment"].update(torch="1.99.0"))
    continued = train(gpt_of_one_layer(seed=9), resume_from=newest_one, run_name="elsewhere")
    (notice,) = [notice for notice in continued.notices if "torch" in notice]
    assert f"torch 1.99.0 there, {torch.__version__} here" in notice

    rewritten(newest_one, lambda payload: payload.update(format=FORMAT + 1))
    with pytest.raises(CheckpointError, match=f"format {FORMAT + 1}.*reads format {FORMAT}.*Update Trainbook"):
        train(resume_from=newest_one, run_name="newer")


@pytest.mark.parametrize(
    "content", [[1, 2], {"weights": torch.ones(2)}, {"format": FORMAT, "model": {}}], ids=["list", "weights", "part"]
)
def test_a_torch_file_that_is_no_checkpoint_is_named_as_such(content, tmp_path):
    path = tmp_path / "epoch_1.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="no Trainbook checkpoint|incomplete: it lacks run, state"):
        read_checkpoint(path)


def test_best_is_never_taken_for_the_newest():
    newest_one, _ = stopped_run()
    best = newest_one.parent / BEST
    rewritten(best, lambda payload: payload["state"].update(step=10_000))
    assert newest(newest_one.parent)[0] == newest_one
