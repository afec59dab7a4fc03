"""Images through the engine: what is trained, stopped and resumed is the same run, augmentation and frozen layers included."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.kit.image_files import mnist_files
from tests.kit.toys import assert_same_run
from utils.data import DatasetRegistry
from utils.models import ModelRegistry
from utils.training import Callback, TaskSpec, Trainer, TrainingConfig, freeze_layers

TEN = TaskSpec.image_classification(num_classes=10)


@pytest.fixture
def mnist(tmp_path):
    mnist_files(tmp_path / "data", train=100)
    return DatasetRegistry.create("mnist")


class StopAfter7Steps(Callback):
    def on_step_end(self, step, trainer, logs=None):
        if step == 7:
            trainer.request_stop("test")


def train(data, name, *, task_spec=TEN, freeze=(), callbacks=(), model="mynet"):
    torch.manual_seed(0)
    made = ModelRegistry.create(model)
    freeze_layers(made, freeze)
    config = TrainingConfig(epochs=3, batch_size=20, learning_rate=3e-3, run_name=name)
    return Trainer(made, None, config, task_spec, callbacks=callbacks).train(*data, resume_from="auto")


@pytest.mark.parametrize("freeze", [(), ("features",)])
def test_a_run_that_is_resumed_in_mid_epoch_is_the_run_that_was_not_stopped(mnist, freeze):
    data = mnist.train_set, mnist.test_set
    whole = train(data, "whole", freeze=freeze)
    assert train(data, "parted", freeze=freeze, callbacks=[StopAfter7Steps()]).state.step == 7
    assert_same_run(whole, train(data, "parted", freeze=freeze))


def test_a_small_model_learns(mnist):
    results = train((mnist.train_set, mnist.test_set), "learns")
    assert results.metrics_summary["val/accuracy"].iloc[-1] > 0.7  # chance is 0.1


def test_loaders_train_the_same_as_the_sets_they_are_of(mnist):
    sets = train((mnist.train_set, mnist.test_set), "sets")
    loaders = train(mnist.get_dataloaders(batch_size=20), "loaders")
    assert sets.loss_history == loaders.loss_history


def test_the_task_is_found_without_being_named(mnist):
    results = train((mnist.train_set, mnist.test_set), "inferred", task_spec=None)
    assert any("a class for each image, 10 of them" in notice for notice in results.notices)


def test_frozen_batch_norms_stand_still_through_training_and_validation(mnist):
    torch.manual_seed(0)
    before = copy.deepcopy(ModelRegistry.create("mynet").features.state_dict())
    model = train((mnist.train_set, mnist.test_set), "frozen", freeze=("features",)).model
    assert all(torch.equal(value, before[name]) for name, value in model.features.state_dict().items())
