"""show_live: the live view of a run that the page, the notebook or the kernel has lost, rebuilt from kernel or folder."""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.kit.paced import PacedTrainer
from tests.kit.toys import golden_config, tiny_gpt, train_set, validation_set
from utils.errors import ConfigError
from utils.storage import FolderLock
from utils.training import Callback, Trainer
from utils.ui.live_picture import live_picture, phase_text, sentence
from utils.ui.run_on_disk import run_on_disk
from utils.ui.runs import newest_run
from widgets import show_live, train_live
from widgets.attach import FollowView, asks_for_live_view
from widgets.guarded import watching


@pytest.fixture(autouse=True)
def fresh_kernel(monkeypatch):
    """No training was in this process before."""
    monkeypatch.setattr("widgets.live._Latest.ended", None)


class Do(Callback):
    """Calls a function at the end of a step."""

    def __init__(self, step, do):
        self._step, self._do = step, do

    def on_step_end(self, step, trainer, logs=None):
        if step == self._step:
            self._do(trainer)


def train(name="golden", *callbacks, **changes):
    trainer = Trainer(tiny_gpt(), training_config=golden_config(run_name=name, **changes), callbacks=callbacks)
    return trainer.train(train_set(), validation_set(), resume_from="auto")


def fail(trainer):
    raise RuntimeError("broken on purpose")


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        ({}, "Finished · step 12 of 12"),
        ({"max_steps": 5}, "Finished: the step limit is reached · step 5 of 5"),
        ({"stop": "stop_button"}, "Stopped by the Stop button and saved · step 5 of 12"),
        ({"stop": "time_limit"}, "Stopped at the time limit and saved · step 5 of 12"),
    ],
    ids=["finished", "max_steps", "stopped", "time limit"],
)
def test_a_run_that_ended_is_shown_from_its_folder_as_it_ended(ending, said, capsys):
    reason = ending.get("stop")
    callbacks = [Do(5, lambda trainer: trainer.request_stop(reason))] if reason else []
    results = train("golden", *callbacks, **{name: value for name, value in ending.items() if name != "stop"})
    capsys.readouterr()
    show_live()
    assert f"golden: {said}" in capsys.readouterr().out
    live, stop_reason = run_on_disk(results.run_dir)
    assert live.best == (results.best_value, results.state.best.step)
    assert [step for step, _ in live.validation.points] == [row["step"] for row in results.evaluate_rows]
    assert len(live.loss.points) == results.steps
    assert live.saved_file == Path(results.checkpoint_path).name
    assert stop_reason == results.stop_reason


def test_a_run_that_failed_is_shown_with_its_error(capsys):
    with pytest.raises(Exception, match="broken on purpose"):
        train("golden", Do(5, fail))
    capsys.readouterr()
    show_live()
    said = capsys.readouterr().out
    assert "golden: Failed · step 5" in said
    assert "broken on purpose" in said


def as_left_by_a_dead_process(run_dir):
    """The folder of a run whose process was killed after its fifth step."""
    state = json.loads((run_dir / "state.json").read_text())
    (run_dir / "state.json").write_text(json.dumps({**state, "status": "running", "stop_reason": None}))


def test_a_run_whose_process_is_gone_says_so():
    results = train("golden", Do(5, lambda trainer: trainer.request_stop("requested")))
    as_left_by_a_dead_process(results.run_dir)
    live, stop_reason = run_on_disk(results.run_dir)
    assert phase_text(live, stop_reason) == "Ended without saving: its process is gone, and its newest checkpoint is intact"


@pytest.mark.parametrize("missing", ["state.json", "history.jsonl", "config.yaml", "samples.jsonl", "checkpoints"])
@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_what_a_file_would_say_is_left_out_where_it_is_missing_or_damaged(missing, damage):
    results = train("golden", epochs=1)
    path = results.run_dir / missing
    if path.is_dir():
        path.rename(path.with_name("elsewhere"))
    elif damage == "gone":
        path.unlink(missing_ok=True)
    else:
        path.write_text("{")
    live, _ = run_on_disk(results.run_dir)
    assert live_picture(live).heading == "golden"
    assert sentence(live)


def test_the_newest_run_is_shown_and_one_under_way_before_all_others(capsys):
    first, second = train("b-first", epochs=1), train("a-second", epochs=1)
    assert newest_run("runs") == Path("runs/a-second")
    lock = FolderLock(first.run_dir / "lock")
    lock.acquire()
    try:
        assert newest_run("runs") == Path("runs/b-first")
    finally:
        lock.release()
    capsys.readouterr()
    show_live("b-first")
    show_live(second.run_dir)
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert [line.split(":")[0] for line in lines] == ["b-first", "a-second"]


def test_a_run_that_is_over_is_folded_to_a_line_unless_it_was_asked_for(monkeypatch):
    results = train("golden", epochs=1)
    shown = []
    monkeypatch.setattr("widgets.attach.ui_mode", lambda ui: "html")
    monkeypatch.setattr("widgets.attach.show_html", lambda markup, plain: shown.append((str(markup), plain)))
    show_live()
    show_live("golden")
    show_live(results.run_dir)
    line = f"Latest run, golden: Finished · step {results.steps} of {results.steps} · epoch 1 of 1"
    assert [f"<details><summary>{line}</summary>" in markup for markup, _ in shown] == [True, False, False]
    assert [plain == line for _, plain in shown] == [True, False, False]
    assert all("<svg" in markup for markup, _ in shown), "the whole view is there each time"


