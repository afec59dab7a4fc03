"""The documented examples of the image experiments (`src.training`): experiments in folders, checkpoints, metrics.

The command lines (`--resume`, `--fork`, `--patience`, `--reapply-transforms`) are tested in tests/cli/test_image_training.py.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn, optim

import utils.compat
from tests.kit.image_files import mnist_files

RESULTS = {
    "epochs_trained": int, "best_accuracy": float, "training_time": float, "history": dict, "experiment_dir": str,
    "stopped_early": bool, "best_epoch": int,
}  # fmt: skip


@pytest.fixture(scope="module")
def src():
    """The packages by their own names."""
    utils.compat.install("src")
    import src.datasets
    import src.models
    import src.training
    import src.training.metrics
    import src.utils

    return src


@pytest.fixture
def parts(src, monkeypatch):
    """What the examples prepare: data, model, folder, manager, optimizer. Curves are drawn elsewhere."""
    monkeypatch.setattr("utils.views.curves.save_figure", lambda figure, path: path)
    mnist_files(Path("data"), train=60, test=20)
    device = src.utils.get_device()
    dataset = src.datasets.DatasetRegistry.create("mnist")
    train_loader, val_loader = dataset.get_dataloaders(batch_size=20, num_workers=0)
    model = src.models.ModelRegistry.create("mynet", num_classes=10).to(device)
    experiment_manager = src.training.ExperimentManager(base_dir="runs")
    return SimpleNamespace(
        device=device, train_loader=train_loader, val_loader=val_loader, model=model, experiment_manager=experiment_manager,
        checkpoint_manager=src.training.CheckpointManager(
            checkpoints_dir=experiment_manager.checkpoints_dir, save_frequency=1
        ),
        criterion=nn.CrossEntropyLoss(), optimizer=optim.AdamW(model.parameters(), lr=1e-3),
    )  # fmt: skip


def test_an_experiment_is_trained_and_kept_in_its_folder(src, parts):
    trainer = src.training.Trainer(
        model=parts.model,
        train_loader=parts.train_loader,
        val_loader=parts.val_loader,
        criterion=parts.criterion,
        optimizer=parts.optimizer,
        device=parts.device,
        experiment_manager=parts.experiment_manager,
        checkpoint_manager=parts.checkpoint_manager,
        patience=5,
    )
    results = trainer.train(epochs=2, start_epoch=0)
    assert {name: type(results[name]) for name in RESULTS} == RESULTS
    assert results["epochs_trained"] == 2
    assert results["best_accuracy"] == max(results["history"]["val_accuracy"]) == trainer.best_accuracy
    checkpoints = Path(results["experiment_dir"], "checkpoints")
    for name in ("latest_checkpoint.pt", "best_model.pt", "epoch_1.pt", "epoch_2.pt"):
        assert (checkpoints / name).is_file(), name
    assert Path(parts.experiment_manager.log_file).is_file()
    metrics, speed = trainer.validate()
    assert metrics["loss"] == pytest.approx(results["history"]["val_loss"][-1], rel=1e-4)
    assert speed > 0


def test_checkpoints_are_saved_and_loaded_by_hand(src, parts):
    manager = parts.checkpoint_manager
    manager.save_checkpoint(
        model=parts.model,
        optimizer=parts.optimizer,
        epoch=10,
        loss=0.5,
        accuracy=85.0,
        filepath="checkpoints/epoch_10.pt",
    )
    other = src.models.ModelRegistry.create("mynet", num_classes=10)
    info = manager.load_checkpoint(
        "checkpoints/epoch_10.pt", other, optim.AdamW(other.parameters(), lr=1e-3), strict=False
    )
    assert info["fully_restored"] is True
    assert info["loaded_layers"] == info["total_layers"] == len(parts.model.state_dict())
    assert (info["epoch"], info["loss"], info["accuracy"]) == (10, 0.5, 85.0)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), parts.model.parameters(), strict=True))
    content = torch.load("checkpoints/epoch_10.pt", weights_only=True)
    names = {"epoch", "model_state_dict", "optimizer_state_dict", "loss", "accuracy", "model_config"}
    assert names <= set(content)


def test_only_a_better_model_is_saved_as_the_best(parts):
    manager, folder = parts.checkpoint_manager, Path(parts.experiment_manager.checkpoints_dir)
    assert manager.save_best_model(parts.model, parts.optimizer, 1, 0.5, 85.0) is True
    assert manager.save_best_model(parts.model, parts.optimizer, 2, 0.6, 80.0) is False
    manager.save_latest_checkpoint(parts.model, parts.optimizer, 2, 0.6, 80.0)
    manager.save_epoch_checkpoint(parts.model, parts.optimizer, 2, 0.6, 80.0)
    assert torch.load(folder / "best_model.pt", weights_only=True)["epoch"] == 1
    assert torch.load(folder / "latest_checkpoint.pt", weights_only=True)["epoch"] == 2
    assert (folder / "epoch_2.pt").is_file()


def test_experiments_are_numbered_resumed_and_forked(src):
    manager = src.training.ExperimentManager
    Path("runs/exp5/checkpoints").mkdir(parents=True)
    new = manager(base_dir="runs")
    resumed = manager(base_dir="runs", resume_exp="exp5")
    forked = manager(base_dir="runs", fork_exp="exp5")
    assert [Path(made.experiment_dir).name for made in (new, resumed, forked)] == ["exp6", "exp5", "exp7"]
    assert Path(forked.checkpoints_dir).is_dir()
    for made in (new.log_file, new.plot_file, new.config_file):
        assert Path(made).parent == Path(new.experiment_dir)


def test_a_tracker_counts_until_it_is_reset(src):
    tracker = src.training.metrics.MetricsTracker()
    labels = torch.arange(8) % 4
    outputs = nn.functional.one_hot(labels, 4).float()
    outputs[0] = outputs[1]
    tracker.update(0.5, outputs, labels)
    assert tracker.get_metrics() == {"loss": 0.5, "accuracy": 87.5, "total_samples": 8}
    tracker.reset()
    assert tracker.get_metrics()["total_samples"] == 0


def test_settings_may_be_a_mapping_and_are_read_by_section(src):
    import src.config
    import src.training.trainer
    import src.utils.device

    assert src.config.get_default_config()["dataset"]["name"] == "mnist"
    config = src.config.Config({"training": {"epochs": 3}, "model": {"name": "lenet"}, "batch_size": 8})
    assert (config.training["epochs"], config["model"]["name"], config["training"]["batch_size"]) == (3, "lenet", 8)
    with pytest.raises(KeyError):
        config["trainings"]
    with pytest.raises(ValueError, match="epoch"):
        src.config.Config({"training": {"epoch": 3}})
    assert src.training.trainer.Trainer is src.training.Trainer
    assert src.utils.device.get_device is src.utils.get_device
