"""Requests: what is asked for through the control and by files, collected once for the loop."""

from __future__ import annotations

import pytest

from utils.training.engine import requests
from utils.training.engine.distributed.world import World
from utils.training.engine.interrupts import Control
from utils.training.engine.requests import Requested, Requests


class Folder:
    """A run's folder that counts the looks into it."""

    def __init__(self, stop=None, finish=False):
        self.looks, self.stop, self.finish = 0, stop, finish

    def record(self, row):
        raise AssertionError("requests write no rows")

    def stop_requested(self):
        self.looks += 1
        return self.stop

    def take_finish_request(self):
        return self.finish


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(requests.time, "monotonic", lambda: now[0])
    return now


def test_files_are_looked_for_once_a_second_however_often_is_asked(clock):
    folder = Folder()
    collected = Requests(Control(), folder, World())
    for _ in range(20):
        clock[0] += 0.25
        collected.collect()
    assert folder.looks == 5


@pytest.mark.parametrize(
    ("folder", "requested", "reason"),
    [
        (Folder(), Requested(False, False, False, False), None),
        (Folder(stop="stop_file"), Requested(True, False, False, False), "stop_file"),
        (Folder(finish=True), Requested(False, False, False, True), None),
    ],
    ids=["nothing", "STOP", "FINISH"],
)
def test_files_count_as_requests(clock, folder, requested, reason):
    control = Control()
    collected = Requests(control, folder, World())
    clock[0] += 1.0
    assert collected.collect() == requested
    assert control.reason == reason


@pytest.mark.parametrize("name", ["save_now", "pause", "finish"])
def test_collecting_withdraws_nothing(name):
    control = Control()
    getattr(control, name).set()
    collected = Requests(control, Folder(), World())
    assert collected.collect() == collected.collect() != Requested(False, False, False, False)
