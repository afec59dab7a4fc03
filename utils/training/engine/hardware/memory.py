"""Running out of memory: how it is recognised, and how a step is done in smaller pieces."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from utils.data.batch import Batch
from utils.environment import free_memory_bytes
from utils.errors import OutOfMemoryError, TrainbookError, first_line

T = TypeVar("T")

# Share of a CPU's free memory that may be planned for: backward passes need more than what is kept for them.
_USABLE = 0.8

# What allocators say: CUDA's and MPS's, cuBLAS's and cuDNN's when their workspace does not fit, and the CPU's.
_WORDS = (
    "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "can't allocate memory", "not enough memory",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed. Nothing else is ever tried again."""
    if isinstance(error, TrainbookError):  # somebody has dealt with it
        return False
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


def free_memory() -> None:
    """Give back what is no longer used. Call it outside the `except` block: until there, the error's frames hold tensors."""
    gc.collect()
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """While inside, what a CPU's tensors give back stays with the process, and is there for the next step.

    glibc hands blocks of more than 32 MiB back to the system each time, which then clears fresh pages for the next one: up to a
    third of a step's time where the vocabulary is large. On leaving everything goes back. Elsewhere (other C libraries, the
    user's own MALLOC_ settings) nothing is changed.
    """
    with _Kept.lock:
        libc = _glibc()
        if libc is not None and _Kept.users == 0:
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
        _Kept.users += 1
    try:
        yield
    finally:
        with _Kept.lock:
            _Kept.users -= 1
            if libc is not None and _Kept.users == 0:
                # Where glibc's own adaptation ends up in a process that has once freed a large block.
                libc.mallopt(_M_MMAP_MAX, 65536)
                libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
                libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)
                libc.malloc_trim(0)


class _Kept:
    """Number of trainings in this process that want freed memory kept."""

    lock = threading.Lock()
    users = 0


# mallopt(3)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_NEVER = 2**31 - 1


@functools.cache
def _glibc() -> Any:
    """The C library, where it is glibc and its allocator is used as it comes; else None."""
    own_settings = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get(
        "GLIBC_TUNABLES", ""
    )
    if own_settings or os.environ.get("LD_PRELOAD") or platform.libc_ver()[0] != "glibc":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def rows_of(batch: Batch) -> int:
    """Samples in a batch."""
    return len(next(iter(batch.values())))


def split(batches: list[Batch], most: int | None) -> list[Batch]:
    """The same samples in the same order, in micro-batches of at most `most` (None: as they are)."""
    if most is None:
        return batches
    return [piece for batch in batches for piece in _pieces(batch, most)]


def _pieces(batch: Batch, most: int) -> list[Batch]:
    rows = rows_of(batch)
    if rows <= most:
        return [batch]
    starts = range(0, rows, most)
    return [
        {name: value[start : start + most] if _has_rows(value, rows) else value for name, value in batch.items()}
        for start in starts
    ]


def _has_rows(value: torch.Tensor, rows: int) -> bool:
    return value.dim() > 0 and len(value) == rows


@dataclass
class Pieces:
    """Micro-batching under memory pressure: as many samples at once as were asked for, until memory runs out.

    Attributes:
        most: samples at once; None: as many as a micro-batch has. It only ever gets smaller.
    """

    most: int | None = None

    def run(
        self,
        batches: list[Batch],
        work: Callable[[list[Batch]], T],
        what: str,
        again: Callable[[], None] = lambda: None,
        split_up: bool = True,
    ) -> T:
        """`work` on the samples of `batches`, in halves of halves until it fits.

        Args:
            what: the subject of the error's message.
            again: called before each further try, to take back what the failed one did.
            split_up: False where it cannot be tried again: other processes take part in each pass.
        Raises:
            OutOfMemoryError: a single sample does not fit; says what helps.
        """
        while True:
            pieces = split(batches, self.most)
            try:
                return work(pieces)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(pieces, error, what, split_up)
            # Out of the except block: until there, the error's frames hold the tensors.
            free_memory()
            again()

    def _halve(self, pieces: list[Batch], error: BaseException, what: str, split_up: bool) -> None:
        size = max(map(rows_of, pieces))
        if not split_up:
            raise OutOfMemoryError(
                f"{what} ({_shapes(pieces[0])}) does not fit in memory: {first_line(error)}. With sharded layers a "
                "pass cannot be split by one process. Set a smaller batch_size."
            ) from error
        if size <= 1:
            raise OutOfMemoryError(
                f"{what} with a single sample ({_shapes(pieces[0])}) does not fit in memory: {first_line(error)}. "
                "Train on shorter sequences, set gradient_checkpointing=True, or take a smaller model."
            ) from error
        self.most = (size + 1) // 2


def largest_that_fits(
    batch: Batch, rehearse: Callable[[Batch], None], *, on_cpu: bool, fixed_bytes: int, fewest: int = 1
) -> int:
    """The most samples of `batch` that go through forward and backward pass at once.

    An accelerator is tried: halves, until it fits. A CPU's system ends a process that takes too much: there, what the backward
    pass keeps is measured on `fewest` samples and one more, and extended to 80 % of the free memory.

    Args:
        rehearse: one forward and backward pass, with nothing left of it.
        fixed_bytes: what training takes besides: gradients, the optimizer's averages.
        fewest: samples that the model needs at once: 2 with a BatchNorm.
    Raises:
        OutOfMemoryError: not even one sample fits.
    """
    rows = rows_of(batch)
    if not on_cpu:
        pieces = Pieces()
        pieces.run([batch], lambda some: rehearse(some[0]), "a training step")
        return rows if pieces.most is None else pieces.most
    free = free_memory_bytes("cpu")
    if free is None or rows <= fewest:
        return rows
    kept = [_kept_for_backward(_pieces(batch, size)[0], rehearse) for size in (fewest, fewest + 1)]
    room = _USABLE * free - fixed_bytes - kept[0]
    if room < 0:
        raise OutOfMemoryError(
            f"training this model takes about {(fixed_bytes + kept[0]) / 2**20:,.0f} MiB with {_samples(fewest)}, and "
            f"{free / 2**20:,.0f} MiB are free. Take a smaller model or shorter sequences."
        )
    return min(rows, fewest + int(room // max(1, kept[1] - kept[0])))


def _samples(count: int) -> str:
    return "a single sample" if count == 1 else f"{count} samples"


class KeptForBackward:
    """Measure the storage that autograd keeps from forward to backward inside the `with` block, each storage once.

    Attributes:
        num_bytes: kept so far, since the beginning or the last `forget`.

    Args:
        known: addresses of storages that do not count, such as those of the parameters.
    """

    def __init__(self, known: frozenset[int] = frozenset()) -> None:
        self._known, self._bytes = known, dict[int, int]()
        # Alive until they are forgotten, or a freed storage's address would be given out again.
        self._held: list[torch.Tensor] = []
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    @property
    def num_bytes(self) -> int:
        return sum(self._bytes.values())

    def forget(self) -> None:
        """Begin again."""
        self._bytes.clear()
        self._held.clear()

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._bytes[storage.data_ptr()] = storage.nbytes()
            self._held.append(tensor.detach())
        return tensor

    def __enter__(self) -> KeptForBackward:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
        self._held.clear()


def _kept_for_backward(batch: Batch, rehearse: Callable[[Batch], None]) -> int:
    """Bytes that autograd keeps from the forward to the backward pass, parameters too."""
    with KeptForBackward() as kept:
        rehearse(batch)
    return kept.num_bytes


def _shapes(batch: Mapping[str, torch.Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items())
