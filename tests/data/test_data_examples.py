"""Samples of any kind become batches in which only real targets count."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from utils.data.batch import as_batch
from utils.data.padding import labels_of
from utils.data.sources import DatasetSource, IdSource, StreamSource, as_source
from utils.data.text_collator import TextCollator
from utils.errors import DataTypeError


def source(data, **options):
    return as_source(data, argument="train_data", collate=None, **options)


@pytest.mark.parametrize(("ids", "pad", "eos", "expected"), [
    ([5, 6, 0, 0], 0, None, [5, 6, -100, -100]),
    ([5, 0, 6, 0], 0, None, [5, 0, 6, -100]),  # a pad id within the text is a token like any other
    ([5, 6, 0, 0], None, None, [5, 6, 0, 0]),
    ([5, 6, 0, 0], 0, 0, [5, 6, 0, -100]),  # pad is end of text: the first one is the real end
    ([5, 6, 7, 8], 0, 0, [5, 6, 7, 8]),
    ([0, 0, 0, 0], 0, None, [-100] * 4),
])  # fmt: skip
def test_padding_is_told_from_tokens(ids, pad, eos, expected):
    assert labels_of(torch.tensor(ids), None, pad, eos).tolist() == expected
    assert labels_of(torch.tensor([ids]), None, pad, eos).tolist() == [expected]


def test_a_mask_decides_where_there_is_one():
    assert labels_of(torch.tensor([0, 0, 7]), torch.tensor([1, 1, 0]), pad_id=0).tolist() == [0, 0, -100]


def test_short_samples_are_padded_masked_and_not_scored():
    batch = TextCollator(pad_id=9)([torch.tensor([1, 2, 3]), [4, 5], (torch.tensor([6]),)])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 5, 9], [6, 9, 9]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, 5, -100], [6, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]


def test_samples_of_one_length_need_no_mask():
    assert "attention_mask" not in TextCollator()([torch.tensor([1, 2]), torch.tensor([3, 4])])


def test_given_labels_are_kept_as_they_are():
    sample = {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}
    assert TextCollator()([sample])["labels"].tolist() == [[-100, 2, 3]]
    pair = (torch.tensor([1, 2]), torch.tensor([-100, 2]))
    assert TextCollator()([pair])["labels"].tolist() == [[-100, 2]]


@pytest.mark.parametrize(
    "sample", ["text", {"ids": [1]}, torch.tensor([0.5]), torch.ones(2, 2, dtype=torch.long)], ids=str
)
def test_what_is_no_row_of_ids_is_refused(sample):
    with pytest.raises(DataTypeError):
        TextCollator()([sample])


def test_rows_of_equal_length_are_one_tensor_and_never_repacked():
    rows = torch.arange(12).view(3, 4)
    for data in (TensorDataset(rows), list(rows), rows):
        found, batch_size, notices = source(data)
        assert isinstance(found, IdSource)
        assert (batch_size, notices) == (None, [])
        assert found.take([2, 0])["input_ids"].tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]


def test_content_decides_the_digest():
    rows = torch.arange(12).view(3, 4)
    other = rows.clone()
    other[2, 3] = 0
    assert source(TensorDataset(rows))[0].digest() == source(list(rows))[0].digest()
    assert source(TensorDataset(rows))[0].digest() != source(TensorDataset(other))[0].digest()
    dicts = [{"input_ids": row} for row in rows]
    assert source(dicts)[0].digest() != source([{"input_ids": row} for row in other])[0].digest()


def test_a_loader_gives_its_dataset_collator_and_batch_size():
    loader = DataLoader(
        TensorDataset(torch.arange(12).view(3, 4)),
        batch_size=2,
        collate_fn=lambda rows: {"input_ids": rows[0][0][None]},
    )
    found, batch_size, notices = source(loader)
    assert isinstance(found, DatasetSource)
    assert batch_size == 2
    assert found.take([1])["input_ids"].tolist() == [[4, 5, 6, 7]]
    assert "batch_size=2" in notices[0]


def test_a_loader_with_a_sampler_of_its_own_keeps_it():
    rows = TensorDataset(torch.arange(12).view(3, 4))
    loader = DataLoader(rows, batch_size=1, sampler=torch.utils.data.WeightedRandomSampler([0.0, 0.0, 1.0], 4))
    found, _, notices = source(loader)
    assert isinstance(found, StreamSource)
    assert [batch["input_ids"].tolist() for batch in found] == [[[8, 9, 10, 11]]] * 4
    assert "not promised" in notices[0]


def test_batches_of_every_kind_are_dicts_of_tensors():
    ids, labels = torch.ones(2, 3, dtype=torch.long), torch.zeros(2)
    assert set(as_batch(ids)) == {"input_ids"}
    assert set(as_batch([torch.rand(2, 3), labels])) == {"pixel_values", "labels"}
    assert set(as_batch({"input_ids": [[1, 2]]})) == {"input_ids"}
    with pytest.raises(DataTypeError, match="Expected a batch"):
        as_batch("text")
