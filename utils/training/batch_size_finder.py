"""The largest micro-batch that fits, tried out with real training steps on a copy of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from utils.environment import free_memory_bytes
from utils.errors import ConfigError, DataTypeError, OutOfMemoryError
from utils.training.engine.callbacks import Callback, Logs
from utils.training.engine.compute.master_weights import bytes_in_training
from utils.training.engine.hardware.memory import KeptForBackward, free_memory
from utils.training.engine.state import TrainState
from utils.training.engine.trainer import Trainer
from utils.training.trial_training import TrialTraining

if TYPE_CHECKING:
    from utils.training.task_spec import TaskSpec

# Share of the memory that may be planned for: backward passes need more than what is kept for them.
_USABLE = 0.8
_ADAM_BYTES = 8  # two fp32 averages of each trainable number (Kingma & Ba 2014)
_MIB = 2**20


@dataclass(frozen=True)
class BatchSizeSuggestion:
    """The largest micro-batch that fits.

    Attributes:
        batch_size: rows; gradient_accumulation_steps: micro-batches that keep at least as many samples a step as planned.
        tried: rows -> whether two training steps with them fitted, in the order of the trials.
        limited_by: what ended the search: "memory", "estimate" (a CPU's memory, not tried), "data" or "max_batch_size".
        note: in words.
    """

    batch_size: int
    gradient_accumulation_steps: int
    tried: dict[int, bool]
    limited_by: str
    note: str

    def show(self) -> None:
        """Show what was found."""
        from utils.views.display import show_table

        show_table("Batch size", self.rows())

    def rows(self) -> dict[str, str]:
        """The suggestion as a table."""
        tried = ", ".join(f"{size} {'fits' if fits else 'does not fit'}" for size, fits in self.tried.items())
        return {
            "Batch size": f"{self.batch_size}",
            "Gradient accumulation": f"{self.gradient_accumulation_steps}",
            "Tried": tried,
            "Note": self.note,
        }


def find_batch_size(
    model: nn.Module | Trainer, train_data: Any, *, training_config: Any = None, task_spec: TaskSpec | None = None,
    tokenizer: Any = None, data_collator: Any = None, max_batch_size: int = 1024, memory_limit_bytes: int | None = None,
) -> BatchSizeSuggestion:  # fmt: skip
    """The largest micro-batch that trains without running out of memory: doubled until it does not fit, then bisected.

    A trial is two optimizer steps, the second of which has the optimizer's averages in memory too. A CPU's system ends the
    process instead of refusing memory, so there nothing is tried that would by an estimate need more than 80 % of what is
    free: weights, gradients, averages, and what autograd keeps, measured in real steps of one, two and four rows.

    Args:
        model, training_config, task_spec, tokenizer, data_collator: as for `find_learning_rate`.
        train_data: rows by number; not a DataLoader, which has its own batch size.
        max_batch_size: never try more rows.
        memory_limit_bytes: on a CPU, memory that may be used; None: what is free now.
    Raises:
        ConfigError: not even one row fits; a limit on a device that is no CPU; a CPU whose free memory is not known.
        DataTypeError: a DataLoader.
    Not covered: rows of different lengths, of which the first ones are tried; fragmentation in a long training: leave a
    margin.
    """
    if max_batch_size < 1:
        raise ConfigError(f"max_batch_size must be at least 1; got {max_batch_size}.")
    if isinstance(train_data, DataLoader):
        raise DataTypeError(
            "find_batch_size needs single examples, and a DataLoader has a batch size of its own. Give loader.dataset, and "
            "data_collator=loader.collate_fn where it has one."
        )
    job = TrialTraining.of(model, train_data, training_config, task_spec, tokenizer, data_collator)
    rows = job.data().num_train
    assert rows is not None  # only streams have no length, and they come as loaders
    limits = {"data": rows, "max_batch_size": max_batch_size}
    on_cpu = _device_kind() == "cpu"
    if memory_limit_bytes is not None and not on_cpu:
        raise ConfigError(
            "memory_limit_bytes is for a CPU; on this device memory is tried, not estimated. Leave it out."
        )
    tried: dict[int, bool] = {}

    def fits(size: int) -> bool:
        tried[size] = _fits(job, size)
        return tried[size]

    with _off_the_device(job.model):
        if on_cpu:
            limits["estimate"] = _rows_within(job, min(4, rows, max_batch_size), memory_limit_bytes)
        limited_by = min(limits, key=lambda name: limits[name])
        largest = _largest(fits, limits[limited_by])
    if largest == 0:
        raise ConfigError(
            "not even one example fits into the memory. Shorten max_length, set gradient_checkpointing=True, or take a smaller "
            "model."
        )
    if not all(tried.values()):
        limited_by = "memory"
    accumulation = max(1, math.ceil(job.config.samples_per_step / largest))
    note = _batch_note(largest, limited_by, accumulation, on_cpu)
    return BatchSizeSuggestion(largest, accumulation, tried, limited_by, note)


def _largest(fits: Callable[[int], bool], limit: int) -> int:
    """The largest size up to `limit` that fits, 0 when none does; larger ones never fit where a smaller one does not."""
    good, size = 0, min(1, limit)
    while size > good and fits(size):
        good, size = size, min(2 * size, limit)
    bad = size if size > good else limit + 1
    while bad <= limit and bad - good > 1:
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def _fits(job: TrialTraining, size: int) -> bool:
    """Whether two steps of `size` rows fit into the memory; all of it is free again afterwards."""
    try:
        # The engine takes a step apart that does not fit.
        found = _two_steps(job, size).pieces.most is None
    except OutOfMemoryError:
        found = False
    # Out of the except block: until there, the error's frames hold the tensors.
    free_memory()
    return found


def _two_steps(job: TrialTraining, size: int) -> TrainState:
    # Exactly `size` rows an epoch, so both steps are full ones.
    return job.train(
        batch_size=size,
        gradient_accumulation_steps=1,
        max_train_samples=size,
        epochs=2,
        max_steps=2,
        save_every_n_epochs=2,
    )


def _device_kind() -> str:
    from utils.environment import detect_device

    return detect_device().kind


@contextmanager
def _off_the_device(model: nn.Module) -> Iterator[None]:
    """A model on an accelerator is moved to the host's memory meanwhile, so that it takes no device memory from its copy."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if device.type == "cpu":
        yield
        return
    model.to("cpu")
    free_memory()
    try:
        yield
    finally:
        model.to(device)


def _rows_within(job: TrialTraining, most: int, limit_bytes: int | None) -> int:
    """Rows whose training needs, by an estimate, no more than the usable part of the memory; 0 when none."""
    free = free_memory_bytes("cpu") if limit_bytes is None else limit_bytes
    if free is None:
        raise ConfigError(
            "how much memory is free is not known on this system, and a CPU cannot be tried to its limit. Give "
            "memory_limit_bytes."
        )
    trainable = [parameter for parameter in job.model.parameters() if parameter.requires_grad]
    # The copy's weights, gradients and averages; the model itself is in memory already.
    num_bytes = bytes_in_training(job.model)
    fixed = sum(num_bytes.values()) + sum(num_bytes[p] + p.numel() * _ADAM_BYTES for p in trainable)
    room = _USABLE * free - fixed
    sizes = [size for size in (1, 2, 4) if size <= most]
    kept: list[int] = []
    for size in sizes:
        # The measurement itself must not be what fills the memory.
        if room <= 0 or (kept and 2 * kept[-1] > room):
            return size - 1
        try:
            kept.append(_kept_for_backward(job, size))
        except OutOfMemoryError:
            return size - 1
    pairs = zip(zip(sizes, kept, strict=True), zip(sizes[1:], kept[1:], strict=True), strict=False)
    growths = [(after - before) / (more - fewer) for (fewer, before), (more, after) in pairs]
    per_row = max(growths, default=kept[0]) or 1
    return max(0, int((room - kept[0]) // per_row) + 1) if room >= kept[0] else 0


def _kept_for_backward(job: TrialTraining, rows: int) -> int:
    """Bytes that autograd keeps in a real training step of `rows`, parameters too."""
    kept, largest = KeptForBackward(), 0

    class Counting(Callback):
        def on_step_end(self, step: int, trainer: Trainer, logs: Logs | None = None) -> None:
            nonlocal largest
            largest = max(largest, kept.num_bytes)
            kept.forget()

    with kept:
        job.train(
            Counting(), batch_size=rows, gradient_accumulation_steps=1, max_train_samples=rows, epochs=1, max_steps=1
        )
    return largest


def _batch_note(size: int, limited_by: str, accumulation: int, on_cpu: bool) -> str:
    reasons = {
        "memory": f"{size} examples are the most that fitted; leave a margin for a long training.",
        "estimate": f"{size} examples fit; more would by an estimate need over {_USABLE:.0%} of the free memory.",
        "data": f"{size} examples fit, and the training data have no more.",
        "max_batch_size": f"{size} examples fit, and no more were tried (max_batch_size).",
    }
    kept = f" With gradient_accumulation_steps={accumulation} a step has at least as many samples as planned."
    slow = " On a CPU a larger batch seldom trains faster." if on_cpu else ""
    return reasons[limited_by] + kept + slow
