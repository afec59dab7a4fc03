"""Half-precision weights are trained in fp32 and given back in their own format; what cannot be trained is refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tests.kit.toys import (
    assert_same_run,
    golden_config,
    normed_lm,
    recurrent_lm,
    tiny_gpt,
    tiny_llama,
    token_rows,
    train_set,
    validation_set,
)
from utils.errors import CallbackError, ModelError, TrainingInterrupted
from utils.training import Callback, Trainer
from utils.training.engine.checkpointing.store import read_checkpoint
from utils.training.engine.compute.user_supplied import OwnParts

FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}


def formats_of(model):
    return {name: tensor.dtype for name, tensor in model.state_dict().items()}


def run(model, callbacks=(), resume_from=None, own_parts=None, **changes):
    config = golden_config(precision="32", **{"epochs": 2, **changes})
    trainer = Trainer(model, None, config, callbacks=callbacks, own_parts=own_parts)
    return trainer.train(train_set(), validation_set(), resume_from=resume_from)


def about_weights(results):
    return [notice for notice in results.notices if "kept in fp32" in notice]


class At(Callback):
    """Does something after a step, with the trainer."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_step_end(self, step, trainer, logs=None):
        if step == self.step:
            self.action(trainer)


# Every model and every optimizer in both formats.
@pytest.mark.parametrize(("name", "make", "optimizer"), [
    ("bf16", tiny_gpt, "adamw"), ("bf16", tiny_llama, "muon"), ("bf16", recurrent_lm, "adam"), ("bf16", normed_lm, "sgd"),
    ("bf16", tiny_gpt, "adafactor"),
    ("fp16", tiny_gpt, "muon"), ("fp16", tiny_llama, "adamw"), ("fp16", recurrent_lm, "sgd"), ("fp16", normed_lm, "adam"),
])  # fmt: skip
def test_training_is_that_of_the_same_weights_in_fp32(name, make, optimizer):
    half = make().to(FORMATS[name])
    full = copy.deepcopy(half).float()
    before = formats_of(half)
    got = run(half, optimizer=optimizer, run_name="half")
    expected = run(full, optimizer=optimizer, run_name="full")
    assert got.loss_history == expected.loss_history
    assert got.val_loss_history == expected.val_loss_history
    assert formats_of(half) == before
    trained = full.state_dict()
    assert all(torch.equal(tensor, trained[key].to(tensor.dtype)) for key, tensor in half.state_dict().items())
    assert len(about_weights(got)) == 1
    assert name in about_weights(got)[0]
    assert about_weights(expected) == []


@pytest.mark.parametrize("stop", [1, 5])
@pytest.mark.parametrize("name", FORMATS)
def test_a_resumed_run_continues_from_the_fp32_weights(name, stop):
    unbroken = run(tiny_gpt().to(FORMATS[name]), run_name="unbroken")
    run(tiny_gpt().to(FORMATS[name]), [At(stop, lambda trainer: trainer.request_stop("test"))])
    resumed = run(tiny_gpt().to(FORMATS[name]), resume_from="auto")
    assert_same_run(unbroken, resumed)
    mine, theirs = (read_checkpoint(results.checkpoint_path)["model"] for results in (unbroken, resumed))
    assert {tensor.dtype for tensor in mine.values()} == {torch.float32}
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_tied_weights_and_parameters_keep_their_identity():
    model = tiny_gpt().bfloat16()
    before = dict(model.named_parameters())
    run(model)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert model.lm_head.weight is model.transformer.wte.weight


def test_each_tensor_gets_its_own_format_back():
    model = normed_lm().double()
    model.embedding.bfloat16()
    model.norm.half()
    model.head.float()
    before = formats_of(model)
    assert len(set(before.values())) == 4  # and the count of batches
    seen = {}
    results = run(model, [At(1, lambda trainer: seen.update(formats_of(trainer.model)))], optimizer="sgd")
    assert set(seen.values()) == {torch.float32, torch.int64}
    assert formats_of(model) == before
    assert "bf16 and fp16" in about_weights(results)[0]
    assert {name: tensor.dtype for name, tensor in results.final_model_state.items()} == before


