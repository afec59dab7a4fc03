"""Tracking is never in the way: absent, offline, broken or slow, the training is the same."""

from __future__ import annotations

import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest

from tests.kit.toys import golden_config, same_weights, tiny_gpt, train_set, validation_set
from utils.training import Trainer
from utils.training.tracking import WandbTracker


@pytest.fixture
def fake_wandb(monkeypatch):
    """A module in wandb's place that keeps what it is given, or fails as it is told."""
    module = ModuleType("wandb")
    module.__spec__ = SimpleNamespace(name="wandb")
    module.run, module.rows, module.finished, module.inits = None, [], False, []
    module.api = SimpleNamespace(api_key="set")
    module.Settings = lambda **kw: kw

    def finish():
        module.finished = True

    def init(**kw):
        module.inits.append(kw)
        return SimpleNamespace(log=module.rows.append, finish=finish)

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return module


def train(**changes):
    config = golden_config(epochs=2, wandb_project="project", **changes)
    return Trainer(tiny_gpt(), None, config).train(train_set(), validation_set())


def test_rows_arrive_with_steps_and_epochs(fake_wandb):
    results = train()
    assert results.stop_reason == "finished"
    assert fake_wandb.finished
    assert [row["trainer/step"] for row in fake_wandb.rows if "epoch" in row and "val/loss" in row] == [3, 6]
    assert fake_wandb.inits[0]["project"] == "project"
    assert fake_wandb.inits[0]["name"] == results.run_name


def test_an_open_run_is_used_and_left_open(fake_wandb):
    fake_wandb.run = SimpleNamespace(log=fake_wandb.rows.append, finish=lambda: pytest.fail("closed the user's run"))
    train()
    assert fake_wandb.rows
    assert not fake_wandb.inits


def test_without_a_key_it_is_offline_and_said(fake_wandb):
    fake_wandb.api.api_key = None
    results = train()
    assert fake_wandb.inits[0]["mode"] == "offline"
    assert any("offline" in notice for notice in results.notices)


@pytest.mark.parametrize("where", ["init", "log"])
def test_a_failure_is_one_notice_and_nothing_else(fake_wandb, where):
    def fail(*args, **kw):
        raise ConnectionError("no route")

    if where == "init":
        fake_wandb.init = fail
    else:
        fake_wandb.init = lambda **kw: SimpleNamespace(log=fail, finish=lambda: None)
    reference = Trainer(tiny_gpt(), None, golden_config(epochs=2, run_name="reference")).train(
        train_set(), validation_set()
    )
    results = train()
    assert same_weights(results.model, reference.model)
    assert [notice for notice in results.notices if "W&B" in notice] == [
        "W&B stopped tracking (ConnectionError: no route); history.jsonl holds everything."
    ]


def test_a_service_that_never_answers_is_left_behind(fake_wandb, monkeypatch):
    release = threading.Event()

    def hang(**kw):
        release.wait(30)
        raise ConnectionError

    fake_wandb.init = hang
    made = []

    def impatient(self, *args):
        original(self, *args, patience_s=0.01)
        made.append(self)

    original = WandbTracker.__init__
    monkeypatch.setattr(WandbTracker, "__init__", impatient)
    try:
        results = train()
        assert results.stop_reason == "finished"
        assert any("did not answer in time" in notice for notice in results.notices)
    finally:
        release.set()
        for thread in threading.enumerate():
            if thread.name == "trainbook-wandb":
                thread.join(5)


def test_absent_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *args: None)
    results = train()
    assert any("wandb is not installed" in notice for notice in results.notices)


def test_off_is_off(fake_wandb):
    train(use_wandb=False)
    assert not fake_wandb.inits
