"""Runs side by side: overlaid curves, the best one marked, and only the settings that differ."""

from __future__ import annotations

import json
import re

import pytest

from utils.errors import ConfigError
from utils.ui import compare_runs
from utils.ui.run_comparison import comparison, comparison_rows, read_run

HOSTILE = '<script>alert(1)</script>"&'


def make_run(folder, name, losses, rate, dataset="builtin", task="causal_lm", vocab_size=64):
    path = folder / name
    path.mkdir(parents=True)
    rows = [{"event": "evaluate", "step": s, "epoch": 0, "val/loss": loss} for s, loss in losses.items()]
    (path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (path / "state.json").write_text(json.dumps({"status": "ended", "stop_reason": "finished", "step": max(losses)}))
    setup = f"setup:\n  dataset_path: {json.dumps(dataset)}\n"
    setup = f"task:\n  task_type: {task}\n  vocab_size: {vocab_size}\n{setup}"
    (path / "config.yaml").write_text(f"{setup}training:\n  epochs: 2\n  learning_rate: {rate}\n  run_name: {name}\n")
    return path


@pytest.fixture
def runs(tmp_path):
    """Two runs, of which the second has the lower loss."""
    folder = tmp_path / "runs"
    make_run(folder, "first", {10: 3.0, 20: 2.5}, 0.001, HOSTILE)
    make_run(folder, "second", {10: 2.0, 20: 2.25}, 0.0005, HOSTILE)
    return folder


def test_the_table_has_results_and_only_the_settings_that_differ(runs):
    header, rows = comparison_rows([read_run(runs / name) for name in ("first", "second")])
    assert header == ["", "first", "second"]
    assert rows == [
        ["best validation loss", "2.5000 (step 20)", "★ 2.0000 (step 10)"],
        ["optimizer steps", "20", "20"],
        ["learning_rate", "0.001", "0.0005"],
    ]


@pytest.mark.parametrize(("changes", "words"), [
    ({"dataset": "mine.txt"}, "different data and"), ({"vocab_size": 80}, "different tokenizers and"),
    ({"task": "text_classification", "dataset": "mine.csv"}, "different tasks and data and"),
])  # fmt: skip
def test_losses_of_other_tasks_data_or_tokenizers_have_no_best(runs, changes, words):
    make_run(runs, "other", {10: 0.5}, 0.001, **{"dataset": HOSTILE, **changes})
    compared = [read_run(runs / name) for name in ("first", "other")]
    assert "★" not in str(comparison_rows(compared))
    assert words in comparison(compared)


def test_every_run_has_a_curve_of_its_own_and_the_image_says_its_numbers(runs):
    markup = comparison([read_run(runs / name) for name in ("first", "second")])
    strokes = re.findall(r'<polyline[^>]*class="([^"]*)"', markup)
    assert len(set(strokes)) == 2
    assert "validation loss of 2 runs. first 2.5, second 2.25." in markup


def test_no_text_of_a_run_becomes_markup(runs):
    make_run(runs, "third", {10: 1.0}, 0.1, "elsewhere")
    markup = comparison([read_run(runs / name) for name in ("first", "third")])
    assert "&lt;script&gt;" in markup
    assert "<script" not in markup


def test_without_names_all_runs_are_compared_and_elsewhere_as_text(runs, capsys):
    (runs / "no-run").mkdir()
    compare_runs(output_dir=runs)
    shown = capsys.readouterr().out
    assert "first" in shown
    assert "★ 2.0000 (step 10)" in shown


@pytest.mark.parametrize(
    ("names", "message"), [(("first",), "two to 10 runs; got 1"), (("first", "nothing"), "no run 'nothing'")]
)
def test_what_cannot_be_compared_is_refused(runs, names, message):
    with pytest.raises(ConfigError, match=message):
        compare_runs(*names, output_dir=runs)
