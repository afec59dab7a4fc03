"""A token id that the model does not have is found with its sample before an embedding is asked for it."""

from __future__ import annotations

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from tests.kit.toys import VOCAB_SIZE, golden_config, plain_lm, tiny_gpt, token_rows, train_set
from utils.data.packing import TokenBlocks
from utils.errors import DataError
from utils.training import Callback, Trainer


def spoilt(value, sample=17, position=3, count=200):
    rows = token_rows(count)
    rows[sample, position] = value
    return rows


class OneByOne(Dataset):
    """Rows that only come one by one."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Stream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def steps_before_the_error(data, validation=None, says="", **changes):
    """Optimizer steps that were done when the error that says this was raised."""
    done = []

    class Count(Callback):
        def on_step_end(self, step, trainer, logs=None):
            done.append(step)

    config = golden_config(epochs=1, lr_schedule="constant", warmup_steps=0, **changes)
    trainer = Trainer(plain_lm(), None, config, callbacks=[Count()])
    with pytest.raises(DataError, match=says):
        trainer.train(data, validation)
    return len(done)


CONTAINERS = {
    "one tensor": TensorDataset, "list": lambda rows: list(rows), "blocks": lambda rows: TokenBlocks(rows.numpy().astype(np.int32)),
    "one by one": OneByOne, "loader": lambda rows: DataLoader(OneByOne(rows), batch_size=4),
}  # fmt: skip


@pytest.mark.parametrize("value", [VOCAB_SIZE, 50_256, -1])
@pytest.mark.parametrize("sample", [0, 199])
@pytest.mark.parametrize("container", CONTAINERS)
def test_f27_an_id_out_of_range_is_named_with_its_sample_before_the_first_step(container, sample, value):
    says = rf"^train_data: sample {sample} has the token id {value:,} at position 3, but .* of 32 has ids 0 to 31"
    assert steps_before_the_error(CONTAINERS[container](spoilt(value, sample)), says=says) == 0
    says = says.replace("train", "val")
    assert steps_before_the_error(train_set(), CONTAINERS[container](spoilt(value, sample)), says=says) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_what_the_sampled_look_missed_is_found_before_the_model_sees_it(workers):
    # 64 of 200 samples are looked at beforehand; 17 is not among them.
    says = "^train_data: sample 17 has the token id 99 at position 3"
    steps_before_the_error(OneByOne(spoilt(99)), says=says, num_workers=workers)
    says = "^val_data: sample 17 has the token id 99 at position 3"
    steps_before_the_error(train_set(), OneByOne(spoilt(99)), says=says, num_workers=workers)


def test_streams_are_looked_at_as_they_come():
    says = "^train_data: sample 17 has the token id 99"
    assert steps_before_the_error(DataLoader(Stream(spoilt(99)), batch_size=4), says=says) == 1
    says = "^val_data: sample 17 has the token id 99"
    steps_before_the_error(train_set(), DataLoader(Stream(spoilt(99)), batch_size=4), says=says)


@pytest.mark.parametrize("label", [-1, 32])
def test_a_label_out_of_range_is_named(label):
    rows = token_rows(8)
    labels = rows.clone()
    labels[5, 2] = label
    labels[6, :] = -100  # is no label, and allowed
    samples = [{"input_ids": ids, "labels": targets} for ids, targets in zip(rows, labels, strict=True)]
    with pytest.raises(
        DataError, match=rf"sample 5 has the label {label} at position 2.*or -100 where nothing is scored"
    ):
        Trainer(tiny_gpt(), None, golden_config()).train(samples)
