"""The figure shows what happened: every curve, every NaN, the baseline; and it stays small however long the run was."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from utils.views.curves import MAX_POINTS, decimated, figure_png, save_figure, training_curves

PNG = b"\x89PNG\r\n\x1a\n"


def epoch_row(step, train, val=None, rate=1e-3):
    row = {"event": "epoch", "epoch": step // 10 - 1, "step": step, "train/loss": train, "train/learning_rate": rate}
    return row if val is None else {**row, "val/loss": val}


def step_row(step, loss, rate=1e-3):
    return {"event": "step", "step": step, "train/loss": loss, "train/learning_rate": rate}


def curve(figure, label):
    lines = [line for axes in figure.axes for line in axes.get_lines() if line.get_label() == label]
    assert len(lines) == 1, f"{len(lines)} curves are called {label!r}"
    return list(zip(lines[0].get_xdata(), lines[0].get_ydata(), strict=True))


def labels(figure):
    return {
        line.get_label() for axes in figure.axes for line in axes.get_lines() if not line.get_label().startswith("_")
    }


def test_losses_are_drawn_at_their_steps():
    figure = training_curves(
        [epoch_row(10, 5.0, 5.5), epoch_row(20, 4.0, 4.6)], [step_row(s, 6 - s / 10) for s in range(1, 21)]
    )
    assert curve(figure, "training loss (epoch mean)") == [(10, 5.0), (20, 4.0)]
    assert curve(figure, "validation loss") == [(10, 5.5), (20, 4.6)]
    assert len(curve(figure, "training loss (step)")) == 20
    assert curve(figure, "learning rate")[-1] == (20, 1e-3)


def test_validations_inside_an_epoch_join_those_at_its_end():
    evaluate_rows = [
        {"event": "evaluate", "step": 5, "val/loss": 6.0},
        {"event": "evaluate", "step": 10, "val/loss": 5.5},
    ]
    figure = training_curves([epoch_row(10, 5.0, 5.5), epoch_row(20, 4.0, 4.6)], evaluate_rows=evaluate_rows)
    assert curve(figure, "validation loss") == [(5, 6.0), (10, 5.5), (20, 4.6)]


def test_no_validation_no_curve():
    assert "validation loss" not in labels(training_curves([epoch_row(10, 5.0), epoch_row(20, 4.0)]))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_marked_at_its_step(value):
    figure = training_curves([epoch_row(10, 5.0)], [step_row(1, 6.0), step_row(2, value), step_row(3, 5.0)])
    assert [step for step, _ in curve(figure, "NaN or infinite")] == [2]
    assert [step for step, _ in curve(figure, "training loss (step)")] == [1, 3]


def test_a_run_of_nothing_but_nan_is_still_a_figure():
    figure = training_curves([epoch_row(10, math.nan, math.nan)])
    assert labels(figure) == {"NaN or infinite", "learning rate"}
    assert figure_png(figure).startswith(PNG)


def test_the_baseline_is_a_labelled_line_at_its_height():
    figure = training_curves([epoch_row(10, 5.0)], baselines={"unigram model": 6.25})
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["unigram model: 6.250"]
    assert any(list(line.get_ydata()) == [6.25, 6.25] for line in figure.axes[0].get_lines())


def test_curves_differ_by_more_than_colour():
    figure = training_curves([epoch_row(10, 5.0, 5.5), epoch_row(20, 4.0, 4.6)], baselines={"unigram model": 6.0})
    styles = [(line.get_linestyle(), line.get_marker()) for line in figure.axes[0].get_lines()]
    assert len(set(styles)) == len(styles)


def test_axes_say_what_and_in_which_unit():
    loss_axes, rate_axes = training_curves([epoch_row(10, 5.0)], title="starter").axes
    assert (loss_axes.get_ylabel(), rate_axes.get_ylabel()) == ("loss (mean per target)", "learning rate")
    assert rate_axes.get_xlabel() == "optimizer steps"


def test_before_the_first_step_the_figure_says_so():
    figure = training_curves([])
    assert [text.get_text() for text in figure.axes[0].texts] == ["no step is finished yet"]


def test_long_curves_keep_their_extremes_and_ends():
    rng = random.Random(0)
    points = [(float(step), rng.random()) for step in range(50_000)]
    points[31_234] = (31_234.0, 9.0)
    points[44_321] = (44_321.0, -9.0)
    kept = decimated(points)
    assert len(kept) <= MAX_POINTS
    assert kept == sorted(kept)
    assert {points[0], points[-1], points[31_234], points[44_321]} <= set(kept)


def test_short_curves_keep_every_point():
    points = [(float(step), 1.0) for step in range(MAX_POINTS)]
    assert decimated(points) == points


def test_a_saved_figure_is_a_png_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "plots" / "curves.png"
    first = save_figure(training_curves([epoch_row(10, 5.0)]), path)
    assert first == path.resolve()
    before = path.read_bytes()
    save_figure(training_curves([epoch_row(10, 5.0), epoch_row(20, 4.0)]), path)
    assert path.read_bytes().startswith(PNG)
    assert path.read_bytes() != before
    assert [entry.name for entry in path.parent.iterdir()] == ["curves.png"]


def test_pyplot_is_never_loaded(tmp_path):
    code = (
        "import sys; from utils.views.curves import save_figure, training_curves;"
        f"save_figure(training_curves([{{'step': 1, 'train/loss': 2.0}}]), {str(tmp_path / 'a.png')!r});"
        "assert 'matplotlib.pyplot' not in sys.modules; assert 'torch' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=300)
