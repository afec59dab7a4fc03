"""On opening, the notebook names the run that can be continued, how far it came and when."""

from __future__ import annotations

import json
import os

import pytest

from utils.ui.notebook import start_notebook
from utils.ui.runs import continue_sentence

WRITTEN_S = 1_700_000_000


def make_run(folder, name, status="stopped", written_s=WRITTEN_S):
    path = folder / name
    path.mkdir(parents=True)
    (path / "history.jsonl").write_text('{"event": "step", "step": 1200, "train/loss": 2.0}\n', encoding="utf-8")
    (path / "state.json").write_text(json.dumps({"status": status, "step": 1200}), encoding="utf-8")
    (path / "config.yaml").write_text("training:\n  max_steps: 5000\n", encoding="utf-8")
    for file in path.iterdir():
        os.utime(file, (written_s, written_s))


@pytest.mark.parametrize(
    ("later_s", "age"), [(30, "just now"), (150, "2 min ago"), (3 * 3600 + 5, "3 h ago"), (2 * 86_400, "2 d ago")]
)
@pytest.mark.parametrize("status", ["stopped", "running"])  # "running" without a process: broken off
def test_a_run_that_can_be_continued_is_named_with_its_step_and_age(tmp_path, status, later_s, age):
    make_run(tmp_path, "mine", status)
    sentence = continue_sentence(tmp_path, WRITTEN_S + later_s)
    assert sentence.startswith(f"Continue run mine (step 1,200 of 5,000, {age}): keep run_name='mine'")
    assert "New run: choose another run_name." in sentence


@pytest.mark.parametrize("status", ["ended", "failed"])
def test_nothing_is_said_where_there_is_nothing_to_continue(tmp_path, status):
    assert continue_sentence(tmp_path / "none") == ""
    make_run(tmp_path, "old")
    make_run(tmp_path, "newer", status, WRITTEN_S + 100)
    assert continue_sentence(tmp_path) == ""


def test_the_first_cell_says_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start_notebook()
    assert len(capsys.readouterr().out.splitlines()) == 1
    make_run(tmp_path / "runs", "mine")
    start_notebook()
    assert "Continue run mine (step 1,200 of 5,000, " in capsys.readouterr().out.splitlines()[1]
