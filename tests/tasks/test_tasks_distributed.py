"""Counts of two processes are those of one, though one of them has no sample of an epoch's last step."""

from __future__ import annotations

import pytest
import torch

from tests.kit.task_toys import CLASSES, PlainHead, amount_of, class_of, collate, id_rows, samples_of, seeded
from tests.kit.together import together
from tests.kit.toys import golden_config
from utils.training import Trainer

pytestmark = pytest.mark.slow


def two_amounts(row):
    return torch.stack([amount_of(row), row.float().std() / 8])


LABELS = {"classes": (class_of, CLASSES), "amounts": (two_amounts, 2)}


def trained(kind, **changes):
    """34 samples in steps of 16: the last one of an epoch has 2, all of the first process."""
    label, outputs = LABELS[kind]
    settings = {"epochs": 2, "precision": "32", "early_stopping_patience": None, **changes}
    trainer = Trainer(seeded(lambda: PlainHead(outputs)), None, golden_config(**settings), data_collator=collate)
    results = trainer.train(samples_of(id_rows(34), label), samples_of(id_rows(9, seed=4), label))
    metrics = {name: value for name, value in results.final_metrics.items() if name.startswith(("train/", "val/"))}
    return metrics, results.state.epoch, results.state.targets_done


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", LABELS)
def test_two_processes_count_what_one_does(kind, strategy):
    alone, *where = trained(kind, gradient_accumulation_steps=4, run_name="one")

    def work(rank):
        return trained(kind, gradient_accumulation_steps=2, strategy=strategy, run_name="two")

    for metrics, *there in (ended.value for ended in together(work)):
        assert there == where
        assert metrics == pytest.approx(alone, rel=1e-4)
        assert {"classes": "val/f1_macro", "amounts": "val/r2"}[kind] in metrics
