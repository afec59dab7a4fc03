"""The number of loader processes does not change the training; when one fails, the error names it and its sample."""

from __future__ import annotations

import os
import random
import re
import signal
import threading

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset, get_worker_info

from tests.kit.toys import VOCAB_SIZE, assert_same_run, golden_config, plain_lm, tiny_gpt, token_rows
from utils.data.module import UniversalDataModule
from utils.data.text_collator import TextCollator
from utils.data.workers import LoaderProcesses
from utils.errors import DataError
from utils.training import Trainer

BAD = 17


class Rows(Dataset):
    """The golden rows, one by one; in a loader process something happens at sample 17."""

    def __init__(self, happens=lambda: None):
        self.rows, self.happens = token_rows(), happens

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if index == BAD and get_worker_info() is not None:
            self.happens()
        return self.rows[index]


def bad_value():
    raise ValueError("half a row")


FAULTS = {
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), r"was killed \(SIGKILL\) while it read sample 17 of Rows\..*memory"),
    "gone": (lambda: os._exit(3), r"ended with exit code 3 while it read sample 17 of Rows\."),
    "raises": (bad_value, r": sample 17 of Rows cannot be read: ValueError: half a row"),
    "hangs": (signal.pause, r"hangs while it read sample 17 of Rows: no batch came for 3 s\..*longer timeout"),
}  # fmt: skip


