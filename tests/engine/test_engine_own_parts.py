"""The engine trains with an optimizer, scheduler and criterion of the caller's, and resumes them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import default_collate
from transformers import get_cosine_schedule_with_warmup

from tests.kit.pictures import pictures, small_net
from tests.kit.toys import plain_lm, same_weights, token_rows, train_set
from utils.errors import CheckpointError, ConfigError
from utils.training import Callback, TaskSpec, Trainer, TrainingConfig
from utils.training.engine.compute.user_supplied import OwnParts


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, step, trainer, logs=None):
        if step == self.step:
            trainer.request_stop("test")


def trainer(model, make=torch.optim.AdamW, callbacks=(), run_name="own", **changes):
    optimizer = make(model.parameters(), lr=0.01)
    own = OwnParts(optimizer, nn.CrossEntropyLoss(), torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4), "cpu")
    config = TrainingConfig(**{"epochs": 4, "batch_size": 8, "run_name": run_name, "monitor": "val/loss", **changes})
    task = TaskSpec.image_classification(num_classes=4)
    return Trainer(
        model, None, config, task, data_collator=default_collate, own_parts=own, callbacks=callbacks
    )  # fmt: skip


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_an_exact_resume_holds_the_callers_optimizer_and_scheduler(precision):
    whole = trainer(small_net(), precision=precision, run_name="whole").train(pictures(), pictures(12))
    stopped = small_net()
    trainer(stopped, callbacks=[StopAt(12)], precision=precision).train(pictures(), pictures(12))
    resumed = small_net(seed=9)
    results = trainer(resumed, precision=precision).train(pictures(), pictures(12), resume_from="auto")
    assert same_weights(whole.model, resumed)
    rates = [row["train/learning_rate"] for row in results.history]
    assert rates == [row["train/learning_rate"] for row in whole.history]
    assert len(set(rates)) == 4, "the scheduler is stepped once an epoch"


def stepped_with_the_optimizer(model, callbacks=(), run_name="own"):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, 3, 16)
    own = OwnParts(optimizer, scheduler=schedule, scheduler_interval="step")
    config = TrainingConfig(epochs=2, batch_size=4, run_name=run_name)
    return Trainer(model, training_config=config, own_parts=own, callbacks=callbacks)


class Rates(StopAt):
    def __init__(self, step=None):
        super().__init__(step)
        self.rates = []

    def on_step_end(self, step, trainer, logs=None):
        self.rates.append(logs["train/learning_rate"])
        super().on_step_end(step, trainer, logs)


@pytest.mark.parametrize("at", [1, 4, 8, 11])
def test_a_scheduler_of_steps_is_stepped_with_each_and_resumes_exactly(at):
    alone = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.01)
    expected, schedule = [], get_cosine_schedule_with_warmup(alone, 3, 16)
    for _ in range(16):
        expected.append(alone.param_groups[0]["lr"])
        alone.step()
        schedule.step()
    data, seen = token_rows(32), Rates()
    whole = stepped_with_the_optimizer(plain_lm(), [seen], "whole").train(data)
    assert seen.rates == pytest.approx(expected)
    before, after = Rates(at), Rates()
    stepped_with_the_optimizer(plain_lm(), [before]).train(data)
    resumed = plain_lm(seed=9)
    stepped_with_the_optimizer(resumed, [after]).train(data, resume_from="auto")
    assert before.rates + after.rates == seen.rates
    assert same_weights(whole.model, resumed)


def test_a_plateau_scheduler_cannot_follow_steps():
    model = plain_lm()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    own = OwnParts(optimizer, scheduler=plateau, scheduler_interval="step")
    with pytest.raises(ConfigError, match="ReduceLROnPlateau, which needs a metric; set 'epoch'"):
        Trainer(model, own_parts=own).train(train_set())


def test_another_kind_of_optimizer_starts_afresh_and_says_so():
    trainer(small_net(), epochs=1).train(pictures())
    other = trainer(small_net(), make=torch.optim.SGD, epochs=2, on_config_change="continue")
    other.train(pictures(), resume_from="auto")
    assert any("AdamW's averages do not fit" in notice for notice in other.notices)


def test_an_optimizer_alone_trains_the_tasks_objective():
    model = plain_lm()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    config = TrainingConfig(epochs=2, batch_size=8)
    results = Trainer(model, training_config=config, own_parts=OwnParts(optimizer)).train(train_set(), token_rows(4))
    assert results.loss_history[1] < results.loss_history[0]
    assert optimizer.state, "it is the caller's own that was used"


def test_an_unfit_part_is_refused_before_the_first_step():
    model = small_net()
    own = OwnParts(torch.optim.SGD(small_net().parameters(), lr=0.1), nn.CrossEntropyLoss())
    config = TrainingConfig(epochs=1, batch_size=8)
    task = TaskSpec.image_classification(num_classes=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match="not the model's"):
        Trainer(model, None, config, task, data_collator=default_collate, own_parts=own).train(pictures())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_changed_model_is_still_refused():
    trainer(small_net(), epochs=1).train(pictures())
    with pytest.raises(CheckpointError, match="is of another model"):
        trainer(small_net(6), epochs=2, on_config_change="continue").train(pictures(), resume_from="auto")
