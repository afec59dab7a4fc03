"""NaN and infinity: found at once, named, never learned from, never saved."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from tests.kit.toys import (
    assert_same_run,
    golden_config,
    normed_lm,
    plain_lm,
    tiny_gpt,
    token_rows,
    train_set,
    validation_set,
)
from utils.errors import DataError, NonFiniteError
from utils.storage import json_line, read_json_lines
from utils.training import Callback, Trainer
from utils.training.engine import pending_steps
from utils.training.engine import trainer as trainer_module
from utils.training.engine.checkpointing.store import read_checkpoint
from utils.training.engine.compute.optim import leaves_steps_out, make_optimizer
from utils.training.engine.compute.user_supplied import OwnParts
from utils.training.engine.plan import TrainerArguments
from utils.training.engine.planning import plan_data
from utils.training.optimizer_kinds import OPTIMIZERS


class Spoilt(nn.Module):
    """A model whose logits, or whose gradients, are not finite in chosen training passes (counted from 1)."""

    def __init__(self, passes, *, in_gradient=False):
        super().__init__()
        self.inner = plain_lm(dropout=0.0)
        self.passes, self.in_gradient, self.count = set(passes), in_gradient, 0

    def forward(self, tokens):
        logits = self.inner(tokens)
        if not self.training:
            return logits
        self.count += 1
        if self.count not in self.passes:
            return logits
        if self.in_gradient:
            self.inner.norm.bias.register_hook(lambda gradient: gradient * math.inf)
            return logits
        return logits * math.nan


def finite(weights):
    return all(torch.isfinite(tensor).all() for tensor in weights.values())


def run(model, **changes):
    changes = {"gradient_accumulation_steps": 1, "precision": "32", "early_stopping_patience": None, **changes}
    return Trainer(model, None, golden_config(**changes)).train(train_set(), validation_set())


def run_data(model):
    """The training data as the run of this model has them."""
    given = TrainerArguments(model, golden_config())
    return plan_data(given, train_set(), None, None, lambda sentence: None)


def test_f11_nan_loss_stops_with_step_samples_and_a_checkpoint_of_the_last_good_step(tmp_path):
    model = Spoilt({5})
    with pytest.raises(NonFiniteError) as caught:
        run(model)
    message = str(caught.value)
    assert message.startswith("step 5: loss is nan")
    order = run_data(model).order(0)
    assert ", ".join(map(str, order[16:20])) in message
    assert "learning rate" in message
    checkpoint = read_checkpoint("runs/golden/checkpoints/step_4.pt")
    assert checkpoint["state"]["step"] == 4
    assert finite(checkpoint["model"])
    assert finite(model.state_dict())
    assert "step_4.pt" in "".join(caught.value.__notes__)


def test_the_checkpoint_before_a_nan_continues_exactly():
    unbroken = run(Spoilt({99}), run_name="unbroken")
    with pytest.raises(NonFiniteError):
        run(Spoilt({5}))
    healed = Spoilt({99})
    results = Trainer(
        healed, None, golden_config(gradient_accumulation_steps=1, precision="32", early_stopping_patience=None)
    ).train(train_set(), validation_set(), resume_from="auto")
    assert results.loss_history == unbroken.loss_history


def test_f12_infinite_gradient_with_a_finite_loss_names_the_parameter():
    model = Spoilt({3}, in_gradient=True)
    with pytest.raises(NonFiniteError, match=r"step 3: loss is [\d.]+, gradient norm is (inf|nan)") as caught:
        run(model)
    assert "inner.norm.bias" in str(caught.value)
    assert finite(model.state_dict())


def test_f13_skip_leaves_the_parameters_as_they_were_and_is_bounded():
    model = Spoilt({5, 8, 9, 10, 11})
    weights, steps = {}, []

    class Watch(Callback):
        def on_step_end(self, step, trainer, logs=None):
            weights[step] = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
            steps.append((step, trainer.state.skipped_steps))

    config = golden_config(
        gradient_accumulation_steps=1, precision="32", on_nonfinite="skip", early_stopping_patience=None
    )
    with pytest.raises(NonFiniteError, match="skipped"):
        Trainer(model, None, config, callbacks=[Watch()]).train(train_set(), validation_set())
    assert all(torch.equal(weights[5][name], weights[4][name]) for name in weights[4])
    assert any(not torch.equal(weights[6][name], weights[5][name]) for name in weights[5])
    assert dict(steps)[7] == 1


def test_three_skips_in_a_row_are_survived_and_recorded_as_nan():
    results = run(Spoilt({8, 9, 10}), on_nonfinite="skip")
    assert results.stop_reason == "finished"
    assert results.state.skipped_steps == 3
    rows = {row["step"]: row for row in results.step_rows()}
    assert math.isnan(rows[8]["train/loss"])
    assert rows[8]["skipped"]
    assert math.isfinite(rows[11]["train/loss"])
    assert all(math.isfinite(loss) for loss in results.loss_history)


OWN = {
    "own nesterov": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, fused=True),
    "own rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3),
}


@pytest.mark.parametrize("fault", ["skip", "overflow"])
@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, *OWN])
def test_a_first_step_that_is_left_out_leaves_no_trace(optimizer, fault, monkeypatch):
    """Decided by the host, and by the optimizer's kernels as on a GPU: the same run, bit for bit."""
    original = trainer_module.assemble

    def train(by_kernels):
        def assembled(*arguments, **named):
            parts = original(*arguments, **named)
            if fault == "overflow":  # fp16's scaling, which is exact: a power of two
                parts.scaler = torch.amp.GradScaler("cpu")
            if by_kernels and leaves_steps_out(parts.optimizer):
                parts.guard = torch.zeros(3)
            return parts

        monkeypatch.setattr(trainer_module, "assemble", assembled)
        monkeypatch.setattr(pending_steps, "_READ_EVERY", 5 if by_kernels else 1)
        model = Spoilt({1}, in_gradient=fault == "overflow")
        own = OwnParts(OWN[optimizer](model.parameters())) if optimizer in OWN else None
        weights = {}

        class Watch(Callback):
            may_be_late = True

            def on_step_end(self, step, trainer, logs=None):
                weights.setdefault(trainer.state.step, finite(trainer.model.state_dict()))

        config = golden_config(
            gradient_accumulation_steps=1, precision="32", max_grad_norm=0.0, on_nonfinite="skip", epochs=1,
            optimizer="adamw" if own else optimizer, run_name="kernels" if by_kernels else "host",
        )  # fmt: skip
        results = Trainer(model, None, config, callbacks=[Watch()], own_parts=own).train(train_set(), validation_set())
        assert all(weights.values())
        assert results.state.skipped_steps == (fault == "skip")
        return results

    assert_same_run(train(by_kernels=False), train(by_kernels=True))


