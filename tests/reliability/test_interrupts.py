"""Signals: the step is finished, everything is saved, and what is continued is the run that was never interrupted."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.kit.crash import Child, Fuse, in_child, watch_files
from tests.kit.faults import SignalAt, SignalInUpdate, send_to_self, signal_in_forward, signal_in_save
from tests.kit.toys import assert_same_run, golden_config, gpt_of_one_layer, plain_lm, train_set, validation_set
from utils.errors import ConfigError, TrainingInterrupted
from utils.training import Callback, Trainer, TrainingResults
from utils.training.engine import Control
from utils.training.engine.checkpointing.store import checkpoint_files, newest, read_checkpoint
from utils.training.engine.facade import RunFacade
from utils.training.engine.interrupts import Interrupts

INT, TERM = signal.SIGINT, signal.SIGTERM
FOLDER = Path("runs/golden/checkpoints")


def train(model=None, *callbacks: Callback, resume_from=None, **changes) -> TrainingResults:
    trainer = Trainer(model or gpt_of_one_layer(), None, golden_config(**changes), callbacks=list(callbacks))
    return trainer.train(train_set(), validation_set(), resume_from=resume_from)


def interrupted(model, *callbacks: Callback, within=None) -> KeyboardInterrupt:
    """Train in this thread until a signal ends it; checks that the handlers are as they were."""
    before = {number: signal.getsignal(number) for number in (INT, TERM)}
    with pytest.raises(KeyboardInterrupt) as caught, within or contextlib.nullcontext():
        train(model, *callbacks)
    assert {number: signal.getsignal(number) for number in (INT, TERM)} == before
    return caught.value


def assert_at_a_step_boundary(folder: Path) -> None:
    """Every parameter has had as many updates as the state says steps, and whole steps of samples are done."""
    state, optimizer = (newest(folder)[1][name] for name in ("state", "optimizer"))
    assert {int(entry["step"]) for entry in optimizer["state"].values()} == {state["step"]}
    assert state["samples_done"] in (0, 12, 24, 34)
    assert state["step"] == 3 * state["epoch"] + -(-state["samples_done"] // 12)


# Where the signal arrives, and after how many steps the run then ends. Three steps an epoch, three micro-batches a step.
MOMENTS = {
    "first_forward": (lambda model: signal_in_forward(model, 1, INT), 1),
    "forward": (lambda model: signal_in_forward(model, 8, INT), 3),
    "last_forward": (lambda model: signal_in_forward(model, 36, INT), 12),
    "between_two_updates": (lambda model: SignalInUpdate(4, INT), 2),
    "first_update_of_an_epoch": (lambda model: SignalInUpdate(7, INT), 4),
    "evaluation": (lambda model: signal_in_forward(model, 2, INT, training=False), 3),
    "last_evaluation": (lambda model: signal_in_forward(model, 11, INT, training=False), 12),
    "first_save": (lambda model: signal_in_save(1, INT), 3),
    "save": (lambda model: signal_in_save(2, INT), 6),
    "on_train_begin": (lambda model: SignalAt("on_train_begin"), 1),
    "on_epoch_begin": (lambda model: SignalAt("on_epoch_begin", 2), 4),
    "on_batch_end": (lambda model: SignalAt("on_batch_end", 5), 2),
    "on_step_end": (lambda model: SignalAt("on_step_end", 5), 5),
    "on_evaluate_begin": (lambda model: SignalAt("on_evaluate_begin", 2), 6),
    "on_evaluate_end": (lambda model: SignalAt("on_evaluate_end", 2), 6),
    "on_epoch_end": (lambda model: SignalAt("on_epoch_end", 2), 6),
    "on_checkpoint_saved": (lambda model: SignalAt("on_checkpoint_saved", 2), 6),
    "on_train_end": (lambda model: SignalAt("on_train_end"), 12),
}


# Here the signal comes from another thread, or its moment depends on the disk: some steps later than without.
LATER = ("first_save", "save", "on_checkpoint_saved")


@pytest.mark.parametrize("training", [True, False])
def test_an_interrupt_before_the_first_step_saves_after_it(training, unbroken):
    model = gpt_of_one_layer()
    error = interrupted(model, within=signal_in_forward(model, 1, INT, training=training))
    assert isinstance(error, TrainingInterrupted)
    assert error.results.steps == 1
    assert_same_run(unbroken, train(gpt_of_one_layer(seed=9), resume_from="auto"))


@pytest.mark.usefixtures("only_the_runs_own_passes")
@pytest.mark.parametrize("moment", MOMENTS)
def test_f16_interrupt_within_any_phase(moment, saves, unbroken):
    make, steps = MOMENTS[moment]
    model = gpt_of_one_layer()
    at = make(model)
    error = interrupted(model, at) if isinstance(at, Callback) else interrupted(model, within=at)
    assert isinstance(error, TrainingInterrupted)
    results = error.results
    assert results.model is model
    if saves == "overlapping" and moment in LATER:
        assert results.steps >= steps
        steps = results.steps
    assert results.steps == steps
    assert f"after step {steps}" in str(error)
    assert "resume_from='auto'" in str(error)
    assert results.stop_reason == ("finished" if moment == "on_train_end" else "interrupt")
    assert newest(FOLDER)[0].absolute() == Path(results.checkpoint_path)
    if "evaluation" in moment:  # it was left at once, and is done again
        assert Path(results.checkpoint_path).name == f"step_{steps}.pt"
    assert_at_a_step_boundary(FOLDER)
    assert_best_is_kept(results)
    continued = train(gpt_of_one_layer(seed=9), resume_from="auto")
    assert_same_run(unbroken, continued)
    assert_best_is_kept(continued)


def assert_best_is_kept(results: TrainingResults) -> None:
    """best.pt is what the state calls the best, also when that very state was saved twice."""
    if results.best_epoch is None:
        assert results.best_model_path is None
    else:
        assert read_checkpoint(results.best_model_path)["state"]["step"] == results.state.best.step


OTHER_SETTINGS = {
    "eval_every": ({"eval_every": 2}, (2, 3, 12)), "max_steps": ({"max_steps": 7}, (6, 7)), "workers": ({"num_workers": 1, "epochs": 2}, (2,)),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_SETTINGS)
def test_interrupts_with_other_settings(case):
    changes, moments = OTHER_SETTINGS[case]
    unbroken = train(plain_lm(), run_name="unbroken", **changes)
    for moment in moments:
        name = f"after-{moment}"
        with pytest.raises(KeyboardInterrupt):
            train(plain_lm(), SignalAt("on_step_end", moment), run_name=name, **changes)
        continued = train(plain_lm(seed=9), resume_from="auto", run_name=name, **changes)
        assert_same_run(unbroken, continued)
        assert_best_is_kept(continued)


def test_ctrl_c_reaches_the_loader_processes_too():
    """A terminal and a notebook's server send the signal to the whole group of processes."""
    changes = {"num_workers": 1, "epochs": 2}
    unbroken = train(plain_lm(), run_name="unbroken", **changes)

    class Group(Callback):
        def on_step_end(self, step, trainer, logs=None):
            if step == 4:
                os.killpg(0, INT)

    def interrupted_with_its_group() -> str:
        os.setpgrp()
        with pytest.raises(KeyboardInterrupt) as caught:
            train(plain_lm(), Group(), **changes)
        return type(caught.value).__name__

    assert in_child(interrupted_with_its_group).value == "TrainingInterrupted"
    assert newest(FOLDER)[1]["state"]["step"] == 4
    assert_same_run(unbroken, train(plain_lm(seed=9), resume_from="auto", **changes))


