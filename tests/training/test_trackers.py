"""Every tracker gets the same rows through one interface, keeps NaN as NaN, and cannot disturb a training."""

from __future__ import annotations

import json
import math
import sys
import threading
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.kit.toys import golden_config, tiny_gpt, train_set, validation_set
from utils.errors import ConfigError
from utils.training import Trainer
from utils.training.tracking import RunFacts, Trackers, check_trackers, make_trackers

CANARY = "sk-" + "CaNaRy0123456789"


class Kept:
    """A tracker that keeps what it is given."""

    def __init__(self, name="Kept", patience_s=60.0):
        self.name, self.patience_s = name, patience_s
        self.calls, self.rows = [], []

    def start(self, run):
        self.run = run
        self.calls.append("start")

    def log(self, row):
        self.rows.append(row)

    def artifact(self, path):
        self.calls.append(path.name)

    def finish(self, status):
        self.calls.append(status)


def deliver(trackers, run, rows=(), ending="finished"):
    """Send rows as a training of two steps and one epoch would. Returns the notices."""
    notices = []
    callback = Trackers(trackers, run, notices)
    trainer = SimpleNamespace(state=SimpleNamespace(step=run.step + 2))
    callback.on_train_begin(trainer)
    for step, row in enumerate(rows, run.step + 1):
        callback.on_step_end(step, trainer, row)
    callback.on_epoch_end(0, trainer, {"val/loss": math.nan, "task": "not a number"})
    if ending == "failed":
        callback.on_error(ValueError("boom"), trainer)
    else:
        callback.on_train_end(trainer, {"stop_reason": ending})
    return notices


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("training: {}\n")
    return RunFacts("mine", folder, "a" * 32, {"learning_rate": 0.1, "notes": "***"})


ROWS = [{"train/loss": 2.0}, {"train/loss": math.inf}]


