"""The runs panel: what its rows say, and that its buttons do what they say, with a second look before anything is deleted."""

from __future__ import annotations

import asyncio

import pytest

import widgets
from tests.training.test_run_table import make_run
from utils.storage import FolderLock
from utils.ui.managed_runs import ManagedRuns
from widgets import runs_view
from widgets.guarded import watching
from widgets.runs_view import RunsPanel


@pytest.fixture
def panel(tmp_path):
    folder = tmp_path / "runs"
    make_run(folder, "first", max_steps=4, notes="the first", monitor="val/loss")
    make_run(folder, "second", status="stopped")
    make_run(folder, "third", status="failed")
    return RunsPanel(ManagedRuns(folder))


def names(panel):
    return {found.children[0].description for found in panel.list.children if hasattr(found.children[0], "description")}


def test_rows_say_state_progress_and_notes(panel):
    rows = {found.children[0].description: found.children[1].value for found in panel.list.children}
    assert set(rows) == {"first", "second", "third"}
    assert "step 2 of 4 (50%)" in rows["first"]
    assert "the first" in rows["first"]
    assert "failed" in rows["third"]
    assert "tb-fail" in rows["third"]
    assert "just now" in rows["second"]


def test_buttons_are_there_for_what_is_ticked(panel):
    assert panel.open.disabled
    assert panel.delete.disabled
    assert panel._confirming.layout.display == "none", "nothing was asked yet"
    panel.tick("first")
    assert not panel.open.disabled
    assert panel.compare.disabled
    panel.tick("first", "second")
    assert panel.open.disabled
    assert not panel.compare.disabled
    panel.compare.click()
    assert "Runs compared" in panel.view.children[0].value


def test_notes_and_tags_are_saved_and_shown(panel):
    panel.tick("first")
    assert panel.notes.value == "the first"
    panel.notes.value, panel.tags.value = "better <b>now</b>", "baseline, , long"
    row = panel.list.children[[found.children[0].description for found in panel.list.children].index("first")]
    panel.save.click()
    assert "baseline, long · better &lt;b&gt;now" in row.children[1].value, "drawn in place"
    assert panel.ticked == ["first"]


def test_deleting_asks_and_another_choice_withdraws_the_question(panel, tmp_path):
    panel.tick("first")
    panel.delete.click()
    assert "Delete run &#x27;first&#x27; for good" in panel.question.value
    panel.tick("second")
    assert panel._confirming.layout.display == "none"
    panel.confirm.click()
    panel.delete.click()
    panel.keep.click()
    panel.confirm.click()
    assert names(panel) == {"first", "second", "third"}
    panel.delete.click()
    panel.confirm.click()
    assert names(panel) == {"first", "third"}
    assert not (tmp_path / "runs" / "second").exists()


def test_a_run_under_way_cannot_be_deleted(panel, tmp_path):
    panel.tick("second")
    with FolderLock(tmp_path / "runs" / "second" / "lock").held(), watching() as failures:
        panel.delete.click()
        assert len(failures) == 1
        assert "under way" in panel.message.value
        panel.confirm.click()
    assert (tmp_path / "runs" / "second").is_dir()


def test_archived_runs_are_shown_on_demand_and_restored(panel):
    panel.tick("first", "third")
    panel.archive.click()
    assert names(panel) == {"second"}
    panel.archived.value = True
    assert names(panel) == {"first", "third"}
    assert panel.ticked == []
    panel.tick("third")
    assert panel.archive.description == "Restore"
    panel.archive.click()
    panel.archived.value = False
    assert names(panel) == {"second", "third"}


def test_a_run_is_opened_as_it_ended(panel):
    panel.tick("second")
    panel.open.click()
    assert "second" in panel.view.children[0].value


def test_only_the_run_that_was_opened_last_is_followed(panel, tmp_path):
    async def others_after_opening(*names):
        for name in names:
            panel.tick(name)
            panel.open.click()
            await asyncio.sleep(0.01)
        return asyncio.all_tasks() - {asyncio.current_task()}

    with FolderLock(tmp_path / "runs" / "second" / "lock").held():
        assert len(asyncio.run(others_after_opening("second"))) == 1
        assert asyncio.run(others_after_opening("second", "first")) == set()


def test_many_runs_come_in_pages(panel, monkeypatch):
    monkeypatch.setattr(runs_view, "PAGE", 2)
    paged = RunsPanel(panel._runs)
    assert len(names(paged)) == 2
    paged.more.click()
    assert len(names(paged)) == 3
    assert paged.more.layout.display == "none"


def test_without_widgets_runs_are_a_table(panel, capsys):
    found = widgets.runs_panel(panel._runs.folder, ui="text")
    assert "second" in capsys.readouterr().out
    assert "step 2 of 4" in found.to_text()
