"""What is known of a run while it is running: phases, smoothing, pace, and that hostile text stays text."""

from __future__ import annotations

import math
import re

import pytest

from utils.ui.live_picture import duration, live_picture, phase_text, sentence
from utils.ui.live_run import MAX_LIVE_POINTS, Curve, LiveRun, RunEvent
from utils.views.curves import SMOOTHED_LOSS, STEP_LOSS, VALIDATION_LOSS
from utils.views.figures import WIDTH
from utils.views.live import LivePicture, live_curves, live_view


def started(total_steps=100, rows=()):
    live = LiveRun()
    values = {"total_steps": total_steps, "run_dir": "runs/mine", "epochs": 2, "rows": rows}
    live.apply(RunEvent("on_train_begin", 0.0, 0, values))
    return live


def step(live, number, at_s, loss=1.0, targets=100):
    values = {"train/loss": loss, "train/learning_rate": 1e-3, "epoch": 0, "targets_done": number * targets}
    live.apply(RunEvent("on_step_end", at_s, number, values))


def test_a_run_that_is_continued_shows_what_it_did_before():
    rows = [
        {"event": "step", "step": 10, "train/loss": 3.0, "train/learning_rate": 1e-3},
        {"event": "evaluate", "step": 10, "val/loss": 3.5},
        {"event": "epoch", "step": 10, "train/loss": 3.0},
    ]
    live = started(rows=rows)
    assert live.loss.points == [(10, 3.0)]
    assert live.validation.points == [(10, 3.5)]
    assert live.name == "mine"


def test_phases_follow_the_run_and_what_was_asked_of_it():
    live = LiveRun()
    assert live.phase == "starting"
    live = started()
    assert live.phase == "training"
    live.apply(RunEvent("on_evaluate_begin", 1.0, 1, {}))
    assert live.phase == "validating"
    live.apply(RunEvent("on_evaluate_end", 2.0, 1, {"val/loss": 2.0, "best_value": 2.0, "best_step": 1}))
    assert live.phase == "training"
    live.requested(pause=True, stop=False)
    assert live.phase == "pausing"
    live.apply(RunEvent("on_checkpoint_saved", 3.0, 1, {"path": "p"}))
    assert live.phase == "paused"
    live.requested(pause=False, stop=False)
    assert live.phase == "training"
    live.requested(pause=True, stop=True)
    assert live.phase == "stopping"
    live.apply(RunEvent("on_train_end", 4.0, 1, {}))
    assert phase_text(live, "stop_button") == "Stopped by the Stop button and saved"


def test_a_checkpoint_from_before_the_pause_does_not_count_as_paused():
    live = started()
    live.apply(RunEvent("on_checkpoint_saved", 1.0, 1, {"path": "p"}))
    live.requested(pause=True, stop=False)
    assert live.phase == "pausing"


def test_time_left_comes_from_the_measured_pace():
    live = started(total_steps=10)
    assert live.remaining_s is None
    for number in range(1, 6):
        step(live, number, at_s=2.0 * number)
    assert live.remaining_s == pytest.approx(5 * 2.0)
    assert live.tokens_per_s == pytest.approx(50)


def test_a_pause_counts_neither_for_the_time_left_nor_for_the_speed():
    live = started(total_steps=10)
    step(live, 1, 1.0)
    step(live, 2, 2.0)
    live.requested(pause=True, stop=False)
    live.requested(pause=False, stop=False)
    step(live, 3, 1000.0)
    step(live, 4, 1001.0)
    assert live.remaining_s == pytest.approx(6 * 1.0)
    assert live.tokens_per_s == pytest.approx(100)


def test_the_smoothed_loss_of_a_constant_is_that_constant():
    live = started()
    for number in range(1, 30):
        step(live, number, float(number), loss=4.0)
    assert all(value == pytest.approx(4.0) for _, value in live.smoothed.points)


def test_a_loss_that_is_not_finite_is_marked_and_bends_no_curve():
    live = started()
    step(live, 1, 1.0)
    step(live, 2, 2.0, loss=math.nan)
    step(live, 3, 3.0)
    assert live.nonfinite_steps == [2]
    assert [point[0] for point in live.loss.points] == [1, 3]
    assert "NaN or infinite" in live_curves(live_picture(live))


def test_a_long_curve_keeps_its_extremes_and_its_ends():
    curve = Curve()
    for number in range(50_000):
        curve.add(number, 100.0 if number == 31_234 else 1.0)
    points = curve.points
    assert len(points) <= MAX_LIVE_POINTS
    assert points[0][0] == 0
    assert points[-1][0] == 49_999
    assert (31_234.0, 100.0) in points


@pytest.mark.parametrize(("steps", "every"), [(401, 1), (50_000, 1), (3_000_000, 1000)])
def test_a_long_curve_is_as_dense_at_its_beginning_as_at_its_end(steps, every):
    curve = Curve()
    for number in range(0, steps, every):
        curve.add(number, number % 7)
    points = [step for step, _ in curve.points]
    assert MAX_LIVE_POINTS / 4 < len(points) <= MAX_LIVE_POINTS
    assert points == sorted(points)
    quarters = [
        sum(start <= step < start + steps / 4 for step in points) for start in (0, steps / 4, steps / 2, steps * 3 / 4)
    ]
    assert min(quarters) > 0.6 * max(quarters)