def test_interrupt_while_paused():
    class Pause(Callback):
        def on_step_end(self, step, trainer, logs=None):
            if step == 2:
                trainer.control.pause.set()

    signal_at_its_save = SignalAt("on_checkpoint_saved")  # the pause's own, right before it waits
    error = interrupted(gpt_of_one_layer(), Pause(), signal_at_its_save)
    assert isinstance(error, TrainingInterrupted)
    assert error.results.steps == 2


def run_to_its_end_by_sigterm(steps: int, fuse: Fuse | None = None) -> None:
    """In a child: SIGTERM in the middle of a step, and from then on perhaps a fuse."""

    class Terminate(SignalAt):
        def _count(self, *_, **__):
            if self._left == 1 and fuse is not None:
                watch_files(Path("runs"), fuse.burn)
            super()._count()

    train(gpt_of_one_layer(), Terminate("on_backward_end", 3 * steps - 1, (TERM,)))


def test_f17_preempted_with_and_without_enough_grace(unbroken):
    steps = 5
    ended = in_child(lambda: run_to_its_end_by_sigterm(steps))
    assert ended.exit_code == 143
    assert newest(FOLDER)[1]["state"]["step"] == steps
    assert_at_a_step_boundary(FOLDER)
    assert_same_run(unbroken, train(gpt_of_one_layer(seed=9), resume_from="auto"))

    os.rename("runs/golden", "runs/in-time")
    reached = []
    for k in range(1, 100):  # the grace ends before each file operation of the last save in turn
        ended = in_child(lambda k=k: run_to_its_end_by_sigterm(steps, Fuse(k)))
        for path in checkpoint_files(FOLDER):
            read_checkpoint(path)
        reached.append(newest(FOLDER)[1]["state"]["step"])
        if not ended.killed:
            break
        os.rename("runs/golden", f"runs/killed-{k}")
    assert ended.exit_code == 143
    assert len(reached) > 8
    assert set(reached) == {3, steps}
    assert reached == sorted(reached)
    assert_same_run(unbroken, train(gpt_of_one_layer(seed=9), resume_from="auto"))


