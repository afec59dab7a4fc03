"""Freezing: exactly what was named stays as it is, all through training and a resume, and what is unknown is said."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.kit.toys import assert_same_run, golden_config, plain_lm, train_set, validation_set
from utils.errors import CheckpointError, ConfigError
from utils.models import ModelRegistry
from utils.training import Callback, Trainer
from utils.training.freezing import freeze_layers, layer_table, unfreeze_layers


class Nested(nn.Module):
    """Two parts whose names begin alike, and numbers with one and with two digits."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
        self.features2 = nn.Sequential(*(nn.Linear(2, 2) for _ in range(11)))
        self.head = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(3))


def frozen(model):
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def ids(model):
    return {layer.name: layer.id for layer in layer_table(model)}


def test_layers_are_numbered_by_depth_in_order():
    rows = layer_table(Nested())
    assert [(row.id, row.name, row.kind, row.parameters) for row in rows[:5]] == [
        ("1-1", "features", "Sequential", 48),
        ("2-1", "features.0", "Conv2d", 40),
        ("2-2", "features.1", "BatchNorm2d", 8),
        ("1-2", "features2", "Sequential", 66),
        ("2-3", "features2.0", "Linear", 6),
    ]
    assert ids(Nested())["head"] == "1-3"


def test_a_shared_module_has_one_number_and_freezes_by_either_name():
    model = Nested()
    model.again = model.head
    assert ids(model)["head"] == "1-3"
    assert "again" not in ids(model)
    report = freeze_layers(model, "again")
    assert (report.modules, report.parameters, report.tensors) == (("head",), 6, 2)
    assert frozen(model) == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("1-1", {"features.0.weight", "features.0.bias", "features.1.weight", "features.1.bias"}),
        ("features", {"features.0.weight", "features.0.bias", "features.1.weight", "features.1.bias"}),
        ("features.0", {"features.0.weight", "features.0.bias"}),
        ("features2.1", {"features2.1.weight", "features2.1.bias"}),
        ("2-4", {"features2.1.weight", "features2.1.bias"}),
        ("2-3:2-4", {f"features2.{n}.{kind}" for n in (0, 1) for kind in ("weight", "bias")}),
        ("2-2:2-2", {"features.1.weight", "features.1.bias"}),
        ("features.0.weight", {"features.0.weight"}),
        (["scale", "1-3"], {"scale", "head.weight", "head.bias"}),
    ],
)
def test_what_is_named_is_frozen_and_nothing_else(layers, expected):
    """ "features" is not "features2", and neither "features2.1" nor its number is "features2.10"."""
    model = Nested()
    report = freeze_layers(model, layers)
    assert frozen(model) == expected
    assert report.tensors == len(expected)
    parameters = dict(model.named_parameters())
    assert report.parameters == sum(parameters[name].numel() for name in expected)
    assert report.trainable == sum(p.numel() for p in model.parameters()) - report.parameters


def test_in_a_plain_sequence_one_is_not_ten():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(11)))
    freeze_layers(model, "1-2")
    assert frozen(model) == {"1.weight", "1.bias"}


def test_what_is_named_twice_counts_once():
    report = freeze_layers(Nested(), ["features", "1-1", "features.0", "2-1:2-2"])
    assert (report.tensors, report.parameters) == (4, 48)
    assert report.modules == ("features", "features.0", "features.1")
    assert "4 tensors with 48 parameters; running statistics of features.1. 75 parameters of the model" in str(report)


def test_every_unknown_layer_is_listed_with_its_nearest_and_nothing_is_frozen():
    model = Nested()
    with pytest.raises(ConfigError) as error:
        freeze_layers(
            model, ["features", "featurs", "1-9", "9-1", "1-1:2-3", "2-4:2-3", "1-1:1-9", "a:b", "body", "", 3]
        )
    assert frozen(model) == set()
    said = {problem.field: problem.message for problem in error.value.problems}
    assert "did you mean 'features'" in said["'featurs'"]
    assert "ids of depth 1 are 1-1 to 1-3" in said["'1-9'"]
    assert "depths are 1 to 2" in said["'9-1'"]
    assert "from depth 1 to depth 2" in said["'1-1:2-3'"]
    assert "write 2-3:2-4" in said["'2-4:2-3'"]
    assert "the model has no 1-9" in said["'1-1:1-9'"]
    assert "a range is of two ids" in said["'a:b'"]
    assert "at its top are features, features2, head" in said["'body'"]
    assert len(said) == 10


