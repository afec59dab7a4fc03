"""Checkpoints that were made to run code when they are opened."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.kit.crash import in_child
from tests.kit.faults import hostile_pickles, swap_pickle
from tests.kit.toys import golden_config, tiny_gpt, train_set
from utils.errors import CheckpointError, CheckpointWriteError
from utils.training import Callback, Trainer, TrainingResults
from utils.training.checkpoint_manager import CheckpointManager
from utils.training.engine.checkpointing.store import newest, read_checkpoint, read_header
from utils.training.experiments import newest_file

TRICKS = sorted(hostile_pickles(Path("canary")))


def finished_run() -> Path:
    """The newest checkpoint of a run."""
    return Path(Trainer(tiny_gpt(), None, golden_config(epochs=1)).train(train_set()).checkpoint_path)


@pytest.mark.parametrize("trick", TRICKS)
def test_f29_malicious_pickle_is_refused(trick, tmp_path):
    canary = tmp_path / "canary"
    hostile = hostile_pickles(canary)[trick]
    control = hostile_pickles(tmp_path / "control")[trick]
    in_child(lambda: pickle.loads(control) and None)
    assert (tmp_path / "control").is_dir(), "the payload does nothing: it would show nothing"

    own = finished_run()
    packed = own.with_name("epoch_7.pt")  # a torch file, whole and with valid checksums
    packed.write_bytes(own.read_bytes())
    swap_pickle(packed, hostile)
    bare = own.with_name("epoch_8.pt")
    bare.write_bytes(hostile)

    for path in (packed, bare):
        trainer = Trainer(tiny_gpt(), None, golden_config(run_name="victim"))
        with pytest.raises(CheckpointError) as caught:
            trainer.train(train_set(), resume_from=path)
        message = str(caught.value)
        assert str(path) in message
        assert "could run code: refused" in message
        assert "state_dict with safetensors" in message
    assert newest(own.parent)[0] == own  # passed over, not opened
    assert not canary.exists()


def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "epoch_1.pt"
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(CheckpointError, match="epoch_1.pt"):
        read_checkpoint(path)


class Watch(Callback):
    """Keeps the best loss; a plain number at first, and later what a numerical library makes of it."""

    best: object = None

    def state_dict(self):
        return {"best": self.best, "history": [(1, self.best)]}

    def load_state_dict(self, state):
        self.best = state["best"]

    def on_epoch_end(self, epoch, trainer, logs=None):
        if epoch == 1:
            self.best = np.float64(logs["train/loss"])


def test_a_state_that_could_not_be_loaded_again_is_not_saved():
    """Or every checkpoint from then on would be refused, and rotation would remove those from before."""
    trainer = Trainer(tiny_gpt(), None, golden_config(), callbacks=[Watch()])
    with pytest.raises(CheckpointWriteError) as caught:
        trainer.train(train_set())
    assert "callbacks.Watch.best is a numpy.float64" in str(caught.value)
    assert "callbacks.Watch.history.0.1 is a numpy.float64" in str(caught.value)
    assert newest(Path("runs/golden/checkpoints"))[1]["state"]["epoch"] == 1


# ---- a torch whose safe loading had holes ----


@pytest.fixture
def run_of_another_process(monkeypatch) -> Path:
    """A run's newest checkpoint that this process did not write, seen by a torch older than 2.10."""
    ended = in_child(lambda: str(finished_run().absolute()))
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    return Path(ended.value)


WAYS = {
    "auto": lambda path: resumed("auto"),
    "latest": lambda path: resumed("latest"),
    "best": lambda path: resumed("best"),
    "file": lambda path: resumed(path),
    "run's folder": lambda path: resumed(path.parents[1], run_name="other"),
    "checkpoints' folder": lambda path: resumed(path.parent, run_name="other"),
    "newest": lambda path: newest(path.parent),
    "read_checkpoint": read_checkpoint,
    "read_header": read_header,
    "CheckpointManager": lambda path: CheckpointManager(path.parent).load_checkpoint(path, tiny_gpt()),
    "experiment": lambda path: newest_file(path.parent),
}


def resumed(resume_from: object, **changes: object) -> TrainingResults:
    trainer = Trainer(tiny_gpt(), None, golden_config(epochs=1, **changes))
    return trainer.train(train_set(), resume_from=resume_from)


@pytest.mark.parametrize("way", sorted(WAYS))
def test_on_an_old_torch_no_file_of_others_is_loaded_in_any_way(way, run_of_another_process, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *arguments, **options: pytest.fail("it was opened"))
    with pytest.raises(CheckpointError, match="needs torch 2.10 or newer.*TRAINBOOK_TRUST_CHECKPOINTS=1"):
        WAYS[way](run_of_another_process)


def test_on_an_old_torch_the_users_word_lets_them_in(run_of_another_process, monkeypatch):
    monkeypatch.setenv("TRAINBOOK_TRUST_CHECKPOINTS", "1")
    assert resumed("auto").steps == 3


def test_on_an_old_torch_a_process_continues_its_own_run(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    path = finished_run()
    results = resumed("auto")
    assert results.checkpoint_path == str(path)
    assert results.final_model_state.keys() == tiny_gpt().state_dict().keys()


# ---- names that a file gives ----


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/b", "..", ".", "", "con", "a\0b", "-2"])
def test_a_run_name_from_a_file_is_checked_as_any_other(name, tmp_path):
    shared = {"checkpoint_dir": "shared", "epochs": 1}
    Trainer(tiny_gpt(), None, golden_config(**shared)).train(train_set())
    path = Path("shared/epoch_1.pt").absolute()
    payload = torch.load(path, weights_only=True)
    payload["run"]["name"] = name
    torch.save(payload, path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match="a run called"):
        Trainer(tiny_gpt(), None, golden_config(run_name=None, **shared)).train(train_set(), resume_from="auto")
    assert sorted(tmp_path.rglob("*")) == before
