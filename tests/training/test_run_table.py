"""The table of runs says what the folders say, survives everything that happens to its file, and keeps NaN as NaN."""

from __future__ import annotations

import json
import math
import multiprocessing
import shutil
import sqlite3

import pytest

from tests.kit.toys import golden_config, tiny_gpt, train_set, validation_set
from utils.environment import compare_environments
from utils.errors import ConfigError, RunLockedError, RunNotFoundError, RunTableError
from utils.storage import FolderLock, json_line
from utils.training import ExperimentDB, ExportRegistry, RunTable, Trainer
from utils.training.run_table.upkeep import delete_run
from utils.ui.runs import list_runs, newest_run

CANARY = "sk-" + "CaNaRy0123456789"


def make_run(runs, name, losses=(2.0, 1.0), status="ended", created=1000, accuracy=None, **settings):
    """A run's folder as a training leaves it."""
    folder = runs / name
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "best.pt").write_bytes(b"x" * 100)
    rows = [{"event": "step", "step": 1, "train/loss": 9.0}]
    for epoch, loss in enumerate(losses):
        rows.append({"event": "epoch", "step": epoch + 1, "epoch": epoch, "val/loss": loss, "complete": True})
        if accuracy is not None:
            rows[-1]["val/accuracy"] = accuracy
    (folder / "history.jsonl").write_text("".join(json_line(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(json.dumps({"training": {"batch_size": 4, "notes": "", **settings}}))
    state = {
        "run_id": f"id-{name}",
        "status": status,
        "step": len(losses),
        "epoch": len(losses),
        "stop_reason": "finished",
    }
    (folder / "state.json").write_text(json.dumps(state))
    return folder


@pytest.fixture
def runs(tmp_path):
    """Three runs: `first` is best, `second` diverged to NaN, `third` failed before it measured anything."""
    folder = tmp_path / "runs"
    make_run(folder, "first", losses=(2.0, 1.0), accuracy=0.5)
    make_run(folder, "second", losses=(1.5, math.nan), accuracy=0.7, batch_size=8)
    make_run(folder, "third", losses=(), status="failed", batch_size=8)
    (folder / "not-a-run").mkdir()
    return folder


def test_runs_are_listed_and_filtered(runs):
    table = RunTable(runs)
    assert {run.name for run in table.list_runs()} == {"first", "second", "third"}
    assert [run.name for run in table.list_runs(status="failed")] == ["third"]
    assert {run.name for run in table.list_runs(settings={"batch_size": 8})} == {"second", "third"}
    assert [run.name for run in table.list_runs(name="irs")] == ["first"]
    assert len(table.list_runs(limit=2)) == 2
    first = table.get("first")
    assert first == table.get("id-first") == table.get(runs / "first")
    assert first.settings["batch_size"] == 4
    assert first.metrics["val/loss"] == 1.0
    assert [row["kind"] for row in table.artifacts("first")] == ["checkpoint"]
    assert [row["value"] for row in table.metrics("first", "val/loss")] == [2.0, 1.0]


@pytest.mark.parametrize(("metric", "mode", "best", "value"), [
    ("val/loss", None, "first", 1.0), ("val/accuracy", None, "second", 0.7), ("val/loss", "max", "first", 2.0),
])  # fmt: skip
def test_the_best_run_is_never_one_that_ended_in_nan(runs, metric, mode, best, value):
    run, found = RunTable(runs).best(metric, mode)
    assert (run.name, found) == (best, value)
    assert RunTable(runs).best("val/never") is None
    with pytest.raises(ConfigError, match="'min' or 'max'"):
        RunTable(runs).best("val/loss", "least")


def test_nan_is_stored_as_nan(runs):
    table = RunTable(runs)
    assert math.isnan(table.metrics("second", "val/loss")[-1]["value"])
    assert math.isnan(table.get("second").metrics["val/loss"])


def test_runs_are_compared_by_what_differs(runs):
    for name, version in (("first", "2.6"), ("second", "2.7")):
        (runs / name / "environment.json").write_text(json.dumps({"python": "3.13", "packages": {"torch": version}}))
    compared = RunTable(runs).compare(["first", "second"])
    assert list(compared.loc["environment packages.torch"]) == ["2.6", "2.7"]
    assert "environment python" not in compared.index
    assert list(compared.columns) == ["first", "second"]
    assert list(compared.loc["setting batch_size"]) == [4, 8]
    assert "setting notes" not in compared.index
    assert list(compared.loc["val/loss (best)"]) == [1.0, 1.5]
    assert "setting notes" in RunTable(runs).compare(["first", "second"], only_differences=False).index


def test_two_environments_are_compared_by_what_differs():
    first = {"python": "3.13", "packages": {"torch": "2.6", "numpy": "2"}}
    second = {"python": "3.13", "packages": {"torch": "2.7"}}
    assert compare_environments(first, second) == {"packages.torch": ("2.6", "2.7"), "packages.numpy": ("2", None)}


def test_an_unknown_run_is_named_with_the_nearest_one(runs):
    with pytest.raises(RunNotFoundError, match="Did you mean 'second'"):
        RunTable(runs).get("secnd")


def test_the_table_follows_the_folders(runs):
    table = RunTable(runs)
    assert table.sync() == 3
    assert table.sync() == 0, "nothing changed, so nothing is read"
    make_run(runs, "fourth")
    shutil.rmtree(runs / "third")
    with open(runs / "first" / "history.jsonl", "a") as history:
        history.write(json_line({"event": "epoch", "step": 3, "epoch": 2, "val/loss": 0.5}) + "\n")
    assert {run.name for run in table.list_runs()} == {"first", "second", "fourth"}
    assert table.best()[1] == 0.5
    assert table.reindex() == 3


def test_tags_are_kept_in_the_folder(runs):
    RunTable(runs).tag("first", "good", "baseline")
    (runs / "runs.sqlite").unlink()
    table = RunTable(runs)
    assert table.get("first").tags == ("baseline", "good")
    table.untag("first", "good")
    assert [run.name for run in table.list_runs(tag="baseline")] == ["first"]
    assert table.list_runs(tag="good") == []


def test_a_damaged_database_is_moved_aside_and_made_anew(runs):
    (runs / "runs.sqlite").write_bytes(b"this is no database" * 100)
    table = RunTable(runs)
    assert len(table.list_runs()) == 3
    assert "runs.sqlite.corrupt" in table.notices[0]
    assert (runs / "runs.sqlite.corrupt").read_bytes().startswith(b"this is")


def test_where_no_file_can_be_written_the_folders_are_still_read(runs):
    (runs / "runs.sqlite").mkdir()  # as unusable as a read-only disk, for root too
    table = RunTable(runs)
    assert len(table.list_runs()) == 3
    assert "read from their folders" in table.notices[0]
    with pytest.raises(RunTableError, match="no model can be registered"):
        ExportRegistry(table)


def test_tables_of_another_version_are_made_anew(runs):
    RunTable(runs).list_runs()
    with sqlite3.connect(runs / "runs.sqlite") as connection:
        connection.execute("DROP TABLE metrics")
        connection.execute("PRAGMA user_version=99")
    connection.close()
    assert RunTable(runs).best()[0].name == "first"


def log_in_a_process(runs, number):
    database = ExperimentDB(runs)
    run = database.log_run("shared", {"number": number})
    for step in range(5):
        database.log_metric(run, "val/loss", number + step / 10, step=step)
        database.table.sync()
    database.update_run_status(run, "completed")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_several_processes_write_at_once(tmp_path):
    processes = [
        multiprocessing.get_context("fork").Process(target=log_in_a_process, args=(tmp_path / "runs", n))
        for n in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    table = RunTable(tmp_path / "runs")
    assert [run.status for run in table.list_runs()] == ["finished"] * 3
    assert sorted(len(table.metrics(run.name)) for run in table.list_runs()) == [5, 5, 5]
    assert sorted(table.best()[0].settings) == ["number"]


def test_runs_of_other_programs_are_logged_by_hand(runs):
    database = ExperimentDB(runs)
    run = database.log_run("mine", {"lr": 0.1, "api_key": CANARY}, notes=f"api_key={CANARY}")
    assert run == "mine"
    assert database.log_run("mine") == "mine-2"
    database.log_metrics(run, {"val/loss": 0.25, "val/accuracy": math.nan}, step=1)
    database.log_artifact(run, "config", runs / "mine" / "config.yaml")
    assert database.get_run(run)["status"] == "running"
    database.update_run_status(run, "completed")
    assert database.get_best_run("val/loss") == {**database.get_run(run), "value": 0.25}
    assert "mine" in set(database.list_runs()["name"])
    assert math.isnan(database.get_metrics(run, "val/accuracy")["value"][0])
    assert list(database.get_artifacts(run)["kind"]) == ["config"]
    assert "val/loss" in database.compare_runs(["first", run]).index
    (runs / "runs.sqlite").unlink()
    assert ExperimentDB(runs / "runs.sqlite").get_run(run)["settings"]["lr"] == 0.1, "the folder holds everything"
    for file in runs.rglob("*"):
        assert not file.is_file() or CANARY.encode() not in file.read_bytes(), file
    with pytest.raises(ConfigError, match="status"):
        database.update_run_status(run, "done")


@pytest.fixture
def registry(runs):
    for name, text in (("hf", "weights"), ("onnx", "graph")):
        (runs / "first" / "exports" / name).mkdir(parents=True)
        (runs / "first" / "exports" / name / "model").write_text(text)
    return ExportRegistry(runs)


def test_versions_are_registered_promoted_retired_and_deleted(registry, runs):
    export = runs / "first" / "exports" / "hf"
    one = registry.register("chat", export, format="hf", tags=["small"], notes=f"token={CANARY}")
    two = registry.register("chat", runs / "first" / "exports" / "onnx")
    assert (one.version, two.version, one.run, one.stage) == (1, 2, "first", "registered")
    assert one.metrics["val/loss"] == 1.0
    assert CANARY not in one.notes
    assert registry.get("chat").version == 2, "the newest, while none is in production"
    registry.promote("chat", 1)
    assert registry.get("chat").version == 1
    registry.promote("chat", 2)
    assert [model.stage for model in registry.list_models()] == ["registered", "production"]
    with pytest.raises(RunTableError, match="in production"):
        registry.delete("chat", 2)
    registry.retire("chat", 2)
    assert registry.get("chat").version == 1
    assert registry.tag("chat", 1, "fast", "small").tags == ("fast", "small")
    assert registry.untag("chat", 1, "small").tags == ("fast",)
    assert registry.list_models(tag="small") == []
    assert registry.lineage("chat", 1)[0]["run"] == "first"
    assert registry.is_unchanged("chat", 1)
    (export / "model").write_text("other weights")
    assert not registry.is_unchanged("chat", 1)
    registry.delete("chat", 1)
    registry.delete("chat", 2)
    assert registry.list_models() == []
    with sqlite3.connect(runs / "runs.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM version_tags").fetchone() == (0,), "no orphans"
    connection.close()


@pytest.mark.parametrize("change", ["promote", "retire", "delete", "tag"])
@pytest.mark.parametrize(("name", "version"), [("chat", 9), ("chta", 1)])
def test_a_change_of_an_unknown_version_changes_nothing(registry, runs, change, name, version):
    registry.register("chat", runs / "first" / "exports" / "hf")
    registry.promote("chat", 1)
    before = registry.list_models()
    with pytest.raises(RunNotFoundError, match="there are: 1|Did you mean 'chat'"):
        getattr(registry, change)(name, version, *(["x"] if change == "tag" else []))
    assert registry.list_models() == before


def test_the_registry_outlives_its_runs_and_a_new_index(registry, runs):
    registry.register("chat", runs / "first" / "exports" / "hf")
    registry.runs.reindex()
    shutil.rmtree(runs / "first")
    assert registry.get("chat").run_id == "id-first"
    assert registry.lineage("chat", 1)[0]["run"] == "first"
    assert not registry.is_unchanged("chat", 1)
    with pytest.raises(RunNotFoundError, match="does not exist"):
        registry.register("chat", runs / "first" / "exports" / "hf")


def test_a_run_of_the_trainer_knows_the_run_it_started_from(tmp_path):
    runs = tmp_path / "runs"
    first = Trainer(tiny_gpt(), None, golden_config(epochs=1, output_dir=str(runs))).train(
        train_set(), validation_set()
    )
    config = golden_config(epochs=2, run_name="child", output_dir=str(runs))
    Trainer(tiny_gpt(), None, config).train(train_set(), validation_set(), resume_from=first.checkpoint_path)
    table = RunTable(runs)
    (origin,) = table.lineage("child")
    assert origin["run"] == "golden"
    assert origin["step"] == 3
    assert table.lineage("golden") == []
    assert table.get("child").status == "finished"
    assert table.get("child").metrics["val/loss"] == pytest.approx(first_validation(runs / "child"))


def first_validation(folder):
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [row["val/loss"] for row in rows if row["event"] == "epoch"][-1]


# ---- notes, archive, deletion ----


def test_notes_are_kept_in_the_folder_and_win_over_the_setting(runs):
    table = RunTable(runs)
    make_run(runs, "fourth", notes="as it was configured")
    assert table.get("fourth").notes == "as it was configured"
    table.note("fourth", " better with warm-up \n")
    assert RunTable(runs).get("fourth").notes == "better with warm-up"
    before = table.get("fourth").updated_at
    table.note("fourth", "")
    assert table.get("fourth").notes == ""
    assert table.get("fourth").updated_at == before, "writing a note is not training"


def test_an_archived_run_keeps_its_folder_and_leaves_the_lists(runs):
    table = RunTable(runs)
    table.archive("first")
    assert (runs / "first" / "checkpoints" / "best.pt").is_file()
    assert {run.name for run in table.list_runs()} == {"second", "third"}
    assert [run.name for run in table.list_runs(archived=True)] == ["first"]
    assert len(table.list_runs(archived=None)) == 3
    assert {run.name for run in list_runs(runs)} == {"second", "third"}
    assert newest_run(runs).name != "first"
    table.restore("first")
    assert len(table.list_runs()) == len(list_runs(runs)) == 3


def test_a_deleted_run_is_gone_and_nothing_else_is(runs, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("mine")
    (runs / "first" / "data").symlink_to(outside)
    (runs / "first" / "exports").mkdir()
    (runs / "first" / "exports" / "link.txt").symlink_to(outside / "precious.txt")
    table = RunTable(runs)
    assert table.delete("first").path == runs / "first"
    assert (outside / "precious.txt").read_text() == "mine"
    assert sorted(path.name for path in runs.iterdir()) == ["not-a-run", "runs.sqlite", "second", "third"]
    assert {run.name for run in table.list_runs()} == {"second", "third"}


def test_checkpoints_outside_the_run_are_kept_and_named(runs, tmp_path):
    make_run(runs, "fourth", checkpoint_dir=str(tmp_path / "elsewhere"))
    assert RunTable(runs).delete("fourth").left == tmp_path / "elsewhere"


def test_a_run_under_way_is_neither_archived_nor_deleted(runs):
    table = RunTable(runs)
    with FolderLock(runs / "first" / "lock").held():
        for change in (table.archive, table.delete):
            with pytest.raises(RunLockedError, match="'first' is under way"):
                change("first")
    assert table.get("first").archived is False
    table.delete("first")


def test_what_is_not_a_run_in_the_folder_is_not_deleted(runs, tmp_path):
    elsewhere = make_run(tmp_path / "other", "theirs")
    (runs / "linked").symlink_to(elsewhere)
    table = RunTable(runs)
    for name, error, says in (
        ("linked", ConfigError, "symbolic link"), ("not-a-run", RunNotFoundError, "no run"), (elsewhere, RunNotFoundError, "no run"),
    ):  # fmt: skip
        with pytest.raises(error, match=says):
            table.delete(name)
    for name in ("../other/theirs", "..", ".", "", str(elsewhere)):
        with pytest.raises(ConfigError, match="not by a path"):
            delete_run(runs, name)
    assert (elsewhere / "checkpoints" / "best.pt").is_file()
    assert (runs / "not-a-run").is_dir()


def test_a_moved_folder_deletes_its_own_runs(runs, tmp_path):
    """The table's paths are from before the move, and a copy may stand there."""
    RunTable(runs).list_runs()
    shutil.copytree(runs, tmp_path / "moved", copy_function=shutil.copy2)
    RunTable(tmp_path / "moved").delete("first")
    assert (runs / "first").is_dir()
    assert not (tmp_path / "moved" / "first").exists()


def test_a_run_with_a_registered_model_is_kept(runs):
    export = runs / "first" / "exports" / "hf"
    export.mkdir(parents=True)
    (export / "model.bin").write_bytes(b"x")
    registry = ExportRegistry(runs)
    registry.register("chat", export)
    with pytest.raises(ConfigError, match=r"registered models \(chat 1\)"):
        registry.runs.delete("first")
    registry.delete("chat", 1)
    registry.runs.delete("first")
