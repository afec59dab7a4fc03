"""The documented examples of `adaptiveneuralnetwork`: TrainingLoop beside Trainer, callbacks, AMP, accumulation, schedules.

Order of hooks, equations, checkpoints and the files of the loop are tested line by line in tests/compat/test_compat_adaptive.py.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

import utils.compat

FEATURES, CLASSES = 12, 3


@pytest.fixture(scope="module")
def ann():
    """The package by its own name."""
    utils.compat.install("adaptiveneuralnetwork")
    import adaptiveneuralnetwork.training as training
    from adaptiveneuralnetwork.api.config import AdaptiveConfig
    from adaptiveneuralnetwork.api.model import AdaptiveModel
    from adaptiveneuralnetwork.training.callbacks import Callback

    return SimpleNamespace(
        training=training, AdaptiveConfig=AdaptiveConfig, AdaptiveModel=AdaptiveModel, Callback=Callback
    )


@pytest.fixture
def made(ann):
    """A config, a model, its optimizer and criterion, and loaders of classes that can be told apart."""
    config = ann.AdaptiveConfig(
        input_dim=FEATURES, output_dim=CLASSES, num_nodes=6, hidden_dim=5, num_epochs=2, learning_rate=0.01,
        save_checkpoint=False,
    )  # fmt: skip
    model = ann.AdaptiveModel(config)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % CLASSES
    inputs = torch.randn(64, FEATURES, generator=generator) + 3 * nn.functional.one_hot(labels, FEATURES)
    return SimpleNamespace(
        config=config, model=model, optimizer=optim.Adam(model.parameters(), lr=config.learning_rate),
        criterion=nn.CrossEntropyLoss(),
        train_loader=DataLoader(TensorDataset(inputs[:48], labels[:48]), batch_size=16),
        test_loader=DataLoader(TensorDataset(inputs[48:], labels[48:]), batch_size=16),
    )  # fmt: skip


def test_the_loop_makes_its_own_optimizer_and_criterion(ann, made):
    trainer = ann.training.TrainingLoop(made.model, made.config)
    metrics = trainer.train(made.train_loader, made.test_loader, num_epochs=2)
    assert [row["epoch"] for row in metrics] == [0, 1]
    assert metrics[1]["train_loss"] < metrics[0]["train_loss"]
    assert 0 <= metrics[1]["val_accuracy"] <= 100
    assert 0 <= metrics[1]["active_node_ratio"] <= 1


def test_the_trainer_takes_the_callers_objects_and_logs_by_a_callback(ann, made, capsys):
    trainer = ann.training.Trainer(
        model=made.model,
        optimizer=made.optimizer,
        criterion=made.criterion,
        callbacks=[ann.training.LoggingCallback(log_interval=10)],
        seed=42,
    )
    assert (trainer.model, trainer.optimizer, trainer.criterion) == (made.model, made.optimizer, made.criterion)
    metrics = trainer.fit(train_loader=made.train_loader, num_epochs=2, val_loader=made.test_loader)
    assert len(metrics) == 2
    assert {"train_loss", "train_accuracy", "val_loss", "val_accuracy"} <= set(metrics[0])
    assert trainer.evaluate(made.test_loader)["val_loss"] == pytest.approx(metrics[1]["val_loss"], rel=0.5)
    printed = capsys.readouterr().out
    assert "Epoch 1/2" in printed
    assert f"train_loss {metrics[1]['train_loss']:.4f}" in printed


def test_any_module_is_trained(ann, made):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    trainer = ann.training.Trainer(model, optim.Adam(model.parameters(), lr=0.01), nn.CrossEntropyLoss())
    metrics = trainer.fit(made.train_loader, num_epochs=8, val_loader=made.test_loader)
    assert metrics[-1]["val_accuracy"] > 0.8


def test_several_callbacks_measure_and_print(ann, made, capsys):
    profiling = ann.training.ProfilingCallback(profile_memory=True)
    trainer = ann.training.Trainer(
        made.model, made.optimizer, made.criterion,
        callbacks=[ann.training.LoggingCallback(log_interval=1, verbose=True), profiling],
    )  # fmt: skip
    trainer.fit(made.train_loader, num_epochs=2)
    metrics = profiling.get_metrics()
    assert len(metrics["batch_times"]) == 2 * len(made.train_loader)
    assert len(metrics["epoch_times"]) == 2
    assert sum(metrics["batch_times"]) <= sum(metrics["epoch_times"])
    assert "Batch    2" in capsys.readouterr().out


def test_amp_with_accumulation_and_a_seed(ann, made):
    trainer = ann.training.Trainer(
        made.model, made.optimizer, made.criterion, use_amp=True, gradient_accumulation_steps=4, seed=42
    )
    assert (trainer.use_amp, trainer.gradient_accumulation_steps) == (True, 4)
    trainer.fit(made.train_loader, num_epochs=2)
    steps = {int(state["step"]) for state in made.optimizer.state.values()}
    assert steps == {2}, "three batches are one accumulation window"


def test_the_simple_migration_gives_the_same_weights(ann, made):
    old_model = ann.AdaptiveModel(made.config)
    old = ann.training.TrainingLoop(old_model, made.config).train(made.train_loader, made.test_loader, num_epochs=2)
    optimizer = optim.Adam(made.model.parameters(), lr=made.config.learning_rate)
    trainer = ann.training.Trainer(made.model, optimizer, nn.CrossEntropyLoss(), seed=made.config.seed)
    new = trainer.fit(made.train_loader, num_epochs=2, val_loader=made.test_loader)
    assert [row["train_loss"] for row in new] == [row["train_loss"] for row in old]
    assert [100 * row["val_accuracy"] for row in new] == [row["val_accuracy"] for row in old]


def test_a_callback_of_ones_own_steps_the_schedule(ann, made, capsys):
    class LearningRateSchedulerCallback(ann.Callback):
        def __init__(self, scheduler):
            self.scheduler = scheduler

        def on_epoch_end(self, epoch, trainer, logs=None):
            self.scheduler.step()
            print(f"Learning rate: {self.scheduler.get_last_lr()[0]:.6f}")

    scheduler = optim.lr_scheduler.StepLR(made.optimizer, step_size=2, gamma=0.5)
    trainer = ann.training.Trainer(
        made.model, made.optimizer, made.criterion, callbacks=[LearningRateSchedulerCallback(scheduler)]
    )
    trainer.fit(made.train_loader, num_epochs=3)
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)
    rates = [line.removeprefix("Learning rate: ") for line in capsys.readouterr().out.splitlines()]
    assert rates == ["0.010000", "0.005000", "0.005000"]


def test_a_checkpoint_goes_on_in_another_trainer(ann, made, tmp_path):
    trainer = ann.training.Trainer(made.model, made.optimizer, made.criterion, seed=42)
    trainer.fit(made.train_loader, num_epochs=1)
    trainer.save_checkpoint(tmp_path / "checkpoint.pt", custom_data={"note": "mine"})
    model = ann.AdaptiveModel(made.config)
    other = ann.training.Trainer(model, optim.Adam(model.parameters(), lr=0.01), nn.CrossEntropyLoss(), seed=42)
    content = other.load_checkpoint(tmp_path / "checkpoint.pt")
    assert {"model_state_dict", "optimizer_state_dict", "epoch"} <= set(content)
    assert content["custom_data"] == {"note": "mine"}
    assert torch.equal(model.output_projection.weight, made.model.output_projection.weight)
    assert len(other.fit(made.train_loader, num_epochs=2)) == 2


def test_quick_train_does_everything(ann, made):
    found = ann.training.quick_train(made.config, made.train_loader, made.test_loader, num_epochs=1)
    assert set(found) == {"model", "trainer", "metrics_history", "final_metrics"}
    assert found["final_metrics"]["train_loss"] >= 0