def test_the_sentence_says_what_where_and_how_long():
    live = started(total_steps=10)
    for number in range(1, 6):
        step(live, number, at_s=30.0 * number)
    assert sentence(live) == "Training · step 5 of 10 · epoch 1 of 2 · about 2 min 30 s left"


def test_the_best_value_is_shown_with_the_step_of_its_validation():
    live = started()
    live.apply(RunEvent("on_evaluate_end", 1.0, 40, {"val/loss": 2.0, "best_value": 2.0, "best_step": 40}))
    live.apply(RunEvent("on_evaluate_end", 2.0, 60, {"val/loss": 3.0, "best_value": 2.0, "best_step": 40}))
    assert live_picture(live).facts["best"] == "2.0000 (step 40)"


@pytest.mark.parametrize(
    ("metric", "values", "shown"),
    [
        ("accuracy", (0.5, 0.925, 0.9), "90.0% (best 92.5%)"),
        ("R²", (-0.5, 0.81, 0.8), "0.800 (best 0.810)"),
        ("perplexity", (9.0, 8.0, 7.0), None),
    ],
)
def test_the_score_of_a_classifier_or_a_regression_has_a_number_of_its_own(metric, values, shown):
    live = started()
    for step_, value in enumerate(values, start=1):
        name = {"R²": "r2"}.get(metric, metric)
        live.apply(RunEvent("on_evaluate_end", float(step_), step_, {"val/loss": 1.0, f"val/{name}": value}))
    assert live_picture(live).facts.get(f"validation {metric}") == shown


def test_a_run_that_has_ended_took_as_long_as_its_results_say():
    live = started(total_steps=10)
    for number in range(1, 6):
        step(live, number, at_s=30.0 * number)
    assert live_picture(live).elapsed == "2 min 00 s elapsed"
    live.apply(RunEvent("on_train_end", 151.0, 5, {"stop_reason": "finished", "elapsed_s": 155.0}))
    assert live_picture(live, (), "finished").elapsed == "2 min 35 s elapsed"


def test_a_saved_checkpoint_is_shown_by_its_file_and_not_by_the_step_that_training_has_reached():
    live = started()
    live.apply(RunEvent("on_checkpoint_saved", 1.0, 140, {"path": "runs/mine/checkpoints/step_100.pt"}))
    assert live_picture(live).facts["saved"] == "step_100.pt"


def test_no_loss_is_shown_without_saying_which_one_it_is():
    live = started()
    for number in range(1, 4):
        step(live, number, float(number), loss=float(number))
    live.validation.add(3, 2.0)
    shown = live_picture(live)
    assert [name for name in shown.facts if "loss" in name] == [SMOOTHED_LOSS, VALIDATION_LOSS]
    legend = re.findall(r">([^<>]*loss[^<>]*)</text>", live_curves(shown))
    assert legend == [STEP_LOSS, SMOOTHED_LOSS, VALIDATION_LOSS, "loss per target"]


def test_a_run_that_is_over_has_no_moving_progress_bar():
    live = started(total_steps=None)
    assert "<progress" in live_view(live_picture(live))
    live.ended()
    assert "<progress" not in live_view(live_picture(live))


@pytest.mark.parametrize(
    ("seconds", "words"), [(8.2, "8 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def picture(**changes):
    values = {name: [] for name in ("loss", "smoothed", "validation", "rate")}
    return LivePicture(**{"heading": "run", "sentence": "s", "fraction": 0.5, "facts": {}, **values, **changes})


def test_the_image_says_its_numbers_in_words():
    markup = live_curves(picture(smoothed=[(1, 5.0), (2, 4.321)], validation=[(2, 4.5)]))
    assert 'role="img"' in markup
    assert "training loss (smoothed) 4.32, validation loss 4.5" in markup


def test_curves_are_told_apart_by_more_than_colour():
    markup = live_curves(picture(smoothed=[(1, 5.0), (2, 4.0)], validation=[(1, 5.0), (2, 4.5)]))
    lines = re.findall(r"<polyline[^>]*>", markup)
    assert [("stroke-dasharray" in line) for line in lines if "stroke=" in line and 'points=""' not in line] == [
        False,
        True,
    ]
    assert markup.count("<rect") == 2


@pytest.mark.parametrize(
    "points", [[], [(1, 2.0)], [(1, 2.0), (2, 2.0)], [(0, -3.0), (5, 7e8)], [(1, 1e-9), (2, 2e-9)]]
)
def test_any_points_can_be_drawn(points):
    markup = live_curves(picture(loss=points, smoothed=points, validation=points, rate=points))
    numbers = re.findall(r'(?:x|y|cx|cy|x1|y1)="(-?[\d.einfa]+)"', markup)
    assert all(math.isfinite(float(number)) and -1 <= float(number) <= WIDTH for number in numbers)


def test_labels_stay_inside_the_drawing():
    markup = live_curves(picture(loss=[(1, 1.0), (3_000_000, 2.0)], last_step=3_000_000))
    labels = re.findall(r'<text x="([\d.]+)"[^>]*text-anchor="(\w+)"[^>]*>([^<]*)</text>', markup)
    assert (str(WIDTH), "end", "3,000,000") in labels
    widths = {"end": 0, "middle": 4, "start": 8}
    assert all(float(x) + widths[anchor] * len(label) <= WIDTH for x, anchor, label in labels)
