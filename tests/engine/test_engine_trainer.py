"""The Trainer as its users meet it: data of every kind, callbacks and hooks, results, refusals."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from tests.kit.toys import (
    VOCAB_SIZE,
    golden_config,
    plain_lm,
    same_weights,
    tiny_gpt,
    token_rows,
    train_set,
    validation_set,
)
from utils.errors import CallbackError, ConfigError, DataError, DataTypeError, ModelError
from utils.training import Callback, TaskSpec, Trainer, TrainingConfig, TrainingHooks, UniversalDataModule
from utils.training.engine.checkpointing.store import read_checkpoint
from utils.training.engine.trainer import TrainingHooks as HooksFromTrainer


def train(data, val=None, model=None, **changes):
    changes = {"epochs": 1, **changes}
    return Trainer(model or tiny_gpt(), None, golden_config(**changes)).train(data, val)


class Rows(Dataset):
    def __len__(self):
        return 34

    def __getitem__(self, index):
        return {"input_ids": token_rows()[index]}


def hf_rows():
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"input_ids": token_rows().tolist(), "labels": token_rows().tolist()})


DATA = {
    "tensor dataset": train_set,
    "map-style dataset": Rows,
    "hugging face dataset": hf_rows,
    "list of tensors": lambda: list(token_rows()),
    "list of dicts": lambda: [{"input_ids": row, "labels": row} for row in token_rows()],
    "loader": lambda: DataLoader(train_set(), batch_size=4),
    "shuffled loader": lambda: DataLoader(train_set(), batch_size=4, shuffle=True, generator=torch.Generator()),
    "our own loader": lambda: UniversalDataModule(train_dataset=train_set(), batch_size=4).train_dataloader(),
}


@pytest.mark.parametrize("kind", DATA)
def test_every_kind_of_data_gives_the_same_training(kind):
    reference, model = tiny_gpt(), tiny_gpt()
    train(train_set(), model=reference, run_name="reference")
    results = train(DATA[kind](), model=model)
    assert same_weights(reference, model)
    if "loader" in kind:
        assert any("DataLoader" in notice for notice in results.notices)


def test_texts_need_a_tokenizer_and_get_packed():
    from utils.tokenization import build_character_tokenizer

    texts = ["abcd" * 40, "dcba" * 40]
    with pytest.raises(DataTypeError, match="no tokenizer"):
        train(texts)
    tokenizer = build_character_tokenizer(texts)
    model = tiny_gpt(vocab_size=len(tokenizer))
    results = Trainer(model, None, golden_config(epochs=1), tokenizer=tokenizer).train(texts)
    assert results.state.targets_done == (2 * 161 // 16) * 15  # every document ends with the end-of-text token


class Endless(IterableDataset):
    def __iter__(self):
        return iter(token_rows())


def test_a_stream_is_taken_in_its_own_order_and_said_so():
    loader = DataLoader(Endless(), batch_size=4)
    with pytest.raises(ConfigError, match="max_steps"):
        train(loader)
    results = train(loader, max_steps=2)
    assert results.steps == 2
    assert any("exact resume is not promised" in notice for notice in results.notices)
    assert not any("was planned for" in notice for notice in results.notices)


def test_a_stream_that_ends_before_its_plan_or_can_be_read_once_is_reported():
    results = train(DataLoader(Endless(), batch_size=4), model=plain_lm(), max_steps=50, run_name="short")
    (said,) = [notice for notice in results.notices if "was planned for the 50 of max_steps" in notice]
    assert said.startswith("The run ended after step 3, because train_data has no more in 1 epochs")

    class Once(IterableDataset):
        rows = iter(token_rows())

        def __iter__(self):
            return self.rows

    with pytest.raises(DataError, match="no batch in epoch 2: it can be read only once.*the 1 before are saved"):
        train(DataLoader(Once(), batch_size=4), model=plain_lm(), max_steps=50, epochs=2, run_name="once")


def test_lists_of_numbers_that_default_collate_takes_apart_are_explained():
    class Lists(IterableDataset):
        def __iter__(self):
            return ({"input_ids": row.tolist()} for row in token_rows(4))

    with pytest.raises(DataTypeError, match="default_collate.*with_format"):
        train(DataLoader(Lists(), batch_size=4), max_steps=2)


@pytest.mark.parametrize(
    "data", [None, "text.txt", {"input_ids": [1]}, 5, Endless()], ids=lambda value: type(value).__name__
)
def test_what_is_no_data_is_refused_by_kind(data):
    with pytest.raises(RuntimeError, match="^Expected train_data to be Dataset or DataLoader"):
        train(data)


def test_padding_is_never_scored():
    short = [torch.tensor([5, 6, 7]), torch.tensor([5, 6, 7, 8, 9])]
    assert train(short).state.targets_done == 2 + 4
    padded = TensorDataset(torch.tensor([[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]]))
    spec = TaskSpec.language_modeling(pad_token_id=0)
    results = Trainer(tiny_gpt(), None, golden_config(epochs=1, run_name="padded"), spec).train(padded)
    assert results.state.targets_done == 2 + 4


def test_an_id_that_the_model_does_not_know_is_found_before_the_first_step(tmp_path):
    with pytest.raises(DataError, match=f"token id 99.*0 to {VOCAB_SIZE - 1}"):
        train(TensorDataset(torch.full((4, 8), 99)))
    with pytest.raises(ModelError, match=rf"{VOCAB_SIZE + 1} tokens.*{VOCAB_SIZE} embeddings"):
        Trainer(tiny_gpt(), None, golden_config(), TaskSpec.language_modeling(vocab_size=VOCAB_SIZE + 1)).train(
            train_set()
        )
    with pytest.raises(DataError, match="takes at most 16"):
        train(TensorDataset(torch.ones(4, 20, dtype=torch.long)))
    assert not list(tmp_path.iterdir())  # nothing was begun


class WrongShape(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Embedding(VOCAB_SIZE, VOCAB_SIZE)

    def forward(self, x):
        return self.linear(x).mean(1)


def test_logits_of_another_shape_are_named():
    with pytest.raises(ModelError, match=r"returned logits of shape \(4, 32\).*\(B=4, T=16, V\)"):
        train(train_set(), model=WrongShape())


def test_without_validation_nothing_is_split_off_and_it_is_said():
    results = train(train_set())
    assert results.state.targets_done == 34 * 15
    assert any("No validation data: train/loss is monitored" in notice for notice in results.notices)
    assert results.best_value == results.final_loss
    assert math.isnan(results.metrics_summary["val/loss"].iloc[0])


def test_results_hold_every_documented_key():
    results = train(train_set(), validation_set(), epochs=2)
    assert isinstance(results["metrics_summary"], pd.DataFrame)
    assert list(results["metrics_summary"]["epoch"]) == [0, 1]
    assert results["loss_history"] == list(results.metrics_summary["train/loss"])
    assert results["final_loss"] == results.loss_history[-1]
    assert results["final_perplexity"] == pytest.approx(math.exp(results.val_loss_history[-1]))
    assert results["best_epoch"] in (1, 2)
    assert results["training_time"] > 0
    assert results["stopped_early"] is False
    assert all(
        torch.equal(value, results.model.state_dict()[name]) for name, value in results["final_model_state"].items()
    )
    assert set(results) == set(results.KEYS)
    assert "no_such_key" not in results


def test_events_come_in_their_documented_order():
    seen = []

    class Everything(Callback):
        pass

    from utils.training.engine.callbacks import EVENTS

    for event in EVENTS:
        setattr(Everything, event, lambda self, *args, event=event, logs=None: seen.append(event))
    config = golden_config(epochs=1, gradient_accumulation_steps=6)
    Trainer(tiny_gpt(), None, config, callbacks=[Everything()]).train(train_set(), validation_set())
    batch = ["on_batch_begin", "on_backward_end", "on_batch_end"]
    assert seen == [
        "on_train_begin", "on_epoch_begin", *(6 * batch), "on_step_end", *(3 * batch), "on_step_end", "on_evaluate_begin",
        "on_evaluate_end", "on_epoch_end", "on_checkpoint_saved", "on_train_end",
    ]  # fmt: skip


def test_logs_are_numbers_and_fresh_each_time():
    kept = []

    class Keep(Callback):
        def on_batch_begin(self, batch_idx, trainer, logs=None):
            kept.append((batch_idx, logs))

        def on_batch_end(self, batch_idx, trainer, logs=None):
            kept.append((batch_idx, logs))

    Trainer(tiny_gpt(), None, golden_config(epochs=1), callbacks=[Keep()]).train(train_set())
    assert kept[0] == (0, {"batch_size": 4})
    assert kept[1][1]["loss"] == pytest.approx(math.log(VOCAB_SIZE), rel=0.1)
    assert [index for index, _ in kept[::2]] == list(range(9))
    assert kept[-1][1]["batch_size"] == 2


def test_hooks_get_trainer_data_batches_and_logits_and_may_stop():
    seen = {}

    class Hooks(TrainingHooks):
        def on_train_begin(self, trainer, train_dataset, val_dataset):
            seen["data"] = (train_dataset, val_dataset)

        def on_epoch_begin(self, trainer, epoch):
            seen.setdefault("epochs", []).append(epoch)

        def on_batch_end(self, trainer, batch, outputs):
            seen["shapes"] = (tuple(batch["input_ids"].shape), tuple(outputs.shape))
            trainer.request_stop("hook")

    data, validation = train_set(), validation_set()
    results = Trainer(tiny_gpt(), None, golden_config(), hooks=Hooks()).train(data, validation)
    assert HooksFromTrainer is TrainingHooks
    assert seen["data"] == (data, validation)
    assert seen["epochs"] == [0]
    assert seen["shapes"] == ((4, 16), (4, 16, VOCAB_SIZE))
    assert (results.stop_reason, results.steps) == ("hook", 1)


class Raises(Callback):
    def __init__(self, event):
        setattr(self, event, self.fail)

    def fail(self, *args, **kwargs):
        raise KeyError("boom")


STEPS_KEPT = {
    "on_train_begin": None, "on_epoch_begin": None, "on_batch_begin": None, "on_backward_end": None, "on_batch_end": None,
    "on_step_end": 1, "on_evaluate_begin": 3, "on_evaluate_end": 3, "on_epoch_end": 3, "on_checkpoint_saved": 3,
}  # fmt: skip


@pytest.mark.parametrize("event", STEPS_KEPT)
def test_f45_a_raising_callback_stops_the_run_with_its_name_and_a_checkpoint(event):
    with pytest.raises(CallbackError, match=rf"Raises.{event} failed at step \d: KeyError: 'boom'") as caught:
        Trainer(tiny_gpt(), None, golden_config(), callbacks=[Raises(event)]).train(train_set(), validation_set())
    assert isinstance(caught.value.__cause__, KeyError)
    if STEPS_KEPT[event]:
        unbroken = Trainer(tiny_gpt(), None, golden_config(run_name="unbroken")).train(train_set(), validation_set())
        model = tiny_gpt(seed=9)
        results = Trainer(model, None, golden_config()).train(train_set(), validation_set(), resume_from="auto")
        assert results.steps == unbroken.steps
        assert same_weights(model, unbroken.model)


@pytest.mark.parametrize("event", STEPS_KEPT)
def test_an_isolated_callback_is_switched_off_after_its_first_failure(event):
    config = golden_config(isolate_callbacks=True)
    results = Trainer(tiny_gpt(), None, config, callbacks=[Raises(event)]).train(train_set(), validation_set())
    assert results.stop_reason == "finished"
    assert len([notice for notice in results.notices if f"Raises.{event}" in notice]) == 1


def test_on_error_hears_of_a_failure():
    heard = []

    class Listener(Callback):
        def on_error(self, error, trainer, logs=None):
            heard.append(type(error).__name__)

    with pytest.raises(ModelError):
        Trainer(WrongShape(), None, golden_config(), callbacks=[Listener()]).train(train_set())
    assert heard == ["ModelError"]


def test_budgets_and_requests_stop_gracefully():
    assert train(train_set(), epochs=50, max_time_hours=1e-9).stop_reason == "time_limit"
    results = train(train_set(), epochs=50, max_steps=4, run_name="steps")
    assert (results.stop_reason, results.steps, results.epochs_trained) == ("max_steps", 4, 1)
    assert [row.get("complete", True) for row in results.history] == [True, False]
    assert len(results.loss_history) == 2


def test_a_stop_file_stops_the_run_and_is_cleared(monkeypatch):
    class MakeStopFile(Callback):
        def on_step_end(self, step, trainer, logs=None):
            if step == 2:
                (trainer.run_dir / "STOP").touch()
                monkeypatch.setattr("utils.training.engine.loop.time.monotonic", lambda: 1e9 + step)

    trainer = Trainer(tiny_gpt(), None, golden_config(), callbacks=[MakeStopFile()])
    results = trainer.train(train_set())
    assert results.stop_reason == "stop_file"
    assert not (results.run_dir / "STOP").exists()


def test_a_pause_saves_waits_and_goes_on_to_the_same_end():
    unbroken = train(train_set(), validation_set(), epochs=4, run_name="unbroken")
    import threading

    class PauseOnce(Callback):
        def on_step_end(self, step, trainer, logs=None):
            if step == 2:
                trainer.control.pause.set()

        def on_checkpoint_saved(self, path, trainer, logs=None):
            if path.name == "step_2.pt":
                threading.Timer(0.02, trainer.control.pause.clear).start()

    model = tiny_gpt()
    results = Trainer(model, None, golden_config(), callbacks=[PauseOnce()]).train(train_set(), validation_set())
    assert results.stop_reason == "finished"
    assert same_weights(model, unbroken.model)


def test_save_now_saves_and_goes_on():
    saved = []

    class SaveAtTwo(Callback):
        def on_step_end(self, step, trainer, logs=None):
            if step == 2:
                trainer.control.save_now.set()

        def on_checkpoint_saved(self, path, trainer, logs=None):
            saved.append(path.name)

    results = Trainer(tiny_gpt(), None, golden_config(epochs=1), callbacks=[SaveAtTwo()]).train(train_set())
    assert saved == ["step_2.pt", "epoch_1.pt"]
    assert results.stop_reason == "finished"


def test_gradient_checkpointing_gives_the_same_and_is_switched_off_again():
    reference = train(train_set(), validation_set(), run_name="reference", precision="32")
    model = tiny_gpt()
    train(train_set(), validation_set(), model=model, gradient_checkpointing=True, precision="32")
    assert same_weights(model, reference.model)
    assert not model.is_activation_checkpointing
    with pytest.raises(ConfigError, match="gradient_checkpointing"):
        train(train_set(), model=plain_lm(), gradient_checkpointing=True)


def test_deterministic_holds_for_the_training_only():
    seen = []

    class Look(Callback):
        def on_step_end(self, step, trainer, logs=None):
            seen.append(torch.are_deterministic_algorithms_enabled())

    Trainer(tiny_gpt(), None, golden_config(epochs=1, deterministic=True), callbacks=[Look()]).train(train_set())
    assert all(seen)
    assert not torch.are_deterministic_algorithms_enabled()


def test_max_samples_limit_what_is_used():
    results = train(train_set(), validation_set(), max_train_samples=8, max_val_samples=3)
    assert results.state.targets_done == 8 * 15


@pytest.mark.parametrize(
    ("settings", "is_long"), [({"max_steps": 1}, True), ({"eval_every": 1, "max_steps": 2}, True), ({}, False)]
)
def test_validations_far_longer_than_the_training_between_them_are_reported(settings, is_long):
    config = {"batch_size": 1, "gradient_accumulation_steps": 1, "epochs": 1, "max_train_samples": 8}
    config |= {"warmup_steps": 0, **settings}
    results = train(train_set(), TensorDataset(token_rows(60)), plain_lm(), **config)
    said = [notice for notice in results.notices if "goes into validation" in notice]
    expected = "A validation reads 60 samples in 60 batches, and the training between two of them only 1:"
    assert bool(said) == is_long
    assert all(expected in notice and "max_val_samples=10" in notice for notice in said)


def test_a_config_given_in_the_model_configs_place_is_understood():
    trainer = Trainer(plain_lm(), TrainingConfig(epochs=2))
    assert trainer.training_config.epochs == 2
    with pytest.raises(ModelError, match="takes an nn.Module"):
        Trainer("gpt2")


def test_random_augmentation_is_a_function_of_seed_epoch_and_sample():
    class Noisy(Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return torch.randint(0, VOCAB_SIZE, (6,))

    def batches(workers, epoch):
        data = UniversalDataModule(Noisy(), batch_size=4, seed=1, num_workers=workers)
        return torch.cat([batch["input_ids"] for step in data.steps(epoch, 0, 1) for batch in step.micro_batches])

    assert torch.equal(batches(0, 0), batches(1, 0))
    assert not torch.equal(batches(0, 0), batches(0, 1))


class Tally(Callback):
    """Adds `by` at each step."""

    def __init__(self, by):
        self.by, self.count = by, 0

    def on_step_end(self, step, trainer, logs=None):
        self.count += self.by

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class OtherTally(Tally):
    """A class of its own."""


@pytest.mark.parametrize("made", [
    lambda: [Tally(1), Tally(100)], lambda: [Tally(1), OtherTally(10), Tally(100), Tally(1000)], lambda: [OtherTally(5)],
], ids=["two", "two classes", "one"])  # fmt: skip
def test_each_callback_of_a_class_gets_its_own_state_back(made):
    def train(epochs):
        callbacks = made()
        config = golden_config(epochs=epochs, on_config_change="continue")
        Trainer(tiny_gpt(), None, config, callbacks=callbacks).train(train_set(), validation_set(), resume_from="auto")
        return [callback.count // callback.by for callback in callbacks]

    assert set(train(1)) == {3}
    assert set(train(2)) == {6}


def test_the_state_of_the_only_callback_of_a_class_has_the_classs_name():
    """As checkpoints of earlier versions have it."""
    results = Trainer(tiny_gpt(), None, golden_config(epochs=1), callbacks=[Tally(2), Tally(3)]).train(train_set())
    states = read_checkpoint(results.checkpoint_path)["callbacks"]
    assert states == {"Tally": {"count": 6}, "Tally-2": {"count": 9}}