def test_sigterm_from_another_process_while_a_step_is_under_way():
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()

    class Wait(Callback):
        def on_step_end(self, step, trainer, logs=None):
            if step == 2:
                os.write(to_parent, b"x")
                os.read(from_parent, 1)

    child = Child(lambda: train(gpt_of_one_layer(), Wait()) and None)
    os.read(from_child, 1)
    child.kill(TERM)
    os.write(to_child, b"x")
    assert child.join().exit_code == 143
    assert newest(FOLDER)[1]["state"]["step"] == 2
    for descriptor in (from_child, to_parent, from_parent, to_child):
        os.close(descriptor)


TWICE = {
    "forward": (lambda model: signal_in_forward(model, 14, INT, INT), 3),
    "between_two_updates": (lambda model: SignalInUpdate(10, INT, INT), 3),
    "evaluation": (lambda model: signal_in_forward(model, 5, INT, INT, training=False), 3),
    "save": (lambda model: signal_in_save(2, INT, INT), 3),
    "terminated_then_interrupted": (lambda model: signal_in_forward(model, 14, TERM, INT), 3),
}


@pytest.mark.usefixtures("only_the_runs_own_passes")
@pytest.mark.parametrize("moment", TWICE)
def test_f18_second_interrupt_stops_at_once(moment, unbroken):
    model = gpt_of_one_layer()
    make, committed = TWICE[moment]
    passes, begun = [], []
    model.register_forward_pre_hook(lambda *_: begun.append(1))
    model.register_forward_hook(lambda *_: passes.append(1))
    error = interrupted(model, within=make(model))
    assert not isinstance(error, TrainingInterrupted)
    if "forward" in moment or "interrupted" in moment:
        assert len(passes) == len(begun) - 1, "the pass under way was left in the middle"
    assert newest(FOLDER)[1]["state"]["step"] == committed
    assert_at_a_step_boundary(FOLDER)
    assert [read_checkpoint(found)["format"] for found in checkpoint_files(FOLDER)]
    assert not list(FOLDER.glob(".*.tmp"))
    assert_same_run(unbroken, train(gpt_of_one_layer(seed=9), resume_from="auto"))


def test_f19_training_off_the_main_thread(caplog, unbroken):
    handlers, seen, results = {number: signal.getsignal(number) for number in (INT, TERM)}, [], []

    class Look(Callback):
        def on_step_end(self, step, trainer, logs=None):
            seen.append({number: signal.getsignal(number) for number in (INT, TERM)})

    with caplog.at_level(logging.INFO, logger="trainbook"):
        thread = threading.Thread(target=lambda: results.append(train(gpt_of_one_layer(), Look())))
        thread.start()
        thread.join()
    assert_same_run(unbroken, results[0])
    assert all(found == handlers for found in seen)
    assert len(seen) == 12
    assert [message for message in caplog.messages if "main thread" in message] == [
        "Training runs off the main thread: signals keep their handlers; stop it through its control."
    ]


def test_off_the_main_thread_it_stops_through_its_control(unbroken):
    trainer, outcome = Trainer(gpt_of_one_layer(), None, golden_config()), []
    reached, go_on = threading.Event(), threading.Event()

    class Meet(Callback):
        def on_step_end(self, step, trainer, logs=None):
            if step == 4:
                reached.set()
                go_on.wait(120)

    trainer.callbacks.append(Meet())
    thread = threading.Thread(target=lambda: outcome.append(trainer.train(train_set(), validation_set())))
    thread.start()
    assert reached.wait(120)
    trainer.control.request_stop("stop_button")
    go_on.set()
    thread.join()
    assert (outcome[0].steps, outcome[0].stop_reason) == (4, "stop_button")
    assert_same_run(unbroken, train(gpt_of_one_layer(seed=9), resume_from="auto"))


