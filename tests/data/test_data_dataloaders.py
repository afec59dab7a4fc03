"""What a given DataLoader asks for is done, or a notice says that it is not."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset, get_worker_info

from tests.kit.toys import assert_same_run, golden_config, plain_lm, token_rows
from utils.data import UniversalDataModule
from utils.data.sources import StreamSource
from utils.errors import DataError
from utils.training import Callback, Trainer

ROWS = TensorDataset(token_rows(11))


def epochs(data: UniversalDataModule, count: int = 2, accumulation: int = 1) -> list[list[list[int]]]:
    return [[step.sample_ids for step in data.steps(epoch, 0, accumulation)] for epoch in range(count)]


def loader(**options) -> DataLoader:
    return DataLoader(ROWS, **{"batch_size": 4, **options})


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [4, 4]), (False, [4, 4, 3])])
def test_an_incomplete_last_batch_is_left_out_of_each_epoch_when_asked(drop_last, sizes, shuffle):
    data = UniversalDataModule(loader(drop_last=drop_last, shuffle=shuffle), loader(drop_last=drop_last))
    first, second = epochs(data)
    assert [len(step) for step in first] == [len(step) for step in second] == sizes
    assert first != second
    assert data.num_steps(1) == len(sizes)
    assert data.samples_per_epoch == sum(sizes)
    assert [len(batch["input_ids"]) for batch in data.validation_batches()] == sizes


@pytest.mark.parametrize(
    ("replacement", "num_samples", "distinct"), [(False, 6, 6), (False, 25, 11), (True, 30, None), (False, 11, 11)]
)
def test_an_epoch_has_as_many_samples_as_the_sampler_says(replacement, num_samples, distinct):
    sampler = RandomSampler(ROWS, replacement=replacement, num_samples=num_samples)
    data = UniversalDataModule(loader(sampler=sampler))
    first, second = ([sample for step in steps for sample in step] for steps in epochs(data))
    assert len(first) == len(second) == num_samples
    assert set(first) <= set(range(11))
    assert distinct is None or len(set(first)) == distinct
    assert first != second
    assert epochs(data)[1] == epochs(UniversalDataModule(loader(sampler=sampler)))[1]


def test_a_loader_without_such_settings_keeps_the_order_that_its_rows_have():
    given = {"seed": 7, "batch_size": 4}
    assert epochs(UniversalDataModule(loader(shuffle=True), **given)) == epochs(UniversalDataModule(ROWS, **given))


def test_no_batch_left_is_an_error():
    with pytest.raises(DataError, match=r"train_data: drop_last=True leaves no batch of 16 out of 11"):
        UniversalDataModule(loader(batch_size=16, drop_last=True))


def test_settings_without_a_meaning_in_our_order_are_reported():
    validation = loader(sampler=RandomSampler(ROWS, num_samples=3))
    notices = " ".join(UniversalDataModule(loader(num_workers=1), validation).notices)
    assert "num_workers=1 is not used" in notices
    assert "num_samples is not used" in notices


class Own(RandomSampler):
    def __iter__(self):
        yield from [3, 1, 2]


def test_a_sampler_of_a_class_of_its_own_keeps_its_order():
    data = UniversalDataModule(loader(sampler=Own(ROWS)))
    assert isinstance(data.train, StreamSource)
    assert torch.equal(next(iter(data.train))["input_ids"], ROWS.tensors[0][[3, 1, 2]])


@pytest.mark.parametrize("drawn", [{"drop_last": True}, {"sampler": RandomSampler(ROWS, True, 18)}], ids=["dropped", "drawn"])
def test_a_run_that_was_stopped_in_the_middle_of_such_an_epoch_is_continued_exactly(drawn):
    class Stop(Callback):
        def on_step_end(self, step, trainer, logs=None):
            if step == 3:
                trainer.request_stop("pause")

    def train(name, *callbacks, **how):
        config = golden_config(epochs=3, gradient_accumulation_steps=1, run_name=name)
        return Trainer(plain_lm(), None, config, callbacks=callbacks).train(loader(**drawn), **how)

    unbroken = train("unbroken")
    train("stopped", Stop())
    assert_same_run(unbroken, train("stopped", resume_from="auto"))


# ---- streams ----


class Stream(IterableDataset):
    """12 samples, all of them for each worker."""

    def __iter__(self):
        yield from ({"input_ids": torch.full((4,), n)} for n in range(12))


class Sharded(Stream):
    """12 samples, shared out among the workers."""

    def __iter__(self):
        info = get_worker_info()
        for n, sample in enumerate(super().__iter__()):
            if info is None or n % info.num_workers == info.id:
                yield sample


class Around(IterableDataset):
    def __init__(self, inner):
        self.inner = inner

    def __iter__(self):
        yield from self.inner


def shard(worker_id: int) -> None:
    info = get_worker_info()
    inner = info.dataset
    info.dataset.__class__ = type(
        "Part", (type(inner),), {"__iter__": lambda self: (s for n, s in enumerate(Stream()) if n % 2 == worker_id)}
    )


def hugging_face() -> IterableDataset:
    from datasets import Dataset

    rows = Dataset.from_dict({"input_ids": [[n] * 4 for n in range(12)]})
    return rows.to_iterable_dataset(num_shards=2).with_format("torch")


@pytest.mark.parametrize(
    ("make", "options", "reported"),
    [
        (Stream, {}, True), (Sharded, {}, False), (lambda: Around(Stream()), {}, True), (lambda: Around(Sharded()), {}, False),
        (Stream, {"worker_init_fn": shard}, False), (hugging_face, {}, False), (Stream, {"num_workers": 1}, False),
    ],
    ids=["plain", "sharded", "around plain", "around sharded", "by worker_init_fn", "hugging face", "one worker"],
)  # fmt: skip
def test_a_stream_is_read_once_whatever_the_workers(make, options, reported):
    given = DataLoader(make(), batch_size=4, **{"num_workers": 2, **options})
    data = UniversalDataModule(given)
    read = [int(row[0]) for batch in data.train for row in batch["input_ids"]]
    assert sorted(read) == list(range(12))
    assert any("instead of 2" in notice for notice in data.notices) == reported
    assert given.num_workers == options.get("num_workers", 2)  # the given loader is left as it is