@pytest.mark.parametrize(
    ("ending", "status"), [("finished", "finished"), ("stop_file", "stopped"), ("failed", "failed")]
)
def test_a_tracker_sees_a_run_from_its_start_to_its_end(run, ending, status):
    tracker = Kept()
    assert deliver([tracker], run, ROWS, ending) == []
    assert tracker.calls == ["start", "config.yaml", status]
    assert tracker.rows[:2] == [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": math.inf}]
    assert tracker.rows[2]["epoch"] == 0
    assert math.isnan(tracker.rows[2]["val/loss"])
    assert "task" not in tracker.rows[2]


def read_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_reads_what_was_tracked_also_after_a_resume(run):
    (tracker,) = make_trackers(golden_config(), ["tensorboard"])
    tracker.patience_s = 120.0
    assert deliver([tracker], run, ROWS) == []
    found = read_tensorboard(run.folder)
    assert found["train/loss"] == [(1, 2.0), (2, math.inf)]
    assert math.isnan(found["val/loss"][0][1])

    (again,) = make_trackers(golden_config(), ["tensorboard"])
    again.patience_s = 120.0
    resumed = RunFacts(run.name, run.folder, run.run_id, run.config, step=1)  # from the checkpoint of step 1
    deliver([again], resumed, [{"train/loss": 3.0}])
    assert read_tensorboard(run.folder)["train/loss"] == [(1, 2.0), (2, 3.0)], "step 2 was done again"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own use of SQLAlchemy
def test_mlflow_keeps_metrics_settings_files_and_the_ending_and_continues_a_resumed_run(run, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for step, ending in ((0, "finished"), (2, "failed")):
        (tracker,) = make_trackers(golden_config(), ["mlflow"])
        tracker.patience_s = 240.0
        resumed = RunFacts(run.name, run.folder, run.run_id, run.config, step)
        assert deliver([tracker], resumed, ROWS, ending) == []

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{run.folder.parent / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("trainbook").experiment_id])
    assert len(found) == 1, "a resumed run is the same run"
    assert found[0].info.status == "FAILED"
    assert found[0].data.params["learning_rate"] == "0.1"
    history = client.get_metric_history(found[0].info.run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history][::2] == [(1, 2.0), (3, 2.0)]
    assert math.isnan(client.get_metric_history(found[0].info.run_id, "val/loss")[0].value)
    assert [file.path for file in client.list_artifacts(found[0].info.run_id)] == ["config.yaml"]
    assert not (Path.cwd() / "mlruns").exists()


def test_trackio_gets_rows_at_their_steps(run, monkeypatch):
    kept = SimpleNamespace(rows=[], finished=False, options=None)
    module = ModuleType("trackio")

    def init(**options):
        kept.options = options
        return SimpleNamespace(
            log=lambda row, step: kept.rows.append((step, row)), finish=lambda: setattr(kept, "finished", True)
        )

    module.init = init
    monkeypatch.setitem(sys.modules, "trackio", module)
    assert deliver(make_trackers(golden_config(), ["trackio"]), run, ROWS) == []
    assert kept.rows[:2] == [(1, {"train/loss": 2.0}), (2, {"train/loss": math.inf})]
    assert kept.options["name"] == "mine"
    assert kept.finished


@pytest.mark.parametrize("method", ["start", "log", "artifact", "finish"])
def test_one_broken_tracker_is_one_notice_and_the_others_get_everything(run, method):
    broken, sound = Kept("Broken"), Kept("Sound")

    def fail(*_):
        raise ConnectionError(f"no route, key {CANARY}")

    setattr(broken, method, fail)
    notices = deliver([broken, sound], run, ROWS)
    assert len(notices) == 1
    assert notices[0].startswith("Broken stopped tracking (ConnectionError: no route")
    assert CANARY not in notices[0]
    assert sound.calls[-1] == "finished"
    assert len(sound.rows) == 3


def test_several_hanging_trackers_delay_the_end_by_one_patience_in_all(run, monkeypatch):
    release, waits = threading.Event(), []
    join = threading.Thread.join

    def recorded(self, timeout=None):
        if self.name.startswith("trainbook-"):
            waits.append(timeout)
        join(self, timeout)

    trackers = [Kept(f"hangs{number}", patience_s=0.2) for number in range(3)]
    for tracker in trackers:
        tracker.start = lambda _: release.wait(60) and None
    monkeypatch.setattr(threading.Thread, "join", recorded)
    notices = deliver(trackers, run, ROWS)
    assert waits == [0.2, 0.0, 0.0]
    assert all("did not answer in time" in notice for notice in notices)
    monkeypatch.undo()
    release.set()
    for thread in threading.enumerate():
        if thread.name.startswith("trainbook-hangs"):
            thread.join(60)


def test_the_trainer_takes_names_and_objects(tmp_path, monkeypatch):
    tracker = Kept()
    monkeypatch.setattr("utils.training.tracking.choosing._is_there", lambda package: package != "trackio")
    config = golden_config(epochs=1, output_dir=str(tmp_path / "runs"), notes=f"api_key={CANARY}")
    results = Trainer(tiny_gpt(), None, config, trackers=[tracker, "trackio"]).train(train_set(), validation_set())
    assert [row["step"] for row in tracker.rows if "epoch" in row and "val/loss" in row] == [3]
    assert tracker.run.folder == results.run_dir
    assert tracker.calls == ["start", "config.yaml", "environment.json", "finished"]
    assert CANARY not in json.dumps(tracker.run.config)
    missing = [notice for notice in results.notices if "trackio" in notice]
    assert missing == ["Not tracked: trackio is not installed (pip install trackio). history.jsonl holds everything."]


@pytest.mark.parametrize(("given", "says"), [
    ("tensorbord", "did you mean 'tensorboard'"), (["mlflow", "neptune"], "known are wandb, tensorboard, mlflow, trackio"),
    ([Kept], "the class Kept"), ([3], "a int"),
])  # fmt: skip
def test_a_wrong_tracker_is_refused_before_training(given, says):
    with pytest.raises(ConfigError, match=says):
        Trainer(tiny_gpt(), trackers=given)


def test_the_environment_names_trackers_where_none_are_given(monkeypatch):
    monkeypatch.setenv("TRAINBOOK_TRACKERS", "tensorboard, mlflow")
    assert check_trackers(None) == ("tensorboard", "mlflow")
    assert check_trackers([]) == ()
    monkeypatch.setenv("TRAINBOOK_TRACKERS", "tensorbord")
    with pytest.raises(ConfigError, match="TRAINBOOK_TRACKERS"):
        check_trackers(None)
