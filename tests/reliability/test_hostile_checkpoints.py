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
from utils.training import Callback, Trainer
from utils.training.engine.checkpoint import newest, read_checkpoint

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
