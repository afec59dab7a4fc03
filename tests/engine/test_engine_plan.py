"""The plan of a run: made of what the trainer was given, before anything is written; each stage usable alone."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, IterableDataset

from tests.kit.toys import VOCAB_SIZE, golden_config, tiny_gpt, token_rows, train_set, validation_set
from utils.errors import ConfigError
from utils.training import TaskSpec, Trainer
from utils.training.engine.callbacks import EarlyStopping
from utils.training.engine.distributed.world import World
from utils.training.engine.facade import RunFacade
from utils.training.engine.plan import TrainerArguments
from utils.training.engine.planning import plan_data, plan_monitor, plan_run, plan_task, planned_steps


def plan(notices, val=None, callbacks=(), **changes):
    given = TrainerArguments(tiny_gpt(), golden_config(**changes))
    return plan_run(given, train_set(), val, callbacks=callbacks, facade=RunFacade(), notice=notices.append)


def test_a_plan_is_complete_and_frozen_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notices = []
    made = plan(notices, validation_set(), epochs=2, early_stopping_patience=None)
    assert made.total_steps == 2 * made.data.num_steps(made.accumulation)
    assert (made.monitor, made.mode, made.patience) == ("val/loss", "min", None)
    assert made.task_spec.task_type == "causal_lm"
    assert any("causal_lm" in sentence or "next token" in sentence for sentence in notices)
    with pytest.raises(FrozenInstanceError):
        made.total_steps = 1
    assert list(Path().iterdir()) == []


def test_without_validation_data_the_training_loss_is_monitored_and_a_notice_says_so():
    notices = []
    assert plan(notices).monitor == "train/loss"
    assert any("No validation data" in sentence for sentence in notices)


@pytest.mark.parametrize(("configured", "given", "expected"), [(None, 3, 3), (2, 3, 2), (4, 3, 3), (None, None, None)])
def test_the_smallest_patience_holds(configured, given, expected):
    callbacks = [] if given is None else [EarlyStopping(patience=given)]
    assert plan([], validation_set(), callbacks, early_stopping_patience=configured).patience == expected


@pytest.mark.parametrize(("changes", "steps"), [({}, None), ({"max_steps": 3}, 3), ({"max_steps": 10_000}, None)])
def test_steps_are_those_of_the_epochs_or_fewer(changes, steps):
    config = golden_config(epochs=2, **changes)
    data = plan_data(TrainerArguments(tiny_gpt(), config), train_set(), None, None, lambda sentence: None)
    of_epochs = 2 * data.num_steps(config.gradient_accumulation_steps)
    assert planned_steps(config, data, config.gradient_accumulation_steps) == (steps or of_epochs)


def test_data_of_unknown_length_have_as_many_steps_as_the_limit_says():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(token_rows())

    given = TrainerArguments(tiny_gpt(), golden_config(max_steps=7))
    data = plan_data(given, DataLoader(Stream(), batch_size=4), None, None, lambda sentence: None)
    assert planned_steps(given.config, data, 1) == 7
    assert planned_steps(golden_config(), data, 1) is None


def test_each_process_gets_its_share_of_a_step():
    class TwoProcesses(World):
        rank, size = 1, 2

    data = plan_data(TrainerArguments(tiny_gpt(), golden_config()), train_set(), None, TwoProcesses(), lambda sentence: None)
    assert data.share == (1, 2)


def test_a_task_that_was_given_is_completed_without_a_notice():
    notices = []
    given = TrainerArguments(tiny_gpt(), golden_config(), task_spec=TaskSpec.language_modeling(vocab_size=VOCAB_SIZE))
    data = plan_data(given, train_set(), None, None, notices.append)
    before = len(notices)
    assert plan_task(given, data, notices.append).vocab_size == VOCAB_SIZE
    assert len(notices) == before


def test_an_unknown_monitor_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = plan([], validation_set())
    with pytest.raises(ConfigError, match="val/acuracy"):
        plan_monitor(made.config.replace(monitor="val/acuracy"), made.data, made.objective, lambda sentence: None)
    assert list(Path().iterdir()) == []


def test_a_facade_is_asked_at_its_places_in_order_and_its_entries_are_in_the_checkpoint():
    asked = []

    class Seen(RunFacade):
        def data_ready(self, data, train_data):
            asked.append("data")

        def store_ready(self, store):
            asked.append("store")

        def before_restore(self, start, parts):
            asked.append("before restore")

        def restored(self, start, state, notices):
            asked.append("restored")

        def resumed(self, state, checkpoint):
            asked.append("resumed")

        def before_loop(self, saver):
            asked.append("loop")

        def checkpoint_entries(self, payload):
            return {"of_the_facade": payload["state"]["step"]}

    from utils.training.engine.checkpointing.store import read_checkpoint

    results = Trainer(tiny_gpt(), None, golden_config(epochs=1), facade=Seen()).train(train_set())
    assert asked == ["data", "before restore", "restored", "store", "loop"]
    assert read_checkpoint(results.checkpoint_path)["of_the_facade"] == results.state.step

    asked.clear()
    Trainer(tiny_gpt(), None, golden_config(epochs=2, on_config_change="continue"), facade=Seen()).train(
        train_set(), resume_from=results.checkpoint_path
    )
    assert asked == ["data", "before restore", "resumed", "restored", "store", "loop"]
