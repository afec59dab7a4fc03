"""One run, one folder, one process at a time: what a restarted kernel finds, and what a second process is told."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.crash import Child, in_child
from tests.kit.toys import (
    assert_same_run,
    golden_config,
    gpt_of_one_layer,
    plain_lm,
    same_weights,
    train_set,
    validation_set,
    without_times,
)
from utils.errors import CheckpointError, RunLockedError
from utils.storage import FolderLock, host_name, read_json_lines
from utils.training import Callback, Trainer, TrainingResults
from utils.training.config_builder import TrainingConfigBuilder

RUN = Path("runs/golden")


def train(model=None, *callbacks: Callback, resume_from=None, **changes) -> TrainingResults:
    trainer = Trainer(model or gpt_of_one_layer(), None, golden_config(**changes), callbacks=list(callbacks))
    return trainer.train(train_set(), validation_set(), resume_from=resume_from)


class DieAt(Callback):
    """SIGKILL after a step, as a kernel that is restarted or runs out of memory gets."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, step, trainer, logs=None):
        if step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


CELL = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from tests.kit.toys import golden_config, plain_lm, train_set, validation_set
from utils.training import Trainer
Trainer(plain_lm(seed=int(sys.argv[2])), None, golden_config()).train(train_set(), validation_set(), resume_from="auto")
"""


def test_f20_restarted_kernel_runs_the_same_cell_again(unbroken):
    assert in_child(lambda: train(gpt_of_one_layer(), DieAt(8), resume_from="auto") and None).killed
    assert json.loads((RUN / "state.json").read_text())["status"] == "running"  # nobody was there to say otherwise
    done = read_json_lines(RUN / "history.jsonl")
    steps = [row["step"] for row in done if row["event"] == "step"]
    assert len(steps) >= 6  # as many as the checkpoint has; the last half second's rows were in memory
    assert steps == list(range(1, len(steps) + 1))

    continued = train(gpt_of_one_layer(seed=9), resume_from="auto")
    assert_same_run(unbroken, continued)
    rows = read_json_lines(RUN / "history.jsonl")
    assert without_times(rows) == without_times(read_json_lines(unbroken.run_dir / "history.jsonl"))
    assert json.loads((RUN / "state.json").read_text())["status"] == "ended"

    before = {path: path.stat().st_mtime_ns for path in RUN.rglob("*.pt")}
    heard: list[str] = []

    class Listen(Callback):
        def on_train_begin(self, trainer, logs=None):
            heard.append("begin")

        def on_step_end(self, step, trainer, logs=None):
            heard.append("step")

    model = gpt_of_one_layer(seed=9)
    stored = train(model, Listen(), resume_from="auto")
    assert not heard
    assert_same_run(unbroken, stored)
    assert same_weights(model, unbroken.model)
    assert stored.checkpoint_path == continued.checkpoint_path
    assert stored.best_model_path == continued.best_model_path
    assert without_times(stored.metrics_summary.to_dict("records")) == without_times(
        continued.metrics_summary.to_dict("records")
    )
    assert {path: path.stat().st_mtime_ns for path in RUN.rglob("*.pt")} == before


@pytest.mark.slow
def test_a_fresh_interpreter_continues_what_another_one_began():
    """Nothing that is compared on a resume may depend on the process: its hash seed, its import order, its addresses."""
    ended = in_child(lambda: train(plain_lm(), DieAt(8)) and None)
    assert ended.killed
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", CELL, root, "9"], check=True, env=environment, timeout=300)
    stored = train(plain_lm(seed=8), resume_from="auto")
    assert_same_run(train(plain_lm(), run_name="unbroken"), stored)


def test_f21_second_process_on_the_same_run_is_refused(unbroken):
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()

    class Stay(Callback):
        def on_step_end(self, step, trainer, logs=None):
            if step == 4:
                os.write(to_parent, b"x")
                os.read(from_parent, 1)

    first = Child(lambda: train(gpt_of_one_layer(), Stay()) and None)
    try:
        os.read(from_child, 1)
        before = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
        model = gpt_of_one_layer(seed=9)
        with pytest.raises(RunLockedError, match=f"in use by process {first.pid} on {host_name()}") as caught:
            train(model, resume_from="auto")
        assert "STOP" in str(caught.value)
        assert same_weights(model, gpt_of_one_layer(seed=9))
        assert {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()} == before
    finally:
        first.kill()
        assert first.join().killed
        for descriptor in (from_child, to_parent, from_parent, to_child):
            os.close(descriptor)
    assert json.loads((RUN / "lock").read_text())["pid"] == first.pid  # a dead process's record, and no lock
    assert_same_run(unbroken, train(gpt_of_one_layer(seed=9), resume_from="auto"))


def test_the_lock_ends_with_its_process_though_a_child_of_it_lives_on(tmp_path):
    """Loader processes are forked while the lock is held, and outlive a killed run by some seconds."""
    from_holder, to_test = os.pipe()
    from_test, to_survivor = os.pipe()

    def hold() -> None:
        lock = FolderLock(tmp_path / "lock")
        lock.acquire()
        os.close(to_survivor)
        if os.fork() == 0:
            os.write(to_test, b"x")
            os.read(from_test, 1)  # lives until the test closes its end
            os._exit(0)
        signal.pause()

    holder = Child(hold)
    try:
        os.read(from_holder, 1)
        with pytest.raises(RunLockedError):
            FolderLock(tmp_path / "lock").acquire()
        holder.kill()
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
        with FolderLock(tmp_path / "lock").held():
            pass
    finally:
        holder.kill()
        for descriptor in (to_survivor, from_test, from_holder, to_test):
            os.close(descriptor)
        assert holder.join().killed


def test_two_trainers_in_one_process_do_not_share_a_run():
    class Second(Callback):
        def on_step_end(self, step, trainer, logs=None):
            if step == 1:
                with pytest.raises(RunLockedError, match=f"process {os.getpid()}"):
                    train(resume_from="auto")

    train(gpt_of_one_layer(), Second())


def test_checkpoints_of_another_run_are_never_overwritten():
    shared = {"checkpoint_dir": "shared", "epochs": 2}
    first = train(run_name="first", **shared)
    assert first.checkpoint_paths == [str(Path("shared").absolute() / f"epoch_{number}.pt") for number in (1, 2)]
    before = {path: path.read_bytes() for path in Path("shared").glob("*.pt")}
    for resume_from, run_name in ((None, "second"), (None, None), (None, "first"), ("auto", "third")):
        results = train(run_name=run_name, resume_from=resume_from, **shared)
        folder = Path("shared").absolute() / results.run_name
        assert results.checkpoint_paths == [f"{folder}/epoch_1.pt", f"{folder}/epoch_2.pt"]
        assert len([notice for notice in results.notices if str(folder) in notice]) == (resume_from is None)
    with pytest.raises(CheckpointError, match="never overwritten") as caught:
        train(run_name="fourth", resume_from="latest", **shared)
    assert "another checkpoint_dir" in str(caught.value)
    assert {path: path.read_bytes() for path in Path("shared").glob("*.pt")} == before


def test_a_sweep_with_one_checkpoint_dir_keeps_the_checkpoints_of_every_run():
    """The loop that people write: one base configuration, a new Trainer for each combination."""
    base = golden_config(epochs=1, checkpoint_dir="checkpoints", run_name=None)
    best = []
    for learning_rate in (1e-3, 1e-2, 3e-2):
        config = TrainingConfigBuilder.from_config(base).with_training(learning_rate=learning_rate).build()
        results = Trainer(gpt_of_one_layer(), None, config).train(train_set(), validation_set())
        best.append(results.best_model_path)
    assert len(set(best)) == 3
    assert all(Path(path).is_file() for path in best)


@pytest.mark.parametrize("resume_from", ["auto", "latest"])
def test_a_run_below_a_shared_checkpoint_dir_is_continued_by_its_name(resume_from):
    shared = {"checkpoint_dir": "shared", "epochs": 2}
    unbroken = train(run_name="unbroken", epochs=2)
    train(run_name="first", **shared)
    assert in_child(lambda: train(gpt_of_one_layer(), DieAt(5), run_name="second", **shared) and None).killed
    continued = train(gpt_of_one_layer(seed=9), run_name="second", resume_from=resume_from, **shared)
    assert_same_run(unbroken, continued)
    assert continued.run_name == "second"
    assert Path(continued.checkpoint_path).parent == Path("shared/second").absolute()


@pytest.mark.parametrize("run_name", ["first", None])
def test_an_explicit_checkpoint_dir_is_enough_to_continue(run_name):
    shared = {"checkpoint_dir": "shared", "epochs": 2}
    unbroken = train(run_name="unbroken", epochs=2)
    assert in_child(lambda: train(gpt_of_one_layer(), DieAt(5), run_name="first", **shared) and None).killed
    continued = train(gpt_of_one_layer(seed=9), run_name=run_name, resume_from="auto", **shared)
    assert_same_run(unbroken, continued)
    assert continued.run_name == "first"


def test_a_name_that_was_taken_does_not_mix_two_runs():
    """checkpoint_dir's run had to be called golden-2; going on with it leaves golden's history alone."""
    train(epochs=1)
    other = (RUN / "history.jsonl").read_text()
    unbroken = train(run_name="unbroken", epochs=2)
    shared = {"checkpoint_dir": "shared", "epochs": 2}
    assert in_child(lambda: train(gpt_of_one_layer(), DieAt(5), **shared) and None).killed
    continued = train(gpt_of_one_layer(seed=9), resume_from="auto", **shared)
    assert continued.run_name == "golden-2"
    assert_same_run(unbroken, continued)
    assert (RUN / "history.jsonl").read_text() == other


def test_checkpoints_whose_run_folder_is_gone_are_taken_up():
    shared = {"checkpoint_dir": "shared", "epochs": 2}
    assert in_child(lambda: train(gpt_of_one_layer(), DieAt(5), output_dir="lost", **shared) and None).killed
    continued = train(gpt_of_one_layer(seed=9), resume_from="auto", **shared)
    assert same_weights(continued.model, train(run_name="unbroken", epochs=2).model)
    assert [row["epoch"] for row in continued.history] == [0, 1]


def test_no_json_file_holds_a_number_that_json_does_not_have(tmp_path):
    from utils.storage import write_json

    path = write_json(tmp_path / "state.json", {"loss": math.nan, "rows": [1.5, math.inf, (-math.inf, 2)], "name": "NaN"})

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content == {"loss": None, "rows": [1.5, None, [None, 2]], "name": "NaN"}