def test_unfreezing_gives_everything_back():
    model = Nested()
    freeze_layers(model, ["features", "scale"])
    assert unfreeze_layers(model, "1-1").statistics == ("features.1",)
    assert frozen(model) == {"scale"}
    assert unfreeze_layers(model).trainable == sum(p.numel() for p in model.parameters())
    assert frozen(model) == set()
    model.train()
    before = model.features[1].running_mean.clone()
    model.features(torch.randn(4, 1, 5, 5))
    assert not torch.equal(before, model.features[1].running_mean)


# Running statistics


def step(model, images):
    model.train()
    return model(images)


def test_frozen_batch_norm_neither_moves_nor_looks_at_the_batch():
    torch.manual_seed(0)
    model = ModelRegistry.create("mynet")
    report = freeze_layers(model, "features")
    assert report.statistics == ("features.1", "features.6")
    before = copy.deepcopy(model.features.state_dict())
    images = torch.randn(6, 1, 28, 28)
    model.train()
    together, alone = model.features(images), model.features(images[:1])
    assert torch.allclose(together[:1], alone, atol=1e-5)  # so it normalises by what it holds
    assert all(torch.equal(value, before[name]) for name, value in model.features.state_dict().items())


def test_a_copy_of_the_model_stays_frozen():
    model = copy.deepcopy(_with_frozen_features())
    before = model.features[1].running_mean.clone()
    step(model, torch.randn(4, 1, 28, 28))
    assert torch.equal(before, model.features[1].running_mean)


def test_batch_norm_that_is_not_frozen_moves():
    model = ModelRegistry.create("mynet")
    freeze_layers(model, ["features.0", "features.1.weight"])
    before = model.features[1].running_mean.clone()
    step(model, torch.randn(4, 1, 28, 28))
    assert not torch.equal(before, model.features[1].running_mean)


def _with_frozen_features():
    model = ModelRegistry.create("mynet")
    freeze_layers(model, "features")
    return model


def test_freezing_twice_changes_nothing():
    model = _with_frozen_features()
    freeze_layers(model, "features")
    assert len(model.features[1]._forward_pre_hooks) == 1
    unfreeze_layers(model)
    assert len(model.features[1]._forward_pre_hooks) == 0


def test_a_gradient_that_was_there_is_gone():
    model = Nested()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    freeze_layers(model, "head")
    assert model.head.weight.grad is None
    assert model.scale.grad is not None


# In the engine


def train(model, callbacks=(), **changes):
    trainer = Trainer(model, None, golden_config(**changes), callbacks=callbacks)
    return trainer.train(train_set(), validation_set(), resume_from="auto")


class StopAfter5Steps(Callback):
    def on_step_end(self, step, trainer, logs=None):
        if step == 5:
            trainer.request_stop("test")


def test_the_optimizer_has_only_what_is_trained_and_decay_leaves_the_rest_alone():
    model = plain_lm()
    freeze_layers(model, ["embedding", "mixer"])
    before = copy.deepcopy(model.state_dict())
    trainer = Trainer(model, None, golden_config())
    trainer.train(train_set(), validation_set())
    held = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"norm.weight", "norm.bias", "head.weight", "head.bias"}


def frozen_lm():
    model = plain_lm()
    freeze_layers(model, "embedding")
    return model


def test_a_frozen_run_that_is_resumed_is_the_run_that_was_not_stopped():
    whole = train(frozen_lm(), run_name="whole")
    assert train(frozen_lm(), [StopAfter5Steps()], run_name="parted").state.step == 5
    parted = train(frozen_lm(), run_name="parted")
    assert_same_run(whole, parted)


def test_other_frozen_layers_are_another_run():
    """Before, the optimizer's averages were given to whatever parameters came in their places."""
    train(plain_lm(), max_steps=5)
    with pytest.raises(CheckpointError, match="frozen parameters: not the same"):
        train(frozen_lm())
    results = train(frozen_lm(), on_config_change="continue")
    assert any("optimizer starts afresh: other parameters were trained" in notice for notice in results.notices)
    other = plain_lm()
    freeze_layers(other, "mixer")
    with pytest.raises(CheckpointError, match="frozen parameters"):
        train(other, epochs=5)
    with pytest.raises(CheckpointError, match="frozen parameters"):
        train(plain_lm(), epochs=5)


@pytest.mark.parametrize("layers", [None, 5])
def test_what_is_no_name_is_refused(layers):
    with pytest.raises(ConfigError, match="must be an id"):
        freeze_layers(torch.nn.Linear(2, 2), layers)
