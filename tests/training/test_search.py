"""A search tries what it was told, compares fairly, loses nothing, and says what went wrong."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from tests.kit.crash import Child, in_child
from tests.kit.databases import stored_trials
from tests.kit.toys import PlainLM, plain_lm, tiny_gpt, train_set, validation_set
from utils.errors import ConfigError, DataError, DataTypeError, ModelError, TrainingInterrupted
from utils.training import Trainer, TrainingConfig
from utils.training.engine.callbacks import Callback
from utils.training.search import Choices, LogRange, Range, SearchSpace, search_hyperparameters
from utils.training.search.strategies import random_order

RATES = {"lr": [1e-4, 1e-2, 3e-2]}


def config(**changes):
    return TrainingConfig(**{"epochs": 1, "batch_size": 8, **changes})


def found(space=RATES, model=plain_lm, data=None, **options):
    settings = {"strategy": "grid", "training_config": config(), **options}
    return search_hyperparameters(model, space, train_set() if data is None else data, validation_set(), **settings)


class Recorder(Callback):
    """Remembers which runs were trained."""

    def __init__(self):
        self.runs = []

    def on_train_begin(self, trainer, logs=None):
        self.runs.append(trainer.run_dir.name)


class StopIn(Callback):
    """Does something once, at a step of one run."""

    def __init__(self, run, step, action):
        self.run, self.step, self.action = run, step, action

    def on_step_end(self, step, trainer, logs=None):
        if trainer.run_dir.name == self.run and step == self.step:
            self.action(trainer)


# ---- the space ----


def test_every_spelling_of_a_space_means_the_same():
    spellings = [(1e-5, 1e-3), LogRange(1e-5, 1e-3), {"min": 1e-5, "max": 1e-3, "log": True},
                 {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-3}, {"low": 1e-5, "high": 1e-3}]  # fmt: skip
    spaces = [SearchSpace({name: spelling}) for spelling in spellings for name in ("lr", "learning_rate")]
    assert all(space.dimensions == {"learning_rate": LogRange(1e-5, 1e-3)} for space in spaces)
    assert SearchSpace({"batch_size": {"values": [4, 8]}}).dimensions == {"batch_size": Choices((4, 8))}
    assert SearchSpace({"clip": {"value": 0.5}}).dimensions == {"max_grad_norm": Choices((0.5,))}
    assert SearchSpace({"n_epochs": (1, 3)}).dimensions == {"epochs": Range(1, 3, whole=True)}
    assert SearchSpace({"warmup": (0, 100)}).dimensions == {"warmup_steps": Range(0, 100, whole=True)}
    assert SearchSpace({"warmup": (0.0, 0.2)}).names == ["warmup_ratio"]
    assert SearchSpace({"use_amp": [True, False]}).dimensions == {"precision": Choices(("16", "32"))}
    assert SearchSpace({"dropout": [0.0, 0.1]}).names == ["model.dropout"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learning_rat": [1e-3]}, "did you mean learning_rate"),
        ({"lr": []}, "no choices"),
        ({"lr": (1e-3, 1e-5)}, "less than the second"),
        ({"lr": LogRange(0.0, 1.0)}, "greater than 0"),
        ({"batch_size": [0, 4]}, "must be at least 1"),
        ({"batch_size": (0.5, 4)}, "whole numbers"),
        ({"lr": (1e-3, 2.0)}, "less than 1"),
        ({"lr": [1e-3], "learning_rate": [1e-4]}, "there already"),
        ({"run_name": ["a", "b"]}, "does not change what is learned"),
        ({"lr": {"min": 1e-3}}, "min and max"),
        ({"lr": {"distribution": "normal", "mu": 0}}, "not known"),
        ({"lr": 1e-3}, "list of choices"),
        ({}, "maps names to values"),
    ],
)
def test_a_mistake_in_the_space_is_named_before_any_work(space, message):
    with pytest.raises(ConfigError, match=message):
        found(space, strategy="random")
    assert not Path("runs").exists()


def test_all_mistakes_of_a_space_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        SearchSpace({"learning_rat": [1e-3], "batch_size": [-1], "epochs": (3, 1)})
    assert len(caught.value.problems) == 3


def test_a_grid_is_every_combination_and_a_range_needs_points():
    space = SearchSpace({"lr": LogRange(1e-4, 1e-2, points=3), "batch_size": [4, 8], "epochs": Range(1, 5, points=3)})
    grid = space.grid()
    assert len(grid) == 18
    assert sorted({trial["learning_rate"] for trial in grid}) == pytest.approx([1e-4, 1e-3, 1e-2])
    assert {trial["epochs"] for trial in grid} == {1, 3, 5}
    with pytest.raises(ConfigError, match=r"learning_rate.*LogRange\(1e-05, 0.001, points=5\)"):
        found({"lr": (1e-5, 1e-3)})
    assert not Path("runs").exists()


def test_random_trials_repeat_by_seed_and_never_twice_in_a_finite_space():
    finite = SearchSpace({"batch_size": [4, 8], "epochs": (1, 3)})
    drawn = list(random_order(finite, 0))
    assert len(drawn) == 6
    assert len({repr(trial) for trial in drawn}) == 6
    assert drawn == list(random_order(finite, 0))
    assert drawn != list(random_order(finite, 1))
    endless = random_order(SearchSpace({"lr": (1e-5, 1e-1)}), 0)
    rates = torch.tensor([next(endless)["learning_rate"] for _ in range(400)])
    per_decade = torch.histc(rates.log10(), bins=4, min=-5, max=-1)
    assert per_decade.min() > 60  # of 100: drawn by the logarithm


# ---- trials ----


def test_each_trial_is_a_run_and_the_best_one_is_the_best_run(rng_untouched):
    results = found({"lr": [1e-4, 1e-2, 3e-2], "batch_size": [4, 8]})
    assert [trial.status for trial in results.trials] == ["finished"] * 6
    assert sorted(path.name for path in Path("runs").iterdir()) == ["search1", *(f"search1-trial{n}" for n in range(6))]
    assert results["best_value"] == min(trial.value for trial in results.trials)
    assert set(results["best_params"]) == {"learning_rate", "batch_size"}
    values = results.best_params
    alone = Trainer(plain_lm(), None, config(**values)).train(train_set(), validation_set())
    assert alone.best_value == results.best_value
    assert Path(results.best_model_path).is_file()
    assert results.best_config.learning_rate == values["learning_rate"]


@pytest.mark.parametrize("make", ["model", "factory"])
def test_a_trial_does_not_feel_those_before_it(make):
    model = tiny_gpt(dropout=0.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    results = found({"lr": [1e-2, 1e-3]}, model if make == "model" else lambda: tiny_gpt(dropout=0.0))
    alone = Trainer(tiny_gpt(dropout=0.0), None, config(learning_rate=1e-3)).train(train_set(), validation_set())
    assert results.trials[1].value == alone.best_value
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_factory_that_draws_its_weights_makes_the_same_model_each_time():
    made = []

    def factory():
        made.append(PlainLM())
        made[-1].start = {name: tensor.clone() for name, tensor in made[-1].state_dict().items()}
        return made[-1]

    torch.manual_seed(1)  # another session's random state must not matter
    found({"lr": [1e-2, 1e-3]}, factory)
    torch.manual_seed(42)
    fresh = PlainLM().state_dict()
    assert all(torch.equal(fresh[name], made[0].start[name]) for name in fresh)
    assert all(torch.equal(made[0].start[name], made[1].start[name]) for name in made[0].start)


def test_a_factory_that_returns_its_model_twice_is_refused():
    model = plain_lm()
    with pytest.raises(ModelError, match="same model twice"):
        found(RATES, lambda: model)


def test_arguments_of_the_model_are_searched_through_its_factory():
    results = found({"model.width": [16, 32]}, lambda width: PlainLM(width=width))
    assert [trial.params for trial in results.trials] == [{"model.width": 16}, {"model.width": 32}]
    assert results.trials[0].value != results.trials[1].value
    with pytest.raises(ConfigError, match="Give a factory"):
        found({"model.width": [16, 32]}, plain_lm())


def test_another_metric_decides_when_it_is_asked_for():
    results = found(monitor="val/accuracy")
    assert (results.monitor, results.mode) == ("val/accuracy", "max")
    assert results.best_value == max(trial.value for trial in results.trials)


def test_without_validation_data_the_training_loss_decides_and_it_is_said():
    results = search_hyperparameters(plain_lm, RATES, train_set(), strategy="grid", training_config=config())
    assert results.monitor == "train/loss"
    assert any("No validation data" in notice for notice in results.notices)
    assert results.best_params["learning_rate"] > 1e-4


class Failing(PlainLM):
    """NaN, or out of memory, for one width."""

    def __init__(self, width):
        super().__init__(width=width)
        self.width = width

    def forward(self, tokens):
        if self.width == 20:
            raise torch.OutOfMemoryError("out of memory. Tried to allocate 20 GiB")
        return super().forward(tokens) * (float("nan") if self.width == 24 else 1.0)


def test_a_failed_trial_is_recorded_and_the_search_goes_on():
    results = found({"model.width": [20, 24, 28]}, Failing)
    assert [trial.status for trial in results.trials] == ["failed", "failed", "finished"]
    assert "memory" in results.trials[0].reason
    assert "NonFiniteError" in results.trials[1].reason
    assert results.best_params == {"model.width": 28}


def test_a_search_of_which_nothing_worked_has_no_best(capsys):
    results = found({"model.width": [24]}, Failing)
    assert (results.best_params, results.best_value, results.best_trial, results.best_config) == (None,) * 4
    results.show()
    assert "no trial has finished" in capsys.readouterr().out


@pytest.mark.parametrize("data", [42, torch.full((8, 16), 99)], ids=["no data", "ids beyond the vocabulary"])
def test_data_that_no_trial_could_train_on_are_an_error_before_any_work(data):
    rows = torch.utils.data.TensorDataset(data) if isinstance(data, torch.Tensor) else data
    with pytest.raises((DataTypeError, DataError)):
        found(data=rows, model=tiny_gpt)
    assert list(Path("runs").iterdir()) == []


def test_what_is_wrong_with_every_model_is_an_error_too():
    with pytest.raises(ModelError):
        found({"model.width": [1, 2]}, lambda width: f"a model of width {width}")
    assert list(Path("runs").iterdir()) == []


def test_values_that_contradict_each_other_fail_their_own_trial_only():
    results = found({"warmup_steps": [2, 50], "max_steps": [4]})
    assert [trial.status for trial in results.trials] == ["finished", "failed"]
    assert "the learning rate would never arrive" in results.trials[1].reason


# ---- going on ----


def test_finished_trials_are_not_run_again_and_more_can_be_added():
    watch = Recorder()
    space = {"lr": (1e-4, 1e-1), "batch_size": [4, 8]}
    first = found(space, strategy="random", n_trials=2, name="mine", callbacks=[watch])
    again = found(space, strategy="random", n_trials=4, name="mine", callbacks=[watch])
    assert watch.runs == [f"mine-trial{n}" for n in range(4)]
    assert [trial.params for trial in again.trials[:2]] == [trial.params for trial in first.trials]
    at_once = found(space, strategy="random", n_trials=4, name="other")
    assert [(t.params, t.value) for t in at_once.trials] == [(t.params, t.value) for t in again.trials]


@pytest.mark.parametrize("strategy", ["grid", "random", "optuna"])
def test_an_interrupted_search_continues_where_it_was(strategy):
    stop = StopIn("mine-trial1", 2, lambda trainer: os.kill(os.getpid(), signal.SIGINT))
    options = {"strategy": strategy, "n_trials": 3, "name": "mine"}
    with pytest.raises(TrainingInterrupted, match="name='mine'") as caught:
        found(callbacks=[stop], **options)
    assert [trial.status for trial in caught.value.results.trials] == ["finished", "stopped"]
    watch = Recorder()
    results = found(callbacks=[watch], **options)
    assert watch.runs[0] == "mine-trial1"
    assert results.trials[1].steps == 5  # the whole run, not once more
    undisturbed = found(strategy=strategy, n_trials=3, name="other")
    assert [t.value for t in results.trials[:2]] == [t.value for t in undisturbed.trials[:2]]


def test_a_stop_is_graceful_and_says_how_to_go_on():
    results = found(name="mine", callbacks=[StopIn("mine-trial1", 2, lambda trainer: trainer.request_stop("button"))])
    assert [trial.status for trial in results.trials] == ["finished", "stopped"]
    assert any("name='mine'" in notice for notice in results.notices)
    assert [trial.status for trial in found(name="mine").trials] == ["finished"] * 3


def test_the_time_limit_ends_the_search():
    results = found(timeout_s=1e-9)
    assert results.trials == []
    assert results.best_params is None


def test_another_plan_under_the_same_name_is_refused():
    found(name="mine")
    with pytest.raises(ConfigError, match=r"another plan:\n  space"):
        found({"lr": [1e-3]}, name="mine")
    with pytest.raises(ConfigError, match=r"another plan:\n  training\.weight_decay: 0\.\d+ there, 0\.5 here\n"):
        found(name="mine", training_config=config(weight_decay=0.5))
    Trainer(plain_lm(), None, config(run_name="run")).train(train_set())
    with pytest.raises(ConfigError, match="holds a run"):
        found(name="run")


# ---- Optuna ----


def test_a_stored_study_continues_and_holds_the_trials():
    import optuna

    space, url = {"lr": (1e-4, 1e-1), "betas": [(0.9, 0.99), (0.8, 0.9)]}, "sqlite:///runs/study.db"
    watch = Recorder()
    for n_trials in (2, 4):
        results = found(space, strategy="optuna", n_trials=n_trials, name="mine", storage=url, callbacks=[watch])
    assert watch.runs == [f"mine-trial{n}" for n in range(4)]
    assert len({trial.params["learning_rate"] for trial in results.trials}) == 4
    storage = optuna.storages.RDBStorage(url)
    study = optuna.load_study(study_name="mine", storage=storage)
    assert study.best_value == results.best_value
    assert [trial.value for trial in study.trials] == [trial.value for trial in results.trials]
    storage.remove_session()
    storage.engine.dispose()
    # The record is lost, the study is not.
    Path("runs/mine/search.json").unlink()
    assert found(space, strategy="optuna", n_trials=4, name="mine", storage=url, callbacks=[watch]).best_value == results.best_value
    assert len(watch.runs) == 4


def test_a_killed_search_repeats_and_loses_no_trial(database_url):
    import optuna

    options = {"strategy": "optuna", "n_trials": 3, "name": "mine", "storage": database_url}
    space = {"lr": (1e-4, 1e-1)}
    kill = StopIn("mine-trial1", 2, lambda trainer: os.kill(os.getpid(), signal.SIGKILL))
    assert in_child(lambda: found(space, callbacks=[kill], **options)).killed
    watch = Recorder()
    results = found(space, callbacks=[watch], **options)
    assert watch.runs == ["mine-trial1", "mine-trial2"]
    assert [trial.status for trial in results.trials] == ["finished"] * 3
    storage = optuna.storages.RDBStorage(database_url.replace("postgresql://", "postgresql+psycopg://"))
    trials = optuna.load_study(study_name="mine", storage=storage).trials
    assert [trial.value for trial in trials] == [trial.value for trial in results.trials]
    assert len({trial.params["learning_rate"] for trial in trials}) == 3
    storage.remove_session()
    storage.engine.dispose()


# ---- several processes ----

BOTH_TRAIN_S = 120.0


class Together(Recorder):
    """In its first run, waits until the other process trains too; at `kill_at` steps of that run it kills its process."""

    def __init__(self, barrier, kill_at=None):
        super().__init__()
        self.barrier, self.kill_at = barrier, kill_at

    def on_train_begin(self, trainer, logs=None):
        super().on_train_begin(trainer, logs)
        if len(self.runs) == 1:
            self.barrier.wait(BOTH_TRAIN_S)

    def on_step_end(self, step, trainer, logs=None):
        if step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def searching_together(space, options, kill_at=None):
    """Two processes that search at the same time; how each ended, with its trials as plain values and the runs it trained."""
    barrier = multiprocessing.get_context("fork").Barrier(2)

    def search(kill_at):
        watch = Together(barrier, kill_at)
        results = found(space, name="mine", callbacks=[watch], **options)
        return [trial.to_dict() for trial in results.trials], watch.runs

    children = [Child(lambda at=at: search(at)) for at in (kill_at, None)]
    return [child.join() for child in children]


@pytest.mark.parametrize(("strategy", "rates"), [("grid", [1e-4, 1e-3, 1e-2, 3e-2]), ("optuna", (1e-4, 1e-1))])
def test_processes_share_a_search(strategy, rates):
    options = {"strategy": strategy, "n_trials": 4}
    (first, runs), (second, other_runs) = (ended.value for ended in searching_together({"lr": rates}, options))
    assert sorted(runs + other_runs) == [f"mine-trial{n}" for n in range(4)]
    assert runs
    assert other_runs
    assert first == second
    assert [trial["status"] for trial in first] == ["finished"] * 4
    assert len({trial["params"]["learning_rate"] for trial in first}) == 4
    assert not list(Path("runs/mine").glob("trial*.lock"))


def test_processes_share_a_stored_study(database_url):
    options = {"strategy": "optuna", "n_trials": 4, "storage": database_url}
    (first, runs), (second, other_runs) = (ended.value for ended in searching_together({"lr": (1e-4, 1e-1)}, options))
    assert sorted(runs + other_runs) == [f"mine-trial{n}" for n in range(4)]
    assert first == second
    trials = stored_trials(database_url, "mine")
    assert [trial.value for trial in trials] == [trial["value"] for trial in first]
    assert len({trial.params["learning_rate"] for trial in trials}) == 4


def test_the_trial_of_a_killed_process_is_continued_by_another_one(database_url):
    options = {"strategy": "optuna", "n_trials": 4, "storage": database_url}
    killed, other = searching_together({"lr": (1e-4, 1e-1)}, options, kill_at=2)
    assert killed.killed
    trials, runs = other.value
    assert sorted(runs) == [f"mine-trial{n}" for n in range(4)]
    assert [trial["status"] for trial in trials] == ["finished"] * 4
    assert {trial["steps"] for trial in trials} == {5}
    assert [trial.value for trial in stored_trials(database_url, "mine")] == [trial["value"] for trial in trials]
    assert len({trial["params"]["learning_rate"] for trial in trials}) == 4


class KillOnWaiting(logging.Handler):
    """Kills a process when the search says that it waits for others."""

    def __init__(self, pid):
        super().__init__()
        self.pid = pid

    def emit(self, record):
        if "Waiting for the trials" in record.getMessage():
            os.kill(self.pid, signal.SIGKILL)


def test_a_search_waits_for_the_trials_of_other_processes_and_takes_over_what_they_leave(caplog):
    trains = multiprocessing.get_context("fork").Event()
    hang = StopIn("mine-trial0", 2, lambda trainer: (trains.set(), threading.Event().wait(BOTH_TRAIN_S)))
    other = Child(lambda: found({"lr": [1e-3]}, name="mine", callbacks=[hang]))
    assert trains.wait(BOTH_TRAIN_S)
    log, handler = logging.getLogger("trainbook.search"), KillOnWaiting(other.pid)
    caplog.set_level(logging.INFO, log.name)
    log.addHandler(handler)
    try:
        results = found({"lr": [1e-3]}, name="mine")
    finally:
        log.removeHandler(handler)
    assert other.join().killed
    assert [(trial.status, trial.steps) for trial in results.trials] == [("finished", 5)]


def test_hopeless_trials_are_pruned():
    space = {"lr": [1e-2, 1e-7], "random_seed": (0, 10_000)}
    results = found(space, strategy="optuna", n_trials=8, prune=True, training_config=config(epochs=3))
    pruned = [trial for trial in results.trials if trial.status == "pruned"]
    assert pruned
    assert all(trial.steps < 15 for trial in pruned)
    assert results.best_params["learning_rate"] == 1e-2


SMALL_SPACES = {
    "choices": ({"lr": [1e-4, 1e-2], "batch_size": [4, 8]}, 4), "whole numbers": ({"model.width": (15, 17)}, 3), "one": ({"lr": [1e-3]}, 1),
    "lists": ({"betas": [(0.9, 0.95), (0.9, 0.999)]}, 2),
}  # fmt: skip


@pytest.mark.parametrize("strategy", ["optuna", "random"])
@pytest.mark.parametrize("space", SMALL_SPACES)
def test_a_space_with_fewer_combinations_than_trials_is_tried_once_and_reported(space, strategy):
    values, size = SMALL_SPACES[space]
    watch = Recorder()
    results = found(values, lambda width=16: plain_lm(), strategy=strategy, n_trials=8, callbacks=[watch])
    assert [trial.status for trial in results.trials] == ["finished"] * size
    assert len({json.dumps(trial.params) for trial in results.trials}) == len(watch.runs) == size
    assert [notice for notice in results.notices if f"has {size} combination" in notice]


def test_optuna_repeats_nothing_when_it_is_continued(tmp_path):
    pytest.importorskip("optuna")
    options = {"strategy": "optuna", "name": "mine", "storage": f"sqlite:///{tmp_path}/study.db"}
    space = {"lr": [1e-4, 1e-3, 1e-2], "batch_size": [4, 8]}
    first = found(space, n_trials=3, **options)
    assert not [notice for notice in first.notices if "combination" in notice]
    results = found(space, n_trials=6, **options)
    assert len({json.dumps(trial.params) for trial in results.trials}) == 6
    assert not [trial for trial in results.trials if "same values" in trial.reason]


def test_settings_of_optuna_are_refused_elsewhere():
    with pytest.raises(ConfigError, match="only for strategy='optuna'"):
        found(strategy="random", storage="sqlite:///study.db")
    with pytest.raises(ConfigError, match="did you mean 'optuna'"):
        found(strategy="optun")
    assert not Path("runs").exists()


# ---- the report ----


def test_the_results_are_a_mapping_a_table_and_a_figure(capsys):
    results = found()
    assert dict(results)["best_params"] == results.best_params
    frame = results.to_frame()
    assert list(frame["learning_rate"]) == RATES["lr"]
    assert frame["value"].min() == results.best_value
    figure = results.plot()
    assert isinstance(figure, Figure)
    assert results.plot_path.is_file()
    results.show()
    out = capsys.readouterr().out
    assert "best" in out
    assert str(results.plot_path) in out
    assert json.loads((results.folder / "search.json").read_text())["trials"][0]["params"] == {"learning_rate": 1e-4}
