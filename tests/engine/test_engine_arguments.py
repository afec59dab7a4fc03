"""What a trainer is given: another kind of object, hooks that could not be called, and samples that cannot become tensors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from tests.kit.toys import VOCAB_SIZE, golden_config, plain_lm, token_rows, train_set
from utils.errors import ConfigError, DataTypeError
from utils.training import Callback, TaskSpec, Trainer, TrainingConfig, TrainingHooks


@pytest.mark.parametrize(("given", "says"), [
    ({"task_spec": SimpleNamespace(task_type="causal_lm")}, "task_spec .*namespace.*expected a TaskSpec"),
    ({"task_spec": "causal_lm"}, "task_spec .*'causal_lm'; expected a TaskSpec"),
    ({"training_config": SimpleNamespace(epochs=1)}, "training_config .*expected a TrainingConfig"),
    ({"training_config": 3}, "training_config .*got 3; expected"),
    ({"config": "gpt2"}, "config .*got 'gpt2'; expected the model's configuration"),
    ({"callbacks": Callback()}, "callbacks .*expected a list of Callback objects"),
    ({"callbacks": [Callback]}, r"got the class Callback; expected an instance: Callback\(\)"),
    ({"hooks": TrainingHooks}, r"got the class TrainingHooks; expected an instance: TrainingHooks\(\)"),
])  # fmt: skip
def test_an_argument_of_another_kind_is_named_at_once(given, says):
    with pytest.raises(ConfigError, match=says):
        Trainer(plain_lm(), **given)


class Settings:
    vocab_size, max_seq_len, pad_token_id = VOCAB_SIZE, 16, 0


@pytest.mark.parametrize("config", [
    None, Settings(), SimpleNamespace(vocab_size=VOCAB_SIZE, max_seq_len=16, pad_token_id=0), {"pad_token_id": 0},
    SimpleNamespace(pad_token_id=None), object(),
])  # fmt: skip
def test_any_object_with_attributes_is_a_models_configuration(config):
    assert Trainer(plain_lm(), config, golden_config(epochs=1)).train(train_set()).final_loss is not None


@pytest.mark.parametrize("config", [{"pad_token_id": 0}, SimpleNamespace(pad_token_id=0)])
def test_the_padding_id_is_read_from_an_object_and_from_a_mapping(config):
    rows = [{"input_ids": torch.tensor([1, 2, 0, 0])}] * 4
    trainer = Trainer(plain_lm(), config, golden_config(epochs=1))
    trainer.train(rows)
    assert trainer.data.train.take([0])["labels"].tolist() == [[1, 2, -100, -100]]


def test_a_configuration_with_a_padding_id_that_is_no_number_is_refused():
    with pytest.raises(ConfigError, match=r"config\.pad_token_id: got '<pad>'; expected a whole number"):
        Trainer(plain_lm(), SimpleNamespace(pad_token_id="<pad>"), golden_config()).train(train_set())


def test_a_task_may_be_a_mapping():
    trainer = Trainer(plain_lm(), None, {"epochs": 1}, {"name": "x", "task_type": "causal_lm"})
    assert trainer.task_spec == TaskSpec("x", task_type="causal_lm")
    assert trainer.training_config == TrainingConfig(epochs=1)


# ---- hooks ----


class NoLogs(Callback):
    def on_step_end(self, step, trainer):
        """Lacks logs."""


class TooMany(Callback):
    def on_train_begin(self, trainer, logs, more):
        """Wants one more."""


class Misspelt(Callback):
    def on_step_ended(self, step, trainer, logs=None):
        """Is called by nobody."""


class OtherFrameworks(Callback):
    def on_train_start(self, trainer, module):
        """Is called by nobody."""


class OtherValidation(Callback):
    def on_validation_end(self, trainer, logs=None):
        """Is called by nobody."""


class HooksNoTrainer(TrainingHooks):
    def on_epoch_begin(self, epoch):
        """Lacks the trainer."""


class HooksMisspelt(TrainingHooks):
    def on_validation_ended(self, trainer, metrics):
        """Is called by nobody."""


class HooksWithoutBase:
    def on_epoch_end(self, trainer, epoch):
        """Lacks the metrics."""


HANDLERS = {
    NoLogs: r"on_step_end .*called with \(step, trainer, logs=\.\.\.\).*unexpected keyword argument 'logs'",
    TooMany: r"on_train_begin .*missing a required argument: 'more'",
    Misspelt: r"on_step_ended .*no such event; did you mean on_step_end\?",
    OtherFrameworks: r"on_train_start .*no such event; did you mean on_train_begin\?; events are on_train_begin, ",
    OtherValidation: r"on_validation_end .*did you mean on_evaluate_end\?",
    HooksNoTrainer: r"on_epoch_begin .*called with \(trainer, epoch\).*too many positional arguments",
    HooksMisspelt: r"on_validation_ended .*no such event; did you mean on_validation_end\?",
    HooksWithoutBase: r"on_epoch_end .*called with \(trainer, epoch, metrics\)",
}


@pytest.mark.parametrize("kind", HANDLERS)
def test_a_handler_that_could_not_be_called_is_refused_when_the_trainer_is_made(kind):
    given = {"callbacks": [kind()]} if issubclass(kind, Callback) else {"hooks": kind()}
    with pytest.raises(ConfigError, match=HANDLERS[kind]) as caught:
        Trainer(plain_lm(), None, golden_config(), **given)
    assert kind.__name__ in str(caught.value)


def test_a_callback_that_is_added_later_is_checked_before_the_first_step():
    trainer = Trainer(plain_lm(), None, golden_config())
    trainer.callbacks.append(NoLogs())
    with pytest.raises(ConfigError, match="NoLogs"):
        trainer.train(train_set())
    assert trainer.state.step == 0


@pytest.mark.parametrize("method", [
    lambda self, *args, **kwargs: None, lambda self, step, trainer, logs: None, lambda self, step, trainer, logs=None, x=1: None,
    lambda self, number, owner, **more: None,
])  # fmt: skip
def test_a_handler_may_have_names_of_its_own(method):
    kind = type("Watch", (Callback,), {"on_step_end": method})
    assert Trainer(plain_lm(), None, golden_config(epochs=1), callbacks=[kind()]).train(train_set()).steps == 3


# ---- samples ----


class Stream(IterableDataset):
    def __iter__(self):
        for row in token_rows(4):
            yield {"input_ids": row, "source": "a line"}


@pytest.mark.parametrize("data", [
    lambda: DataLoader(Stream(), batch_size=2), lambda: [{"input_ids": row, "source": ["a", "b"]} for row in token_rows(4)],
])  # fmt: skip
def test_strings_in_a_batch_are_named(data):
    config = golden_config(epochs=1, use_lr_schedule=False, lr_schedule="constant", warmup_steps=0)
    with pytest.raises(ValueError, match="source|str") as caught:
        Trainer(plain_lm(), None, config).train(data())
    assert type(caught.value).__module__ == "utils.errors"


def test_a_batch_with_a_list_of_strings_says_which_entry_it_is():
    with pytest.raises(DataTypeError, match=r"'source' of a batch is a list of str.*Remove 'source'"):
        Trainer(plain_lm(), None, golden_config(epochs=1, lr_schedule="constant")).train(DataLoader(Stream(), batch_size=2))
