"""Frozen modules that the user put into evaluation mode stay in it while the rest of the model is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.kit.toys import golden_config, normed_lm, tiny_gpt, train_set, validation_set
from utils.training import Callback, Trainer, freeze_layers
from utils.training.engine.step import switch_to_training


class Modes(Callback):
    """Modes of all modules after each step: a set, by name."""

    def __init__(self):
        self.seen = {}

    def on_step_end(self, step, trainer, logs=None):
        for name, module in trainer.model.named_modules():
            self.seen.setdefault(name, set()).add(module.training)


def run(model):
    modes = Modes()
    config = golden_config(epochs=1, eval_every=1, precision="32")
    return Trainer(model, None, config, callbacks=[modes]).train(train_set(), validation_set()), modes.seen


def about_modes(results):
    return [notice for notice in results.notices if "evaluation mode" in notice]


def batch_norm(kind, **options):
    """A small model around a normalisation of `kind`, over (B, T) ids."""
    model = normed_lm()
    model.norm = kind(16, **options)
    return model


NORMS = {"batch norm": nn.BatchNorm1d, "synchronised batch norm": nn.SyncBatchNorm, "instance norm": nn.InstanceNorm1d}


@pytest.mark.parametrize("kind", NORMS.values(), ids=NORMS)
def test_a_frozen_normalisation_in_evaluation_mode_keeps_its_statistics(kind):
    model = batch_norm(kind, affine=True, track_running_stats=True)
    model.norm.requires_grad_(False).eval()
    before = {name: tensor.clone() for name, tensor in model.norm.state_dict().items()}
    results, modes = run(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.norm.state_dict().items())
    assert modes == {"": {True}, "embedding": {True}, "norm": {False}, "head": {True}}
    assert len(about_modes(results)) == 1
    assert about_modes(results)[0].startswith("norm: stays in evaluation mode")


SWITCHED_BACK = {
    "trainable and in evaluation mode": lambda norm: norm.eval(),
    "frozen and in training mode": lambda norm: norm.requires_grad_(False),
    "half frozen": lambda norm: (norm.eval(), norm.bias.requires_grad_(False)),
}


@pytest.mark.parametrize("prepare", SWITCHED_BACK.values(), ids=SWITCHED_BACK)
def test_any_other_normalisation_is_trained(prepare):
    model = normed_lm()
    prepare(model.norm)
    results, modes = run(model)
    assert modes["norm"] == {True}
    assert model.norm.running_mean.any()
    assert about_modes(results) == []


def test_a_model_in_evaluation_mode_is_trained_with_dropout():
    """As `from_pretrained` returns it."""
    model = tiny_gpt().eval()
    results, modes = run(model)
    assert set().union(*modes.values()) == {True}
    assert about_modes(results) == []
    assert not model.training


def test_a_frozen_block_stays_whole_and_its_neighbours_do_not():
    model = tiny_gpt().eval()
    model.transformer.h[0].requires_grad_(False)
    results, modes = run(model)
    frozen = {name for name in modes if name.startswith("transformer.h.0")}
    assert {name for name, seen in modes.items() if False in seen} == frozen
    assert any(isinstance(model.get_submodule(name), nn.Dropout) for name in frozen)
    assert len(about_modes(results)) == 1


@pytest.mark.parametrize("alone", [True, False])
def test_a_module_without_parameters_stays_only_where_it_alone_was_switched(alone):
    model = batch_norm(nn.BatchNorm1d, affine=False)
    model.norm.eval() if alone else model.eval()
    _, modes = run(model)
    assert modes["norm"] == {not alone}


def test_the_whole_model_frozen_has_every_module_in_evaluation_mode():
    model = normed_lm().requires_grad_(False).eval()
    switch_to_training(model)
    assert not any(module.training for module in model.modules())


def test_modes_are_put_back_as_they_were():
    model = normed_lm().eval()
    model.norm.requires_grad_(False)
    model.head.train()
    run(model)
    assert {name: module.training for name, module in model.named_modules()} == {
        "": False, "embedding": False, "norm": False, "head": True
    }  # fmt: skip


def test_layers_frozen_by_name_stay_too():
    model = normed_lm()
    freeze_layers(model, "norm")
    run(model)
    assert not model.norm.running_mean.any()
