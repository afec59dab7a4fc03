"""run_checks and offer_checks: the same report as without a front end, progress, Stop, interrupts, and what a click starts."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading

import pytest
from jupyter_client.manager import start_new_kernel

import widgets.checks
from tests.kit.planted import Causal
from utils.checks import run_all_tier1_tests
from utils.errors import ConfigError
from utils.ui.background import Progress
from utils.views.display import LiveOutput
from widgets import offer_checks, run_checks

ONLY = ["shapes", "output stability"]


class At(Causal):
    """Does something at its third call, or at the first one after an event."""

    def __init__(self, do, after=None):
        super().__init__()
        object.__setattr__(self, "counting", itertools.count())
        object.__setattr__(self, "after", after)
        self.do = do

    def forward(self, *args, **named):
        if self.after is None:
            due = next(self.counting) == 2
        else:
            due = self.after.is_set() and next(self.counting) == 0
        if due:
            self.do()
        return super().forward(*args, **named)


@pytest.fixture
def in_a_check(monkeypatch):
    """An event: the first check has begun, and its progress is what the next look shows."""
    begun, note = threading.Event(), widgets.checks._Session._note

    def noted(session, progress):
        note(session, progress)
        if progress.name:
            begun.set()

    monkeypatch.setattr(widgets.checks._Session, "_note", noted)
    return begun


def run(model, **options):
    return asyncio.run(run_checks(model, **options))


def test_it_is_the_report_of_the_tier(capsys, monkeypatch, in_a_check):
    shown_once = threading.Event()  # the line of a check that has ended before the next look is not shown

    def show_text(text):
        print(text)
        shown_once.set()

    monkeypatch.setattr(widgets.checks, "show_text", show_text)
    report = run(At(lambda: shown_once.wait(60), in_a_check), only=ONLY)
    plain = run_all_tier1_tests(Causal(), only=ONLY)
    assert [(r.name, r.verdict, r.summary) for r in report.results] == [
        (r.name, r.verdict, r.summary) for r in plain.results
    ]
    shown = capsys.readouterr().out
    assert "Tier 1: shapes (1 of 2)" in shown
    assert report.to_text() in shown


def test_nothing_is_shown_on_request(capsys):
    assert run(Causal(), tier=2, only=["input perturbation"], ui="none").passed
    assert capsys.readouterr().out == ""


def test_the_interrupt_keeps_the_report_so_far():
    report = run(At(lambda: os.kill(os.getpid(), signal.SIGINT)), only=ONLY)
    assert report.stopped
    assert report["output stability"].verdict == "not run"


def test_an_error_of_the_arguments_is_raised_in_the_cell():
    with pytest.raises(ConfigError, match="shapess"):
        run(Causal(), only=["shapess"])
    with pytest.raises(ConfigError, match="tier is one of 1, 2, 3, all"):
        run(Causal(), tier=4)


@pytest.fixture
def view(monkeypatch):
    """The widgets of the next `run_checks`, in a list."""

    class Views(list):
        shown = threading.Event()

    made = Views()

    class Kept(widgets.checks._WidgetView):
        def __init__(self, session):
            super().__init__(session)
            self.lines = []
            made.append(self)

        def show(self, progress):
            super().show(progress)
            self.lines.append(self._line.value)
            if progress is not None:
                made.shown.set()

    monkeypatch.setattr(widgets.checks, "_WidgetView", Kept)
    monkeypatch.setattr(widgets.checks, "ui_mode", lambda ui: "widget")
    monkeypatch.setattr(widgets.checks, "_REDRAW_S", 0.0)
    return made


def test_the_line_says_which_check_runs_and_how_long_it_takes(view, in_a_check):
    run(At(lambda: view.shown.wait(60), in_a_check), only=ONLY)
    shown = "".join(view[0].lines)
    assert "shapes (1 of 2)" in shown
    assert "of about" in shown
    assert "<progress" in shown


def test_stop_ends_the_checks_and_keeps_the_report(view):
    report = run(At(lambda: view[0].stop.click()), only=ONLY)
    assert report.stopped
    assert [result.verdict for result in report.results] == ["not run", "not run"]
    assert view[0].stop.disabled


# ---- offered checks ----


def test_without_widgets_the_offer_says_how_long_it_takes_and_how_to_run_it(capsys):
    assert offer_checks(Causal(), tier=3) is None
    shown = capsys.readouterr().out
    assert "Tier 3" in shown
    assert "about" in shown
    assert "run_all_tier3_tests(model, config)" in shown


def test_a_model_that_cannot_be_called_is_offered_without_a_time(capsys):
    offer_checks("no model")
    assert "not known" in capsys.readouterr().out


def test_a_click_runs_the_offered_checks_and_shows_the_report(monkeypatch):
    monkeypatch.setattr(widgets.checks, "ui_mode", lambda ui: "widget")
    offered = offer_checks(Causal(), tier=1, only=ONLY)
    assert offered.report is None
    assert "about" in offered.box.children[0].value
    offered._job.start.click()
    assert offered.report.passed
    assert "Tier 1" in offered._shown.value


def test_the_offer_says_what_it_does_while_the_time_is_measured(monkeypatch):
    monkeypatch.setattr(widgets.checks, "ui_mode", lambda ui: "widget")
    shown = []
    monkeypatch.setattr(widgets.checks, "LiveOutput", lambda box, plain: shown.append(box) or LiveOutput(box, plain))
    monkeypatch.setattr(
        widgets.checks, "_offer", lambda *_: f"{'Measuring' in shown[0].children[0].value}: now it is known"
    )
    assert "True: now it is known" in offer_checks(Causal(), tier=3).box.children[0].value


def test_stopped_offered_checks_show_what_is_known(monkeypatch):
    monkeypatch.setattr(widgets.checks, "ui_mode", lambda ui: "widget")
    offered = offer_checks(Causal(), tier=1, only=ONLY)
    progress = Progress(lambda sentence: progress.cancel() if "stability" in sentence else None)
    report = offered._work(progress)
    assert [result.verdict for result in report.results] == ["pass", "not run"]


# ---- in a kernel ----

CELL = """
import itertools
import widgets.checks
from tests.kit.planted import Causal

sessions, calls = [], itertools.count()

class Session(widgets.checks._Session):
    def __init__(self, run):
        super().__init__(run)
        sessions.append(self)

class Held(Causal):
    def forward(self, *args, **named):
        if next(calls) == 2:
            print("running", flush=True)
            sessions[0].stop.wait()
        return super().forward(*args, **named)

widgets.checks._Session = Session
report = await widgets.run_checks(Held(), ui="html")
print("ended", report.stopped, [result.verdict for result in report.results][-1], flush=True)
"""


@pytest.mark.slow
def test_the_interrupt_of_a_kernel_ends_the_cell_with_the_report():
    manager, client = start_new_kernel(startup_timeout=300)
    try:
        request, printed = client.execute(CELL), ""
        while "ended" not in printed:
            message = client.get_iopub_msg(timeout=300)
            if message["parent_header"].get("msg_id") != request:
                continue
            assert message["msg_type"] != "error", message["content"]
            new = message["content"].get("text", "") if message["msg_type"] == "stream" else ""
            if "running" in new:
                manager.interrupt_kernel()
            printed += new
        assert "ended True not run" in printed
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
