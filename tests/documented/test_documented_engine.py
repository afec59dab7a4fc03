"""The documented examples of the training engine: one configuration, one Trainer, one result."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from utils.training.config_builder import TrainingConfigBuilder as BuilderByItsOwnModule
from utils.training.engine.data import UniversalDataModule
from utils.training.engine.trainer import Trainer
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig, TrainingConfigBuilder


def test_training_with_tracking(given, wandb):
    training_config = TrainingConfig(
        epochs=1, learning_rate=1e-2, batch_size=4, wandb_project="my-project", use_wandb=True, run_name="baseline-v1"
    )
    trainer = Trainer(
        model=given.model, config=given.config, training_config=training_config, task_spec=given.task_spec
    )
    before = {name: value.clone() for name, value in given.model.state_dict().items()}
    results = trainer.train(train_data=given.train_dataset, val_data=given.val_dataset)

    names = {"loss_history", "metrics_summary", "best_epoch", "checkpoint_paths", "final_model_state"}
    assert names <= set(results)
    assert results["loss_history"][-1] == results["final_loss"]
    assert {"epoch", "train/loss", "val/loss", "val/perplexity"} <= set(results["metrics_summary"].columns)
    assert any(not value.equal(before[name]) for name, value in results["final_model_state"].items())
    assert (wandb.runs[0]["project"], wandb.runs[0]["name"]) == ("my-project", "baseline-v1")
    assert any(row["train/loss"] == results["final_loss"] for row in wandb.rows if "train/loss" in row)


def test_a_grid_by_hand_trains_one_run_for_each_setting(given):
    base_config = TrainingConfig(epochs=1, max_steps=2)
    search_space = {"learning_rate": [1e-5, 1e-2], "batch_size": [4, 8]}
    losses = {}
    for learning_rate, batch_size in itertools.product(*search_space.values()):
        trial_config = (
            TrainingConfigBuilder.from_config(base_config)
            .with_training(learning_rate=learning_rate, batch_size=batch_size)
            .build()
        )
        trainer = Trainer(given.model_factory(), given.config, trial_config, given.task_spec)
        losses[learning_rate, batch_size] = trainer.train(given.train_data, given.val_data)["final_loss"]
    assert len(losses) == len(set(losses.values())) == 4
    assert base_config.learning_rate == TrainingConfig().learning_rate


def test_the_shortest_training(given):
    config = TrainingConfig(epochs=3, learning_rate=1e-2, batch_size=4)
    task_spec = TaskSpec.language_modeling(name="gpt-training", vocab_size=32, max_seq_len=16)
    results = Trainer(given.model, given.config, config, task_spec).train(given.train_data, given.val_data)
    assert len(results["loss_history"]) == 3
    assert results["loss_history"][-1] < results["loss_history"][0]
    assert results["best_epoch"] == 1 + results["metrics_summary"]["val/loss"].idxmin()  # as in the files' names


def test_checkpoints_have_the_names_of_their_epochs(given):
    config = TrainingConfig(
        epochs=4, learning_rate=1e-2, batch_size=8, checkpoint_dir="./checkpoints", checkpoint_frequency=2
    )
    results = Trainer(given.model, given.config, config, given.task_spec).train(given.train_data, given.val_data)
    for name in ("epoch_2.pt", "epoch_4.pt"):
        assert Path("checkpoints", name).is_file()
        assert any(Path(path).samefile(Path("checkpoints", name)) for path in results["checkpoint_paths"])


@pytest.mark.slow
def test_everything_at_once_compiles_accumulates_and_exports(given, wandb, without_verification):
    config = TrainingConfig(
        epochs=1,
        learning_rate=1e-2,
        batch_size=4,
        compile_mode="default",
        gradient_accumulation_steps=4,
        export_bundle=True,
        export_formats=["onnx", "torchscript"],
        use_wandb=True,
        wandb_project="my-project",
        checkpoint_dir="./checkpoints",
    )
    results = Trainer(given.model, given.config, config, given.task_spec).train(given.train_data, given.val_data)
    assert results["steps"] == math.ceil(len(given.train_data) / 4 / 4)
    bundle = Path(results["export_dir"])
    for name in (
        "artifacts/model.onnx", "artifacts/model.torchscript.pt", "artifacts/model.pytorch.pt", "inference.py", "README.md",
        "Dockerfile", "configs/task_spec.json", "configs/training_config.json", "configs/torchserve_config.json",
    ):  # fmt: skip
        assert (bundle / name).is_file(), name


def test_the_builder_starts_from_a_preset(given):
    assert TrainingConfigBuilder is BuilderByItsOwnModule
    config = (
        TrainingConfigBuilder.baseline()
        .with_training(epochs=2, learning_rate=1e-2)
        .with_logging(run_name="exp-1")
        .with_checkpointing(checkpoint_dir="./checkpoints", frequency=2)
        .with_optimization(compile_mode=None, gradient_accumulation_steps=4)
        .build()
    )
    results = Trainer(given.model, given.config, config, given.task_spec).train(given.train_data, given.val_data)
    assert (results["run_name"], results["epochs_trained"]) == ("exp-1", 2)
    assert Path("checkpoints/epoch_2.pt").is_file()
    assert TrainingConfigBuilder.fast().build().epochs < TrainingConfigBuilder.quality().build().epochs


def test_loaders_of_a_data_module_are_trained_on_as_the_data_itself(given):
    training_config = TrainingConfig(epochs=1, learning_rate=1e-2, batch_size=4)
    data_module = UniversalDataModule(
        train_dataset=given.train_data,
        val_dataset=given.val_data,
        task_spec=given.task_spec,
        batch_size=training_config.batch_size,
    )
    trainer = Trainer(given.model, given.config, training_config, given.task_spec)
    results = trainer.train(train_data=data_module.train_dataloader(), val_data=data_module.val_dataloader())
    itself = Trainer(given.model_factory(), given.config, training_config, given.task_spec)
    assert results["val_loss_history"] == pytest.approx(
        itself.train(given.train_data, given.val_data)["val_loss_history"], rel=0.2
    )
    assert results["steps"] == len(given.train_data) // 4
