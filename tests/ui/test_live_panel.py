"""What the live panel shows beside the losses: validations, events, small figures, baselines, samples; bounded in size."""

from __future__ import annotations

import json
import math
import re

import pytest

from utils.ui.live_picture import clock, live_picture
from utils.ui.live_run import MAX_EVENTS, MAX_VALIDATIONS, LiveRun, RunEvent
from utils.ui.run_on_disk import run_on_disk
from utils.views.live import live_content, live_view
from utils.views.tables import on_one_line

HOSTILE = "<script>alert(1)</script><img src=x onerror='alert(2)'>\"&"


def started(**values):
    live = LiveRun()
    live.apply(RunEvent("on_train_begin", 0.0, 0, {"total_steps": 1000, "run_dir": "runs/mine", "epochs": 2, **values}))
    return live


def step(live, number, at_s=None, **values):
    logs = {
        "train/loss": 2.0,
        "train/learning_rate": 1e-3,
        "train/grad_norm": 0.5,
        "epoch": 0,
        "targets_done": 100 * number,
    }
    logs |= {name.replace("__", "/"): value for name, value in values.items()}
    live.apply(RunEvent("on_step_end", float(number if at_s is None else at_s), number, logs))


def validate(live, number, loss, best_step=None, **values):
    live.apply(RunEvent("on_evaluate_begin", float(number), number, {}))
    logs = {
        "val/loss": loss,
        "val/perplexity": math.exp(loss),
        "best_value": loss,
        "best_step": best_step or number,
        **values,
    }
    live.apply(RunEvent("on_evaluate_end", number + 0.5, number, logs))


def table_rows(markup):
    body = re.search(r'<table aria-label="validations.*?</table>', markup)[0]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", body)]


def test_every_validation_has_a_row_and_the_best_has_a_star():
    live = started()
    for number, loss, best in ((10, 3.0, 10), (20, 2.5, 20), (30, 2.75, 20)):
        step(live, number - 1)
        step(live, number)
        validate(live, number, loss, best)
    head, *rows = table_rows(live_content(live_picture(live)))
    assert head == ["step", "train", "validation", "perplexity", "time"]
    assert [("best" in row[0], row[0].split("\xa0")[-1]) for row in rows] == [(False, "30"), (True, "20"), (False, "10")]
    assert [row[2] for row in rows] == ["2.750", "2.500", "3.000"]
    assert live_content(live_picture(live)).count('aria-label="best"') == 2  # the row's and the legend's


def test_the_best_validation_is_shown_however_long_ago_it_was():
    live = started()
    for number in range(1, 41):
        step(live, number)
        validate(live, number, 1.0 if number == 5 else 2.0, 5 if number >= 5 else number)
    rows = table_rows(live_content(live_picture(live)))
    assert [row[0].split("\xa0")[-1] for row in rows if "best" in row[0]] == ["5"]


def test_a_model_with_classes_shows_its_accuracy():
    live = started()
    live.apply(RunEvent("on_evaluate_end", 1.0, 10, {"val/loss": 0.7, "val/accuracy": 0.625}))
    head, row = table_rows(live_content(live_picture(live)))
    assert head[3] == "accuracy"
    assert live.speed_unit == "targets/s"
    assert row[3] == "0.625"


@pytest.mark.parametrize(
    ("values", "words"),
    [({"train__loss": math.nan}, "Step skipped: loss nan"), ({"train__grad_norm": math.inf}, "Step skipped: gradient norm inf"),
     ({"train__learning_rate": 5e-4}, "Learning rate 0.001 → 0.0005")],
)  # fmt: skip
def test_what_happened_is_listed_with_its_step(values, words):
    live = started()
    for number in range(1, 20):
        step(live, number)
    step(live, 20, **values)
    assert live_picture(live).events == [(20, words)]
    assert words in live_content(live_picture(live))


def test_warm_up_and_decay_are_no_events():
    live = started()
    for number in range(1, 200):
        step(live, number, train__learning_rate=1e-3 * min(1.0, number / 50) * (1 - number / 200))
    assert not live.log


def test_a_checkpoint_is_an_event():
    live = started()
    for step in (8, 9):  # written while training continues, and again
        live.apply(RunEvent("on_checkpoint_saved", 1.0, step, {"path": "c/step_7.pt"}))
    assert live_picture(live).events == [(7, "Checkpoint step_7.pt")]


