"""Tracking is never in the way: absent, offline, broken or slow, the training is the same."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
import threading
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from tests.kit.toys import assert_same_run, golden_config, tiny_gpt, train_set, validation_set
from utils.training import Trainer
from utils.training.tracking import WandbTracker


class FakeWandb(ModuleType):
    """A module in wandb's place that keeps what it is given; its calls can be replaced by ones that fail."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = SimpleNamespace(name="wandb")
        self.run, self.rows, self.finished, self.inits, self.has_key = None, [], False, [], True
        self.axes = {}
        self.Settings = lambda **values: values
        self.log = self.rows.append
        self.opened = lambda: None

    def login(self, prompt=True, verify=True):
        assert not prompt, "nobody is there to answer"
        assert not verify, "this goes out to the network"
        return self.has_key

    def init(self, **values):
        self.inits.append(values)
        self.opened()
        return SimpleNamespace(
            log=lambda row: self.log(row), finish=lambda: self.finish(),
            define_metric=lambda name, step_metric=None: self.axes.update({name: step_metric}),
        )  # fmt: skip

    def finish(self):
        self.finished = True


PATIENCE_S = WandbTracker.patience_s


@pytest.fixture(autouse=True)
def answers_are_waited_for(monkeypatch):
    """A service that answers is not taken for one that hangs because the machine is loaded; tests of hanging set less."""
    monkeypatch.setattr(WandbTracker, "patience_s", 120.0)


@pytest.fixture
def fake_wandb(monkeypatch):
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return module


@pytest.fixture
def release():
    """Set when a test is over: what hung goes on, and its thread ends."""
    event = threading.Event()
    yield event
    event.set()
    for thread in threading.enumerate():
        if thread.name == "trainbook-wandb":
            thread.join(120)


def train(resume_from=None, **changes):
    config = golden_config(**{"epochs": 2, "wandb_project": "project", **changes})
    return Trainer(tiny_gpt(), None, config).train(train_set(), validation_set(), resume_from=resume_from)


@pytest.fixture(scope="module")
def untracked(tmp_path_factory):
    torch.set_num_threads(1)
    return train(wandb_project=None, output_dir=str(tmp_path_factory.mktemp("untracked")))


def raising(error):
    def fail(*args, prompt=True, verify=True):
        raise error

    return fail


def hanging_after(calls, release):
    """Answers so many calls, and then no more."""

    def hang(*args):
        nonlocal calls
        calls -= 1
        if calls < 0:
            release.wait(300)

    return hang


FAULTS = {
    "missing": (None, "Not tracked: wandb is not installed"),
    "bad key": (lambda w, _: setattr(w, "login", raising(ValueError("API key must have 40+ characters"))), "W&B stopped tracking (ValueError: API key must"),
    "unreachable": (lambda w, _: setattr(w, "opened", raising(ConnectionError("no route"))), "W&B stopped tracking (ConnectionError: no route)"),
    "a black hole": (lambda w, end: setattr(w, "opened", hanging_after(0, end)), "W&B did not answer in time"),
    "stalls mid-run": (lambda w, end: setattr(w, "log", hanging_after(4, end)), "W&B did not answer in time"),
    "raises in log": (lambda w, _: setattr(w, "log", raising(OSError("broken pipe"))), "W&B stopped tracking (OSError: broken pipe)"),
    "exits": (lambda w, _: setattr(w, "log", raising(SystemExit(1))), "W&B stopped tracking (SystemExit: 1)"),
    "never finishes": (lambda w, end: setattr(w, "finish", hanging_after(0, end)), "W&B did not answer in time"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_f40_a_service_that_fails_is_one_notice_and_nothing_else(fault, fake_wandb, release, untracked, monkeypatch):
    spoil, says = FAULTS[fault]
    assert PATIENCE_S <= 5
    if "did not answer" in says:
        monkeypatch.setattr(WandbTracker, "patience_s", 0.05)
    if spoil is None:
        monkeypatch.setitem(sys.modules, "wandb", None)
        monkeypatch.setattr("importlib.util.find_spec", lambda name, *args: None)
    else:
        spoil(fake_wandb, release)
    results = train()
    said = [notice for notice in results.notices if "W&B" in notice or "wandb" in notice]
    assert len(said) == 1
    assert said[0].startswith(says)
    assert "history.jsonl" in said[0]
    assert_same_run(untracked, results)
    assert len(fake_wandb.inits) <= 1, "a service that fails is not tried again, offline either"


class BrokenOnImport:
    """A finder for a wandb that is installed and cannot be imported."""

    def find_spec(self, name, path=None, target=None):
        if name == "wandb":
            return importlib.util.spec_from_loader(name, self)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        raise AttributeError("module 'numpy' has no attribute 'float_'")


def _a_finder_that_raises(monkeypatch):
    def refuse(name, *_):
        raise ValueError("wandb.__spec__ is not set")

    monkeypatch.setattr("importlib.util.find_spec", refuse)


STUBS = {
    "an empty module": lambda patch: patch.setitem(sys.modules, "wandb", ModuleType("wandb")),
    "without __spec__": lambda patch: patch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: None)),
    "a mock": lambda patch: patch.setitem(sys.modules, "wandb", MagicMock()),
    "a mock that logs nothing": lambda patch: patch.setitem(sys.modules, "wandb", MagicMock(run=None, log=None)),
    "hidden": lambda patch: patch.setitem(sys.modules, "wandb", None),
    "broken on import": lambda patch: patch.setattr(sys, "meta_path", [BrokenOnImport(), *sys.meta_path]),
    "a finder that raises": _a_finder_that_raises,
}


