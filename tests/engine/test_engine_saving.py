"""Saving while training continues: what is in the files, who waits for whom, and where errors come out."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
from pathlib import Path

import pytest
import torch

from tests.kit.crash import in_child
from tests.kit.faults import send_to_self
from tests.kit.slow_disk import PATIENCE_S, SlowDisk, save_in_background
from tests.kit.toys import VOCAB_SIZE, assert_same_run, golden_config, tiny_gpt, train_set, validation_set
from utils.errors import CallbackError, CheckpointWriteError, TrainingInterrupted
from utils.training import Callback, Trainer, TrainingResults
from utils.training.engine.checkpointing.background import BackgroundCommit
from utils.training.engine.checkpointing.snapshot import SnapshotMemory, storage_bytes
from utils.training.engine.checkpointing.store import (
    FORMAT,
    CheckpointStore,
    Entry,
    entries_of,
    newest,
    read_checkpoint,
)

FOLDER = Path("runs/golden/checkpoints")


def train(*callbacks: Callback, resume_from=None, seed: int = 0, **changes) -> TrainingResults:
    trainer = Trainer(tiny_gpt(seed=seed), None, golden_config(**changes), callbacks=list(callbacks))
    return trainer.train(train_set(), validation_set(), resume_from=resume_from)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> TrainingResults:
    """The golden run; a toy, so training waits for its files."""
    torch.set_num_threads(1)
    return train(run_name="unbroken", keep_last_n=9, output_dir=str(tmp_path_factory.mktemp("unbroken")))


def checkpoint_of(results: TrainingResults, name: str) -> dict:
    return read_checkpoint(results.run_dir / "checkpoints" / name)


def assert_same_tensors(mine: object, theirs: object) -> None:
    if isinstance(mine, torch.Tensor):
        assert torch.equal(mine, theirs)
    elif isinstance(mine, dict):
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert_same_tensors(mine[name], theirs[name])
    elif isinstance(mine, (list, tuple)):
        assert len(mine) == len(theirs)
        for pair in zip(mine, theirs, strict=True):
            assert_same_tensors(*pair)


class At(Callback):
    """Does something after a step; notes in which thread and after which step each checkpoint was told of."""

    def __init__(self, step: int, action) -> None:
        self.step, self.action, self.told = step, action, []

    def on_step_end(self, step, trainer, logs=None):
        if step == self.step:
            self.action(trainer)

    def on_checkpoint_saved(self, path, trainer, logs=None):
        assert path.is_file()
        self.told.append((path.name, trainer.state.step, threading.current_thread() is threading.main_thread()))


def test_training_goes_on_while_a_checkpoint_is_written(monkeypatch, unbroken):
    save_in_background(monkeypatch)
    disk, there = SlowDisk(), []

    def look(trainer) -> None:
        assert disk.reached.wait(PATIENCE_S)
        there.append((FOLDER / "epoch_1.pt").exists())
        disk.let_go.set()

    at = At(5, look)
    with disk.held():
        results = train(at, keep_last_n=9)
    assert there == [False]
    assert [name for name, *_ in at.told] == ["epoch_1.pt", "epoch_2.pt", "epoch_3.pt", "epoch_4.pt"]
    assert at.told[0][1] in (5, 6)
    assert at.told[-1][1] == 12
    assert all(in_main for *_, in_main in at.told)
    for name in (
        "epoch_1.pt",
        "epoch_2.pt",
        "epoch_4.pt",
    ):  # the state of their moment, not of the one when they were written
        mine, theirs = checkpoint_of(results, name), checkpoint_of(unbroken, name)
        for part in ("model", "optimizer", "rng"):
            assert_same_tensors(mine[part], theirs[part])
        assert mine["state"]["step"] == theirs["state"]["step"]
        assert mine["value"] == theirs["value"]
    assert_same_run(unbroken, results)


class Draws(Callback):
    """Draws from every global generator when it is told of a checkpoint, as one that samples texts would."""

    def on_checkpoint_saved(self, path, trainer, logs=None):
        torch.rand(1), random.random()


@pytest.mark.parametrize("changes", [{}, {"eval_every": 1, "keep_best_k": 2}, {"save_every_minutes": 1e-9}], ids=str)
def test_who_writes_changes_no_number_of_the_run(monkeypatch, changes):
    waited = train(Draws(), run_name="waited", **changes)
    save_in_background(monkeypatch)
    overlapped = train(Draws(), run_name="overlapped", **changes)
    assert_same_run(waited, overlapped)
    if "save_every_minutes" not in changes:  # what is saved by the clock depends on the clock
        files = [
            sorted(path.name for path in (results.run_dir / "checkpoints").iterdir())
            for results in (waited, overlapped)
        ]
        assert files[0] == files[1]


def test_one_save_at_a_time(monkeypatch):
    save_in_background(monkeypatch)
    disk = SlowDisk()
    helpers = []

    class LetGoLater(Callback):
        def on_epoch_end(self, epoch, trainer, logs=None):
            if epoch == 1:  # the next save comes now; it has this long to come too early
                helpers.append(threading.Timer(0.2, disk.let_go.set))
                helpers[0].start()

    with disk.held():
        train(LetGoLater(), epochs=3)
    helpers[0].join()
    assert disk.overlaps == 0


def test_a_save_that_is_due_by_the_clock_does_not_wait(monkeypatch):
    save_in_background(monkeypatch)
    disk = SlowDisk()
    with disk.held():
        at = At(3, lambda trainer: disk.let_go.set())
        train(at, save_every_minutes=1e-9, epochs=1)
    assert at.told[0][0] == "step_1.pt"


def test_a_stop_waits_for_the_save_under_way_and_then_saves(monkeypatch, unbroken):
    def preempted() -> None:
        save_in_background(monkeypatch)
        disk = SlowDisk()

        def terminate(trainer) -> None:
            assert disk.reached.wait(PATIENCE_S)
            send_to_self(signal.SIGTERM)
            threading.Timer(0.05, disk.let_go.set).start()

        with disk.held():
            train(At(4, terminate))

    assert in_child(preempted).exit_code == 143
    assert sorted(path.name for path in FOLDER.iterdir()) == ["best.pt", "epoch_1.pt", "step_4.pt"]
    assert newest(FOLDER)[0].name == "step_4.pt"
    assert_same_run(unbroken, train(resume_from="auto", seed=9))


def test_a_failure_loses_neither_the_save_under_way_nor_its_own(monkeypatch, unbroken):
    save_in_background(monkeypatch)
    disk = SlowDisk()

    def fail(trainer) -> None:
        assert disk.reached.wait(PATIENCE_S)
        disk.let_go.set()
        raise ValueError("broken")

    with disk.held(), pytest.raises(CallbackError, match="broken") as caught:
        train(At(4, fail))
    assert "saved up to step 4" in caught.value.__notes__[0]
    assert {path.name for path in FOLDER.glob("*_*.pt")} == {"epoch_1.pt", "step_4.pt"}
    assert_same_run(unbroken, train(resume_from="auto", seed=9))


def test_a_failure_within_an_update_does_not_cost_the_save_under_way(monkeypatch):
    """Such a step cannot be saved; all the more it must not take the one before with it."""
    save_in_background(monkeypatch)
    disk = SlowDisk()

    def fail(*_) -> None:
        assert disk.reached.wait(PATIENCE_S)
        threading.Timer(0.05, disk.let_go.set).start()
        raise ValueError("broken")

    with disk.held(), pytest.raises(ValueError, match="broken"):
        train(At(3, lambda trainer: trainer.optimizer.register_step_pre_hook(fail)))
    assert {path.name for path in FOLDER.glob("*_*.pt")} == {"epoch_1.pt"}


def test_a_second_interrupt_does_not_wait_for_the_save_to_be_finished(monkeypatch, unbroken):
    save_in_background(monkeypatch)
    disk = SlowDisk(2)

    def interrupt_twice(trainer) -> None:
        assert disk.reached.wait(PATIENCE_S)
        disk.let_go.set()
        send_to_self(signal.SIGINT, signal.SIGINT)

    with disk.held(), pytest.raises(KeyboardInterrupt) as caught:
        train(At(7, interrupt_twice))
    assert not isinstance(caught.value, TrainingInterrupted)
    assert newest(FOLDER)[1]["state"]["step"] in (3, 6)
    assert not list(FOLDER.glob(".*.tmp"))
    assert_same_run(unbroken, train(resume_from="auto", seed=9))


def content(epoch: int, value: float, **changes) -> dict:
    return {
        "format": FORMAT, "run": {"id": "mine", "name": "mine"}, "state": {"step": 10 * epoch, "epoch": epoch}, "value": value,
        "regular": True, "model": {"weight": torch.full((64, 64), value)}, "optimizer": {}, "schedule": {}, "rng": {},
        "config": {}, "fingerprint": {}, "environment": {}, **changes,
    }  # fmt: skip


def test_an_abandoned_save_leaves_nothing_and_what_was_there_is_whole(tmp_path):
    store = CheckpointStore(tmp_path, "mine")
    store.commit(content(1, 1.0), "epoch_1.pt")
    commit = BackgroundCommit(store, content(2, 0.5), "epoch_2.pt", lambda path, payload: None)
    disk = SlowDisk(until=lambda: commit._abandoned.wait(PATIENCE_S))
    with disk.held():
        commit.start()
        assert disk.reached.wait(PATIENCE_S)
        commit.abandon()
    assert not commit.running
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "epoch_1.pt"]
    assert store.pending is None


def test_what_is_under_way_counts_among_the_best(tmp_path):
    """Or a slow disk would decide which validations are worth a checkpoint."""
    store = CheckpointStore(tmp_path, "mine")
    store.commit(content(1, 3.0), "epoch_1.pt")
    disk = SlowDisk()
    with disk.held():
        commit = BackgroundCommit(store, content(2, 1.0), "epoch_2.pt", lambda path, payload: None)
        commit.start()
        assert disk.reached.wait(PATIENCE_S)
        assert not store.would_be_best(2.0)
        assert store.would_be_best(0.5)
        assert store.value_at(20) == 1.0
        assert store.best == Entry(tmp_path / "epoch_1.pt", 10, 3.0, "mine", True, 1)
        disk.let_go.set()
        assert commit.outcome() == tmp_path / "epoch_2.pt"
    assert store.best is not None
    assert store.best.value == 1.0


class Keeps(Callback):
    """Has a state that no checkpoint can hold, from the second epoch on."""

    def __init__(self) -> None:
        self.kept: object = 1.0

    def state_dict(self):
        return {"kept": self.kept}

    def on_epoch_end(self, epoch, trainer, logs=None):
        self.kept = 1.0 if epoch != 1 else object()


def test_a_save_that_failed_stops_the_run_at_the_next_boundary(monkeypatch):
    save_in_background(monkeypatch)
    keeps = Keeps()
    with pytest.raises(CheckpointWriteError, match="Keeps.kept is a builtins.object"):
        train(keeps)
    assert newest(FOLDER)[1]["state"]["step"] == 3


def test_a_save_that_failed_is_one_warning_where_that_was_asked_for(monkeypatch, caplog, unbroken):
    save_in_background(monkeypatch)
    results = train(Keeps(), on_save_error="warn")
    assert_same_run(unbroken, results)
    assert [message.split(": ")[0] for message in caplog.messages] == ["Training continues without this checkpoint"]
    assert sorted(path.name for path in FOLDER.glob("epoch_*")) == ["epoch_3.pt", "epoch_4.pt"]


def test_without_memory_for_a_copy_training_waits_and_says_so_once(monkeypatch, caplog, unbroken):
    save_in_background(monkeypatch)
    monkeypatch.setattr("utils.training.engine.checkpointing.snapshot.free_memory_bytes", lambda kind: 1000)
    started = []
    monkeypatch.setattr(BackgroundCommit, "start", lambda self: started.append(self))
    with caplog.at_level(logging.WARNING, logger="trainbook"):
        results = train()
    assert_same_run(unbroken, results)
    assert not started
    (message,) = caplog.messages
    assert message.startswith("Training waits while checkpoints are written: a copy needs ")
    assert message.endswith("bytes of memory and 1,000 are free.")


def tied_content() -> dict:
    """What torch.save treats in ways of its own: shared memory, views, parameters, attributes of a dict, sparse tensors."""
    model, grid = tiny_gpt(), torch.arange(12.0).reshape(3, 4)
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
    odd = {
        "transposed": grid.t(), "row": grid[1], "parameter": torch.nn.Parameter(grid[:2]), "empty": torch.empty(0),
        "scalar": torch.tensor(1, dtype=torch.int64), "bits": torch.tensor([True, False]), "sparse": grid.to_sparse(),
        "words": bytearray(b"ab"), "set": {1}, "pair": (grid, [grid]),
    }  # fmt: skip
    return content(1, 1.0, model=model.state_dict(), odd=odd)


def test_a_copy_gives_the_very_same_file(tmp_path):
    payload = tied_content()
    store = CheckpointStore(tmp_path, "mine")
    store.commit(payload, "epoch_1.pt")
    store.commit(SnapshotMemory().take(payload), "epoch_2.pt")
    assert (tmp_path / "epoch_1.pt").read_bytes() == (tmp_path / "epoch_2.pt").read_bytes()


def test_a_copy_does_not_change_with_the_original_and_its_memory_is_used_again():
    payload, memory = tied_content(), SnapshotMemory()
    copy = memory.take(payload)
    weight, row = payload["model"]["lm_head.weight"], payload["odd"]["row"]
    before = copy["model"]["lm_head.weight"].clone()
    weight.add_(1)
    row.zero_()
    payload["odd"]["words"][0], payload["odd"]["pair"] = 0, None
    payload["odd"]["set"].clear()
    assert torch.equal(copy["model"]["lm_head.weight"], before)
    assert torch.equal(copy["odd"]["row"], torch.arange(4.0, 8.0))
    assert copy["odd"]["words"] == b"ab"
    assert copy["odd"]["set"] == {1}
    assert torch.equal(copy["odd"]["pair"][1][0], torch.arange(12.0).reshape(3, 4))
    places = {name: tensor.data_ptr() for name, tensor in copy["model"].items()}
    assert copy["model"]._metadata == payload["model"]._metadata
    again = memory.take(payload)
    assert {name: tensor.data_ptr() for name, tensor in again["model"].items()} == places
    assert torch.equal(again["model"]["lm_head.weight"], weight)


def test_shared_memory_counts_once():
    weight = torch.ones(100)
    assert storage_bytes({"model": {"one": weight, "other": weight[:10]}, "more": [weight]}) == 400


def test_a_tensor_that_is_more_than_its_memory_is_copied_by_value():
    conjugate = torch.tensor([1j, 2.0]).conj()
    copy = SnapshotMemory().take({"conjugate": conjugate, "negative": conjugate.imag})
    assert torch.equal(copy["conjugate"], torch.tensor([-1j, 2.0]))
    assert torch.equal(copy["negative"], torch.tensor([-1.0, 0.0]))


# ---- what a resume reads, and what it holds in memory ----

WEIGHT_BYTES = 16 << 20


class LargeLM(torch.nn.Module):
    """A model of `WEIGHT_BYTES`, nearly all in one embedding of which a batch uses a few rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(WEIGHT_BYTES // 4 // 64, 64)
        self.head = torch.nn.Linear(64, VOCAB_SIZE)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(input_ids))


