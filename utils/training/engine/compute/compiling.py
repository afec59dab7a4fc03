"""torch.compile for the training step: what it needs, and compiling before the clock starts."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time

from utils.data.batch import Batch
from utils.environment import Device
from utils.errors import ConfigError, ModelError, first_line
from utils.training.engine.compute.assembly import Parts

_COMPILERS = ("g++", "c++", "clang++", "cl")


def check_compiler(compile_mode: str | None, device: Device) -> None:
    """Raises `ConfigError` when `compile_mode` is asked for and the tools that torch.compile needs are not here."""
    if compile_mode is None:
        return
    wanted = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ((wanted,) if wanted else _COMPILERS)):
        looked_for = wanted or ", ".join(_COMPILERS)
        raise ConfigError(
            f"compile_mode={compile_mode!r} needs a C++ compiler, and none is here (looked for {looked_for}). Install one "
            "(Debian, Colab: apt-get install g++), or set compile_mode=None."
        )
    if device.kind == "cuda" and importlib.util.find_spec("triton") is None:
        raise ConfigError(
            f"compile_mode={compile_mode!r} needs the package triton on a GPU, and it is not installed: pip install triton, or "
            "set compile_mode=None."
        )


def compile_now(parts: Parts, batch: Batch) -> float:
    """Compile forward and backward pass for batches like this one. Returns the seconds that it took.

    Weights, buffers and random state are as before afterwards; gradients are None.
    Raises:
        ModelError: the model cannot be compiled.
    """
    began = time.perf_counter()
    try:
        parts.rehearse(batch)
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise ModelError(
            f"{type(parts.model).__name__} cannot be compiled ({first_line(error, with_class=True)}). Set compile_mode=None."
        ) from error
    return time.perf_counter() - began