@pytest.mark.parametrize("stub", STUBS)
def test_a_stubbed_or_broken_wandb_never_stops_a_run(stub, untracked, monkeypatch):
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    STUBS[stub](monkeypatch)
    results = train()
    assert_same_run(untracked, results)
    said = [notice for notice in results.notices if "W&B" in notice or "wandb" in notice]
    assert len(said) == (0 if stub.startswith("a mock") else 1)


def test_a_training_waits_for_the_service_once_and_only_at_its_end(fake_wandb, release, monkeypatch):
    """A service that hangs from the start costs the patience once: 5 seconds in all."""
    waits = []
    join = threading.Thread.join
    monkeypatch.setattr(WandbTracker, "patience_s", 0.05)
    monkeypatch.setattr(
        threading.Thread,
        "join",
        lambda self, timeout=None: (waits.append((self.name, timeout)), join(self, timeout))[1],
    )
    fake_wandb.opened = hanging_after(0, release)
    train()
    assert [timeout for name, timeout in waits if name == "trainbook-wandb"] == [0.05]


def test_the_real_client_offline_changes_nothing(monkeypatch, tmp_path, untracked):
    pytest.importorskip("wandb")
    code = f"""
        import torch
        torch.set_num_threads(1)
        from tests.training.test_tracking import train
        from utils.training.tracking import WandbTracker
        WandbTracker.patience_s = 120  # a loaded machine must not make the client look unreachable
        results = train(output_dir={str(tmp_path / "tracked")!r})
        print(results.state.step, *[notice for notice in results.notices if "W&B" in notice], sep="|")
        torch.save(results.model.state_dict(), {str(tmp_path / "weights.pt")!r})
    """
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[-1] == str(untracked.steps)
    assert "deprecated" not in child.stderr
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert all(torch.equal(weights[name], tensor) for name, tensor in untracked.model.state_dict().items())
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))


def test_rows_arrive_with_steps_and_epochs(fake_wandb):
    results = train()
    assert results.stop_reason == "finished"
    assert fake_wandb.finished
    assert [row["trainer/step"] for row in fake_wandb.rows if "epoch" in row and "val/loss" in row] == [3, 6]
    assert fake_wandb.inits[0]["project"] == "project"
    assert fake_wandb.inits[0]["mode"] is None
    assert fake_wandb.inits[0]["name"] == results.run_name


def test_a_resumed_run_is_the_same_run_with_steps_as_its_axis(fake_wandb, tmp_path):
    first = train(output_dir=str(tmp_path), run_name="mine", epochs=1)
    again = train(output_dir=str(tmp_path), run_name="mine", epochs=2, on_config_change="continue", resume_from="auto")
    assert (first.steps, again.steps) == (3, 6)
    assert [(one["id"], one["resume"]) for one in fake_wandb.inits] == [(fake_wandb.inits[0]["id"], "allow")] * 2
    assert fake_wandb.inits[0]["id"]
    assert fake_wandb.axes == {"trainer/step": None, "*": "trainer/step"}


def test_an_open_run_is_used_and_left_open(fake_wandb):
    fake_wandb.run = SimpleNamespace(log=fake_wandb.rows.append, finish=lambda: pytest.fail("closed the user's run"))
    train()
    assert fake_wandb.rows
    assert not fake_wandb.inits


def test_without_a_key_it_is_offline_and_said(fake_wandb):
    fake_wandb.has_key = False
    results = train()
    assert fake_wandb.inits[0]["mode"] == "offline"
    assert any("offline" in notice for notice in results.notices)


def test_clients_without_a_silent_login_are_asked_for_their_key(fake_wandb):
    fake_wandb.login = lambda: pytest.fail("would ask for a key")
    fake_wandb.api = SimpleNamespace(api_key=None)
    assert any("offline" in notice for notice in train().notices)


def test_off_is_off(fake_wandb):
    train(use_wandb=False)
    assert not fake_wandb.inits