def test_without_a_run_it_says_so_and_a_wrong_name_is_refused(capsys):
    show_live()
    assert f"No run in {Path('runs').absolute()} yet" in capsys.readouterr().out
    show_live(ui="none")
    assert capsys.readouterr().out == ""
    with pytest.raises(ConfigError, match="There is no run 'mine' in"):
        show_live("mine")


def test_during_a_training_of_this_kernel_it_shows_that_training(capsys):
    async def train_and_ask():
        trainer = PacedTrainer(Path("runs/paced"), step_s=0.001)
        task = asyncio.ensure_future(train_live(trainer, SimpleNamespace(train=None, validation=None)))
        shown = ""
        while "Training · step" not in shown and not task.done():
            await asyncio.sleep(0.01)
            if trainer.state.step:
                show_live()
                shown = capsys.readouterr().out
        trainer.request_stop("stop_button")
        await task
        return shown

    assert "paced: Training · step" in asyncio.run(train_and_ask())
    capsys.readouterr()
    show_live(output_dir="elsewhere")
    assert "paced: Stopped by the Stop button and saved" in capsys.readouterr().out


def test_what_a_kernel_trained_last_stands_behind_what_another_process_trains(elsewhere, capsys):
    asyncio.run(train_live(PacedTrainer(Path("runs/paced"), steps=2), SimpleNamespace(train=None, validation=None)))
    capsys.readouterr()
    show_live()
    assert capsys.readouterr().out.startswith("golden: Training · step 5")


def test_a_run_that_is_over_keeps_no_model_alive():
    trainer = PacedTrainer(Path("runs/paced"), steps=2)
    asyncio.run(train_live(trainer, SimpleNamespace(train=None, validation=None)))
    gone = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert gone() is None


# ---- a run of another process ----


@pytest.fixture
def elsewhere():
    """The folder of a run that another process is training: its lock is held."""
    results = train("golden", Do(5, lambda trainer: trainer.request_stop("requested")))
    as_left_by_a_dead_process(results.run_dir)
    lock = FolderLock(results.run_dir / "lock")
    lock.acquire()
    yield SimpleNamespace(path=results.run_dir, lock=lock)
    lock.release()


def shown_by(view):
    return "".join(child.value for child in view.dashboard.box.children if hasattr(child, "value"))


def test_a_run_of_another_process_is_followed_and_stopped_through_its_folder(elsewhere):
    async def follow():
        view = FollowView(elsewhere.path)
        task = asyncio.ensure_future(view.follow(every_s=0))
        while "step 5 of 12" not in shown_by(view):
            await asyncio.sleep(0)
        assert view.dashboard.controls.box.children == (view.dashboard.controls.stop, view.dashboard.controls.keep_best)
        view.dashboard.controls.stop.click()
        assert (elsewhere.path / "STOP").is_file()
        while "Stopping: finishing the step and saving" not in shown_by(view):
            await asyncio.sleep(0)
        assert view.dashboard.controls.stop.disabled
        state = json.loads((elsewhere.path / "state.json").read_text())
        (elsewhere.path / "state.json").write_text(json.dumps({**state, "status": "stopped", "stop_reason": "stop_file"}))
        elsewhere.lock.release()
        await task
        return shown_by(view)

    assert "Stopped by the STOP file and saved" in asyncio.run(follow())


def test_an_error_while_following_is_shown_in_the_view(elsewhere, monkeypatch):
    def fail(run_dir):
        raise PermissionError(13, "Permission denied", str(run_dir))

    async def follow():
        view = FollowView(elsewhere.path)
        monkeypatch.setattr("widgets.attach.run_on_disk", fail)
        await view.follow(every_s=0)
        return shown_by(view)

    assert 'role="alert"' in asyncio.run(follow())


def test_a_stop_file_that_cannot_be_made_is_an_error_beside_the_button(elsewhere):
    view = FollowView(elsewhere.path)
    elsewhere.path.rename(elsewhere.path.with_name("moved"))
    with watching() as failures:
        view.dashboard.controls.stop.click()
    assert len(failures) == 1
    assert "FileNotFoundError" in shown_by(view)


@pytest.mark.parametrize(
    ("code", "asks"),
    [
        ("show_live()", True),
        ("from widgets import show_live\n\nshow_live()", True),
        ("import widgets\nwidgets.show_live()", True),
        ("show_live(ui='widget')", True),
        ("%matplotlib inline\n!ls\nshow_live()", True),
        ("show_live(ui='html')", False),
        ("show_live('mine')", False),
        ("show_live(output_dir='elsewhere')", False),
        ("print('show_live()')", False),
        ("show_live", False),
        ("%%bash\nshow_live()", False),
        ("(" * 10_000, False),
    ],
)
def test_a_waiting_cell_gets_the_view_when_it_calls_for_the_run_under_way(code, asks):
    assert asks_for_live_view(code) is asks
