"""Random state: one seed for everything, captured into checkpoints, and given back to the caller unchanged."""

from __future__ import annotations

import contextlib
import ctypes
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators (torch: on every device)."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - models and users' code draw from the global generator
    torch.manual_seed(seed)


Snapshot = tuple[Any, Any, torch.Tensor, list[torch.Tensor]]


def snapshot() -> Snapshot:
    """The state of every global generator, as cheaply as it can be had: taken before each step."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return random.getstate(), _NumpyState.get(), torch.get_rng_state(), cuda


class _NumpyState:
    """numpy's global state, asked for again only when it changed: asking takes as long as a small model's layer."""

    _memory = b""
    _state: Any = None

    @classmethod
    def get(cls) -> Any:
        # The generator's own memory tells whether anything was drawn or set: 624 words and a position (mt19937).
        generator = np.random.mtrand._rand._bit_generator
        memory = ctypes.string_at(generator.ctypes.state_address, 625 * 4)
        if memory != cls._memory:
            cls._memory, cls._state = memory, np.random.get_state()  # noqa: NPY002
        return cls._state


def rewind(state: Snapshot) -> None:
    """Set every global generator to what `snapshot` returned."""
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    torch.set_rng_state(state[2])
    if state[3]:
        torch.cuda.set_rng_state_all(state[3])


def capture() -> dict[str, Any]:
    """The state of every global generator, as tensors and plain values that a checkpoint can hold."""
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    assert isinstance(numpy_state, dict)
    return {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {
            "words": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "position": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(state: dict[str, Any]) -> None:
    """Set every global generator to what `capture` returned."""
    python, numpy_state = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    np.random.set_state(  # noqa: NPY002
        (
            "MT19937",
            numpy_state["words"].numpy().astype(np.uint32),
            numpy_state["position"],
            numpy_state["has_gauss"],
            numpy_state["gauss"],
        )
    )
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Whatever is drawn inside, the generators are as before afterwards."""
    before = snapshot()
    try:
        yield
    finally:
        rewind(before)


@contextlib.contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Only algorithms that give the same bits each time, for the length of the block.

    An operation without one raises RuntimeError. cuBLAS reads its workspace setting once, at its first use, so on CUDA
    `CUBLAS_WORKSPACE_CONFIG=:4096:8` must be in the environment; torch names it when it is missing.
    """
    if not wanted:
        yield
        return
    algorithms, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms)
        torch.backends.cudnn.benchmark = benchmark