class SpoiltStatistics(nn.Module):
    """Makes its activations NaN, before a batch norm, in the passes from `first` to `last` (counted from 1)."""

    def __init__(self, first, last):
        super().__init__()
        self.inner, self.count = normed_lm(), 0
        self.inner.embedding.register_forward_hook(self.spoil)
        self.first, self.last = first, last

    def spoil(self, module, inputs, output):
        self.count += self.training
        return output * math.nan if self.training and self.first <= self.count <= self.last else output

    def forward(self, tokens):
        return self.inner(tokens)


@pytest.mark.parametrize("by_kernels", [False, True])
@pytest.mark.parametrize("on_nonfinite", ["skip", "stop"])
def test_running_statistics_are_those_of_the_finite_steps(on_nonfinite, by_kernels, monkeypatch):
    original = trainer_module.assemble

    def assembled(*arguments, **named):
        parts = original(*arguments, **named)
        if by_kernels:
            parts.guard = torch.zeros(3)
        return parts

    monkeypatch.setattr(trainer_module, "assemble", assembled)
    monkeypatch.setattr(pending_steps, "_READ_EVERY", 4)
    changes = {"epochs": 1, "learning_rate": 1e-9, "weight_decay": 0.0, "on_nonfinite": on_nonfinite, "max_steps": 6}
    if on_nonfinite == "skip":
        model = SpoiltStatistics(3, 4)
        run(model, **changes)
    else:
        model = SpoiltStatistics(3, 3)
        with pytest.raises(NonFiniteError) as caught:
            run(model, **changes)
        assert "step_2.pt" in "".join(caught.value.__notes__)
        kept = read_checkpoint("runs/golden/checkpoints/step_2.pt")["model"]
        assert all(torch.equal(kept[name], tensor) for name, tensor in model.state_dict().items() if "norm" in name)
    norm = model.inner.norm
    assert int(norm.num_batches_tracked) == (4 if on_nonfinite == "skip" else 2)
    assert norm.running_mean.isfinite().all()
    assert norm.running_var.isfinite().all()


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_a_skipped_first_step_changes_no_weight(name):
    model = plain_lm()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    optimizer = make_optimizer(model, golden_config(optimizer=name, learning_rate=0.1))
    for skipped in (1.0, 0.0):
        assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
        optimizer.zero_grad()
        model(token_rows(2)).sum().backward()
        optimizer.found_inf = torch.tensor(skipped)
        optimizer.step()
    assert all(float(tensor.abs().max()) < 1e3 for tensor in model.state_dict().values())


