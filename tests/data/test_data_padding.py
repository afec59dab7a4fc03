"""Padding is never scored: on either side, and where one id is padding and end of text; unknown padding is reported."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from tests.kit.toys import golden_config, plain_lm, tiny_gpt
from utils.compat.functions import test_fine_tuning as fine_tuning
from utils.data import UniversalDataModule
from utils.data.collators import collator_for
from utils.data.padding import evident_padding, labels_of, left_padding_mask, padding_of
from utils.training import TaskSpec, Trainer

N = -100


@pytest.mark.parametrize(
    ("ids", "pad_id", "eos_id", "labels"),
    [
        ([0, 0, 3, 4, 2], 0, 2, [N, N, 3, 4, 2]),
        ([3, 4, 2, 0, 0], 0, 2, [3, 4, 2, N, N]),
        ([0, 3, 0, 4, 0], 0, None, [N, 3, 0, 4, N]),
        ([3, 4, 2, 2, 2], 2, 2, [3, 4, 2, N, N]),
        ([2, 2, 3, 4, 2], 2, 2, [N, N, 3, 4, 2]),
        ([2, 2], 2, 2, [2, N]),
        ([0, 0], 0, 2, [N, N]),
        ([3, 4], None, 2, [3, 4]),
    ],
)
def test_labels_leave_out_padding_at_both_ends(ids, pad_id, eos_id, labels):
    assert labels_of(torch.tensor(ids), None, pad_id, eos_id).tolist() == labels
    assert labels_of(torch.tensor([ids, ids]), None, pad_id, eos_id).tolist() == [labels, labels]


def test_a_text_between_one_id_for_its_ends_and_padding_keeps_both_ends():
    assert padding_of(torch.tensor([2, 2, 3, 4, 2, 2]), 2, 2).tolist() == [True, False, False, False, False, True]
    assert padding_of(torch.tensor([2, 2, 3]), 2, 0).tolist() == [True, True, False]


@pytest.mark.parametrize("rows", [torch.tensor([[0, 0, 3, 4, 2]]), [torch.tensor([0, 0, 3, 4, 2])], [{"input_ids": [0, 0, 3, 4, 2]}]])
def test_left_padding_of_data_of_every_kind_is_not_scored(rows):
    data = UniversalDataModule(rows, task_spec=TaskSpec("causal_lm", pad_token_id=0))
    assert data.train.take([0])["labels"].tolist() == [[N, N, 3, 4, 2]]


def test_a_classifier_is_given_a_mask_for_padding_on_the_left():
    collate = collator_for(TaskSpec("text_classification", pad_token_id=0))
    batch = collate([{"input_ids": [0, 0, 5, 6], "labels": 1}, {"input_ids": [5, 6, 0], "labels": 0}])
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 0, 0]]


# ---- a padding id that is not given ----


def padded(count: int = 24, pad_id: int = 0) -> torch.Tensor:
    rows = torch.full((count, 12), pad_id)
    for n in range(count):
        rows[n, : 5 + n % 4] = 1 + (n + torch.arange(5 + n % 4)) % 30
    return rows


def test_padding_shows_in_rows_that_end_or_begin_alike():
    assert evident_padding(list(padded(pad_id=7))) == 7
    assert evident_padding(list(padded(pad_id=7).flip(1))) == 7
    counting = (torch.arange(40)[:, None] + torch.arange(12)) % 30
    assert evident_padding(list(counting)) is None


def test_unknown_padding_is_reported_and_known_padding_is_not():
    config = golden_config(epochs=1)
    told = Trainer(plain_lm(), None, config.replace(run_name="unknown")).train(TensorDataset(padded())).notices
    assert any("padded with the id 0" in notice for notice in told)
    spec = TaskSpec("causal_lm", pad_token_id=0)
    told = Trainer(plain_lm(), None, config.replace(run_name="known"), spec).train(TensorDataset(padded())).notices
    assert not any("padded with" in notice for notice in told)
    whole = Trainer(plain_lm(), None, config.replace(run_name="full")).train(TensorDataset(padded()[:, :5])).notices
    assert not any("padded with" in notice for notice in whole)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("known_by", ["config", "model"])
def test_the_old_functions_leave_out_padding_that_config_or_model_know(known_by, tmp_path):
    model, config = tiny_gpt(dropout=0.0), None
    if known_by == "model":
        model.config.pad_token_id = 0
    else:
        config = {"pad_token_id": 0}
    settings = {"n_epochs": 1, "learning_rate": 1e-9, "batch_size": 24}
    results = fine_tuning(model, config, list(padded()), output_dir=str(tmp_path), **settings)
    labels = labels_of(padded(), None, 0)
    logits = model(padded()).logits[:, :-1].flatten(0, 1)
    right = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten()).item()
    assert results["final_loss"] == pytest.approx(right, rel=1e-4)
    assert any("at either end of a sample is padding" in notice for notice in results.notices) == (known_by == "model")


@pytest.mark.parametrize("kind", ["tensor", "rows", "dicts"])
def test_padding_on_the_left_is_hidden_from_a_causal_model(kind):
    pad, real = 0, torch.arange(1, 6)
    rows = [torch.cat([torch.full((count,), pad), real]) for count in (3, 3, 3)]
    rows[0] = torch.cat([real, real[:3]])  # without padding
    data = {
        "tensor": lambda: TensorDataset(torch.stack(rows)),
        "rows": lambda: list(rows),
        "dicts": lambda: [{"input_ids": row} for row in rows],
    }[kind]()
    source = UniversalDataModule(data, None, TaskSpec.language_modeling(vocab_size=8, pad_token_id=pad)).train
    assert source.take([1, 0])["attention_mask"].tolist() == [[0] * 3 + [1] * 5, [1] * 8]
    assert "attention_mask" not in source.take([0])


def test_an_end_of_text_that_begins_a_row_is_no_padding():
    ids = torch.tensor([[2, 3, 4], [2, 2, 3]])
    assert left_padding_mask(ids, 2, 2).tolist() == [[1, 1, 1], [0, 1, 1]]
    assert left_padding_mask(ids[:1], 2, 2) is None
