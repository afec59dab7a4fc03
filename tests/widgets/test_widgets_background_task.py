"""Work that a button starts: beside the kernel where something would draw, cancelled by a click or by a cell."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from utils.ui.background import Cancelled, Progress
from widgets import background_task
from widgets.background_task import TaskRow
from widgets.guarded import watching


class Work:
    """Work that reports, then waits until it is let go on or cancelled."""

    def __init__(self):
        self.began, self.go_on = threading.Event(), threading.Event()
        self.threads = []

    def __call__(self, progress):
        self.threads.append(threading.current_thread())
        with progress.undisturbed():
            progress.report("Training step 1 of 2")
            self.began.set()
            while not self.go_on.wait(0.01):
                progress.raise_if_cancelled()
        return 42


@pytest.fixture
def in_a_kernel(monkeypatch):
    monkeypatch.setattr(background_task, "front_end", lambda: "notebook")
    monkeypatch.setattr(background_task._Cells, "running", False)


def row_of(work):
    outcomes, errors = [], []
    return TaskRow("Measure", "tb-measure", work, outcomes.append, errors.append), outcomes


def is_busy(row):
    return "tb-busy" in row.start._dom_classes


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_without_an_event_loop_the_work_is_done_in_the_handler():
    work = Work()
    work.go_on.set()
    row, outcomes = row_of(work)
    row.start.click()
    assert work.threads == [threading.current_thread()]
    assert (outcomes[0].result, is_busy(row), row.runs_beside) == (42, False, False)


def test_an_interrupt_of_the_kernel_cancels_work_in_the_handler():
    def work(progress):
        raise KeyboardInterrupt

    row, outcomes = row_of(work)
    row.start.click()
    assert outcomes[0].cancelled
    assert "Cancelled." in row.line.value


def test_in_a_kernel_the_handler_returns_and_progress_is_drawn(in_a_kernel):
    async def click():
        work = Work()
        row, outcomes = row_of(work)
        assert row.runs_beside
        row.start.click()
        row.start.click()
        assert (outcomes, row.cancel.layout.display) == ([], None), "the second click starts nothing"
        assert (is_busy(row), row.start.disabled) == (True, False), "a disabled button would lose the keyboard focus"
        await until(lambda: "Training step 1 of 2" in row.line.value)
        work.go_on.set()
        await until(lambda: outcomes)
        assert work.threads != [threading.current_thread()]
        assert (outcomes[0].result, len(outcomes), is_busy(row)) == (42, 1, False)
        assert (row.line.value, row.cancel.layout.display) == ("", "none")

    asyncio.run(click())


def test_a_click_cancels(in_a_kernel):
    async def click():
        row, outcomes = row_of(Work())
        row.start.click()
        row.cancel.click()
        await until(lambda: outcomes)
        assert outcomes[0].cancelled
        assert "Cancelled." in row.line.value

    asyncio.run(click())


def test_a_cell_that_starts_cancels_and_waits_for_the_random_generators(in_a_kernel):
    async def click():
        work = Work()
        row, outcomes = row_of(work)
        row.start.click()
        await until(work.began.is_set)
        background_task._cell_begins(None)
        with pytest.raises(Cancelled), Progress().undisturbed():
            # Whoever holds the generators is gone by now: the cancelled work cannot enter again either.
            next(iter(background_task._Cells.under_way)).raise_if_cancelled()
        await until(lambda: outcomes)
        assert outcomes[0].cancelled
        assert not row.runs_beside
        background_task._cell_ends(None)
        assert row.runs_beside

    asyncio.run(click())


def test_a_click_while_a_cell_runs_waits_for_its_end_and_names_the_cell(in_a_kernel, monkeypatch):
    monkeypatch.setattr(background_task, "_LOOK_S", 0)

    async def click():
        work = Work()
        work.go_on.set()
        row, outcomes = row_of(work)
        background_task._cell_begins(SimpleNamespace(raw_cell="# first\nreport = await run_checks(model)\nreport.show()"))
        row.start.click()
        await until(lambda: "Waiting for the running cell to end: report = await run_checks(model)" in row.line.value)
        assert (is_busy(row), row.cancel.layout.display) == (True, None)
        row.start.click()
        background_task._cell_ends(None)
        background_task._cell_begins(SimpleNamespace(raw_cell="x" * 100))
        await until(lambda: f"{'x' * 59}…" in row.line.value)
        for _ in range(20):  # as many looks
            await asyncio.sleep(0)
        assert not work.threads
        background_task._cell_ends(None)
        await until(lambda: outcomes)
        assert [outcome.result for outcome in outcomes] == [42]
        assert (is_busy(row), row.line.value) == (False, "")

    asyncio.run(click())


def test_a_click_that_waits_can_be_cancelled(in_a_kernel, monkeypatch):
    monkeypatch.setattr(background_task, "_LOOK_S", 0.01)

    async def click():
        work = Work()
        work.go_on.set()
        row, outcomes = row_of(work)
        background_task._cell_begins(SimpleNamespace(raw_cell="train()"))
        row.start.click()
        await until(lambda: "Waiting" in row.line.value)
        row.cancel.click()
        assert (is_busy(row), row.line.value, row.cancel.layout.display) == (False, "", "none")
        background_task._cell_ends(None)
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
        assert (outcomes, work.threads) == ([], [])

    asyncio.run(click())


def test_an_error_of_the_work_is_its_outcome(in_a_kernel):
    def work(progress):
        raise ZeroDivisionError("by zero")

    async def click():
        row, outcomes = row_of(work)
        row.start.click()
        await until(lambda: outcomes)
        assert isinstance(outcomes[0].error, ZeroDivisionError)

    asyncio.run(click())


def test_an_error_in_what_follows_is_reported(in_a_kernel):
    def fail(outcome):
        raise ZeroDivisionError

    async def click():
        errors = []
        row = TaskRow("Measure", "tb-measure", lambda progress: 1, fail, errors.append)
        row.start.click()
        await until(lambda: errors)

    with watching():
        asyncio.run(click())
