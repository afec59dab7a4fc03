"""Finish now and Stop and keep best: what a run that is under way can be asked for, and that a resume stays exact."""

from __future__ import annotations

import pytest
import torch

from tests.kit.toys import golden_config, plain_lm, train_set, validation_set
from utils.training import Callback, Trainer
from utils.training.engine.checkpointing.store import read_checkpoint
from utils.training.engine.compute.optim import Schedule
from utils.ui.live_run import LiveFeed, LiveRun
from utils.ui.run_on_disk import StopFile, can_finish_early, run_on_disk

WSD = {
    "lr_schedule": "wsd", "warmup_steps": 1, "warmup_ratio": None, "lr_decay_ratio": 0.5, "epochs": 10, "max_steps": 30,
    "early_stopping_patience": None,
}  # fmt: skip


class At(Callback):
    """Does something after one step."""

    def __init__(self, step, action):
        self._step, self._action = step, action

    def on_step_end(self, step, trainer, logs=None):
        if step == self._step:
            self._action(trainer)


def train(run_name, *callbacks, resume_from=None, finish=False, **changes):
    trainer = Trainer(
        plain_lm(), None, golden_config(run_name=run_name, **{**WSD, **changes}), callbacks=list(callbacks)
    )
    if finish:
        trainer.request_finish()
    return trainer.train(train_set(), validation_set(), resume_from=resume_from)


def finish(step):
    return At(step, lambda trainer: trainer.request_finish())


def stop(step, reason="requested"):
    return At(step, lambda trainer: trainer.request_stop(reason))


