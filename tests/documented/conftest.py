"""What the documented examples take for granted: a model, its data, and a tracking service that answers."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

from tests.kit.toys import VOCAB_SIZE, plain_lm, token_rows, train_set, validation_set
from utils.training import TaskSpec


@pytest.fixture(scope="module", autouse=True)
def names_are_put_back():
    """Import names of other systems that a module's examples register are gone after it."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("src", "adaptiveneuralnetwork"):
            del sys.modules[name]


@pytest.fixture
def given():
    """The names that the examples about language models use: model, config, data and task."""
    return SimpleNamespace(
        model=plain_lm(),
        model_factory=plain_lm,
        config=SimpleNamespace(vocab_size=VOCAB_SIZE, d_model=32),
        train_data=list(token_rows(16)),
        val_data=list(token_rows(8, seed=2)),
        train_dataset=train_set(),
        val_dataset=validation_set(),
        task_spec=TaskSpec.language_modeling(name="lm", vocab_size=VOCAB_SIZE, max_seq_len=16),
    )


class TrackingService(ModuleType):
    """Stands in for the wandb package: keeps the runs and rows that it is given."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.run, self.runs, self.rows = None, [], []
        self.Settings = lambda **values: values

    def login(self, prompt=True, verify=True):
        return True

    def init(self, **values):
        self.runs.append(values)
        return SimpleNamespace(log=self.rows.append, finish=lambda: None)


@pytest.fixture
def wandb(monkeypatch):
    """The service in wandb's place; nothing is sent anywhere."""
    service = TrackingService()
    monkeypatch.setitem(sys.modules, "wandb", service)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return service


@pytest.fixture
def without_verification(monkeypatch):
    """An exported bundle's own programs have tests of their own; here no process is started for them."""
    monkeypatch.setattr("utils.training.export.bundle.RUNNABLE", ())