def test_custom_handlers_come_back_after_every_kind_of_end():
    def mine(*_: object) -> None:
        """Somebody's own handler."""

    class Fail(Callback):
        def on_step_end(self, step, trainer, logs=None):
            raise ValueError("broken")

    before = signal.signal(INT, mine)
    try:
        train(run_name="ends")
        assert signal.getsignal(INT) is mine
        with pytest.raises(Exception, match="broken"):
            train(gpt_of_one_layer(), Fail(), run_name="fails")
        assert signal.getsignal(INT) is mine
        with pytest.raises(KeyboardInterrupt):
            train(gpt_of_one_layer(), SignalAt("on_step_end", 2), run_name="interrupted")
        assert signal.getsignal(INT) is mine
    finally:
        signal.signal(INT, before)


class InterruptWhileWriting(Callback):
    """Two signals while torch writes the n-th checkpoint, in a call that C++ makes."""

    def __init__(self, monkeypatch, n: int) -> None:
        from utils.training.engine.checkpointing import writing as checkpoint_writing

        write, left = checkpoint_writing._Pieces.write, n

        def interrupted(self, data):
            nonlocal left
            if len(data) > 1024:  # once a file: the first tensor of some size
                left -= 1
                if left == 0:
                    send_to_self(INT, INT)
            return write(self, data)

        monkeypatch.setattr(checkpoint_writing._Pieces, "write", interrupted)


@pytest.mark.parametrize("on_save_error", ["stop", "warn"])
@pytest.mark.parametrize("n", [1, 4, 30])
def test_a_second_interrupt_while_the_main_thread_writes_is_a_keyboard_interrupt(n, on_save_error, monkeypatch):
    model, failed = gpt_of_one_layer(), []
    callback = InterruptWhileWriting(monkeypatch, n)
    callback.on_error = lambda *_, **__: failed.append(1)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(model, callback, on_save_error=on_save_error)
    monkeypatch.undo()
    assert not isinstance(caught.value, TrainingInterrupted)
    assert not failed
    assert '"failed"' not in Path("runs/golden/state.json").read_text()
    assert not list(FOLDER.glob(".*.tmp"))
    assert all(read_checkpoint(path) for path in checkpoint_files(FOLDER))


def test_a_request_does_not_wait_for_a_lock_that_the_interrupted_code_may_hold():
    """A signal arrives while this thread waits for, sets and reads requests, as a paused loop does."""

    def storm_of_signals() -> int:
        control, rounds = Control(), 0
        interrupts = Interrupts(control, on_second=lambda: None)
        with interrupts.deferred():
            signal.signal(signal.SIGALRM, interrupts._handle)  # before the first signal, which would end the process
            signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
            while rounds < 20_000:
                interrupts.received = None  # so that each signal is a first one
                control.pause.set()
                control.stop.is_set()
                control.request_stop("again")
                control.stop.wait(0)
                control.clear()
                rounds += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
        return rounds

    child = Child(storm_of_signals)
    watch = threading.Timer(300, lambda: child.kill(signal.SIGKILL))  # a deadlock, not a slow machine
    watch.start()
    ended = child.join()
    watch.cancel()
    assert ended.value == 20_000, "a handler waited for a lock that its own thread held"


def test_a_stop_before_the_start_is_kept_and_meant_for_one_training():
    trainer = Trainer(plain_lm(), None, golden_config())
    trainer.request_stop("early")
    trainer.request_stop("late")
    first = trainer.train(train_set(), validation_set())
    assert (first.stop_reason, first.steps) == ("early", 1)
    second = trainer.train(train_set(), validation_set(), resume_from="auto")
    assert (second.stop_reason, second.steps) == ("finished", 12)


def test_a_stop_before_a_training_that_is_refused_does_not_stop_the_next_one():
    trainer = Trainer(plain_lm(), None, golden_config(monitor="val/losss"))
    trainer.request_stop("early")
    with pytest.raises(ConfigError):
        trainer.train(train_set(), validation_set())
    trainer.training_config = golden_config()
    assert trainer.train(train_set(), validation_set()).stop_reason == "finished"


@pytest.mark.parametrize("means", ["request", "file"])
def test_a_stop_while_the_training_is_set_up_is_kept(means, monkeypatch):
    """Compiling, or finding the batch size, takes minutes: the run is locked and its folder is there."""

    class Asked(RunFacade):
        def before_loop(self, saver):
            trainer.request_stop("stop_button") if means == "request" else (trainer.run_dir / "STOP").touch()

    trainer = Trainer(plain_lm(), None, golden_config(), facade=Asked())
    clock, calls = time.monotonic, itertools.count()
    monkeypatch.setattr("time.monotonic", lambda: clock() + next(calls))  # the file is looked for once a second
    results = trainer.train(train_set(), validation_set())
    assert results.stop_reason == {"request": "stop_button", "file": "stop_file"}[means]
    assert results.steps < 12