def test_a_checkpoint_of_an_epoch_stands_at_the_epochs_last_step_among_the_newest_of_all_events():
    live = started()
    live.apply(RunEvent("on_epoch_end", 1.0, 476, {"epoch": 6}))
    for number in range(477, 487):
        live.apply(RunEvent("on_checkpoint_saved", 2.0, number, {"path": f"c/step_{number}.pt"}))
    live.apply(RunEvent("on_checkpoint_saved", 3.0, 488, {"path": "c/epoch_7.pt"}))  # written while training continued
    assert next(iter(live.log)) == (476, "Checkpoint epoch_7.pt")
    picture = live_picture(live)
    assert [at for at, _ in picture.events] == [486, 485, 484, 483, 482, 481]
    assert "Events, the newest 6 of 11" in live_content(picture)


def test_before_the_first_step_numbers_have_their_places_and_the_chart_no_scale():
    before, after = LiveRun(), started(baseline=("unigram model", 3.0))
    markup = live_content(live_picture(before))
    assert "The curves begin with the first step." in markup
    assert re.findall(r"<text[^>]*>([^<]*)</text>", markup) == [
        "loss per target", "The curves begin with the first step.", "optimizer steps"
    ]
    step(after, 1)
    validate(after, 1, 2.0)
    after.apply(RunEvent("on_checkpoint_saved", 1.0, 1, {"path": "c/step_1.pt"}))
    after_names = {name.replace("above", "below") for name in live_picture(after).facts}
    assert set(live_picture(before).facts) == after_names, "no card appears later and moves the page"


@pytest.mark.parametrize(
    ("reason", "continues"), [("stop_button", True), ("broken off", True), ("finished", False), ("early_stopping", False)]
)
def test_a_run_that_was_stopped_says_how_to_continue_it(reason, continues):
    live = started()
    live.ended()
    assert ("run the training again" in live_content(live_picture(live, (), reason))) == continues


def test_a_sample_of_nothing_but_line_breaks_is_their_number():
    live = started()
    live.apply(RunEvent("on_samples", 1.0, 10, {"samples": [{"prompt": "The", "text": "The" + "\n" * 30 + "end"}]}))
    assert "<b>The</b>\n⏎ × 30\nend</pre>" in live_content(live_picture(live))
    assert on_one_line("a\n\nb" + " \n" * 30) == "a⏎ ⏎ b⏎ × 30 "


def test_rate_norm_speed_and_memory_are_images_that_say_their_numbers():
    live = started()
    for number in range(1, 12):
        step(live, number, memory_bytes=2**30)
    labels = re.findall(r'role="img" aria-label="([^"]*)"', live_content(live_picture(live)))
    assert [label.split(":")[0] for label in labels[1:]] == [
        "learning rate",
        "gradient norm",
        "tokens/s",
        "memory (GiB)",
    ]
    assert labels[2] == "gradient norm: 0.5, 0.5 to 0.5 so far"
    assert "1.00" in labels[4]


def test_the_baseline_is_a_line_and_a_distance():
    live = started(baseline=("unigram baseline", 3.0))
    step(live, 1)
    validate(live, 1, 2.5)
    picture = live_picture(live)
    assert picture.facts["below baseline by"] == "0.500 (unigram baseline 3.000)"
    assert "unigram baseline 3.00</text>" in live_content(picture)
    assert "unigram baseline 3" in re.search(r'aria-label="(Curves[^"]*)"', live_content(picture))[1]


@pytest.mark.parametrize("values", [{"val/accuracy": 0.5}, {"val/r2": 0.5}, {"val/perplexity": 2.0}, {}])
def test_a_run_whose_baseline_is_not_known_shows_none_and_no_dash(values):
    live = started()
    step(live, 1)
    live.apply(RunEvent("on_evaluate_end", 1.0, 10, {"val/loss": 0.7, **values}))
    assert not any("baseline" in name for name in live_picture(live).facts)


def test_a_run_over_other_targets_than_tokens_waits_for_no_baseline():
    assert "below baseline by" in live_picture(started(over_tokens=True)).facts
    assert "below baseline by" not in live_picture(started(over_tokens=False)).facts


def test_a_sample_keeps_its_lines_and_stands_beside_the_one_before():
    live = started()
    for number, written in ((10, "The\nfirst"), (20, "The\nsecond\n\nline")):
        live.apply(RunEvent("on_samples", 1.0, number, {"samples": [{"prompt": "The", "text": written}]}))
    markup = live_content(live_picture(live))
    assert "<b>The</b>\nsecond\n\nline</pre>" in markup
    assert "before, step 10" in markup
    assert "<b>The</b>\nfirst</pre>" in markup