@pytest.mark.parametrize("ending", ["error", "interrupt", "second interrupt", "refused"])
def test_the_format_is_given_back_whichever_way_training_ends(ending):
    model = tiny_gpt().bfloat16()
    before = formats_of(model)

    def end(trainer):
        if ending == "error":
            raise ValueError("mine")
        if ending == "second interrupt":
            raise KeyboardInterrupt
        import signal

        signal.raise_signal(signal.SIGINT)

    expected = {
        "error": CallbackError, "interrupt": TrainingInterrupted, "second interrupt": KeyboardInterrupt, "refused": ValueError
    }  # fmt: skip
    changes = {"gradient_checkpointing": True} if ending == "refused" else {}
    if ending == "refused":
        model.supports_gradient_checkpointing = False
    with pytest.raises(expected[ending]):
        run(model, [At(2, end)], **changes)
    assert formats_of(model) == before


def test_frozen_half_precision_weights_under_fp32_adapters_stay_as_they_are():
    model = normed_lm()
    model.embedding.bfloat16().requires_grad_(False)
    model.embedding.register_forward_hook(lambda module, inputs, output: output.float())
    seen = {}
    results = run(model, [At(1, lambda trainer: seen.update(formats_of(trainer.model)))])
    assert seen["embedding.weight"] == torch.bfloat16
    assert about_weights(results) == []


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD], ids=["adamw", "sgd"])
def test_an_optimizer_of_ones_own_follows_the_formats(make):
    """One that has made steps already, and that makes more afterwards."""
    model = normed_lm().bfloat16()
    optimizer = make(model.parameters(), lr=1e-3, **({"momentum": 0.9} if make is torch.optim.SGD else {}))

    def step():
        optimizer.zero_grad()
        model(token_rows(4)).float().sum().backward()
        optimizer.step()

    step()
    before = optimizer.state_dict()["state"]
    formats = {name: entry.dtype for name, entry in before[0].items()}
    run(model, own_parts=OwnParts(optimizer))
    step()
    assert {name: entry.dtype for name, entry in optimizer.state_dict()["state"][0].items()} == formats
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_inputs_in_half_precision_fit_the_fp32_weights():
    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Linear(4, 2)

        def forward(self, pixel_values):
            return self.head(pixel_values.flatten(1))

    rows = [{"pixel_values": torch.ones(1, 2, 2).bfloat16() * i, "labels": i % 2} for i in range(8)]
    results = Trainer(Pixels().bfloat16(), None, golden_config(epochs=1, precision="32"), data_collator=_stacked).train(
        rows
    )
    assert results.steps == 1


def _stacked(rows):
    return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_format_that_cannot_be_trained_is_refused_by_name(dtype, tmp_path):
    model = normed_lm()
    model.head.weight = nn.Parameter(model.head.weight.detach().to(dtype))
    with pytest.raises(
        ModelError, match=rf"head\.weight: got trainable weights in {str(dtype).removeprefix('torch.')}.*freeze"
    ):
        run(model, output_dir=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_weights_that_outgrow_fp16_are_reported():
    model = normed_lm().half()
    with torch.no_grad():
        model.head.bias[0] = 65504.0

    def grow(trainer):
        trainer.model.head.bias.data[0] = 70000.0

    results = run(model, [At(4, grow)])
    assert any("became infinite in the model: head.bias" in notice for notice in results.notices)
    assert read_checkpoint(results.checkpoint_path)["model"]["head.bias"][0].isfinite()


def test_fp16_weights_learn_on_a_cpu():
    """Updated in place, they diverge within an epoch."""
    results = Trainer(normed_lm().half(), None, golden_config(epochs=6)).train(TensorDataset(token_rows(48)))
    assert results.loss_history[-1] < results.loss_history[0] < 5
