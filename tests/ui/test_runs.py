"""The table of runs: computed from what is on disk, whatever ended them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kit.toys import golden_config, tiny_gpt, train_set, validation_set
from utils.training import Callback, Trainer
from utils.ui.runs import list_runs, show_runs


class StopAt(Callback):
    def __init__(self, step, error=None):
        self._step, self._error = step, error

    def on_step_end(self, step, trainer, logs=None):
        if step == self._step:
            if self._error:
                raise self._error
            statuses.extend(run.status for run in list_runs())
            trainer.request_stop("stop_button")


statuses: list[str] = []


def train(name, *callbacks, **changes):
    config = golden_config(run_name=name, epochs=1, **changes)
    return Trainer(tiny_gpt(), training_config=config, callbacks=callbacks).train(train_set(), validation_set())


def test_each_run_says_what_became_of_it_and_how_to_go_on(capsys):
    statuses.clear()
    train("a-done")
    train("b-stopped", StopAt(2))
    with pytest.raises(RuntimeError, match="on purpose"):
        train("c-failed", StopAt(2, RuntimeError("on purpose")))
    killed = Path("runs/d-killed")
    train("d-killed")
    state = killed / "state.json"
    state.write_text(state.read_text().replace('"ended"', '"running"'))
    (Path("runs") / "no-run").mkdir()
    runs = {run.name: run for run in list_runs()}
    assert {name: run.status for name, run in runs.items()} == {
        "a-done": "finished", "b-stopped": "stopped", "c-failed": "failed", "d-killed": "broken off",
    }  # fmt: skip
    assert runs["b-stopped"].reason == "Stopped by the Stop button and saved"
    assert runs["b-stopped"].step == 2
    assert "on purpose" in runs["c-failed"].reason
    assert runs["a-done"].validation_loss > 0
    assert statuses == ["finished", "running"]
    show_runs()
    table = capsys.readouterr().out
    assert "continue: run the Training cell again with this run_name" in table
    assert "no-run" not in table


def test_no_runs_are_said(capsys):
    show_runs("nowhere")
    assert "There is no run in" in capsys.readouterr().out


def test_a_torn_state_file_hides_no_run():
    train("a-done")
    Path("runs/a-done/state.json").write_text("{")
    (run,) = list_runs()
    assert (run.status, run.step) == ("broken off", None)


@pytest.mark.parametrize(("changes", "ended", "advice"), [
    ({"epochs": 1}, "finished", "a larger `epochs`"), ({"max_steps": 2}, "max_steps", "a larger `max_steps`"),
    ({"epochs": 5, "early_stopping_patience": 1, "min_delta": 100.0}, "early_stopping", "a larger `early_stopping_patience`"),
], ids=str)  # fmt: skip
def test_a_finished_run_is_told_to_change_what_ended_it(changes, ended, advice):
    config = golden_config(run_name="run", **changes)
    assert Trainer(tiny_gpt(), training_config=config).train(train_set(), validation_set()).stop_reason == ended
    (run,) = list_runs()
    assert run.status == "finished"
    assert f"set {advice}" in run.to_do
    assert ("epochs" in run.to_do) == (ended == "finished")


def test_a_run_that_was_killed_behind_its_last_checkpoint_is_finished_when_it_is_read_again():
    train("a")
    state = Path("runs/a/state.json")
    state.write_text(state.read_text().replace('"ended"', '"running"'))
    config = golden_config(run_name="a", epochs=1)
    Trainer(tiny_gpt(), training_config=config).train(train_set(), validation_set(), resume_from="auto")
    assert list_runs()[0].status == "finished"
