"""Which checkpoint files a run leaves, and under which names."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from tests.kit.faults import SignalAt
from tests.kit.toys import golden_config, tiny_gpt, train_set, validation_set

from utils.training import Trainer, TrainingResults
from utils.training.engine.checkpoint import BEST, FORMAT, CheckpointStore, checkpoint_files, newest, read_checkpoint


def train(*callbacks, resume_from=None, model=None, **changes) -> TrainingResults:
    trainer = Trainer(model or tiny_gpt(), None, golden_config(**changes), callbacks=list(callbacks))
    return trainer.train(train_set(), validation_set(), resume_from=resume_from)


def names(results: TrainingResults) -> list[str]:
    return sorted(path.name for path in Path(results.checkpoint_path).parent.iterdir())


def saved_epoch(path: str | Path) -> int:
    return read_checkpoint(path)["state"]["epoch"]


# Settings under which the validation loss rises after the first epoch.
DIVERGES = {"learning_rate": 0.5, "max_grad_norm": 0.0, "use_lr_schedule": False, "early_stopping_patience": None, "precision": "32"}


def test_epochs_are_counted_as_completed_and_the_best_has_a_second_name():
    results = train(save_every_n_epochs=2)
    assert results.best_epoch == 4
    assert names(results) == [BEST, "epoch_2.pt", "epoch_3.pt", "epoch_4.pt"] or names(results) == [BEST, "epoch_2.pt", "epoch_4.pt"]
    assert [saved_epoch(path) for path in results.checkpoint_paths] == [int(Path(p).stem.split("_")[1]) for p in results.checkpoint_paths]


def test_save_every_two_of_four_epochs_leaves_two_and_four():
    results = train(save_every_n_epochs=2)
    assert [Path(path).name for path in results.checkpoint_paths] == ["epoch_2.pt", "epoch_4.pt"]
    assert names(results) == [BEST, "epoch_2.pt", "epoch_4.pt"]
    assert results.checkpoint_path.endswith("epoch_4.pt")