def test_steps_are_decided_by_the_host_where_torch_would_fill_the_momentum_late():
    """With dampening, buffers of zeros would change the first step."""
    parameters = list(plain_lm().parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, dampening=0.5, fused=True)
    assert not leaves_steps_out(optimizer)
    sum(parameter.sum() for parameter in parameters).backward()
    optimizer.step()
    assert leaves_steps_out(optimizer)


def unlabelled(rows):
    return [{"input_ids": row, "labels": torch.full_like(row, -100)} for row in rows]


def test_f14_a_step_without_targets_changes_nothing():
    labelled = [{"input_ids": row, "labels": row} for row in token_rows(8)]
    model = tiny_gpt(dropout=0.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = golden_config(gradient_accumulation_steps=1, precision="32", epochs=1)
    trainer = Trainer(model, None, config)
    with pytest.raises(DataError, match="no target: in 8 samples"):  # a whole epoch without any
        trainer.train(unlabelled(token_rows(8)))
    assert trainer.state.empty_steps == 2
    assert all(
        torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()
    )  # no weight decay either
    mixed = Trainer(tiny_gpt(), None, golden_config(epochs=1, run_name="mixed")).train(
        labelled + unlabelled(token_rows(8))
    )
    assert mixed.state.targets_done == 8 * 15


def test_a_validation_without_targets_is_an_error():
    with pytest.raises((DataError, NonFiniteError), match="-100"):
        Trainer(tiny_gpt(), None, golden_config()).train(train_set(), unlabelled(token_rows(4)))


def test_the_history_is_json_names_the_fault_and_reads_back_as_nan():
    results = run(Spoilt({2}), on_nonfinite="skip", epochs=2)

    def refuse(constant):
        pytest.fail(f"{constant} is not JSON")

    lines = (results.run_dir / "history.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    (skipped,) = [row for row in rows if row.get("skipped")]
    assert skipped["train/loss"] is None
    assert skipped["fault"].startswith("loss is nan, gradient norm is ")
    (read_back,) = [row for row in results.step_rows() if row.get("skipped")]
    assert math.isnan(read_back["train/loss"])
    assert "not_finite" not in read_back


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_with_numbers_that_are_not_finite_survive_the_file(value, tmp_path):
    file = tmp_path / "rows.jsonl"
    row = {"event": "evaluate", "val/loss": 1.5, "val/perplexity": value}
    file.write_text(json_line(row) + "\n" + json.dumps(row) + "\n")  # the second as earlier versions wrote it
    for found in read_json_lines(file):
        assert repr(found) == repr(row)
