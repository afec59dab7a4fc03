"""train_live with several devices: the run goes to processes of its own, and view, buttons and results work as with one."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import widgets
from tests.kit.toys import VOCAB_SIZE, golden_config, plain_lm, tiny_gpt, train_set, validation_set
from utils.errors import ConfigError, DataError, MissingPackageError
from utils.storage import write_json
from utils.training import Callback, Trainer
from utils.training.engine.checkpointing.store import read_checkpoint
from utils.ui.run_on_disk import RunFollower

DATA = SimpleNamespace(train=train_set(), validation=validation_set())


def live(trainer, data=DATA, **options):
    return asyncio.run(widgets.train_live(trainer, data, ui="text", **options))


def trainer_of(model, *callbacks, **changes):
    settings = {"early_stopping_patience": None, "precision": "32", "epochs": 6, **changes}
    return Trainer(model, None, golden_config(**settings), callbacks=list(callbacks))


def model_of_a_cell():
    """A model whose class exists in this process only, as one of a notebook's cell does."""

    class CellLM(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(VOCAB_SIZE, 16), nn.Linear(16, VOCAB_SIZE)

        def forward(self, tokens):
            return self.head(self.embedding(tokens))

    torch.manual_seed(0)
    return CellLM()


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, step, trainer, logs=None):
        if step == self.step:
            trainer.request_stop("enough")


@pytest.mark.slow
def test_a_model_of_the_notebook_is_trained_by_two_processes_stopped_and_continued(capsys):
    changes = {"batch_size": 2, "gradient_accumulation_steps": 2}
    model = model_of_a_cell()
    stopped = live(trainer_of(model, StopAt(7), **changes), strategy="ddp", devices=2)
    assert (stopped.stop_reason, stopped.steps, stopped.model is model) == ("enough", 7, True)
    assert len(read_checkpoint(Path(stopped.checkpoint_path))["other_processes"]) == 1
    results = live(trainer_of(model, **changes), strategy="ddp", devices=2)
    assert results.stop_reason == "finished"
    assert len(results.val_loss_history) == 6
    assert "epoch 6/6" in capsys.readouterr().out
    for name, tensor in results.final_model_state.items():
        assert torch.equal(model.state_dict()[name], tensor)
    # What one process learns from steps of the same samples.
    alone = trainer_of(model_of_a_cell(), run_name="alone", batch_size=2, gradient_accumulation_steps=4)
    expected = alone.train(DATA.train, DATA.validation)
    assert results.loss_history == pytest.approx(expected.loss_history, rel=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_is_trained_by_two_processes_and_its_adapters_come_back():
    pytest.importorskip("peft")
    results = live(trainer_of(tiny_gpt(), finetune="lora", epochs=2), strategy="ddp", devices=2)
    stored = read_checkpoint(Path(results.checkpoint_path))["model"]
    assert all("lora_" in name for name in stored)
    weights = results.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in stored.items())
    assert any(tensor.abs().max() > 0 for name, tensor in stored.items() if "lora_B" in name)
    assert results.fine_tuning["unmoved"] == []


@pytest.mark.slow
def test_an_error_of_the_processes_is_the_one_that_a_single_process_raises():
    data = SimpleNamespace(train=torch.utils.data.TensorDataset(torch.full((8, 16), VOCAB_SIZE + 5)), validation=None)
    with pytest.raises(DataError, match=str(VOCAB_SIZE + 5)):
        live(trainer_of(plain_lm()), data, strategy="ddp", devices=2)


class _Holding(torch.utils.data.TensorDataset):
    """Data that hold what no other process can have."""

    def __init__(self):
        super().__init__(*train_set().tensors)
        self.lock = threading.Lock()


def test_what_cannot_be_copied_is_named_before_anything_starts():
    with pytest.raises(ConfigError, match="training data: TypeError: cannot pickle '_thread.lock'") as caught:
        live(trainer_of(plain_lm()), SimpleNamespace(train=_Holding(), validation=None), devices=2)
    assert "model:" not in str(caught.value)
    assert not Path("runs").exists()


def test_without_cloudpickle_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(MissingPackageError, match=r'pip install -e ".\[notebook\]"'):
        live(trainer_of(plain_lm()), devices=2)


def test_one_device_needs_no_other_process():
    trainer = trainer_of(plain_lm(), max_steps=2)
    results = live(trainer, devices=1)
    assert results.steps == 2
    assert trainer.training_config.devices == "auto"  # this call's devices are not the next one's
    assert not any("processes" in notice for notice in results.notices)


def test_a_followed_run_is_paused_once_it_is_saved_after_the_request(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    write_json(tmp_path / "state.json", {"status": "running", "external": True, "step": 3})
    follower = RunFollower(every_s=0)
    assert follower.look(pause=False, stop=False) is None
    follower.tell(str(tmp_path), {"step": 5, "epoch": 1})
    run, _ = follower.look(pause=False, stop=False)
    assert (run.step, run.epoch, run.phase) == (5, 1, "training")
    assert follower.look(pause=True, stop=False)[0].phase == "pausing"
    (tmp_path / "checkpoints" / "step_5.pt").touch()
    assert follower.look(pause=True, stop=False)[0].phase == "paused"
    assert follower.look(pause=False, stop=True)[0].phase == "stopping"