def train_large(*callbacks: Callback, resume_from=None, **changes) -> TrainingResults:
    config = golden_config(epochs=6, gradient_accumulation_steps=9, **{"keep_last_n": 5, **changes})
    return Trainer(LargeLM(), None, config, callbacks=list(callbacks)).train(train_set(), resume_from=resume_from)


def bytes_read() -> int:
    """What this process has read from files so far, from the page cache too; pages of mapped files do not count."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


def peak_memory() -> int:
    """The most memory that this process has had so far, in bytes; pages of mapped files count."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


class EnoughError(BaseException):
    """Ends a training at once."""


def before_the_first_step(**settings) -> tuple[int, int]:
    """What a training reads until its first step, and its peak of memory by then. In children only."""
    before = bytes_read()
    seen: list[int] = []

    class Look(Callback):
        def on_train_begin(self, trainer, logs=None):
            seen.extend((bytes_read() - before, peak_memory()))
            raise EnoughError

    with pytest.raises(EnoughError):
        train_large(Look(), **settings)
    return seen[0], seen[1]


class StopAfterEpoch(Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_epoch_end(self, epoch, trainer, logs=None):
        if epoch + 1 == self.epoch:
            trainer.request_stop("test")


@pytest.fixture
def large_run() -> int:
    """A run with five checkpoints in the working folder. Returns the peak of memory of its training."""

    def stopped() -> int:
        assert len(train_large(StopAfterEpoch(5)).checkpoint_paths) == 5
        return peak_memory()

    train(run_name="warm", epochs=1)  # imports once, and not in every child
    peak: int = in_child(stopped).value
    return peak


def test_a_resume_reads_the_newest_checkpoint_about_once_and_needs_no_more_memory_than_training(large_run):
    newest_file = FOLDER / "epoch_5.pt"
    size = newest_file.stat().st_size
    assert size > 2.9 * WEIGHT_BYTES
    # What is imported by the first training of a process is read too.
    imported, fresh = in_child(lambda: before_the_first_step(run_name="fresh")).value
    for source in ("auto", "latest", "runs/golden", newest_file):
        read, peak = in_child(lambda source=source: before_the_first_step(resume_from=source)).value
        assert 0.9 * size < read - imported < 1.5 * size, source
        assert peak < large_run, source
        assert peak - fresh < 2 * size, source  # the optimizer's averages, and the file's pages


def test_listing_a_folder_reads_headers_only(large_run):
    before = bytes_read()
    assert len(entries_of(FOLDER)[0]) == 5
    assert bytes_read() - before < WEIGHT_BYTES / 8


def test_a_resumed_run_does_not_depend_on_the_file_it_came_from():
    """Tensors that were read from the file are no views of it: it may be removed, or written over."""

    class Destroy(Callback):
        def on_train_begin(self, trainer, logs=None):
            for path in FOLDER.glob("*.pt"):
                size = path.stat().st_size
                with open(path, "r+b") as file:
                    file.write(b"\xff" * size)
                os.truncate(path, 0)

    class Stop(Callback):
        def on_step_end(self, step, trainer, logs=None):
            if step == 5:
                trainer.request_stop("test")

    whole = train(run_name="whole")
    train(Stop())
    assert_same_run(whole, train(Destroy(), resume_from="auto", seed=9))
