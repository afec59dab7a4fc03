"""Which checkpoint files a run leaves, and under which names."""

from __future__ import annotations

import math
import os
import random
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from tests.kit.slow_disk import save_in_background
from tests.kit.toys import assert_same_run, golden_config, gpt_of_one_layer, token_rows, train_set, validation_set
from utils.training import Callback, Trainer, TrainingResults
from utils.training.engine.checkpointing.store import BEST, FORMAT, CheckpointStore, newest, read_checkpoint


def train(model=None, *callbacks: Callback, resume_from=None, validation=None, **changes) -> TrainingResults:
    trainer = Trainer(model or gpt_of_one_layer(), None, golden_config(**changes), callbacks=list(callbacks))
    return trainer.train(train_set(), validation or validation_set(), resume_from=resume_from)


def train_the_wrong_thing(*callbacks: Callback, **changes) -> TrainingResults:
    """Six epochs, validated on rows that count backwards: the better it learns, the worse it gets."""
    backwards = TensorDataset(token_rows(9, seed=2).flip(1))
    settings = {"epochs": 6, "learning_rate": 0.01, "early_stopping_patience": None, **changes}
    results = train(None, *callbacks, validation=backwards, **settings)
    losses = results.val_loss_history
    assert losses.index(min(losses)) + 1 == results.best_epoch in (1, 2), "the settings no longer show what is tested"
    return results


def folder_of(results: TrainingResults) -> Path:
    return Path(results.checkpoint_path).parent


def names(results: TrainingResults) -> list[str]:
    return sorted(path.name for path in folder_of(results).iterdir())


def saved_epoch(path: str | Path) -> int:
    return read_checkpoint(path)["state"]["epoch"]


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, step, trainer, logs=None):
        if step == self.step:
            trainer.request_stop("test")


def test_saving_every_two_of_four_epochs_leaves_two_and_four():
    results = train(save_every_n_epochs=2)
    assert [Path(path).name for path in results.checkpoint_paths] == ["epoch_2.pt", "epoch_4.pt"]
    assert [saved_epoch(path) for path in results.checkpoint_paths] == [2, 4]
    assert names(results) == [BEST, "epoch_2.pt", "epoch_4.pt"]
    assert results.checkpoint_path.endswith("epoch_4.pt")


def test_the_best_epoch_is_kept_and_has_a_second_name():
    results = train_the_wrong_thing()
    assert names(results) == sorted([BEST, f"epoch_{results.best_epoch}.pt", "epoch_5.pt", "epoch_6.pt"])
    best = Path(results.best_model_path)
    assert best == folder_of(results) / BEST
    assert saved_epoch(best) == results.best_epoch
    assert read_checkpoint(best)["value"] == min(results.val_loss_history)
    assert not best.is_symlink()
    assert best.samefile(folder_of(results) / f"epoch_{results.best_epoch}.pt")


def test_a_best_epoch_between_two_saves_is_saved_too():
    results = train_the_wrong_thing(save_every_n_epochs=3)
    assert names(results) == sorted([BEST, f"epoch_{results.best_epoch}.pt", "epoch_3.pt", "epoch_6.pt"])
    assert saved_epoch(results.best_model_path) == results.best_epoch


def test_a_stop_at_an_epochs_end_is_saved_though_no_save_is_due():
    class StopAfterThree(Callback):
        def on_epoch_end(self, epoch, trainer, logs=None):
            if epoch == 2:
                trainer.request_stop("test")

    results = train_the_wrong_thing(StopAfterThree(), save_every_n_epochs=5)
    assert results.best_epoch != 3
    assert results.checkpoint_path.endswith("epoch_3.pt")


def test_a_stop_within_an_epoch_is_named_by_its_step():
    results = train(None, StopAt(5))
    assert names(results) == [BEST, "epoch_1.pt", "step_5.pt"]
    assert results.checkpoint_path.endswith("step_5.pt")
    continued = train(gpt_of_one_layer(seed=9), resume_from="auto")
    assert names(continued) == [BEST, "epoch_3.pt", "epoch_4.pt"]


def test_an_epochs_end_is_newer_than_a_stop_after_its_last_step(unbroken):
    """Both have done as many steps; file times, which a copy changes, must not decide."""
    train(None, StopAt(12))
    finished = train(gpt_of_one_layer(seed=9), resume_from="auto")
    assert names(finished) == [BEST, "epoch_4.pt", "step_12.pt"]
    for name, age in (("epoch_4.pt", 100), ("step_12.pt", 200)):
        os.utime(folder_of(finished) / name, (age, age))
    assert newest(folder_of(finished))[0].name == "epoch_4.pt"
    again = train(gpt_of_one_layer(seed=8), resume_from="auto")
    assert again.stop_reason == "finished"
    assert again.checkpoint_path.endswith("epoch_4.pt")
    assert_same_run(unbroken, again)