def test_the_doctors_findings_have_their_rule_as_title():
    markup = live_content(
        live_picture(started(), ["Doctor, overfitting: It memorises. Stop.", "Something else: nothing."])
    )
    assert re.search(r"tb-warn.*overfitting</span></span> It memorises\. Stop\.", markup)
    assert "Something else: nothing." in markup


def test_a_validation_under_way_says_how_long_it_usually_takes(monkeypatch):
    live = started()
    step(live, 1)
    validate(live, 1, 2.0)
    live.apply(RunEvent("on_evaluate_begin", 100.0, 2, {}))
    monkeypatch.setattr("utils.ui.live_picture.time.monotonic", lambda: 103.0)
    assert live_picture(live).validating == "validating for 3 s of about 0 s"
    assert live.validating_s(103.0) == (3.0, 0.5)


def test_memory_and_markup_stay_the_same_however_long_the_run_is():
    live = started()
    sizes = []
    for number in range(1, 8001):
        bad = {"train__loss": math.nan} if number % 3 == 0 else {}
        step(live, number, **bad, memory_bytes=number * 1e6)
        if number % 20 == 0:
            validate(live, number, 2.0)
        if number in (4000, 8000):
            sizes.append(len(live_content(live_picture(live))))
    assert len(live.validations) == MAX_VALIDATIONS
    assert len(live.log) == MAX_EVENTS
    assert len(live.nonfinite_steps) <= 1000
    assert sizes[1] < 1.15 * sizes[0] < 100_000


def test_every_text_of_the_panel_is_escaped():
    live = started(baseline=(HOSTILE, 3.0), run_dir=f"runs/{HOSTILE[:8]}")
    step(live, 1)
    validate(live, 1, 2.0)
    for number in (1, 2):
        live.apply(RunEvent("on_samples", 1.0, number, {"samples": [{"prompt": HOSTILE, "text": HOSTILE * 2}]}))
    live.apply(RunEvent("on_checkpoint_saved", 1.0, 7, {"path": HOSTILE.replace("/", "")}))
    live.failed(HOSTILE)
    markup = live_view(live_picture(live, [f"Doctor, {HOSTILE}: {HOSTILE}", HOSTILE]))
    assert "<script" not in markup
    assert "<img" not in markup


def test_the_view_is_rebuilt_from_the_folder_of_the_run(tmp_path):
    run_dir = tmp_path / "mine"
    run_dir.mkdir()
    rows = [
        *({"event": "step", "step": s, "train/loss": 3.0 - s / 10, "train/grad_norm": 1.0, "train/learning_rate": 1e-3,
           "time/tokens_per_s": 500.0} for s in range(1, 5)),
        {"event": "evaluate", "step": 4, "epoch": 0, "val/loss": 2.75, "val/perplexity": 15.6},
        {"event": "epoch", "step": 4, "epoch": 0, "train/loss": 2.8, "time/epoch_s": 65.0},
    ]  # fmt: skip
    samples = [{"step": s, "epoch": 0, "samples": [{"prompt": "A", "text": f"A {s}"}]} for s in (2, 4)]
    facts = [{"event": "start", "step": 0, "unigram_loss": 3.4, "validation_unigram_loss": 3.5}]
    for name, lines in (("history.jsonl", rows), ("samples.jsonl", samples), ("doctor.jsonl", facts)):
        (run_dir / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    state = {"status": "ended", "stop_reason": "finished", "step": 4, "best": {"value": 2.75, "step": 4}}
    (run_dir / "state.json").write_text(json.dumps(state), encoding="utf-8")
    live, reason = run_on_disk(run_dir)
    picture = live_picture(live, (), reason)
    assert [(row.step, row.loss, row.time, row.best) for row in picture.validations] == [("4", "2.750", "1:05", True)]
    assert [small.name for small in picture.smalls] == ["learning rate", "gradient norm", "tokens/s"]
    assert picture.baselines == {"unigram model": 3.5}
    assert (picture.samples, picture.before) == ([("A", "A 4")], [("A", "A 2")])
    assert "finished" in live_view(picture)


@pytest.mark.parametrize(("seconds", "words"), [(8, "0:08"), (200, "3:20"), (7500, "2:05:00")])
def test_times_as_on_a_clock(seconds, words):
    assert clock(seconds) == words