def assert_same_weights(results, others):
    for name, tensor in results.model.state_dict().items():
        assert torch.equal(tensor, others.model.state_dict()[name]), name


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 30 steps that was asked to finish after step 4, with what a live view saw of it."""
    live = LiveRun()
    folder = str(tmp_path_factory.mktemp("finished"))
    results = train("finished", finish(4), LiveFeed(live.apply), output_dir=folder)
    return results, live


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.5, 0.9, 1.0])
def test_the_earliest_end_is_the_shortest_run_whose_decay_begins_there(ratio):
    config = golden_config(lr_schedule="wsd", warmup_steps=3, lr_decay_ratio=ratio)
    for step in range(60):
        end, begins = Schedule(config, 60).earliest_end(step), max(step, 3)
        assert begins < end <= 60 or step == 59
        if end < 60:
            assert Schedule(config, end).at(begins) == config.learning_rate
            assert Schedule(config, end).at(end - 1) == pytest.approx(config.learning_rate * config.min_lr_ratio)
            shorter = Schedule(config, end - 1)
            assert step <= 3 or shorter.at(begins) < config.learning_rate or shorter.at(end - 2) == config.learning_rate


def test_a_run_that_is_finished_now_is_the_run_that_was_planned_so(finished):
    results, _ = finished
    assert (results.stop_reason, results.steps) == ("finish_now", 9)
    assert any("ends after step 9 instead of 30" in notice for notice in results.notices)
    assert results.epoch_rows[-1]["train/learning_rate"] == pytest.approx(
        0.1 * results.epoch_rows[0]["train/learning_rate"]
    )
    assert_same_weights(train("planned", max_steps=9), results)


def test_the_end_is_seen_live_and_from_the_folder(finished):
    results, live = finished
    assert live.total_steps == 9
    assert (5, "finishing: decay until step 9") in live.log
    assert run_on_disk(results.run_dir)[0].total_steps == 9
    assert can_finish_early(results.run_dir)


def test_a_run_stopped_in_its_decay_is_resumed_in_it(finished):
    stopped = train("resumed", finish(4), stop(6))
    assert (stopped.stop_reason, stopped.state.finish_at) == ("requested", 9)
    resumed = train("resumed", resume_from="auto")
    assert (resumed.stop_reason, resumed.steps) == ("finish_now", 9)
    assert_same_weights(resumed, finished[0])
    again = train("resumed", At(10, lambda trainer: pytest.fail("it was finished")), resume_from="auto")
    assert (again.stop_reason, again.steps) == ("finish_now", 9)
    longer = train("resumed", resume_from="auto", max_steps=12, on_config_change="continue")
    assert (longer.stop_reason, longer.steps) == ("max_steps", 12)


def test_a_stopped_run_can_be_finished_from_its_checkpoint(finished):
    train("later", stop(4))
    assert_same_weights(train("later", resume_from="auto", finish=True), finished[0])


def test_a_new_run_from_a_checkpoint_in_the_decay_has_its_own_plan(finished):
    train("parent", finish(4), stop(6))
    child = train("child", resume_from="runs/parent/checkpoints/step_6.pt", max_steps=12)
    assert (child.stop_reason, child.steps) == ("max_steps", 12)


@pytest.mark.parametrize(("changes", "step", "says"), [
    ({"lr_schedule": "cosine"}, 2, "only lr_schedule='wsd'"), ({}, 5, "changed nothing: the decay has begun"),
])  # fmt: skip
def test_what_cannot_be_finished_now_goes_on_with_a_notice(changes, step, says):
    results = train("plain", finish(step), **changes, max_steps=8)
    assert (results.stop_reason, results.steps) == ("max_steps", 8)
    assert any(says in notice for notice in results.notices)


def test_a_finish_during_warm_up_decays_after_it():
    assert train("early", finish(1), warmup_steps=3, max_steps=20).steps == 8  # 3 of warm-up, 1 at the peak, 4 of decay


def test_the_average_of_the_last_steps_ends_with_the_run():
    average = {"weight_averaging": "last", "averaging_ratio": 0.25}
    results = train("averaged", finish(4), **average)
    assert results.steps == 9
    average_of = read_checkpoint(results.checkpoint_path)["averaged"]
    assert average_of["count"] == 3


def at_once(monkeypatch):
    monkeypatch.setattr("utils.training.engine.loop.time.monotonic", lambda: 1e9)


def test_a_finish_file_is_obeyed_and_removed(monkeypatch, finished):
    def make(trainer):
        StopFile(trainer.run_dir).request_finish()
        at_once(monkeypatch)

    results = train("by-file", At(4, make))
    assert not (results.run_dir / "FINISH").exists()
    assert_same_weights(results, finished[0])


def test_stop_and_keep_best_gives_the_best_weights_and_the_run_resumes_exactly():
    changes = {
        "lr_schedule": "constant", "max_steps": 9, "monitor": "val/loss", "mode": "min", "min_delta": 0.0, "precision": "fp32",
    }  # fmt: skip
    best_early = At(4, lambda trainer: setattr(trainer.state.best, "value", -1.0))  # what comes later is not better
    results = train("kept", best_early, stop(7, "keep_best"), **changes)
    assert (results.stop_reason, results.weights, results.steps) == ("keep_best", "best", 7)
    assert any("best checkpoint (step 3" in notice for notice in results.notices)
    shown = results.summary()
    assert shown["weights"] == "those of the best checkpoint"
    assert shown["ended"] == f"keep best after 7 steps, complete epochs: {results.epochs_trained}"
    assert "fp32 precision" in shown["time"]
    best, last = (read_checkpoint(path)["model"] for path in (results.best_model_path, results.checkpoint_path))
    for name, tensor in results.model.state_dict().items():
        assert torch.equal(tensor, best[name]), name
        assert torch.equal(results.final_model_state[name], best[name]), name
    assert any(not torch.equal(best[name], last[name]) for name in best)
    assert_same_weights(train("kept", resume_from="auto", **changes), train("unbroken", **changes))


def test_without_a_best_checkpoint_the_model_keeps_the_last_weights(monkeypatch):
    def ask(trainer):
        StopFile(trainer.run_dir).request_stop("keep_best")
        at_once(monkeypatch)

    results = train("none", At(2, ask))
    assert results.stop_reason == "keep_best"
    assert not (results.run_dir / "STOP").exists()
    assert results.weights == "trained"
    assert any("no best checkpoint" in notice for notice in results.notices)