def train(dataset, timeout_s=0, **changes):
    loader = DataLoader(dataset, batch_size=4, timeout=timeout_s)
    return Trainer(plain_lm(), None, golden_config(early_stopping_patience=None, epochs=2, **changes)).train(
        loader, resume_from="auto"
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    torch.set_num_threads(1)
    return train(Rows(), output_dir=str(tmp_path_factory.mktemp("unbroken")))


@pytest.mark.parametrize("thread", [False, True], ids=["main thread", "other thread"])
@pytest.mark.parametrize("fault", FAULTS)
def test_f47_a_loader_process_that_fails_is_named_with_its_sample(fault, thread, unbroken):
    happens, says = FAULTS[fault]
    caught = []

    def run():
        with pytest.raises(DataError) as error:
            # A loader of the caller's own says how long a batch may take: 120 seconds are too long to wait for one that hangs.
            train(Rows(happens), timeout_s=3 if fault == "hangs" else 0, num_workers=2)
        caught.append(error.value)

    if thread:  # as in a notebook; no signal tells there that a process has died
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        other = threading.Thread(target=run)
        other.start()
        other.join()
        signal.signal(signal.SIGCHLD, handler)
    else:
        run()
    message = str(caught[0])
    assert re.search(r"^loader process [01] \(pid \d+\)", message)
    assert re.search(says, message), message
    assert_same_run(unbroken, train(Rows(), num_workers=2))


def test_a_batch_may_take_two_minutes_unless_said_otherwise():
    assert UniversalDataModule(Rows()).timeout_s == 120
    assert UniversalDataModule(DataLoader(Rows(), timeout=7)).timeout_s == 7
    assert UniversalDataModule(Rows(), timeout_s=3).timeout_s == 3


def test_a_slow_sample_is_waited_for():
    slow = Rows(lambda: threading.Event().wait(0.15))
    module = UniversalDataModule(slow, batch_size=4, num_workers=1)
    chunks = [np.array([1]), np.array([BAD])]
    # Two looks at the processes fit into the time that the sample takes.
    batches = list(LoaderProcesses(module.train, chunks, 1, timeout_s=120))
    assert [batch["input_ids"].tolist() for batch in batches] == [
        token_rows()[[1]].tolist(),
        token_rows()[[BAD]].tolist(),
    ]


def test_a_death_between_steps_does_not_interrupt_a_step():
    """torch would raise wherever the main thread stands, which can be in the middle of an update."""
    module = UniversalDataModule(Rows(), batch_size=4, num_workers=1)
    steps = module.steps(0, 0, 1)
    before = set(_children())
    next(steps)
    others = threading.Event()
    (pid,) = (int(pid) for pid in _children() if pid not in before)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    others.wait(0.01)  # handlers run here, and nothing is raised
    with pytest.raises(DataError, match=rf"loader process 0 \(pid {pid}\) was killed"):
        list(steps)


def _children():
    with open(f"/proc/self/task/{threading.get_native_id()}/children") as file:
        return file.read().split()


def test_without_processes_the_sample_is_named_too():
    class Broken(Rows):
        def __getitem__(self, index):
            if index == BAD:
                raise KeyError("text")
            return super().__getitem__(index)

    with pytest.raises(DataError, match=r"^sample 17 of Broken cannot be read: KeyError: 'text'") as caught:
        Trainer(tiny_gpt(), None, golden_config()).train(Broken())
    assert isinstance(caught.value.__cause__, KeyError)


def test_samples_that_make_no_batch_are_named():
    class Ragged(Rows):
        def __getitem__(self, index):
            return torch.rand(3 + index % 2)

    module = UniversalDataModule(Ragged(), batch_size=4, data_collator=torch.stack)
    with pytest.raises(
        DataError, match=r"^samples \d+, \d+, \d+, \d+ cannot be made a batch: RuntimeError: stack expects"
    ):
        list(module.steps(0, 0, 1))


class Augmented(Dataset):
    """Draws from each of the three global generators."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        drawn = [random.randrange(VOCAB_SIZE), int(np.random.randint(VOCAB_SIZE)), int(torch.randint(VOCAB_SIZE, ()))]  # noqa: NPY002
        return torch.tensor([index, *drawn])


class AugmentedTensors(TensorDataset):
    """A stock container made random by its subclass."""

    def __getitem__(self, index):
        return super().__getitem__(index)[0] + torch.randint(VOCAB_SIZE, (4,))


def masked(samples):
    """A collate function that draws, as masked language modelling does."""
    batch = TextCollator()(samples)
    batch["labels"] = batch["input_ids"].masked_fill(torch.rand(batch["input_ids"].shape) < 0.5, -100)
    return batch


RANDOM = {
    "dataset": (Augmented, None),
    "subclass of a container": (lambda: AugmentedTensors(torch.zeros(10, 4, dtype=torch.long)), None),
    "collate function": (lambda: list(token_rows(10, 4)), masked),
}


def drawn(kind, workers=0, epoch=0, skip=0, accumulation=2):
    make, collate = RANDOM[kind]
    module = UniversalDataModule(make(), batch_size=2, seed=1, num_workers=workers, data_collator=collate)
    batches = [batch for step in module.steps(epoch, skip, accumulation) for batch in step.micro_batches]
    return torch.cat([torch.cat([batch["input_ids"], batch["labels"]], 1) for batch in batches])


@pytest.mark.parametrize("kind", RANDOM)
def test_what_is_drawn_is_a_function_of_seed_epoch_and_sample(kind, rng_untouched):
    reference = drawn(kind)
    assert torch.equal(drawn(kind, workers=1), reference)
    assert torch.equal(drawn(kind, workers=2), reference)
    assert torch.equal(drawn(kind, workers=2, skip=4), reference[4:]), "a resume in mid-epoch draws something else"
    assert not torch.equal(drawn(kind, epoch=1), reference), "every epoch draws the same"


def test_what_is_drawn_does_not_depend_on_the_batch():
    by_sample = [sorted(drawn("dataset", accumulation=n).tolist()) for n in (1, 2)]
    assert by_sample[0] == by_sample[1]
    module = UniversalDataModule(Augmented(), batch_size=5, seed=1)
    other_batches = torch.cat([b["input_ids"] for step in module.steps(0, 0, 1) for b in step.micro_batches])
    assert sorted(row[:4] for row in by_sample[0]) == sorted(other_batches.tolist())


def test_a_loader_made_from_a_module_draws_anew_each_epoch():
    module = UniversalDataModule(Augmented(), batch_size=2, seed=1)
    again = UniversalDataModule(module.train_dataloader(), seed=1)
    first, second = (
        torch.cat([batch["input_ids"] for step in again.steps(epoch, 0, 1) for batch in step.micro_batches])
        for epoch in (0, 1)
    )
    assert sorted(first[:, 0].tolist()) == sorted(second[:, 0].tolist())
    assert sorted(first.tolist()) != sorted(second.tolist())
