"""Random state: one seed for everything, captured into checkpoints, and given back to the caller unchanged."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from utils.environment import CUBLAS_WORKSPACE
from utils.errors import ConfigError, first_line


def seed_all(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators (torch: on every device)."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - models and users' code draw from the global generator
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        # torch.manual_seed formats the whole stack for each kind of device that is not initialised: 1 to 2 ms a call.
        torch.default_generator.manual_seed(seed)


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
    random.setstate(_python_state(state["python"]))
    np.random.set_state(_numpy_state(state["numpy"]))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])


def problem(state: dict[str, Any]) -> str | None:
    """Explain why `state` is not a result of `capture`; None when it is. Missing parts are no problem here.

    Each part is tried on a generator of its own; the global ones are not touched.
    """
    tries: dict[str, Callable[[], object]] = {
        "python": lambda: random.Random().setstate(_python_state(state["python"])),
        "numpy": lambda: np.random.RandomState().set_state(_numpy_state(state["numpy"])),
        "torch": lambda: torch.Generator().set_state(state["torch"]),
        "cuda": lambda: _require_bytes(state["cuda"]),
    }
    for name, attempt in tries.items():
        if name in state:
            try:
                attempt()
            except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
                return f"{name}: not a generator's state ({first_line(error, with_class=True)})"
    return None


def _require_bytes(states: list[torch.Tensor]) -> None:
    wrong = [state.dtype for state in states if state.dtype is not torch.uint8]
    if wrong:
        raise TypeError(f"got {wrong[0]}; must be torch.uint8")


def _python_state(python: dict[str, Any]) -> tuple[Any, ...]:
    return python["version"], tuple(python["words"]), python["gauss"]


def _numpy_state(state: dict[str, Any]) -> tuple[Any, ...]:
    words = state["words"].numpy().astype(np.uint32)
    return "MT19937", words, state["position"], state["has_gauss"], state["gauss"]


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Whatever is drawn inside, the generators are as before afterwards."""
    before = snapshot()
    try:
        yield
    finally:
        rewind(before)


# What makes cuBLAS repeat itself: the two settings that its documentation (Results reproducibility) names.
_REPEATING_WORKSPACES = (":4096:8", ":16:8")


@contextlib.contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Only algorithms that give the same bits each time, for the length of the block; `deterministic=True` in the config.

    torch's algorithms, cuDNN's choice among its own, and cuBLAS's workspace. What datasets draw is a function of seed, epoch
    and sample anyway (`utils.data.sources.DatasetSource`). `environment.json` says what was set.
    Raises:
        ConfigError: an operation has no such algorithm; names it and the switch.
    Not covered: cuBLAS may have read its setting before, if this process has used the GPU already.
    """
    if not wanted:
        yield
        return
    with _switched_to_deterministic():
        try:
            yield
        except RuntimeError as error:
            if "use_deterministic_algorithms" not in str(error):
                raise
            raise _no_such_algorithm(error) from error


@contextlib.contextmanager
def _switched_to_deterministic() -> Iterator[None]:
    algorithms, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(CUBLAS_WORKSPACE)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    if workspace not in _REPEATING_WORKSPACES:
        os.environ[CUBLAS_WORKSPACE] = _REPEATING_WORKSPACES[0]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(CUBLAS_WORKSPACE, None)
        else:
            os.environ[CUBLAS_WORKSPACE] = workspace


def _no_such_algorithm(error: RuntimeError) -> ConfigError:
    operation = str(error).split(",")[0]
    told = ConfigError(
        f"deterministic=True: {operation}. Set deterministic=False, or change the model so that it does without this operation."
    )
    for note in getattr(error, "__notes__", ()):
        told.add_note(note)
    return told
