"""Nothing to train on is an error that says what there is; never a run that ends well without having learned anything."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset

from tests.kit.toys import golden_config, tiny_gpt, token_rows, train_set
from utils.data.prepare import prepare_data
from utils.errors import DataError
from utils.training import Trainer


class Nothing(Dataset):
    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError(index)


class DryStream(IterableDataset):
    def __iter__(self):
        return iter(())


def from_file(content: bytes, **changes):
    Path("a.txt").write_bytes(content)
    setup = SimpleNamespace(
        dataset_source="local", dataset_path="a.txt", dataset_name=None, config_name=None, text_column=None, vocab_size=300,
        max_length=16, tokenizer_strategy="character", val_split=0.1, random_seed=0,
    )  # fmt: skip
    setup.__dict__.update(changes)
    return prepare_data(setup)


def train(data, validation=None):
    config = golden_config(epochs=1, max_steps=5, lr_schedule="constant", warmup_steps=0)
    return Trainer(tiny_gpt(), None, config).train(data, validation)


def unlabelled():
    return [{"input_ids": row, "labels": torch.full_like(row, -100)} for row in token_rows(5)]


NO_DATA = {
    "an empty file": (lambda: from_file(b""), "a.txt: is empty (0 bytes)"),
    "one blank line": (lambda: from_file(b"\n"), "holds no text, only 1 blank line"),
    "three blank lines": (lambda: from_file(b"\n \t\n\n"), "holds no text, only 3 blank lines"),
    "one letter": (lambda: from_file(b"a"), "training part has 2 tokens and the validation part has 0 tokens"),
    "one line": (lambda: from_file(b"one line\n"), "What works: max_length=5 (or less), or more text."),
    "two lines": (lambda: from_file(b"one\ntwo\n"), "one block takes max_length=16. What works: max_length=5 (or less)"),
    "three lines": (lambda: from_file(b"one\ntwo\nthree\n"), "9 tokens and the validation part has 7 tokens"),
    "a split that leaves nothing": (lambda: from_file(b"word " * 200, val_split=0.0001), "validation part has 0 tokens, but one block takes max_length=16. What works: val_split=0 (no validation)"),
    "a dataset of no rows": (lambda: train(Nothing()), "train_data holds no samples"),
    "a tensor of no rows": (lambda: train(TensorDataset(token_rows(0))), "train_data holds no samples"),
    "an empty list": (lambda: train([]), "train_data holds no samples"),
    "a loader of no rows": (lambda: train(DataLoader(Nothing(), batch_size=2)), "train_data holds no samples"),
    "validation of no rows": (lambda: train(train_set(), Nothing()), "val_data holds no samples"),
    "rows of no tokens": (lambda: train(TensorDataset(token_rows(5)[:, :0])), "train_data: the samples have no tokens (shape (5, 0))"),
    "rows of one token": (lambda: train(TensorDataset(token_rows(5)[:, :1])), "no target: in 5 samples every label is -100, or there is only one token"),
    "no labels": (lambda: train(unlabelled()), "train_data has no target: in 5 samples every label is -100"),
    "validation without labels": (lambda: train(train_set(), unlabelled()), "every label of val_data is -100"),
    "a dry stream": (lambda: train(DataLoader(DryStream(), batch_size=2)), "train_data gave no batch in a whole epoch"),
    "a dry sampler": (lambda: train(DataLoader(train_set(), batch_size=2, sampler=SubsetRandomSampler([]))), "train_data gave no batch"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_DATA)
def test_f22_nothing_to_train_on_is_an_error_with_counts_and_what_works(case):
    run, says = NO_DATA[case]
    with pytest.raises(DataError) as caught:
        run()
    assert says in str(caught.value)