def test_keeping_more():
    results = train_the_wrong_thing(keep_last_n=3, keep_best_k=4)
    order = sorted(range(1, 7), key=lambda epoch: results.val_loss_history[epoch - 1])
    assert names(results) == sorted([BEST, *(f"epoch_{epoch}.pt" for epoch in {4, 5, 6, *order[:4]})])


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(("last", "best"), [(2, 1), (3, 2), (2, 4)])
def test_the_last_and_the_best_are_never_removed(tmp_path, mode, last, best):
    draw = random.Random(last + best)
    store = CheckpointStore(tmp_path, "mine", last, best, mode)
    values: dict[int, float | None] = {}
    for epoch in range(1, 25):
        value = draw.choice([None, math.nan, draw.random(), draw.random(), 0.5])
        values[epoch] = value
        content = {
            "format": FORMAT, "run": {"id": "mine", "name": "mine"}, "state": {"step": 3 * epoch, "epoch": epoch},
            "value": value, "regular": True, "model": {"weight": torch.ones(2)}, "optimizer": {}, "schedule": {}, "rng": {},
            "config": {}, "fingerprint": {}, "environment": {},
        }  # fmt: skip
        store.commit(content, f"epoch_{epoch}.pt")
        sign = 1 if mode == "min" else -1
        valued = [number for number, worth in values.items() if worth is not None and not math.isnan(worth)]
        ranked = sorted(valued, key=lambda number: (sign * values[number], number))
        expected = {*range(max(1, epoch - last + 1), epoch + 1), *ranked[:best]}
        found = {path.name for path in tmp_path.glob("*.pt")} - {BEST}
        assert found == {f"epoch_{number}.pt" for number in expected}
        assert (tmp_path / BEST).exists() == bool(ranked)
        if ranked:
            assert saved_epoch(tmp_path / BEST) == ranked[0]
        if epoch % 5 == 0:  # a restart finds what there is and goes on with it
            store = CheckpointStore(tmp_path, "mine", last, best, mode)
            store.adopt()


def test_files_of_another_run_are_neither_counted_nor_removed(tmp_path):
    content = {
        "format": FORMAT, "run": {"id": "theirs", "name": "theirs"}, "state": {"step": 99, "epoch": 9}, "value": 0.1,
        "regular": True, "model": {}, "optimizer": {}, "schedule": {}, "rng": {}, "config": {}, "fingerprint": {},
        "environment": {},
    }  # fmt: skip
    CheckpointStore(tmp_path, "theirs").commit(content, "epoch_99.pt")
    store = CheckpointStore(tmp_path, "mine")
    store.adopt()
    assert not store.entries
    assert store.would_be_best(5.0)
    for epoch in range(1, 5):
        state = {"step": epoch, "epoch": epoch}
        store.commit(
            content | {"run": {"id": "mine", "name": "mine"}, "state": state, "value": 5.0}, f"epoch_{epoch}.pt"
        )
    assert (tmp_path / "epoch_99.pt").exists()


@pytest.mark.parametrize(("changes", "kept"), [
    ({"checkpoint_frequency": 2}, [2, 4, 6]),
    ({"save_every_n_epochs": 1}, [1, 2, 3, 4, 5, 6]),
    ({"save_every_n_epochs": 2, "keep_last_n": 2}, [4, 6]),
    ({"save_every_n_epochs": 4}, [4, 6]),
    ({"keep_last_n": 3}, [4, 5, 6]),
    ({}, [5, 6]),
], ids=str)  # fmt: skip
def test_checkpoints_of_a_given_frequency_stay_and_others_are_pruned(changes, kept):
    """Every epoch is better than the one before, so the best one is among the last."""
    results = train(gpt_of_one_layer(dropout=0.0), epochs=6, early_stopping_patience=None, **changes)
    assert [saved_epoch(path) for path in results.checkpoint_paths] == kept


def test_of_what_the_clock_saves_the_last_ones_stay_beside_those_of_a_given_frequency():
    results = train(
        gpt_of_one_layer(dropout=0.0), epochs=6, early_stopping_patience=None, save_every_n_epochs=2, save_every_minutes=1e-9
    )  # fmt: skip
    kept = [Path(path).name for path in results.checkpoint_paths]
    assert {"epoch_2.pt", "epoch_4.pt", "epoch_6.pt"} <= set(kept)
    assert len(kept) == 4


# The second value is better than the first by less than min_delta.
@pytest.mark.parametrize("changes", [
    {"min_delta": 100.0}, {"min_delta": 0.05}, {"min_delta": 0.05, "keep_best_k": 3}, {"min_delta": 0.05, "eval_every": 1},
    {"min_delta": 0.05, "monitor": "train/loss"}, {"min_delta": 0.02, "monitor": "val/accuracy", "mode": "max"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("saves", ["waiting", "overlapping"])
def test_best_pt_is_the_best_epoch_with_a_least_improvement(changes, saves, monkeypatch):
    save_in_background(monkeypatch, saves == "overlapping")
    results = train(epochs=5, early_stopping_patience=None, **changes)
    assert read_checkpoint(results.best_model_path)["state"]["step"] == results.state.best.step
    assert len(list(folder_of(results).glob("*_*.pt"))) <= 2 + changes.get("keep_best_k", 1)
    again = train(epochs=5, early_stopping_patience=None, resume_from="auto", **changes)
    assert read_checkpoint(again.best_model_path)["state"]["step"] == results.state.best.step


def test_a_best_pt_that_a_kill_left_behind_is_mended():
    results = train_the_wrong_thing()
    best, other = Path(results.best_model_path), folder_of(results) / "epoch_6.pt"
    step = read_checkpoint(best)["state"]["step"]
    best.unlink()
    os.link(other, best)
    assert read_checkpoint(train_the_wrong_thing(run_name="golden", notes="again").best_model_path)  # another run
    backwards = TensorDataset(token_rows(9, seed=2).flip(1))
    config = golden_config(epochs=6, learning_rate=0.01, early_stopping_patience=None)
    again = Trainer(gpt_of_one_layer(), None, config).train(train_set(), backwards, resume_from="auto")
    assert again.run_dir == results.run_dir
    assert read_checkpoint(again.best_model_path)["state"]["step"] == step
