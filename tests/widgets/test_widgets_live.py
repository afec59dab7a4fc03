"""train_live without a front end: the same training, its control, its interrupts, its errors. And the dashboard's buttons."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import signal
import threading
from types import SimpleNamespace

import pytest
import torch

from tests.kit.toys import golden_config, plain_lm, tiny_gpt, train_set, validation_set
from utils.environment import ui_mode
from utils.errors import CallbackError, ConfigError, TrainingInterrupted
from utils.training import Callback, Trainer
from utils.training.engine.interrupts import Control
from utils.training.samples import SampleTexts, prompts_from, read_samples, text_from
from utils.ui.live_picture import live_picture
from utils.ui.live_run import LiveRun, RunEvent, past_of
from utils.views.curves import EPOCH_LOSS, STEP_LOSS, VALIDATION_LOSS
from widgets.dashboard import Dashboard
from widgets.guarded import watching
from widgets.live import train_live
from widgets.live_views import REDRAW_S, Redraws

DATA = SimpleNamespace(train=train_set(), validation=validation_set())


def make_trainer(*callbacks, **changes):
    return Trainer(tiny_gpt(), training_config=golden_config(**changes), callbacks=callbacks)


def weights(trainer):
    return torch.cat([parameter.detach().reshape(-1) for parameter in trainer.model.parameters()])


class AtStep(Callback):
    """Does something once, at the end of a step, in the thread that trains."""

    def __init__(self, step, do):
        self._step, self._do = step, do

    def on_step_end(self, step, trainer, logs=None):
        if step == self._step:
            self._do(trainer)


def live(trainer, **options):
    return asyncio.run(train_live(trainer, DATA, **options))


def test_it_trains_to_the_last_bit_as_without_it():
    plain = make_trainer(run_name="plain")
    plain.train(DATA.train, DATA.validation)
    watched = make_trainer(run_name="watched")
    results = live(watched)
    assert results.stop_reason == "finished"
    assert torch.equal(weights(plain), weights(watched))
    assert watched.callbacks == []


def test_results_and_curves_name_the_epoch_mean_and_the_step_of_the_best():
    results = live(make_trainer(epochs=2))
    summary = results.summary()
    assert summary["training loss (epoch mean)"].startswith(f"{results.history[-1]['train/loss']:.4f} ")
    assert "training loss" not in summary
    assert summary["best"] == f"val/loss {results.best_value:.4f} (step {results.state.best.step})"
    legend = results.plot().axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [STEP_LOSS, EPOCH_LOSS, VALIDATION_LOSS]


def test_results_draw_in_the_colours_of_the_page_and_fold_the_curves_that_a_live_view_has_shown(monkeypatch):
    shown = []
    monkeypatch.setattr("utils.views.display.show_html", lambda markup, plain: shown.append(markup))
    monkeypatch.setattr("widgets.live.ui_mode", lambda ui: "html")
    results = live(make_trainer(epochs=1))
    for below_a_live_view in (results.curves_shown, False):
        results.curves_shown = below_a_live_view
        results.show(baseline=9.0)
    assert results.curves_path.is_file()
    below, alone = shown
    for markup in shown:
        assert re.search(r'<svg.*aria-label="Training curves: training loss \(step\) .*unigram model 9\."', markup)
        assert "<img" not in markup
        assert "below unigram model by" in markup
    assert "<details" not in alone
    assert re.search(r"<details><summary>Curves</summary>.*<svg.*</details>", below)


def test_a_stop_gives_results_and_the_next_call_ends_at_the_same_weights():
    unbroken = make_trainer(run_name="unbroken")
    live(unbroken)
    first = live(make_trainer(AtStep(5, lambda trainer: trainer.request_stop("stop_button"))))
    assert (first.stop_reason, first.steps) == ("stop_button", 5)
    second = make_trainer()
    assert live(second).stop_reason == "finished"
    assert torch.equal(weights(unbroken), weights(second))


def test_a_finished_run_is_not_trained_again_and_that_is_said(capsys):
    live(make_trainer())
    capsys.readouterr()
    again = make_trainer(AtStep(1, lambda trainer: pytest.fail("trained again")))
    assert live(again).stop_reason == "finished"
    said = capsys.readouterr().out
    assert "Finished · step 12" in said
    assert "finished before; nothing was trained now" in said


def interrupt(trainer):
    os.kill(os.getpid(), signal.SIGINT)
    trainer.control.stop.wait()  # the main thread handles it


def test_an_interrupt_saves_and_then_raises_with_the_results():
    with pytest.raises(TrainingInterrupted, match="after step 5; saved as .*step_5.pt") as caught:
        live(make_trainer(AtStep(5, interrupt)))
    assert caught.value.results.steps == 5


def test_a_second_interrupt_gives_the_cell_back_and_the_step_is_still_saved():
    go_on = threading.Event()

    def twice(trainer):
        interrupt(trainer)
        interrupt(trainer)
        go_on.wait()

    with pytest.raises(TrainingInterrupted, match="Interrupted twice"):
        live(make_trainer(AtStep(5, twice)))
    go_on.set()
    assert live(make_trainer()).stop_reason == "finished"


def test_a_cell_that_is_cancelled_saves_and_lets_the_cancellation_through():
    async def cancelled_at_step_five():
        loop, task = asyncio.get_running_loop(), None

        def cancel(trainer):
            loop.call_soon_threadsafe(task.cancel)
            trainer.control.stop.wait()

        task = asyncio.ensure_future(train_live(make_trainer(AtStep(5, cancel)), DATA))
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled_at_step_five())
    assert live(make_trainer(AtStep(5, lambda trainer: pytest.fail("step 5 was done before")))).steps == 12


def test_a_drawing_that_fails_ends_the_training_saved_and_is_raised(monkeypatch):
    at_step_five = threading.Event()

    def wait_for_the_stop(trainer):
        at_step_five.set()
        trainer.control.stop.wait()

    def fail(self, live, now_s, notices):
        if at_step_five.is_set():
            raise RuntimeError("cannot draw")

    monkeypatch.setattr("widgets.live_views.TextView.show", fail)
    watched = make_trainer(AtStep(5, wait_for_the_stop))
    with pytest.raises(RuntimeError, match="cannot draw"):
        live(watched)
    assert watched.state.stop_reason == "view_failed"
    assert (watched.run_dir / "checkpoints" / "step_5.pt").is_file()


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    live(make_trainer())
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_in_the_thread_is_raised_in_the_cell():
    def fail(trainer):
        raise RuntimeError("broken on purpose")

    with pytest.raises(CallbackError, match="broken on purpose"):
        live(make_trainer(AtStep(2, fail)))


def test_bad_data_is_said_in_the_cell():
    with pytest.raises(RuntimeError, match="Expected train_data to be Dataset or DataLoader"):
        asyncio.run(train_live(make_trainer(), SimpleNamespace(train=3, validation=None)))


def test_text_mode_prints_a_line_an_epoch_and_none_prints_nothing(capsys):
    live(make_trainer(), ui="text")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1/4", "2/4", "3/4", "4/4"]
    assert any(line.startswith("Finished · step 12 of 12") for line in lines)
    live(make_trainer(run_name="silent"), ui="none")
    assert capsys.readouterr().out == ""


# ---- samples ----


class Letters:
    """A tokenizer for the toys: id i is the letter i."""

    eos_token_id = None

    def encode(self, text):
        return [ord(letter) - 65 for letter in text]

    def decode(self, ids):
        return "".join(chr(65 + int(token)) for token in ids)


def test_samples_are_kept_with_the_run_and_change_nothing_that_is_learned():
    plain = make_trainer(run_name="plain")
    live(plain)
    sampled = make_trainer(run_name="sampled")
    sampled.tokenizer = Letters()
    results = live(sampled, prompts=["ABC", "B"])
    rows = read_samples(results.run_dir)
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert [sample["prompt"] for sample in rows[0]["samples"]] == ["ABC", "B"]
    assert all(sample["text"].startswith(sample["prompt"]) for sample in rows[-1]["samples"])
    assert len(rows[-1]["samples"][0]["text"]) > 3
    assert torch.equal(weights(plain), weights(sampled))


def test_a_run_that_is_continued_shows_its_last_samples_and_best_value():
    first = make_trainer(AtStep(5, lambda trainer: trainer.request_stop("stop_button")))
    first.tokenizer = Letters()
    results = live(first, prompts=["ABC"])
    past = past_of(results.run_dir)
    run = LiveRun()
    run.apply(RunEvent("on_train_begin", 0.0, 5, {"run_dir": "runs/golden", **past, "best_value": 3.0, "best_step": 3}))
    assert run.samples[0][0] == "ABC"
    assert run.sampled_step == 3
    assert run.best == (3.0, 3)


def test_without_prompts_the_beginnings_come_from_the_validation_data():
    blocks = [{"input_ids": torch.arange(12)}, {"input_ids": torch.arange(12) + 1}]
    assert prompts_from(blocks, Letters()) == ("ABCDEFGH", "BCDEFGHI")
    assert prompts_from(None, Letters()) == ()
    assert prompts_from(blocks, None) == ()


@pytest.mark.parametrize(("learned_from", "prompt"), [(5, "ABCDE"), (1, "ABCDEFGH"), (0, "ABCDEFGH"), (12, "ABCDEFGH")])
def test_where_only_answers_are_learned_the_beginning_is_the_whole_question(learned_from, prompt):
    labels = torch.arange(12)
    labels[:learned_from] = -100
    assert prompts_from([{"input_ids": torch.arange(12), "labels": labels}], Letters()) == (prompt,)


def question(letter, answer=1):
    """A conversation with one question, whose answer alone is learned."""
    ids = torch.tensor([letter, letter, letter, 20 + answer])
    return {"input_ids": ids, "labels": torch.tensor([-100, -100, -100, 20 + answer])}


@pytest.mark.parametrize(
    ("letters", "prompts"),
    [("AAAAAB", ("AAA", "BBB")), ("ABAAAA", ("AAA", "BBB")), ("AAAA", ("AAA",)), ("A" * 500 + "B", ("AAA",))],
    ids=["next", "from the beginning again", "fewer", "too far away"],
)
def test_beginnings_differ_where_the_data_repeat_a_question(letters, prompts):
    blocks = [question(ord(letter) - 65, number % 5) for number, letter in enumerate(letters)]
    if len(blocks) > 64:  # the last one is beyond the blocks that are looked at from the middle on
        assert len(blocks) - len(blocks) // 2 > 64
    assert prompts_from(blocks, Letters()) == prompts


@pytest.mark.parametrize("label", [1, torch.tensor(1), torch.tensor([0, 1]), [1] * 12])
def test_labels_of_another_kind_do_not_change_the_beginning(label):
    assert prompts_from([{"input_ids": torch.arange(12), "labels": label}], Letters()) == ("ABCDEFGH",)


TEXT = "Anna didn't see the well-known lighthouse until the storm was almost over, and then it was too late to turn back."


class Bytes(Letters):
    """A tokenizer with one id for each byte, so that words and characters have several ids."""

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(int(token) for token in ids).decode(errors="replace")


class Pairs(Letters):
    """A tokenizer whose ids stand for two characters, wherever words begin."""

    def decode(self, ids):
        return "".join(TEXT[2 * int(token) : 2 * int(token) + 2] for token in ids)


@pytest.mark.parametrize("size", range(9, 60, 3))
@pytest.mark.parametrize("tokenizer", [Bytes(), Pairs()], ids=["bytes", "pairs"])
def test_beginnings_are_whole_words_wherever_the_blocks_are_cut(tokenizer, size):
    ids = list(TEXT.encode()) if type(tokenizer) is Bytes else list(range(len(TEXT) // 2))
    blocks = [{"input_ids": torch.tensor(ids[at : at + size])} for at in range(0, len(ids), size)]
    prompts = prompts_from(blocks, tokenizer, count=len(blocks))
    assert prompts[0].startswith("Anna")
    known = [word.strip(",.") for word in TEXT.split()]
    for prompt in prompts:
        words = prompt.replace(",", " ").replace(".", " ").split()
        inner = words[1:-1] if size < 36 else words  # a short block may hold no end of a word
        assert [word for word in inner if word not in known] == []


@pytest.mark.parametrize("text", ["\u6211" * 40, "word" * 20], ids=["no spaces", "one long word"])
def test_text_without_word_ends_still_gives_beginnings_of_whole_characters(text):
    blocks = [{"input_ids": torch.tensor(list(text.encode()))}]
    (prompt,) = prompts_from(blocks, Bytes())
    assert prompt
    assert text.startswith(prompt)


def test_the_text_of_a_sample_is_its_beginning_without_special_tokens():
    letters = SimpleNamespace(decode=lambda ids: "".join(map(chr, ids)), all_special_ids=[0])
    assert text_from([{"input_ids": [0, *map(ord, "abcdef"), 0]}], letters, most_tokens=4) == "abcd"
    assert text_from(None, letters) is None
    assert text_from([{"pixel_values": 1}], letters) is None


def test_each_beginning_has_a_seed_of_its_own_and_the_samples_repeat():
    def written(name):
        trainer = make_trainer(run_name=name, epochs=1, learning_rate=1e-9)
        trainer.tokenizer = Letters()
        return read_samples(live(trainer, prompts=["ABC", "ABC"]).run_dir)[0]["samples"]

    first, second = written("first")
    assert first["text"] != second["text"]
    assert written("again") == [first, second]


def test_a_model_that_cannot_write_is_said_once_and_trains_on():
    asked = []

    class Counting(Letters):
        def encode(self, text):
            asked.append(text)
            return super().encode(text)

    trainer = make_trainer(SampleTexts(Counting(), [""]), run_name="odd")
    results = trainer.train(DATA.train, DATA.validation)
    assert results.stop_reason == "finished"
    assert sum(notice.startswith("No sample texts:") for notice in results.notices) == 1
    assert asked == [""]


def test_a_plain_module_writes_too():
    trainer = Trainer(plain_lm(), training_config=golden_config(epochs=1), tokenizer=Letters())
    results = live(trainer, prompts=["AB"])
    assert len(read_samples(results.run_dir)) == 1


# ---- drawing ----


def test_ten_thousand_updates_in_ten_seconds_are_drawn_at_most_twice_a_second():
    redraws = Redraws()
    drawn = sum(redraws.due(index / 1000, index) for index in range(10_000))
    assert 2 <= drawn <= 10 / REDRAW_S + 1
    assert 1 / REDRAW_S <= 2


@pytest.mark.parametrize("drawing_s", [0.001, 0.004, 0.03])
def test_slow_drawings_come_less_often_so_that_they_take_less_than_a_hundredth_of_the_time(drawing_s):
    redraws, drawn = Redraws(), 0
    for index in range(20_000):
        if redraws.due(index / 100, index):
            redraws.took(drawing_s)
            drawn += 1
    assert drawn > 1
    assert drawn * drawing_s < 0.01 * 200


def test_what_did_not_change_is_not_drawn_again():
    redraws = Redraws()
    assert redraws.due(0.0, "same")
    assert not redraws.due(100.0, "same")
    assert redraws.due(101.0, "other")


@pytest.fixture
def control():
    return Control()


def test_the_buttons_set_the_control_and_a_double_click_asks_once(control):
    dashboard = Dashboard(control)
    controls = dashboard.controls
    controls.pause.click()
    controls.pause.click()
    assert control.pause.is_set()
    controls.show("paused")
    assert controls.pause.description == "Continue"
    assert controls.save.disabled
    controls.pause.click()
    controls.pause.click()
    assert not control.pause.is_set()
    controls.show("training")
    controls.save.click()
    assert control.save_now.is_set()
    controls.stop.click()
    controls.stop.click()
    assert control.reason == "stop_button"
    controls.show("stopping")
    assert controls.stop.disabled
    assert controls.pause.disabled


def test_stop_and_keep_best_and_finish_now_set_the_control(control):
    controls = Dashboard(control, can_finish=True).controls
    controls.keep_best.click()
    assert control.reason == "keep_best"
    controls.finish.click()
    assert control.finish.is_set()
    control.finish.clear()  # as the loop does
    controls.finish.click()
    assert not control.finish.is_set(), "a double click asks once"
    controls.show("training")
    assert controls.finish.description == "Finishing…"
    assert controls.finish.disabled
    assert controls.finish in controls.box.children
    assert len(Dashboard(control).controls.box.children) == len(controls.box.children) - 1, "only where the schedule allows it"


def test_an_ended_run_has_no_live_buttons(control):
    dashboard = Dashboard(control)
    dashboard.controls.show("ended")
    assert all(button.disabled for button in dashboard.controls.box.children)


def test_a_button_that_fails_shows_its_error_as_text():
    class Broken(Control):
        def request_stop(self, reason):
            raise RuntimeError("<img src=x onerror=alert(1)>")

    dashboard = Dashboard(Broken())
    with watching() as failures:
        dashboard.controls.stop.click()
    assert len(failures) == 1
    shown = "".join(child.value for child in dashboard.box.children if hasattr(child, "value"))
    assert 'role="alert"' in shown
    assert "RuntimeError: &lt;img src=x onerror=alert(1)&gt;" in shown


def test_one_drawing_is_one_message_to_the_browser(control):
    dashboard = Dashboard(control)
    picture = live_picture(LiveRun())
    dashboard.draw(picture, "training", "Training")
    sent = []
    for widget in dashboard.box.children:
        widget.observe(sent.append, "value")
    dashboard.draw(dataclasses.replace(picture, sentence="later"), "training", "Training")
    assert [change["name"] for change in sent] == ["value"]


HOSTILE = "<script>alert(1)</script><img src=x onerror='alert(2)'>\"&"


def test_a_notebook_saved_during_a_run_keeps_a_static_copy_that_is_hidden_while_widgets_live(control, monkeypatch):
    class Handle:
        def update(self, bundle, raw):
            kept.append(bundle)

    kept = []
    monkeypatch.setattr("IPython.display.display", lambda bundle, **options: kept.append(bundle) or Handle())
    monkeypatch.setattr("widgets.dashboard.COPY_S", 0.0)
    live_run = LiveRun()
    live_run.apply(RunEvent("on_train_begin", 0.0, 0, {"total_steps": 3, "run_dir": "runs/mine", "epochs": 1}))
    board = Dashboard(control, keeps_copy=True)
    board.draw(live_picture(live_run), live_run.phase, "")
    live_run.apply(RunEvent("on_step_end", 1.0, 1, {"train/loss": 2.0, "train/learning_rate": 1e-3, "epoch": 0}))
    board.draw(live_picture(live_run), live_run.phase, "")
    first, second = (bundle["text/html"] for bundle in kept)
    assert first.startswith('<div class="tb-copy">')
    assert "2.0000" in second
    assert "execute show_live()" in second
    assert ">training</span>" not in second, "no run is under way in a kernel that has ended"
    assert "body:has(.tb-dashboard) .tb-copy{display:none}" in second
    live_run.ended()
    board.draw(live_picture(live_run, (), "finished"), live_run.phase, "")
    assert kept[-1]["text/html"] == "", "the static view of the end takes its place"
    Dashboard(control).draw(live_picture(live_run), live_run.phase, "")
    assert len(kept) == 3


def test_hostile_text_in_run_name_samples_notices_and_errors_stays_text(control):
    live = LiveRun()
    live.name = HOSTILE
    live.samples, live.sampled_step = [(HOSTILE, HOSTILE + HOSTILE)], 1
    live.failed(RuntimeError(HOSTILE))
    dashboard = Dashboard(control)
    dashboard.draw(live_picture(live, [HOSTILE], HOSTILE), "failed", HOSTILE)
    shown = "".join(child.value for child in dashboard.box.children if hasattr(child, "value"))
    assert shown.count("&lt;script&gt;") >= 6
    assert "<script" not in shown
    assert "<img" not in shown


# ---- ui_mode ----


def test_ui_mode_outside_a_kernel_is_text_or_none(monkeypatch):
    assert ui_mode() == "text"
    assert ui_mode("widget") == "text"
    assert ui_mode("none") == "none"
    monkeypatch.setenv("TRAINBOOK_UI", "none")
    assert ui_mode() == "none"
    assert ui_mode("text") == "text"


def test_a_wrong_mode_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("TRAINBOOK_UI", "widgets")
    with pytest.raises(ConfigError, match="TRAINBOOK_UI is one of auto, widget, html, text, none; got 'widgets'"):
        ui_mode()
